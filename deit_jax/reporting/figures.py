"""The images of the report, as PNG.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart;
markers and dashes say the same for print in grey.
"""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from deit_jax.reporting import confusion
from deit_jax.reporting.labels import readable

# Without yellow, which cannot be seen on white. There are more markers than colours,
# so that it takes long until two runs share both.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
DPI = 144
WIDTH = 10  # inches
HOLLOW = {"marker": "o", "markersize": 6, "fillstyle": "none"}


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve; `of` is the number of its run, which gives colour and marker."""

    of: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    faint: bool = False  # one of several seeds


def curves(panels: Sequence[tuple[str, Sequence[Line]]], names: Sequence[str]) -> bytes:
    """Panels, each with a title, in two columns over the epochs, with one legend.

    Args:
      names: Of the runs, by their number.
    """
    rows = math.ceil(len(panels) / 2)
    with canvas(WIDTH, 0.4 + 2.5 * rows) as (figure, png):
        axes = figure.subplots(rows, 2, squeeze=False, sharex=True).ravel()
        for (title, lines), ax in zip(panels, axes, strict=False):
            for line in lines:
                _plot(ax, line)
            _limit(ax, lines)
            ax.set_title(title)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=0.3)
        axes[0].set_xlim(left=0)  # shared by all
        for ax in axes[len(panels) :]:
            ax.remove()
        # The lowest panel of each column has the numbers.
        for ax in axes[max(0, len(panels) - 2) : len(panels)]:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
        every = [line for _, lines in panels for line in lines]
        handles = [_key(of, names[of]) for of in sorted({line.of for line in every})]
        if any(line.dashed for line in every):
            grey = functools.partial(Line2D, [], [], color="0.3")
            handles.append(grey(label="validation", marker="o", markersize=4))
            handles.append(grey(label="training", ls="--", lw=1.2, **HOLLOW))
        _legend(figure, handles)
    return png.getvalue()


def _limit(ax, lines: Sequence[Line]) -> None:
    """Lets a single value, or equal ones, be read against 0 and not within 1e-5."""
    values = [value for line in lines for value in line.y]
    low, high = min(values, default=0), max(values, default=0)
    if high - low <= 1e-3 * max(abs(low), abs(high)):
        bottom, top = min(1.1 * low, 0), max(1.1 * high, 0)
        ax.set_ylim(bottom, top if top > bottom else 1)


def _plot(ax, line: Line) -> None:
    marker, alone = {"marker": _marker(line.of), "markersize": 4}, len(line.x) == 1
    if line.dashed:
        marker = HOLLOW if alone else {}
    elif line.faint and not alone:
        marker = {}
    ax.plot(
        line.x,
        line.y,
        color=_colour(line.of),
        linestyle="--" if line.dashed else "-",
        linewidth=0.8 if line.faint else 1.2 if line.dashed else 1.8,
        alpha=0.45 if line.faint else 1,
        **marker,
        markevery=max(1, len(line.x) // 12),
    )


def confusions(
    matrices: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str]
) -> bytes:
    """A confusion matrix, with its title, for every run."""
    columns = min(len(matrices), 2 if len(class_names) > 5 else 3)
    rows = math.ceil(len(matrices) / columns)
    side = WIDTH / max(columns, 2)
    # "compressed": for axes that have to be square.
    size = side * columns, side * rows
    with canvas(*size, layout="compressed") as (figure, png):
        axes = figure.subplots(rows, columns, squeeze=False)
        for of, (title, matrix) in enumerate(matrices):
            confusion.draw(axes.flat[of], matrix, class_names)
            axes.flat[of].set_title(readable(title, of, 50, kind="run"))
        for ax in axes.flat[len(matrices) :]:
            ax.remove()
    return png.getvalue()


def calibration(
    bins: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str]
) -> bytes:
    """Accuracy over confidence, and how often each confidence occurs.

    Args:
      bins: (number of the run, images, mean confidence and accuracy of each bin).
    """
    with canvas(WIDTH, 4.4) as (figure, png):
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color="0.5", ls=":", lw=1.2)
        edges = np.linspace(0, 1, len(bins[0][1]) + 1)
        for of, count, confidence, accuracy in bins:
            filled, share = count > 0, count / count.sum()
            style = {"color": _colour(of), "marker": _marker(of)}
            centres = (edges[:-1] + edges[1:]) / 2
            left.plot(
                confidence[filled], accuracy[filled], markersize=5, lw=1.5, **style
            )
            right.stairs(share, edges, color=_colour(of), lw=1.5, baseline=None)
            right.plot(centres[filled], share[filled], markersize=4, ls="", **style)
        left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        left.set(xlabel="confidence", ylabel="accuracy")
        left.set_title("accuracy of each confidence; dotted: perfect")
        right.set(yscale="log", xlim=(0, 1), xlabel="confidence")
        right.set_title("share of the images")
        right.yaxis.set_major_formatter(PercentFormatter(1))
        right.yaxis.set_minor_formatter(NullFormatter())
        for ax in (left, right):
            ax.grid(alpha=0.3)
        _legend(figure, [_key(of, names[of]) for of, *_ in bins])
    return png.getvalue()


def answers(
    images: Sequence[tuple[np.ndarray, str, Sequence[tuple[str, float, bool]]]],
    names: Sequence[str],
) -> bytes:
    """Images in three columns, each with a bar for what every run says of it.

    Args:
      images: (uint8 [S, S, 3], title, answers), where an answer is (text, probability,
        whether it is right).
      names: Of the runs, in the order of the answers.
    """
    rows = math.ceil(len(images) / 3)
    height = rows * (0.45 + 0.25 * max(len(names), 3)) + 0.3
    shown = [readable(name, of, 14, kind="run") for of, name in enumerate(names)]
    with canvas(WIDTH, height) as (figure, png):
        axes = figure.subplots(rows, 6, squeeze=False, width_ratios=[1, 1.8] * 3)
        for ax in axes[:, ::2].flat:
            ax.set_axis_off()
        for ax in axes.ravel()[2 * len(images) :]:
            ax.set_axis_off()
        pairs = axes.reshape(-1, 2)
        for (view, title, said), (left, right) in zip(images, pairs, strict=False):
            left.imshow(view)
            left.set_title(title, fontsize=8, loc="left")
            for place, (text, probability, is_right) in enumerate(said):
                colour = COLOURS[0] if is_right else COLOURS[1]
                right.barh(place, probability, 0.8, color=colour, alpha=0.35)
                mark = "\N{CHECK MARK}" if is_right else "\N{BALLOT X}"
                right.text(0.02, place, f"{mark} {text}", fontsize=7, va="center")
            right.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xticks=[])
            right.set_yticks(range(len(names)), shown, fontsize=7)
            right.tick_params(length=0)
            right.spines[:].set_visible(False)
    return png.getvalue()


def attention(
    rows: Sequence[tuple[str, np.ndarray]],
    columns: Sequence[tuple[str, np.ndarray]],
    *,
    side: float | None = None,
) -> bytes:
    """Attention maps over images: left an image, and as many maps of it as columns.

    Args:
      rows: (name, the image uint8 [S, S, 3]).
      columns: (name, a map float [s, s] for each row).
      side: Inches of a panel; as many as there is room for, if not given.
    """
    across = len(columns) + 1
    side = side or min(1.5, WIDTH / across)
    with canvas(side * across, (side + 0.2) * len(rows) + 0.4) as (figure, png):
        bare = {"xticks": [], "yticks": []}
        axes = figure.subplots(len(rows), across, squeeze=False, subplot_kw=bare)
        for row, (name, view) in enumerate(rows):
            axes[row, 0].imshow(view)
            axes[row, 0].set_title(name, fontsize=8)
            for column, (title, maps) in enumerate(columns, 1):
                name = title if row == 0 else ""
                overlay(axes[row, column], maps[row], name, view=view)
    return png.getvalue()


def overlay(panel, weights: np.ndarray, name: str, *, view: np.ndarray) -> None:
    """Draws an attention map over an image in grey: the colours are the map's alone.

    Args:
      weights: float [s, s].
      name: Of the map; its maximum stands beside it, a multiple of uniform attention.
      view: uint8 [S, S, 3].
    """
    side = view.shape[0]
    grey = view.astype(np.float32).mean(axis=-1)
    panel.imshow(grey, cmap="gray", vmin=0, vmax=255)
    panel.imshow(
        weights,
        cmap="viridis",
        alpha=0.65,
        vmin=0,
        vmax=max(float(weights.max()), 1e-12),
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="bilinear",
    )
    most = f"max {weights.max() * weights.size:.1f}x"
    panel.set_title(f"{name}, {most}" if name else most, fontsize=8, parse_math=False)


@contextlib.contextmanager
def canvas(
    width: float, height: float, *, layout: str = "constrained"
) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure to draw on, and the file that holds its PNG afterwards."""
    png = io.BytesIO()
    style = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.h_pad": 0.07,
        "text.parse_math": False,  # a name may hold a dollar sign
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        yield figure, png
        figure.savefig(png, format="png")


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(len(handles), 100 // (longest + 6))  # as many as there is room for
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False
    )


def _key(of: int, name: str) -> Line2D:
    style = {"color": _colour(of), "marker": _marker(of), "markersize": 5, "lw": 1.8}
    label = readable(name, of, 40, kind="run")
    return Line2D([], [], label=label, **style)


def _colour(of: int) -> str:
    return COLOURS[of % len(COLOURS)]


def _marker(of: int) -> str:
    return MARKERS[of % len(MARKERS)]
