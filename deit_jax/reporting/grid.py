"""A picture of what augmentation does: images go down, their views across."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deit_jax.data.augment import mix
from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.errors import InputError

CELL = 128  # images of fewer pixels a side are scaled up to at least these
GAP = 24  # between cells, and around the whole
BEYOND = GAP - 9  # captions may reach so far into the gap on their right
LABELS = 120  # room for a class name on the left
GROUND, INK, FAINT = "white", (24, 24, 24), (96, 96, 96)
TEXT, TITLE = 13, 20  # font sizes
LINE, TITLE_LINE = 17, 26  # and the heights of a line in them
# Computed at once. Of the size of the examples in a teacher cache, which a start of
# training makes too: what is compiled for one may serve the other.
PAIRS = 4
MAX_PIXELS = 2**27  # 400 MB; viewers give up not far beyond


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of the grid.

    Attributes:
      image: uint8 [S, S, 3].
      lines: The caption under it.
    """

    image: np.ndarray
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One image of the source: what stands on the left, and its cells."""

    label: tuple[str, ...]
    cells: tuple[Cell, ...]


def spread(count: int, length: int) -> np.ndarray:
    """At most `count` indices, evenly spread over a source of `length`: int32 [n]."""
    count = min(count, length)
    return (np.arange(count) * length // count).astype(np.int32)


def draw(
    student: StudentViews,
    source,
    *,
    index: Sequence[int],
    views: Sequence[int],
    title: str,
) -> np.ndarray:
    """Each image as the source has it, and as the student sees it in each view.

    Args:
      student: What is done to the images.
      source: A source (`deit_jax.data.sources`).
      index: Which of its images, one a row.
      views: Which views of them, one a column; from 0 on.
      title: The first line; the settings of `student` follow it.

    Returns:
      uint8 [H, W, 3].

    Raises:
      InputError: An image does not exist, or the grid would be too large.
    """
    index, views = np.asarray(index, np.int64), np.asarray(views, np.int32)
    outside = index[(index < 0) | (index >= len(source))]
    if len(outside):
        raise InputError(
            f"there is no image {outside[0]} in {source.name} {source.split}: expected "
            f"0 .. {len(source) - 1:,}."
        )
    side = _scale(student.size) * student.size
    pixels = len(index) * (len(views) + 1) * (side + GAP) * _row_height(side)
    if pixels > MAX_PIXELS:
        raise InputError(
            f"a grid of {len(index):,} images x {len(views):,} views would have "
            f"{pixels / 1e6:,.0f} million pixels, expected at most "
            f"{MAX_PIXELS / 1e6:,.0f} million: draw fewer images or views."
        )
    rows = make_rows(student, source, index.astype(np.int32), views)
    return paint(rows, title=title, about=str(student.settings))


def caption(view: int, drawn: mix.Mix, partner: str | None) -> tuple[str, ...]:
    """What stands under an image of a view.

    Args:
      view: Its number.
      drawn: How its pair was mixed: `share` and `weight` of shape [], `box` [4].
      partner: The class name of what it was mixed with; None for nothing.
    """
    top, left, bottom, right = (int(side) for side in drawn.box)
    cut = (bottom - top) * (right - left) > 0
    if partner is None or not (cut or drawn.share < mix.LAMBDA):
        return (f"view {view}",)
    kind = "CutMix" if cut else "MixUp"
    return (f"view {view}", f"{kind} {drawn.weight:.2f} {partner}")


def paint(rows: Sequence[Row], *, title: str, about: str) -> np.ndarray:
    """Lays out rows of as many square cells of one size each: uint8 [H, W, 3].

    What is too long for its place is shortened or, at the top, wrapped.
    """
    text, large = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    size = len(rows[0].cells[0].image)
    scale = _scale(size)
    side = scale * size
    labels = [[_fit(line, text, LABELS) for line in row.label] for row in rows]
    label_width = max(
        int(text.getlength(line)) + 1 for lines in labels for line in lines
    )
    left = GAP + label_width + GAP
    width = left + len(rows[0].cells) * (side + GAP)
    head = [(line, large, INK, TITLE_LINE) for line in _wrap(title, large, width)]
    head += [(line, text, FAINT, LINE) for line in _wrap(about, text, width)]
    top = GAP + sum(height for *_, height in head) + GAP // 2
    height = top + len(rows) * _row_height(side)

    page = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(page)
    y = GAP
    for line, font, colour, line_height in head:
        pen.text((GAP, y), line, colour, font)
        y += line_height
    for number, row in enumerate(rows):
        y = top + number * _row_height(side)
        for n, line in enumerate(labels[number]):
            pen.text((GAP, y + n * LINE), line, INK, text)
        for column, cell in enumerate(row.cells):
            x = left + column * (side + GAP)
            enlarged = cell.image.repeat(scale, axis=0).repeat(scale, axis=1)
            page.paste(Image.fromarray(enlarged), (x, y))
            for n, line in enumerate(cell.lines):
                line = _fit(line, text, side + BEYOND)
                pen.text((x, y + side + 4 + n * LINE), line, INK, text)
    return np.asarray(page)


def make_rows(
    student: StudentViews, source, index: np.ndarray, views: np.ndarray
) -> list[Row]:
    """One row of each of index int32 [I]: its source, and views int32 [V] of it."""
    pairs = _pairs(student, len(source), index, views)
    # Where in its pair an image stands: the two keep the order of the matching.
    position = (pairs[..., 0] != index[:, None]).astype(np.int32)
    partner = np.take_along_axis(pairs, 1 - position[..., None], axis=-1)[..., 0]
    names = {}
    if student.settings.mixes:
        # `source.labels` would read all of a large set.
        wanted = np.unique(partner).tolist()
        for number, (_, label) in zip(wanted, source.pictures(wanted), strict=True):
            names[number] = class_name(source, label)

    with student.read_few(source) as opened:
        [(originals, labels)] = opened.batches([(index, None)])
        images, mixes = _replay(student, opened, pairs, views)

    rows = []
    for i, label in enumerate(labels):
        cells = [Cell(originals[i], ("source",))]
        for v, view in enumerate(views):
            other = int(partner[i, v])
            cells.append(
                Cell(
                    images[i, v, position[i, v]],
                    caption(
                        int(view),
                        mix.Mix(*(field[i, v] for field in mixes)),
                        # With an odd length one image rests, with itself.
                        None if other == index[i] else names.get(other),
                    ),
                )
            )
        left = (f"image {index[i]:,}", class_name(source, int(label)))
        rows.append(Row(left, tuple(cells)))
    return rows


def _replay(
    student: StudentViews, opened, pairs: np.ndarray, views: np.ndarray
) -> tuple[np.ndarray, mix.Mix]:
    """Images uint8 [I, V, 2, S, S, 3] of pairs [I, V, 2], and their mixes [I, V]."""
    shape = pairs.shape[:2]
    pairs, view = pairs.reshape(-1, 2), np.tile(views, len(pairs))
    blocks = [
        # The last pair fills up.
        np.arange(start, start + PAIRS).clip(max=len(pairs) - 1)
        for start in range(0, len(pairs), PAIRS)
    ]
    requests = ((pairs[rows].reshape(-1), view[rows].repeat(2)) for rows in blocks)
    images, mixes = zip(*student.replay(opened, requests), strict=True)

    def laid_out(parts):
        joined = np.concatenate(parts)[: len(pairs)]
        return joined.reshape(*shape, *joined.shape[1:])

    images = [block.reshape(PAIRS, 2, *block.shape[1:]) for block in images]
    fields = zip(*mixes, strict=True)
    return laid_out(images), mix.Mix(*map(laid_out, fields))


def _pairs(
    student: StudentViews, length: int, index: np.ndarray, views: np.ndarray
) -> np.ndarray:
    """The pair of each image in each view, as the matching has it: int32 [I, V, 2]."""
    pairs = np.empty((len(index), len(views), 2), np.int32)
    for v, view in enumerate(views):
        matching = view_pairs(student.augment_seed, int(view), length, student.repeats)
        place = np.empty(length, np.int64)
        place[matching] = np.arange(len(matching))[:, None]
        pairs[:, v] = matching[place[index]]
    return pairs


def class_name(source, label: int) -> str:
    """A name that can be read in Pillow's own font, which knows ASCII and little else.

    Accents are left out. A name without a letter becomes `class 7`, so that it is not
    taken for one more figure of the caption.
    """
    name = unicodedata.normalize("NFKD", source.class_names[label])
    name = "".join(c for c in name if not unicodedata.combining(c))
    name = "".join(c if " " <= c <= "~" else "?" for c in name)
    if any(c.isalpha() for c in name):
        return name
    return f"class {name if any(c.isdigit() for c in name) else label}"


def _scale(size: int) -> int:
    return -(-CELL // size)


def _row_height(side: int) -> int:
    return side + 4 + 2 * LINE + GAP // 2


def _fit(line: str, font, width: int) -> str:
    """The line, shortened where it is wider than `width` pixels."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _wrap(line: str, font, width: int) -> list[str]:
    """The line in several that fit between the margins of a page of `width`."""
    room = width - 2 * GAP
    lines = [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit(line, font, room) for line in lines]
