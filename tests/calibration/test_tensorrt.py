"""TensorRT's text format: known bytes, the way back, and bad lines by their number."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from networks import images, mlp, mlp_params

import jaxq
from jaxq.calibration.tensorrt import from_text, to_text

HEADER = "TRT-8601-EntropyCalibration2"


def test_known_bytes():
    text = to_text({"data": 127.0, "conv": 127 * 0.5, "last": 127 * 1.5})
    assert text == f"{HEADER}\ndata: 3f800000\nconv: 3f000000\nlast: 3fc00000\n"


def test_the_threshold_of_known_bytes():
    """A line that TensorRT wrote."""
    assert from_text(f"{HEADER}\ndata: 3c010a14\n") == {"data": 127 * float.fromhex("0x1.021428p-7")}


@hypothesis.given(st.dictionaries(st.from_regex(r"[\w:/#(). ]*\w", fullmatch=True), st.floats(1e-30, 1e30), max_size=9))
def test_round_trip(thresholds):
    hypothesis.assume(all(name == name.strip() and len(name.splitlines()) == 1 for name in thresholds))
    back = from_text(to_text(thresholds))
    assert list(back) == list(thresholds)
    assert to_text(back) == to_text(thresholds)
    for name, threshold in thresholds.items():
        assert back[name] == pytest.approx(threshold, rel=2**-23)


def test_names_with_colons_spaces_and_slashes():
    names = ("Net/Block_0/Conv_1:0", "a: b", "c:", "item#2", "(Unnamed Layer* 3) [Convolution]_output", "größe")
    assert list(from_text(to_text(dict.fromkeys(names, 1.0)))) == list(names)


def test_windows_line_ends_and_empty_lines():
    assert from_text(f"{HEADER}\r\na: 3f800000\r\n\r\nb: 40000000\r\n") == {"a": 127.0, "b": 254.0}
    assert from_text(f"{HEADER}\na: 3F800000") == {"a": 127.0}
    assert from_text(HEADER) == from_text("TRT-100-MinMaxCalibration\n") == {}


def test_a_tensor_without_a_scale_is_left_out():
    assert from_text(f"{HEADER}\na: 00000000\nb: 3f800000\n") == {"b": 127.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "line 1: begins with '', not with 'TRT-'"),
        ("a: 3f800000\n", "line 1: begins with 'a: 3f800000'"),
        (f"{HEADER}\na: 3f800000\nb 3f800000\n", "line 3: 'b 3f800000' is not 'name: eight hex digits'"),
        (f"{HEADER}\na: 3f80\n", "line 2: 'a: 3f80' is not"),
        (f"{HEADER}\na: 3f80000000\n", "line 2: 'a: 3f80000000' is not"),
        (f"{HEADER}\n\na: 3f80000g\n", "line 3: 'a: 3f80000g' is not"),
        (f"{HEADER}\na: 3f 80 00 00\n", "line 2: 'a: 3f 80 00 00' is not"),
        (f"{HEADER}\n: 3f800000\n", "line 2: ': 3f800000' is not"),
        (f"{HEADER}\na: bf800000\n", "line 2: the scale of 'a' is -1.0"),
        (f"{HEADER}\na: 7fc00000\n", "line 2: the scale of 'a' is nan"),
        (f"{HEADER}\na: 7f800000\n", "line 2: the scale of 'a' is inf"),
        (f"{HEADER}\na: 3f800000\nb: 3f800000\na: 40000000\n", "line 4: 'a' has a scale already"),
    ],
)
def test_bad_lines(lines, message):
    with pytest.raises(jaxq.CalibrationError) as caught:
        from_text(lines)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\r", "a\u2028b", "a\x0bb"])
def test_names_that_a_line_cannot_hold(name):
    with pytest.raises(jaxq.CalibrationError, match="does not fit on a line; rename the layer"):
        to_text({name: 1.0})


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300])
def test_thresholds_that_are_no_float32(threshold):
    with pytest.raises(jaxq.CalibrationError, match="threshold of 'a' is .*, not a positive float32"):
        to_text({"a": threshold})


def test_the_greatest_float32_is_written():
    top = float(np.finfo(np.float32).max)
    assert from_text(to_text({"a": 127 * top})) == {"a": 127 * top}


def test_a_calibration_as_a_cache():
    c = jaxq.calibrate(mlp, mlp_params(6, 5, 4), [images(8, 6)], config=jaxq.QuantConfig(method="mse"))
    for method in ("amax", "percentile"):
        back = from_text(c.tensorrt_cache(method, percentile=90))
        assert back == pytest.approx(c.thresholds(method, percentile=90), rel=2**-23)


def test_bytes_are_not_text():
    with pytest.raises(jaxq.CalibrationError, match="takes text, not bytes"):
        from_text(b"TRT-8601-EntropyCalibration2\n")
