"""conv through `pallas_kernels.conv`, which takes weights (O, spatial..., C / groups): the graph's are transposed."""

from collections.abc import Callable
from typing import Any

from jaxq.backends.pallas.operands import epilogue, epilogue_struct, struct, why_not_residual
from jaxq.backends.pallas.weights import deepened, for_kernel
from jaxq.graph.node import Node
from pallas_kernels import Epilogue
from pallas_kernels.conv import Window, conv
from pallas_kernels.conv import candidates as kernel_candidates
from pallas_kernels.conv import supports as why_no_kernel


def supports(node: Node) -> str | None:
    """Why no kernel takes the bound node, or None."""
    return why_not_residual(node) or why_no_kernel(*_types(node), window=_window(node), out_dtype=node.aval.dtype)


def candidates(node: Node) -> tuple[Any, ...]:
    """The kernels' configs, the default first."""
    return kernel_candidates(*_types(node), window=_window(node), out_dtype=node.aval.dtype)


def lower(node: Node, tactic: Any = None) -> Callable[..., Any]:
    """The function of the node's operands."""
    window = _window(node)

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        weight, offset = for_kernel(given["weight"], is_conv=True)
        return conv(
            deepened(given["x"], weight.shape[-1] * window.groups),
            weight,
            epilogue(node, given, node.aval.shape),
            window=window,
            out_dtype=node.aval.dtype,
            offset=offset,
            config=tactic,
        )

    return run


def _types(node: Node) -> tuple[Any, Any, Epilogue]:
    weight = node.operand("weight")
    *kernel_and_depth, features = weight.aval.shape
    w = struct(weight, (features, *kernel_and_depth))
    return struct(node.operand("x")), w, epilogue_struct(node, node.aval.shape)


def _window(node: Node) -> Window:
    attrs = node.attrs
    return Window(
        strides=tuple(attrs["strides"]),
        padding=tuple(attrs["padding"]),
        dilation=tuple(attrs["rhs_dilation"]),
        input_dilation=tuple(attrs["lhs_dilation"]),
        groups=attrs["groups"],
    )
