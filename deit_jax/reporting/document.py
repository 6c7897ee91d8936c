"""A document of sections, tables and pictures, and how it becomes HTML or Markdown.

Whatever a text holds is shown, never interpreted: names of classes and directories
come from elsewhere.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` is set apart."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """Of a table; the best of a column is bold, a note follows in small print."""

    text: str
    best: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows as long as the header; the first `labels` columns are names, not numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    labels: int = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG, the name of its file without the ending, and what it shows in words."""

    name: str
    png: bytes
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Table | Picture]


NONE = "-"  # in a cell that has no value
PIXELS = 1.44  # of a picture, for one of the page: sharp in print

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #111;
  background: #fff; max-width: 1080px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-bottom: .2rem;
  border-bottom: 1px solid #999; }
p { margin: .5rem 0; max-width: 80ch; }
p.warning { border-left: 4px solid #d55e00; padding: .3rem .75rem;
  background: #fbf3ee; }
nav { margin: .75rem 0; font-size: .9rem; }
nav a { color: #0072b2; margin-right: 1em; white-space: nowrap; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th { border-bottom: 1.5px solid #555; vertical-align: bottom; }
.label { text-align: left; overflow-wrap: anywhere; min-width: 4.5em; }
.label:first-child { min-width: 8em; }
td { white-space: nowrap; }
td.label { white-space: normal; }
small { display: block; color: #555; }
figure { margin: .75rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .86rem; color: #444; max-width: 95ch; }
@media print { body { max-width: none; margin: 0; font-size: 11px; }
  table, figcaption { font-size: 9px; } th, td { padding: .15rem .4rem; }
  nav { display: none; } .wide { overflow: visible; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One page that needs nothing else: style and pictures are inside."""
    links = "\n".join(
        f'<a href="#section-{n}">{html.escape(section.title)}</a>'
        for n, section in enumerate(sections, 1)
    )
    body = "\n".join(
        f'<section id="section-{n}">\n<h2>{html.escape(section.title)}</h2>\n'
        + "\n".join(map(_block_html, section.blocks))
        + "\n</section>"
        for n, section in enumerate(sections, 1)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<nav>
{links}
</nav>
{body}
</body>
</html>
"""


def _block_html(block: Text | Table | Picture) -> str:
    match block:
        case Text(text, warning):
            kind = ' class="warning"' if warning else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Picture(name, png, caption):
            data = base64.b64encode(png).decode()
            caption = html.escape(caption)
            # One scale for all, so that letters have one size. The width of a PNG:
            alt = name.replace("_", " ")
            width = round(int.from_bytes(png[16:20]) / PIXELS)
            return (
                f'<figure>\n<img width="{width}" alt="{alt}" '
                f'src="data:image/png;base64,{data}">\n'
                f"<figcaption>{caption}</figcaption>\n</figure>"
            )
        case Table(header, rows, labels):
            head = _row_html("th", [Cell(text) for text in header], labels)
            lines = "\n".join(_row_html("td", row, labels) for row in _cells(rows))
            return (
                f'<div class="wide"><table>\n<thead>{head}</thead>\n'
                f"<tbody>\n{lines}\n</tbody>\n</table></div>"
            )


def _row_html(tag: str, cells: Sequence[Cell], labels: int) -> str:
    parts = []
    for position, cell in enumerate(cells):
        text = html.escape(cell.text)
        if cell.best:
            text = f"<strong>{text}</strong>"
        if cell.note:
            # A line for each remark: side by side they would widen the table.
            lines = html.escape(cell.note).replace(", ", "<br>")
            text += f"<small>{lines}</small>"
        kind = ' class="label"' if position < labels else ""
        parts.append(f"<{tag}{kind}>{text}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same for GitHub; its pictures are the files `<name>.png` beside it."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts.append(f"## {_escape(section.title)}")
        parts += map(_block_markdown, section.blocks)
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Text | Table | Picture) -> str:
    match block:
        case Text(text, warning):
            return ("> " if warning else "") + _escape(text)
        case Picture(name, _, caption):
            alt = name.replace("_", " ")
            return f"![{alt}]({name}.png)\n\n{_escape(caption)}"
        case Table(header, rows, labels):
            rules = ["---" if n < labels else "---:" for n in range(len(header))]
            lines = [map(_escape, header), rules]
            lines += [map(_cell_markdown, row) for row in _cells(rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_markdown(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.best:
        text = f"**{text}**"
    return text + (f" ({_escape(cell.note)})" if cell.note else "")


def _escape(text: str) -> str:
    """Text as it is, in one line, whatever Markdown or HTML it looks like."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(text, quote=False))
    return " ".join(text.split())


def _cells(rows: Sequence[Sequence[Cell | str]]) -> Iterator[list[Cell]]:
    for row in rows:
        yield [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]


def pictures(sections: Sequence[Section]) -> Iterator[Picture]:
    """All pictures, which `to_markdown` expects as files."""
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, Picture))
