"""Draws what augmentation does: images go down, their views across."""

import operator
import textwrap
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deit_jax.data.augment import mix
from deit_jax.data.plan import view_pairs
from deit_jax.data.student_views import StudentViews
from deit_jax.errors import InputError
from deit_jax.reporting.labels import readable, shorten

CELL = 128  # images of fewer pixels a side are scaled up to at least these
GAP = 24  # pixels between cells, and around the whole
LABELS = 144  # pixels for a class name on the left
DPI = 72  # a point is a pixel
TEXT, TITLE = 10, 15  # font sizes
LINE, LETTER = 16, 7  # the height of a line and the width of a letter, at most
# Computed at once. Of the size of the examples in a teacher cache, which a start of
# training makes too: what is compiled for one may serve the other.
PAIRS = 4
MAX_PIXELS = 2**27  # 400 MB; viewers give up not far beyond


# A row: the lines on its left, and its cells, each an image uint8 [S, S, 3] with the
# lines under it.
Lines = tuple[str, ...]
Row = tuple[Lines, list[tuple[np.ndarray, Lines]]]


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
      index: Which images of the source, one a row.
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


def caption(view: int, drawn: mix.Mix, partner: str | None) -> Lines:
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
    cells = rows[0][1]
    scale = _scale(len(cells[0][0]))
    side = scale * len(cells[0][0])
    left = GAP + LABELS
    width = left + len(cells) * (side + GAP)
    head = [(line, TITLE) for line in textwrap.wrap(title, width // TITLE, max_lines=3)]
    head += [(line, TEXT) for line in textwrap.wrap(about, width // LETTER)]
    top = GAP + sum(2 * size for _, size in head)
    height = top + len(rows) * _row_height(side)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(x: int, y: int, lines: Sequence[str], most: int, size: int = TEXT):
        for n, line in enumerate(lines):
            at = x / width, 1 - (y + n * LINE) / height
            line = shorten(line, most)
            figure.text(*at, line, size=size, va="top", parse_math=False)

    y = GAP // 2
    for line, size in head:
        write(GAP, y, [line], len(line), size)
        y += 2 * size
    for number, (labels, cells) in enumerate(rows):
        y = top + number * _row_height(side)
        write(GAP, y, labels, LABELS // LETTER)
        for column, (image, lines) in enumerate(cells):
            x = left + column * (side + GAP)
            enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
            figure.figimage(enlarged, x, height - y - side)  # pixel by pixel
            write(x, y + side + 4, lines, (side + GAP) // LETTER)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
        for number, (_, label) in zip(wanted, source.pil_images(wanted), strict=True):
            names[number] = class_name(source, label)
    with student.read_few(source) as opened:
        [(originals, labels)] = opened.batches([(index, None)])
        images, mixes = _replay(student, opened, pairs, views)
    rows = []
    for i, label in enumerate(labels):
        cells = [(originals[i], ("source",))]
        for v, view in enumerate(views):
            # With an odd length one image rests, with itself.
            other = partner[i, v] if partner[i, v] != index[i] else None
            drawn = jax.tree.map(operator.itemgetter((i, v)), mixes)
            lines = caption(int(view), drawn, names.get(other))
            cells.append((images[i, v, position[i, v]], lines))
        rows.append(((f"image {index[i]:,}", class_name(source, int(label))), cells))
    return rows


def _replay(
    student: StudentViews, opened, pairs: np.ndarray, views: np.ndarray
) -> tuple[np.ndarray, mix.Mix]:
    """Images uint8 [I, V, 2, S, S, 3] of pairs [I, V, 2], and their mixes [I, V]."""
    shape, count = pairs.shape[:2], pairs.shape[0] * pairs.shape[1]
    pairs, view = pairs.reshape(-1, 2), np.tile(views, len(pairs))
    blocks = np.arange(-(-count // PAIRS) * PAIRS).reshape(-1, PAIRS)
    blocks = blocks.clip(max=count - 1)  # the last pair fills up
    requests = ((pairs[rows].reshape(-1), view[rows].repeat(2)) for rows in blocks)
    parts = [
        (images.reshape(PAIRS, 2, *images.shape[1:]), mixes)
        for images, mixes in student.replay(opened, requests)
    ]

    def laid_out(*parts):
        return np.concatenate(parts)[:count].reshape(*shape, *parts[0].shape[1:])

    return jax.tree.map(laid_out, *parts)


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
    """A name that is not taken for one more figure of the caption."""
    name = readable(source.class_names[label], label)
    return name if any(c.isalpha() for c in name) else f"class {name}"


def _scale(size: int) -> int:
    return -(-CELL // size)


def _row_height(side: int) -> int:
    return side + 4 + 2 * LINE + GAP // 2
