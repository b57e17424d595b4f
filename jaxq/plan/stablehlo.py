"""What a file holds of a JAX primitive that `graph.primitives` lacks: StableHLO, by `jax.export`.

The module holds for any batch size where JAX can trace the primitive with a symbolic one, and for CPUs and NVIDIA GPUs
where it has a rule for both. It has no batching rule: a plan read from a file that holds one takes no `vmap`.

This is the one part of a file that is no plain data. Its form holds no pickle, but who reads it must trust who wrote
it: XLA compiles and runs it, and its parser crashes on bytes that were made to harm (of a thousand random changes some
ten end in a segmentation fault). An accident is found before, by the SHA-256 of the bytes.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from jaxq.errors import UnsupportedError
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Node, bind

# That of the oldest JAX that we support, so that each of them reads what any other wrote.
_VERSION = "1.15.0"

_PLATFORMS = (("cpu", "cuda"), ("cpu",), ("cuda",))


def portable(node: Node) -> Node:
    """An "opaque" node as the same in "stablehlo".

    Raises:
      UnsupportedError: JAX does not export the primitive, such as a callback into Python.
    """
    errors = []
    for platforms in _PLATFORMS:
        try:
            attrs = {"word": node.attrs["primitive"].name, "exported": _exported(node, platforms)}
            return node.replace(op="stablehlo", attrs=attrs)
        except Exception as error:  # whatever the primitive's rules raise where they find no form
            errors.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    raise UnsupportedError(
        f"layer {node.name!r}: the JAX primitive {node.attrs['primitive'].name!r} has no form that a file can hold; "
        f"the model runs, but cannot be saved. {errors[0]}"
    )


def _exported(node: Node, platforms: tuple[str, ...]) -> jax_export.Exported:
    batch: Any = jax_export.symbolic_shape("batch")[0]
    run = reference(node.replace(attrs=bind(node.attrs, batch)))
    avals = [bind(source.aval, batch) for source in node.inputs]
    exported = jax_export.export(jax.jit(run), platforms=platforms)(
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    )
    with _context():
        module = mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
        older = mlir.serialize_portable_artifact(module, _VERSION, use_mixed_serialization=True)
    return dataclasses.replace(exported, mlir_module_serialized=older)


def _context() -> ir.Context:
    context = ir.Context()
    stablehlo.register_dialect(context)
    return context


def to_bytes(exported: jax_export.Exported) -> np.ndarray:
    """As uint8, for a file."""
    return np.frombuffer(bytes(exported.serialize()), np.uint8)


def from_bytes(data: np.ndarray) -> jax_export.Exported:
    """What `to_bytes` gave. Of other bytes anything may come, a crash of the process too.

    Raises:
      ValueError: a later StableHLO than this JAX reads.
    """
    exported = jax_export.deserialize(bytearray(data.tobytes()))
    try:
        with _context():
            mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
    except Exception as error:
        raise ValueError(
            f"its StableHLO is later than this jax {jax.__version__} reads; install a newer one"
        ) from error
    return exported
