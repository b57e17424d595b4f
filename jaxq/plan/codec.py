"""A plan as JSON and back. Values that JSON lacks are objects with one key that starts with "$"."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from jaxq.backends.tactics import BACKENDS, Tactic
from jaxq.errors import PlanError, UnsupportedError
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import ANCHORS, Aval, Dim, Graph, Node, QType
from jaxq.graph.verify import verify
from jaxq.plan import stablehlo
from jaxq.plan.plan import Plan
from jaxq.plan.tactics import Tactics
from jaxq.refine.gain import Gain
from jaxq.report import Accuracy, Summary, Tuning, rows
from jaxq.trees import decode_tree, encode_tree
from jaxq.version import __version__

Arrays = dict[str, np.ndarray]


def encode_plan(plan: Plan, arrays: Arrays) -> dict[str, Any]:
    """The header; arrays inside the graph that are no parameters are added to `arrays` as "#n".

    Raises:
      UnsupportedError: the graph holds a primitive, or the signature a pytree type, that a file cannot.
    """
    return {
        "jaxq": __version__,
        "jax": jax.__version__,
        "in_tree": encode_tree(plan.in_tree, "arguments"),
        "out_tree": encode_tree(plan.out_tree, "result"),
        "graph": _Encoder(arrays).graph(plan.graph),
        "summary": _Encoder(arrays).value(_summary_data(plan.summary)),
        "tactics": plan.tactics and _tactics_data(plan.tactics),
    }


def decode_plan(header: Mapping[str, Any], arrays: Arrays, trusted: bool = False) -> tuple[Plan, Arrays]:
    """The plan and its parameters; StableHLO in it only if who wrote it is `trusted`.

    Raises:
      PlanError: it holds StableHLO, and is not trusted.
    """
    if not trusted:
        _refuse_stablehlo(header)
    decoder = _Decoder(arrays)
    graph = _check_shapes(verify(decoder.graph(header["graph"]), "quantized"))
    tactics = _tactics(header.get("tactics"), graph)
    summary = _summary(decoder.value(header["summary"]), graph, tactics)
    in_tree, out_tree = decode_tree(header["in_tree"]), decode_tree(header["out_tree"])
    if (in_tree.num_leaves, out_tree.num_leaves) != (len(graph.inputs), len(graph.outputs)):
        raise ValueError("the signature does not fit the graph")
    plan = Plan(graph, in_tree, out_tree, summary, tactics)
    return plan, graph.params


def _refuse_stablehlo(value: Any, layer: str = "") -> None:
    if isinstance(value, dict):
        if "$stablehlo" in value:
            raise PlanError(
                f"layer {layer!r} is StableHLO, of a primitive that jaxq has no data for, and may harm the "
                "process that reads it; if you trust who wrote the file: jaxq.load(path, trusted=True), or --trusted"
            )
        layer = value.get("name", layer)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_stablehlo(item, layer)


def _check_shapes(graph: Graph) -> Graph:
    """The graph itself, if every node makes what it says, at two examples as at any other number; a ValueError that
    names the node where one does not."""

    def check(node: Node, value: Any) -> None:
        made = tuple(value) if isinstance(node.aval, tuple) else (value,)
        avals = node.aval if isinstance(node.aval, tuple) else (node.aval,)
        if tuple(Aval(y.shape, y.dtype) for y in made) != avals:
            raise ValueError(f"{node!r} makes {', '.join(f'{y.dtype}{list(y.shape)}' for y in made)}")

    bound = graph.bind(2)
    arrays = [jax.ShapeDtypeStruct(node.aval.shape, node.aval.dtype) for node in bound.inputs]
    jax.eval_shape(lambda params, inputs: evaluate(bound, params, inputs, tap=check), bound.params, arrays)
    return graph


def _summary_data(summary: Summary) -> dict[str, Any]:
    """All but the rows, which follow from the graph."""
    data = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary) if field.name != "nodes"}
    chosen = {"tuning": summary.tuning, "accuracy": summary.accuracy}
    data |= {name: value and dataclasses.asdict(value) for name, value in chosen.items()}
    return data | {"recipe": tuple(dataclasses.astuple(gain) for gain in summary.recipe)}


def _summary(data: Mapping[str, Any], graph: Graph, tactics: Tactics | None) -> Summary:
    tuning, accuracy = data.get("tuning"), data.get("accuracy")
    return Summary(
        nodes=rows(graph, {} if tactics is None else tactics.by_name),
        float_bytes=int(data["float_bytes"]),
        int8_bytes=int(data["int8_bytes"]),
        fixed_because=None if data["fixed_because"] is None else str(data["fixed_because"]),
        methods={str(method): int(count) for method, count in data["methods"].items()},
        unmatched_rules=tuple(map(str, data["unmatched_rules"])),
        tuning=None if tuning is None else _tuning(tuning),
        accuracy=None if accuracy is None else _accuracy(accuracy),
        recipe=tuple(_gain(*gain) for gain in data.get("recipe", ())),
    )


def _tuning(data: Mapping[str, Any]) -> Tuning:
    return Tuning(
        device=str(data["device"]),
        batch=int(data["batch"]),
        seconds={str(name): float(seconds) for name, seconds in data["seconds"].items()},
        chosen=str(data["chosen"]),
        layers={str(name): (float(int8), float(in_float)) for name, (int8, in_float) in data["layers"].items()},
        timings={str(what): float(seconds) for what, seconds in data["timings"].items()},
        failures={str(what): str(reason) for what, reason in data.get("failures", {}).items()},
    )


def _tactics_data(tactics: Tactics) -> dict[str, Any]:
    by_name = {name: [tactic.backend, tactic.config] for name, tactic in tactics.by_name.items()}
    return {"device": tactics.device, "by_name": by_name}


def _tactics(data: Mapping[str, Any] | None, graph: Graph) -> Tactics | None:
    """None in a file without any, as earlier ones are. A config is text, which the backend looks up among its own."""
    if data is None:
        return None
    by_name = {str(name): Tactic(str(backend), str(config)) for name, (backend, config) in data["by_name"].items()}
    if not all(tactic.backend in BACKENDS for tactic in by_name.values()):
        raise ValueError("a tactic is of no backend")
    if not by_name.keys() <= {node.name for node in graph.nodes if node.op in ANCHORS and "multiplier" in node.roles}:
        raise ValueError("a tactic is of no product of integers")
    return Tactics(str(data["device"]), by_name)


def _gain(
    step: Any, before: Any, after: Any, seconds: Any, kept: Any, layers: Mapping[str, Any] = MappingProxyType({})
) -> Gain:
    errors = {str(name): (float(first), float(last)) for name, (first, last) in layers.items()}
    return Gain(str(step), float(before), float(after), float(seconds), bool(kept), errors)


def _accuracy(data: Mapping[str, Any]) -> Accuracy:
    layers, frontier = tuple(map(str, data["layers"])), {int(n): float(m) for n, m in data["frontier"].items()}
    if len(layers) not in frontier:
        raise ValueError("the accuracy of the chosen layers is missing")
    return Accuracy(float(data["in_float"]), float(data["max_drop"]), frontier, layers)


@dataclasses.dataclass
class _Encoder:
    arrays: Arrays

    def graph(self, graph: Graph) -> dict[str, Any]:
        nodes = tuple(dict.fromkeys((*graph.inputs, *graph.nodes)))
        index = {node: i for i, node in enumerate(nodes)}
        return {
            "nodes": [self.node(node, index) for node in nodes],
            "inputs": [index[node] for node in graph.inputs],
            "outputs": [index[node] for node in graph.outputs],
        }

    def node(self, node: Node, index: Mapping[Node, int]) -> dict[str, Any]:
        if node.op == "opaque":
            node = stablehlo.portable(node)
        # A parameter's array is one of the file's by its name already.
        attrs = {} if node.op == "param" and node.name in self.arrays else dict(node.attrs)
        fields = {
            "op": node.op,
            "name": node.name,
            "scope": node.scope,
            "inputs": [index[source] for source in node.inputs],
            "roles": list(node.roles),
            "attrs": self.value(attrs),
            "aval": self.value(node.aval),
            "qtype": self.value(node.qtype),
            "fused": list(node.fused),
            "reason": node.reason,
        }
        return {key: value for key, value in fields.items() if value not in ([], {}, "", None)}

    def value(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating) and not isinstance(value, np.generic):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, tuple | list):
            return [self.value(item) for item in value]
        if isinstance(value, Dim):
            return {"$dim": [value.per_batch, value.constant]}
        if isinstance(value, Aval):
            return {"$aval": [self.value(value.shape), value.dtype.name]}
        if isinstance(value, QType):
            zero_point = [value.zero_point] if value.zero_point else []
            return {"$qtype": [value.dtype, self.value(value.scale), *zero_point]}
        if isinstance(value, Graph):
            return {"$graph": self.graph(value)}
        if isinstance(value, Mapping):
            return {"$map": [[key, self.value(item)] for key, item in value.items()]}
        if isinstance(value, jax_export.Exported):
            return {"$stablehlo": self.value(stablehlo.to_bytes(value))}
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            name = f"#{len(self.arrays)}"
            self.arrays[name] = np.asarray(value)
            return {"$array": name}
        raise UnsupportedError(f"a {type(value).__name__} in the graph has no form that a file can hold: {value!r}")


@dataclasses.dataclass
class _Decoder:
    arrays: Arrays

    def graph(self, data: Mapping[str, Any]) -> Graph:
        nodes: list[Node] = []
        for item in data["nodes"]:
            nodes.append(self.node(item, nodes))
        return Graph(tuple(nodes[i] for i in data["inputs"]), tuple(nodes[i] for i in data["outputs"]))

    def node(self, item: Mapping[str, Any], nodes: list[Node]) -> Node:
        attrs = self.value(item.get("attrs", {"$map": []}))
        name, aval = item.get("name", ""), self.value(item["aval"])
        if item["op"] == "param" and "value" not in attrs:
            attrs = {"value": self.arrays[name]}
        if "value" in attrs and Aval(attrs["value"].shape, attrs["value"].dtype) != aval:
            raise ValueError(f"array {name!r} is {attrs['value'].dtype}{list(attrs['value'].shape)}, not {aval}")
        node = Node(
            op=item["op"],
            inputs=tuple(nodes[_index(i, nodes)] for i in item.get("inputs", ())),
            attrs=attrs,
            aval=aval,
            name=name,
            roles=tuple(item.get("roles", ())),
            qtype=self.value(item.get("qtype")),
            scope=item.get("scope", ""),
            fused=tuple(item.get("fused", ())),
            reason=item.get("reason", ""),
        )
        if not all(
            isinstance(word, str) for word in (node.op, name, node.scope, node.reason, *node.roles, *node.fused)
        ):
            raise ValueError(f"node {len(nodes)} has a name that is none")
        if not isinstance(attrs, dict) or not (node.qtype is None or isinstance(node.qtype, QType)):
            raise ValueError(f"node {name!r} has attributes or a scale that are none")
        return node

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.value(item) for item in value)
        if not isinstance(value, dict):
            return value
        ((kind, data),) = value.items()
        match kind:
            case "$float":
                return float(data)
            case "$dim":
                return Dim(int(data[0]), int(data[1]))
            case "$aval":
                return Aval(_shape(self.value(data[0])), jax.numpy.dtype(data[1]))
            case "$qtype":
                return QType(data[0], self.value(data[1]), *data[2:])
            case "$graph":
                return self.graph(data)
            case "$map":
                return {key: self.value(item) for key, item in data}
            case "$array":
                return self.arrays[data]
            case "$stablehlo":
                return stablehlo.from_bytes(self.value(data))
        raise ValueError(f"unknown kind of value {kind!r}")


def _shape(dims: Any) -> tuple[Any, ...]:
    # True and 1.0 equal 1 in every comparison, and are no size.
    if not isinstance(dims, tuple) or not all(isinstance(dim, Dim) or type(dim) is int for dim in dims):
        raise ValueError(f"{dims} is no shape")
    return dims


def _index(i: Any, nodes: list[Node]) -> int:
    if not isinstance(i, int) or not 0 <= i < len(nodes):
        raise ValueError(f"node {len(nodes)} reads node {i}, which does not come before it")
    return i
