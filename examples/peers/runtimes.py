"""ONNX Runtime and OpenVINO: a float ONNX model to compiled networks, in float and int8, ready to be timed."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnxruntime import quantization
from onnxruntime.transformers import optimizer

from peers.networks import Batch
from peers.onnx_graph import BATCH

os.environ["NNCF_CI"] = "1"  # no usage statistics: sending them would fork a process that runs JAX
import nncf

for name in ("", "nncf"):
    logging.getLogger(name).setLevel(logging.ERROR)
INTEGERS = ("i8", "u8")


@dataclass(frozen=True)
class Compiled:
    """A network at one batch size: `run` takes its arrays to its output; `int8_ops` says how many of its convs and
    products are int8."""

    run: Callable[..., Any]
    int8_ops: str


# ------------------------------------------------------------------------------------------------------- ONNX Runtime

# The ops that are convs or products in int8, after ONNX Runtime has fused.
_ORT_INT8 = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"),
        *("DynamicQuantizeMatMul", "QAttention"),
    }
)
_ORT_FLOAT = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention"})


def ort_compile(path: Path, size: int, threads: int) -> Compiled:
    """The ONNX file at a batch size."""
    optimized = path.with_suffix(f".{size}.optimized.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(BATCH, size)
    options.optimized_model_filepath = str(optimized)
    # Idle threads that spin would slow down whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    ops = [node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node]
    optimized.unlink()
    int8, rest = (sum(op in known for op in ops) for known in (_ORT_INT8, _ORT_FLOAT))

    def run(*arrays: np.ndarray) -> Any:
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return Compiled(run, f"{int8}/{int8 + rest}")


class _Reader(quantization.CalibrationDataReader):
    """Hands calibration batches to ONNX Runtime."""

    def __init__(self, names: Sequence[str], batches: Sequence[Batch]) -> None:
        self.feeds = iter([dict(zip(names, batch, strict=True)) for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def ort_static(source: Path, target: Path, batches: Sequence[Batch], transformer: bool) -> None:
    """Static int8: uint8 activations, int8 weights per channel, thresholds from minima and maxima. In a transformer
    only products are int8: the bias that masks padding would be the maximum of the scores.

    (The other form of the file, QOperator, was measured to be as fast as this one, QDQ, on all four networks.)"""
    names = [value.name for value in onnx.load(source).graph.input]
    quantization.quantize_static(
        str(source),
        str(target),
        _Reader(names, batches),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"] if transformer else None,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def ort_dynamic(source: Path, target: Path) -> None:
    """Dynamic int8: weights beforehand, activations by what each call brings."""
    quantization.quantize_dynamic(
        str(source),
        str(target),
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what ONNX Runtime's own ops give
    )


def ort_transformer(source: Path, target: Path, heads: int, width: int) -> None:
    """ONNX Runtime's own fusions of a BERT: attention, skipped norms, gelu."""
    fused = optimizer.optimize_model(str(source), "bert", num_heads=heads, hidden_size=width, opt_level=0)
    fused.save_model_to_file(str(target))


# ----------------------------------------------------------------------------------------------------------- OpenVINO


def openvino_quantize(source: Path, target: Path, batches: Sequence[Batch], transformer: bool) -> None:
    """NNCF's post-training quantization, in its accurate form for the CPU ("mixed")."""
    model = ov.Core().read_model(source)
    names = [value.get_any_name() for value in model.inputs]
    examples = [tuple(array[i : i + 1] for array in batch) for batch in batches for i in range(len(batch[0]))]
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        quantized = nncf.quantize(
            model,
            nncf.Dataset(examples, lambda example: dict(zip(names, example, strict=True))),
            subset_size=len(examples),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    ov.save_model(quantized, target, compress_to_fp16=False)


def openvino_compile(path: Path, size: int, threads: int, precision: str | None) -> Compiled:
    """The model at a batch size; `precision` is that of what is not int8. None is the runtime's choice: bf16, where the
    CPU has it."""
    core = ov.Core()
    model = core.read_model(path)
    model.reshape({value.get_any_name(): [size, *list(value.partial_shape)[1:]] for value in model.inputs})
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def run(*arrays: np.ndarray) -> Any:
        return request.infer(list(arrays), share_inputs=True, share_outputs=True)[0]

    kinds = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    sums = [k for k in kinds if k["layerType"] in ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")]
    int8 = sum(k["runtimePrecision"] in INTEGERS for k in sums)
    return Compiled(run, f"{int8}/{len(sums)}")
