"""Histograms and graphs as SVG."""

from collections.abc import Mapping
from html import escape

import numpy as np

from jaxq.calibration.histogram import HostHistogram
from jaxq.graph.node import Graph, Node, precision

# ---------------------------------------------------------------------------------------------------------- histograms

_WIDTH, _HEIGHT, _BARS = 320, 110, 128


def histogram(counts: HostHistogram, threshold: float) -> str:
    """Counts of |x| on a logarithmic scale, from 0 to beyond amax, a line at the threshold and a dashed one at amax."""
    bars = counts.counts.reshape(_BARS, -1).sum(axis=1)
    heights = np.log1p(bars) / max(float(np.log1p(bars.max())), 1.0) * (_HEIGHT - 6)
    end = counts.bin_width * len(counts.counts)
    step = _WIDTH / _BARS
    corners = [f"M0 {_HEIGHT}"]
    for i, height in enumerate(heights.tolist()):
        corners.append(f"V{_HEIGHT - height:.1f}H{(i + 1) * step:.1f}")
    outline = "".join([*corners, f"V{_HEIGHT}Z"])
    return _svg(
        _WIDTH,
        _HEIGHT,
        f'<path class="bars" d="{outline}"/>',
        _line("amax", counts.amax / end * _WIDTH, _HEIGHT),
        _line("threshold", min(threshold / end, 1.0) * _WIDTH, _HEIGHT),
    )


def _line(kind: str, x: float, height: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'


def _svg(width: float, height: float, *parts: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
    return head + f'height="{height:g}" role="img">' + "".join(parts) + "</svg>"


# --------------------------------------------------------------------------------------------------------------- graph

_BOX, _LINE, _GAP, _DROP = 176, 34, 14, 26


def graph(graph: Graph, tooltips: Mapping[str, str]) -> str:
    """The nodes in rows, each below all that it reads; `tooltips` by the nodes' names."""
    places = _places(graph)
    columns = 1 + max(column for _, column in places.values())
    width, rows = columns * (_BOX + _GAP) + _GAP, 1 + max(row for row, _ in places.values())

    def corner(node: Node) -> tuple[float, float]:
        row, column = places[node]
        return _GAP + column * (_BOX + _GAP), _GAP + row * (_LINE + _DROP)

    edges = []
    for node in places:
        for source in dict.fromkeys(s for s in node.inputs if s in places):
            (x, y), (to_x, to_y) = corner(source), corner(node)
            x, y, to_x = x + _BOX / 2, y + _LINE, to_x + _BOX / 2
            middle = (y + to_y) / 2
            edges.append(
                f'<path class="edge" d="M{x:g} {y:g}C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}"/>'
            )
    boxes = [_box(node, *corner(node), tooltips.get(node.name, node.name)) for node in places]
    return _svg(width, rows * (_LINE + _DROP) + _GAP, *edges, *boxes)


def _box(node: Node, x: float, y: float, tooltip: str) -> str:
    kind = "value" if node.op == "input" else "in-float" if precision(node) == "float" else "int8"
    words = " ".join(word for word in (node.op, *node.fused) if word != "requantize")
    lines = (_short(node.name), _short(words))
    text = "".join(f'<text x="{x + 7:g}" y="{y + 14 + 14 * i:g}">{escape(line)}</text>' for i, line in enumerate(lines))
    rectangle = f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{_BOX}" height="{_LINE}" rx="4"/>'
    return f"<g><title>{escape(tooltip)}</title>{rectangle}{text}</g>"


def _short(text: str, most: int = 24) -> str:
    """The end of a long path, which tells it apart."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _places(graph: Graph) -> dict[Node, tuple[int, int]]:
    """{node: (row, column)}, in program order: one row below the lowest that it reads, near the columns of these."""
    rows: dict[Node, int] = {}
    taken: dict[int, set[int]] = {}
    places: dict[Node, tuple[int, int]] = {}
    for node in dict.fromkeys((*graph.inputs, *graph.nodes)):
        if node.is_constant:
            continue
        above = [places[source] for source in node.inputs if source in places]
        rows[node] = 1 + max((row for row, _ in above), default=-1)
        wanted = int(np.mean([column for _, column in above]) + 0.5) if above else 0
        used = taken.setdefault(rows[node], set())
        column = min((c for c in range(len(used) + wanted + 1) if c not in used), key=lambda c: abs(c - wanted))
        used.add(column)
        places[node] = rows[node], column
    return places
