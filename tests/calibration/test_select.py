"""The choice between the candidate thresholds of a tensor."""

import warnings

import cheap
import jax
import numpy as np
import pytest

import jaxq
from jaxq.calibration.histogram import from_samples, merge
from jaxq.calibration.select import CANDIDATES, SMALLEST_THRESHOLD, Tensor, candidates, joined, select, sums
from jaxq.calibration.thresholds import threshold

RNG = np.random.default_rng(0)
X = {"a": RNG.laplace(size=20_000), "b": 3 * RNG.laplace(size=20_000), "zeros": np.zeros(10)}


def of(arrays):
    """The histograms of several tensors, compiled at once."""
    samples = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    return jax.device_get(cheap.jit(lambda arrays: {name: from_samples(x) for name, x in arrays.items()})(samples))


HISTOGRAMS = of(X)
A, AB = Tensor(("a",), "int8"), Tensor(("a", "b"), "int8")
FOUND = candidates(A, HISTOGRAMS, 99.99)


def auto(errors):
    return select({A: "auto"}, HISTOGRAMS, {"a": errors}, 99.99)[A]


def test_candidates_are_the_thresholds_of_the_methods():
    assert len(set(FOUND.values())) == len(CANDIDATES)
    for method, found in FOUND.items():
        assert found == threshold(HISTOGRAMS["a"], method, unsigned=False, percentile=99.99)


@pytest.mark.parametrize("best", CANDIDATES)
def test_the_least_error_wins(best):
    assert auto({t: float(method != best) for method, t in FOUND.items()}) == (best, FOUND[best])


def test_a_tie_goes_to_the_method_named_first():
    assert auto(dict.fromkeys(FOUND.values(), 0.5))[0] == "mse"
    assert auto({FOUND[method]: float(method == "mse") for method in CANDIDATES})[0] == "entropy"


@pytest.mark.parametrize(("error", "chosen"), [(1.19, "mse"), (1.21, "amax")])
def test_errors_that_differ_by_chance_are_a_tie(error, chosen):
    assert auto(dict.fromkeys(FOUND.values(), 9.0) | {FOUND["mse"]: error, FOUND["amax"]: 1.0})[0] == chosen


def test_where_not_all_candidates_were_measured_mse_chooses_and_says_so():
    """The others could be better than those that were."""
    other = Tensor(("b",), "int8")
    errors = {"a": {t: float(m != "amax") for m, t in FOUND.items()}, "b": {}}
    for _ in range(2):
        with pytest.warns(UserWarning, match="no measured errors of 'b': 'mse' chose") as caught:
            chosen = select({A: "auto", other: "auto"}, HISTOGRAMS, errors, 99.99)
        assert len(caught) == 1
        assert (chosen[A][0], chosen[other][0]) == ("amax", "mse")
        errors["b"] = {threshold(HISTOGRAMS["b"], "amax", unsigned=False, percentile=99.99): 0.0}


def test_candidates_that_agree_need_no_errors():
    constant = of({"a": np.full(100, 6.0)})
    assert select({A: "auto"}, constant, {}, 99.99) == {A: ("mse", 6.0)}


def test_without_any_errors_auto_is_an_error():
    with pytest.raises(jaxq.CalibrationError, match="measured no errors to choose by"):
        select({A: "auto"}, HISTOGRAMS, {}, 99.99)


def test_named_methods_need_no_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in CANDIDATES:
            assert select({A: method}, HISTOGRAMS, {}, 99.99) == {A: (method, FOUND[method])}


def test_values_of_one_scale_are_one_histogram():
    both = merge(HISTOGRAMS["a"], HISTOGRAMS["b"])
    np.testing.assert_array_equal(joined(AB, HISTOGRAMS).counts, both.counts)
    assert select({AB: "amax"}, HISTOGRAMS, {}, 99.99)[AB] == ("amax", np.abs(X["b"]).max().astype(np.float32))


def test_unsigned_tensors_have_more_levels():
    unsigned = Tensor(("a",), "uint8")
    chosen = select({A: "mse", unsigned: "mse"}, HISTOGRAMS, {}, 99.99)
    assert chosen[unsigned][1] == threshold(HISTOGRAMS["a"], "mse", unsigned=True) > chosen[A][1]


def test_a_threshold_is_never_too_small_for_its_scale():
    tiny = of({"t": np.full(4, 2.0**-120), "zeros": X["zeros"]})
    tensor, zeros = Tensor(("t",), "int8"), Tensor(("zeros",), "int8")
    chosen = select({tensor: "amax", zeros: "amax"}, tiny, {}, 99.99)
    assert chosen == {tensor: ("amax", SMALLEST_THRESHOLD), zeros: ("amax", 1.0)}


def test_the_errors_of_all_readers_count():
    assert sums({"a": {1.0: {"conv": 0.25, "dot": 0.5}, 2.0: {"conv": 1.0}}}) == {"a": {1.0: 0.75, 2.0: 1.0}}
