"""A page of HTML that needs nothing but itself. All text is escaped: a layer's name is whatever the file says."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2433; background: #fff; margin: 2rem auto; max-width: 96rem;
  padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d6dbe4; padding-bottom: .2rem; }
p { margin: .25rem 0; max-width: 60rem; }
.quiet { color: #667085; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th { text-align: left; background: #f2f4f8; position: sticky; top: 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #e6e9ef; white-space: nowrap; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 18rem; }
td:last-child { white-space: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.float td { background: #fff4e5; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #e6e9ef; border-radius: 6px; padding: .6rem .8rem; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
svg { display: block; max-width: 100%; }
.graph svg { max-width: none; }
svg text { font: 11px system-ui, sans-serif; fill: #1d2433; }
.bars { fill: #7a9cc6; } .int8 { fill: #dcefe3; stroke: #2e7d4f; } .in-float { fill: #ffe3bf; stroke: #b26a00; }
.value { fill: #eef1f6; stroke: #667085; } .edge { fill: none; stroke: #98a2b3; }
.threshold { stroke: #b42318; stroke-width: 1.5; } .amax { stroke: #667085; stroke-dasharray: 3 3; }
"""


def page(title: str, *parts: str) -> str:
    """The whole page; the parts are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    opening = f'<p class="{kind}">' if kind else "<p>"
    return "\n".join(f"{opening}{escape(line)}</p>" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], kinds: Iterable[str], numeric: Sequence[str]) -> str:
    """A row for each of `rows`, of that kind; the columns named in `numeric` stand at the right."""
    classes = [' class="number"' if name in numeric else "" for name in head]

    def cells(tag: str, values: Sequence[Any]) -> str:
        pairs = zip(values, classes, strict=True)
        return "".join(f"<{tag}{kind}>{escape(str(value))}</{tag}>" for value, kind in pairs)

    lines = [f"<tr>{cells('th', head)}</tr>"]
    lines += [f'<tr class="{kind}">{cells("td", row)}</tr>' for row, kind in zip(rows, kinds, strict=True)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def figure(drawing: str, caption: Iterable[str]) -> str:
    return f"<figure>{drawing}<figcaption>{'<br>'.join(map(escape, caption))}</figcaption></figure>"


def grid(figures: Iterable[str]) -> str:
    return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"
