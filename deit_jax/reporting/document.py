"""A document of sections, tables and images, written as Markdown and as HTML.

A text is shown as it is, never interpreted: names of classes and directories come from
elsewhere.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Iterator, Sequence

import markdown


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` is set apart."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Points:
    """A list; each point is a topic and what is said of it, in one text or several."""

    points: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table; the best of a column is bold, a note is in small print."""

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
class Image:
    """A PNG, the name of its file without the ending, and what it shows in words."""

    name: str
    png: bytes
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Points | Table | Image]


NONE = "-"  # in a cell that has no value
PIXELS = 1.44  # of an image, for one of the page: sharp in print

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #111;
  background: #fff; max-width: 1180px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-bottom: .2rem;
  border-bottom: 1px solid #999; }
p, li { margin: .5rem 0; max-width: 80ch; } li li { margin: .2rem 0; }
blockquote { border-left: 4px solid #d55e00; padding: .1rem .75rem; margin: .5rem 0;
  background: #fbf3ee; }
p:has(img) { max-width: none; }
.toc ul { margin: .75rem 0; padding: 0; font-size: .9rem; list-style: none; }
.toc li { display: inline-block; margin: .1rem 1em .1rem 0; }
.toc a { color: #0072b2; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { border-bottom: 1.5px solid #555; vertical-align: bottom; text-align: left; }
small { display: block; color: #555; white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; break-inside: avoid; }
@media print { body { max-width: none; margin: 0; font-size: 11px; }
  table { font-size: 9px; } th, td { padding: .15rem .4rem; } .toc { display: none; }
  .wide { overflow: visible; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Renders `to_markdown` as one page with its style and images inside."""
    renderer = markdown.Markdown(
        extensions=["tables", "toc"], extension_configs={"toc": {"toc_depth": "2-2"}}
    )
    renderer.ESCAPED_CHARS = [*renderer.ESCAPED_CHARS, "|", "~", "$"]
    text = to_markdown(title, sections).replace("\n\n", "\n\n[TOC]\n\n", 1)
    body = renderer.convert(text).replace(" %", "&nbsp;%")
    body = body.replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")
    for image in images(sections):
        data = base64.b64encode(image.png).decode()
        # One scale for all, so that letters have one size. The width of a PNG:
        width = round(int.from_bytes(image.png[16:20]) / PIXELS)
        body = body.replace(
            f'src="{image.name}.png"',
            f'width="{width}" src="data:image/png;base64,{data}"',
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
{body}
</body>
</html>
"""


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Writes Markdown; its images are the files `<name>.png` beside it."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts.append(f"## {_escape(section.title)}")
        parts += map(_block_markdown, section.blocks)
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Text | Points | Table | Image) -> str:
    match block:
        case Text(text, warning):
            return ("> " if warning else "") + _escape(text)
        case Points(points):
            lines = []
            for topic, *said in points:
                before = "\n    - " if len(said) > 1 else " "
                texts = (before + _escape(text) for text in said)
                lines.append(f"- **{_escape(topic)}.**{''.join(texts)}")
            return "\n".join(lines)
        case Image(name, _, caption):
            alt = name.replace("_", " ")
            return f"![{alt}]({name}.png)\n\n{_escape(caption)}"
        case Table(header, rows, labels):
            rules = ["---" if n < labels else "---:" for n in range(len(header))]
            lines = [map(_escape, header), rules]
            lines += [map(_cell_markdown, row) for row in rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_markdown(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return _escape(cell)
    text = f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)
    return text + (f" <small>{_escape(cell.note)}</small>" if cell.note else "")


def _escape(text: str) -> str:
    """Text as it is, in one line, whatever Markdown or HTML it looks like."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(text, quote=False))
    return " ".join(text.split())


def images(sections: Sequence[Section]) -> Iterator[Image]:
    """All images, which `to_markdown` expects as files."""
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, Image))
