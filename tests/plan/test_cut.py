"""The cheapest precisions are those that trying all of them finds."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxq.plan.cut import Costs, cheapest

SECONDS = st.integers(0, 9).map(float)


@st.composite
def costs(draw):
    count = draw(st.integers(1, 7))
    found = Costs()
    for i in range(count):
        found.int8[i], found.in_float[i] = draw(SECONDS), draw(SECONDS)
    for pair in itertools.combinations(range(count), 2):
        if draw(st.booleans()):
            found.edges[pair] = draw(SECONDS), draw(SECONDS)
    return found


@settings(max_examples=100)
@given(costs())
def test_no_precisions_are_cheaper(found):
    chosen = cheapest(found)
    every = [dict(enumerate(precisions)) for precisions in itertools.product([True, False], repeat=len(found.int8))]
    assert found.of(chosen) == pytest.approx(min(map(found.of, every)), abs=1e-6)


def test_a_border_costs_more_than_a_layer_gains():
    """Five layers in a row; the third alone is faster in float, but not by two borders."""
    found = Costs()
    for i in range(5):
        found.int8[i], found.in_float[i] = 1.0, 3.0
        if i:
            found.edges[i - 1, i] = 0.4, 0.4
    found.int8[2], found.in_float[2] = 1.0, 0.5
    assert all(cheapest(found).values())
    found.int8[2] = 2.0
    assert cheapest(found) == {0: True, 1: True, 2: False, 3: True, 4: True}


def test_what_is_even_is_in_int8():
    found = Costs()
    found.int8["a"] = found.in_float["a"] = 1.0
    assert cheapest(found) == {"a": True}


def test_times_of_very_different_sizes():
    found = Costs()
    found.int8.update(a=1e-6, b=5.0)
    found.in_float.update(a=3e-6, b=4.0)
    found.edges["a", "b"] = 1e-7, 1e-7
    assert cheapest(found) == {"a": True, "b": False}
