"""A confusion matrix as an image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deit_jax.reporting.labels import readable

MOST_NUMBERS = 15  # classes up to which every cell has its number and its name


def draw(axes: Axes, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws counts [C, C], rows the true class, coloured by their share of the row.

    Every cell has its count where there are few classes.
    """
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(matrix) > MOST_NUMBERS:
        return
    names = [readable(name, c, 14) for c, name in enumerate(class_names)]
    long = max(map(len, names)) > 3
    # A name may hold the dollar sign that starts a formula of matplotlib.
    rotation = 90 if long else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(length=0, labelsize=8)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(
                column, row, count, ha="center", va="center", fontsize=7, color=colour
            )


def image(matrix: np.ndarray, class_names: Sequence[str], *, title: str) -> np.ndarray:
    """The same as uint8 [H, W, 3], for TensorBoard."""
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes, matrix, class_names)
    axes.set_title(title, fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
