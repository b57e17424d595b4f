"""How the nodes of an int8 graph are computed on a device. A backend is a module of three functions over a node:

    supports(node) -> str | None        why it does not take the node, or None
    candidates(node) -> tuple           its tactics (kernel configs), the default first
    lower(node, tactic) -> function     of the node's operands

All backends give the bits of `graph.evaluate.reference`. `choose` puts one in place: the one of the node's tactic
(`tactics.py`), of those that `candidates` lists for this device, or the default. The CPU's takes regions: `gather`
makes one node of the nodes that one call computes, and `prepare` packs their weights. `calibration` is what calibration
computes with.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.backend import backends

import pallas_kernels
from jaxq.backends import cpu, pallas, xla
from jaxq.backends.cpu.bundles import Bundles as Bundles
from jaxq.backends.cpu.bundles import bundle as bundle
from jaxq.backends.cpu.packing import AnyForm, PackedWeight
from jaxq.backends.tactics import CPU, XLA, Tactic, of
from jaxq.calibration import kernels
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import ANCHORS, Graph, Node

# What an export calls, which whoever runs it has to know: `import jaxq` for the first, JAX itself for the GPU's.
CUSTOM_CALLS = (cpu.library.TARGET, "__gpu$xla.gpu.triton", "mosaic_gpu_v2")


def gather(graph: Graph) -> Graph:
    """The graph with the CPU's regions, where there are kernels for it; a line in the log where there are none."""
    cpu.tell_if_missing()
    return cpu.gather(graph) if cpu.available() is None else graph


def prepare(graph: Graph, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as this machine's backend reads them: packed for its kernels, as they are where it has none."""
    if jax.default_backend() == "gpu":
        return pallas.pack(graph, params)
    if jax.default_backend() != "cpu" or cpu.available() is not None:
        return dict(params)
    return cpu.pack(graph, params)


def plain(params: Mapping[Any, Any]) -> dict[Any, Any]:
    """The parameters as the graph has them."""
    return {name: value.unpack() if isinstance(value, PackedWeight) else value for name, value in params.items()}


def candidates(node: Node) -> tuple[Tactic, ...]:
    """The tactics that compute the bound node on this device, the default first, XLA's last; none of a node that is no
    product of integers: the product beside it decides for it."""
    if node.op not in ANCHORS or "multiplier" not in node.roles:
        return ()
    if jax.default_backend() == "gpu" and pallas.supports(node) is None:
        return (*(Tactic("pallas", str(config)) for config in pallas.candidates(node)), XLA)
    if jax.default_backend() == "cpu" and cpu.available() is None and cpu.why_not(node) is None:
        return CPU, XLA
    return (XLA,)


def choose(node: Node) -> Callable[..., Any]:
    """The node's function by its tactic. By default, Pallas on NVIDIA GPUs and the CPU's kernels where they take it,
    XLA elsewhere."""
    if node.op == "region":
        return _region(node)
    by_xla = xla.lower(node)

    def default(*operands: Any) -> Any:
        return by_xla(*plain(dict(enumerate(operands))).values())

    either: Callable[..., Any] = default
    if of(node) != XLA and pallas.supports(node) is None:
        either = pallas_kernels.on_cuda(lambda *operands: pallas.lower(node, _config(node))(*operands), default)

    def run(*operands: Any) -> Any:
        # XLA partitions its own ops, but no kernel of ours.
        return (default if _is_partitioned(operands) else either)(*operands)

    return run


def _config(node: Node) -> Any:
    """The kernel config of the node's tactic; None, the default, where it is none for the node's shapes, as it was
    measured at another batch size."""
    tactic = of(node)
    if tactic is None:
        return None
    return next((config for config in pallas.candidates(node) if str(config) == tactic.config), None)


def cpu_kernels() -> str:
    """The instruction set of the CPU's kernels in use, or "XLA" where there are none."""
    return cpu.isa() if cpu.available() is None else "XLA"


def calibration() -> kernels.Kernels:
    """What calibration computes with: the CPU's kernels where there are some and JAX has no other devices, else XLA's.
    (To ask for the platform at every value would take longer than to trace the network.)"""
    if cpu.available() is not None or backends().keys() != {"cpu"}:
        return kernels.XLA
    return kernels.Kernels(cpu.calibration.count, cpu.calibration.trials, cpu.calibration.trial_errors)


def _region(node: Node) -> Callable[..., Any]:
    def by_node(graph: Graph) -> Callable[..., Any]:
        return lambda *operands: tuple(evaluate(graph, {}, operands, choose))

    default = by_node(node.attrs["body"])
    if not cpu.is_bound(node):
        return default  # jax.export with a symbolic batch: a program's sizes are numbers
    packed_call = cpu.lower(node, by_node)

    def call(*operands: Any) -> Any:
        # Weights in the form of another machine's kernels are packed in the call.
        return packed_call(
            *(x.unpack() if isinstance(x, PackedWeight) and not isinstance(x.form, AnyForm) else x for x in operands)
        )

    either = pallas_kernels.by_platform({"cpu": call, "default": default})

    def run(*operands: Any) -> Any:
        return (default if _is_partitioned(operands) else either)(*operands)

    return run


def _is_partitioned(operands: Any) -> bool:
    return any(jax.typeof(operand).sharding.mesh.explicit_axes for operand in jax.tree.leaves(operands))
