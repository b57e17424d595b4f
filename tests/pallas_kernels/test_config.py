import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import Config, candidates, default_config

sizes = st.integers(0, 200_000)


@given(sizes, sizes, sizes)
def test_candidates_are_distinct_and_leave_registers(m, n, k):
    configs = candidates(m, n, k)
    assert configs[0] == default_config(m, n, k)
    assert len(set(configs)) == len(configs)
    assert all(config.accumulators <= 64 for config in configs)  # __post_init__ has checked the rest


def test_default_reads_wide_rows_in_a_decode_step():
    assert default_config(1, 4096, 4096) == Config(1, 8, 1024, 4)
    assert default_config(8, 4096, 4096) == Config(8, 8, 512, 4)


@pytest.mark.parametrize("blocks", [(3, 8, 64, 4), (8, 0, 64, 4), (8, 8, 2, 4), (8, 8, 64, 3), (64, 64, 64, 4)])
def test_invalid(blocks):
    with pytest.raises(ValueError, match=r"powers of two|accumulators"):
        Config(*blocks)
