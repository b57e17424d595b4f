"""What a file holds of a JAX primitive that `graph.primitives` lacks: StableHLO, by `jax.export`.

The module holds for any batch size where JAX can trace the primitive with a symbolic one, and for CPUs and NVIDIA GPUs
where it has a rule for both. It has no batching rule: a plan read from a file that holds one takes no `vmap`.

This is the one part of a file that is no plain data. Its form holds no pickle, but who reads it must trust who wrote
it: XLA compiles and runs it, and its parser crashes on bytes that were made to harm (of a thousand random changes some
ten end in a segmentation fault). An accident is found before, by the SHA-256 of the bytes.
"""

from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from jaxq.errors import UnsupportedError
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Node, bind

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
    return jax_export.export(jax.jit(run), platforms=platforms)(
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    )


def to_bytes(exported: jax_export.Exported) -> np.ndarray:
    """As uint8, for a file."""
    return np.frombuffer(bytes(exported.serialize()), np.uint8)


def from_bytes(data: np.ndarray) -> jax_export.Exported:
    """What `to_bytes` gave. Of other bytes anything may come, a crash of the process too."""
    return jax_export.deserialize(bytearray(data.tobytes()))
