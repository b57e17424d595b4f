"""`jaxq report`: a page that parses, needs nothing but itself, and says what the plan does. (In Chromium it was looked
at by hand.)"""

import json
import re
from html.parser import HTMLParser

import jax.numpy as jnp
import pytest
from networks import images, mlp_params

import jaxq
from jaxq.cli import main
from jaxq.plan import artifact

VOID = {"meta", "path", "line", "rect", "br"}


class Page(HTMLParser):
    """The tags of a page, checked to close in turn, their attributes, and the text in each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        self.texts.setdefault(tag, [])
        if tag not in VOID:
            self.open.append(tag)
            self.texts[tag].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def rows(self):
        """The cells of each row of the table."""
        columns = len(self.texts["th"])
        cells = self.texts["td"]
        return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def report(path, tmp_path, *options):
    output = tmp_path / "report.html"
    assert main(["report", str(path), "-o", str(output), *options]) == 0
    page = Page(output.read_text())
    # Nothing comes from a network, and nothing runs.
    assert not [a for a in page.attributes if a[1] in ("src", "href") or a[1].startswith("on")]
    assert "script" not in page.texts and "url(" not in output.read_text()
    return page


def test_the_layers(files, tmp_path):
    page = report(files.float_head, tmp_path)
    summary = jaxq.load(files.float_head).summary()
    assert page.texts["th"] == ["layer", "op", "precision", "fused", "in → out", "scale", "MACs", "why in float"]
    assert [row[0] for row in page.rows()] == [row.name for row in summary.nodes]
    assert [row[2] for row in page.rows()] == [row.precision for row in summary.nodes]
    assert page.rows()[-1][-1] == "rule '^1$'"
    for line in (*summary.totals(), "batch size: any", "argument input: float32[batch, 6]"):
        assert line in page.texts["p"]


def test_the_graph(files, tmp_path):
    """A box for every node but constants, and an edge for everything that it reads of others."""
    page = report(files.cnn, tmp_path)
    nodes = [node for node in artifact.load(files.cnn)[0].graph.nodes if not node.is_constant]
    assert [title.splitlines()[0] for title in page.texts["title"][1:]] == [node.name for node in nodes]
    edges = [a for a in page.attributes if a == ("path", "class", "edge")]
    assert len(edges) == sum(len({s for s in node.inputs if not s.is_constant}) for node in nodes)
    boxes = [(float(x), float(y)) for x, y in re.findall(r'<rect [^>]*x="([\d.]+)" y="([\d.]+)"', read(tmp_path))]
    assert len(set(boxes)) == len(nodes)


def read(tmp_path):
    return (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A plan and its calibration; a name in it is no name for a page."""
    folder = tmp_path_factory.mktemp("report")
    (a, b), (c, d) = mlp_params(6, 5, 4)
    params, x = {"<script>alert(1)</script>": a, "b": b, "c": c, "d": d}, images(64, 6)

    def fun(p, x):
        return jnp.abs(x @ p["<script>alert(1)</script>"] + p["b"]) @ p["c"] + p["d"]

    calibration = jaxq.calibrate(fun, params, [x])
    calibration.save(folder / "net.calibration")
    jaxq.quantize(fun, params, calibration=calibration).save(folder / "net.jaxq")
    return folder


def test_histograms_with_thresholds(calibrated, tmp_path, capsys):
    options = ("--calibration", str(calibrated / "net.calibration"), "--json")
    page = report(calibrated / "net.jaxq", tmp_path, *options)
    calibration = jaxq.Calibration.load(calibrated / "net.calibration")
    rows = calibration.report().rows
    assert json.loads(capsys.readouterr().out)["histograms"] == len(rows)
    captions = page.texts["figcaption"]
    assert len(captions) == len(rows)
    for row, caption in zip(rows, captions, strict=True):
        assert caption.startswith(row.name)
        assert f"threshold {row.threshold:.4g}" in caption and f"{row.sqnr:.1f} dB" in caption
    lines = [a for a in page.attributes if a == ("line", "class", "threshold")]
    assert len(lines) == len(rows)
    sqnr = page.texts["th"].index("SQNR dB")
    assert [row[sqnr] for row in page.rows() if row[0] == "input/quantize"] == [f"{rows[0].sqnr:.1f}"]
    assert any("<script>" in row[0] for row in page.rows())


def test_times(calibrated, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    page = report(calibrated / "net.jaxq", tmp_path, "--time", "5", "--batch", "2")
    int8, in_float = (page.texts["th"].index(f"{what} ms") for what in ("int8", "float"))
    timed = [row for row in page.rows() if row[int8]]
    assert timed and all(float(row[int8]) > 0 and float(row[in_float]) > 0 for row in timed)
    assert [line for line in page.texts["p"] if line.startswith("Times of each layer alone, at batch 2 on")]


def test_what_it_does_not_take(calibrated, files, tmp_path, capsys):
    other = ["--calibration", str(calibrated / "net.calibration"), "-o", str(tmp_path / "x.html")]
    assert main(["report", files.cnn, *other]) == 2
    assert "is a calibration of another network" in capsys.readouterr().err
    assert main(["report", files.cnn, "-o", str(tmp_path / "no" / "x.html")]) == 2
    assert "x.html: cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
