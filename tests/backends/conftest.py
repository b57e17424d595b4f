"""What tests of backends share."""

import pytest

from jaxq.backends.cpu import regions


@pytest.fixture
def every_node_is_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that alone would not be worth a call."""
    monkeypatch.setattr(regions, "is_worth_a_call", lambda nodes: True)
