"""What the models say about the same few evaluation images, and what they look at."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import PIL.Image

from deit_jax.data import crops, sources
from deit_jax.errors import InputError, joined
from deit_jax.models import model_card
from deit_jax.reporting import figures
from deit_jax.reporting.document import Image, Text
from deit_jax.reporting.labels import readable
from deit_jax.reporting.runs import Group, Run
from deit_jax.training.predictions import Predictions

MOST_RUNS = 6  # that the images have room for
LOOKED_AT = 4  # images of which attention is shown
SEED = 0  # which images are drawn
KINDS = ("all runs are right on", "they differ on", "all are wrong on")
TOKENS = {"class": "class token", "distill": "distillation token"}


@dataclasses.dataclass(frozen=True)
class Example:
    """An evaluation image: its number and class; whole, and uint8 [S, S, 3]."""

    index: int
    label: int
    image: PIL.Image.Image
    view: np.ndarray


def shown(
    members: Sequence[Group], *, images: int, attention: bool
) -> list[Image | Text]:
    """A block with `images` of the images, and one with attention, or why not.

    Args:
      members: Finished groups on the same data; the first run of each is shown.
    """
    chosen = [g.finished[0] for g in members if g.finished[0].predictions][:MOST_RUNS]
    if not chosen:
        return [Text("No run has predictions.npz, so no image can be shown.")]
    fingerprint = chosen[0].predictions[0]
    chosen = [run for run in chosen if run.predictions[0] == fingerprint]
    answers = [run.predictions[1] for run in chosen]
    indices, shares = select(answers, images)
    try:
        examples, class_names = _open(chosen[0], fingerprint, indices.tolist())
    except InputError as error:
        return [Text(f"The images cannot be shown: {error}")]
    drawn = figures.answers(
        [_panel(example, answers, class_names) for example in examples],
        [run.name for run in chosen],
    )
    counts = [f"{kind} {100 * s:.1f} %" for kind, s in zip(KINDS, shares, strict=True)]
    caption = (
        f"Of the evaluation images {joined(counts)}. These {len(examples)} are "
        "drawn at random, as many of each kind, as far as there are. A bar is the "
        "probability of the answer; where it is wrong, that of the true class follows."
    )
    blocks = [Image("same_images", drawn, caption)]
    return blocks + (_attention(chosen, examples, class_names) if attention else [])


def select(
    answers: Sequence[Predictions], count: int
) -> tuple[np.ndarray, list[float]]:
    """Draws images: a third each that all are right on, that differ, all wrong.

    Returns:
      Their indices, kind by kind, and the share of each kind among all images.
    """
    right = np.sum([one.right for one in answers], axis=0)
    kinds = [right == len(answers), (right > 0) & (right < len(answers)), right == 0]
    rng = np.random.default_rng(SEED)
    pools = [rng.permutation(np.flatnonzero(kind)) for kind in kinds]
    taken = [0, 0, 0]
    while sum(taken) < min(count, len(right)):
        for k, pool in enumerate(pools):
            if taken[k] < len(pool) and sum(taken) < count:
                taken[k] += 1
    drawn = [pool[:n] for pool, n in zip(pools, taken, strict=True)]
    return np.concatenate(drawn), [float(kind.mean()) for kind in kinds]


def _open(
    run: Run, fingerprint: str, indices: Sequence[int]
) -> tuple[list[Example], Sequence[str]]:
    fields = run.config.get("dataset", {})
    name, split = (str(fields.get(key, "")) for key in ("name", "eval_split"))
    source = sources.load(name, split, data_dir=fields.get("data_dir") or None)
    if source.fingerprint != fingerprint:
        raise InputError(
            f"{name} {split} holds other images now than those that the runs were "
            "evaluated on."
        )
    card = model_card.read(run.directory)
    found = []
    for i, (image, label) in zip(indices, source.pil_images(indices), strict=True):
        view = crops.centre_view(image, card.image_size, card.crop_ratio)
        found.append(Example(i, label, image, view))
    return found, source.class_names


def _panel(example: Example, answers: Sequence[Predictions], class_names) -> tuple:
    """The image, its title, and what each run says of it, for `figures.answers`."""
    i, lines = example.index, []
    for one in answers:
        predicted, right = int(one.predicted[i]), bool(one.right[i])
        text = f"{readable(class_names[predicted], predicted, 14)} "
        text += f"{one.confidence[i]:.0%}"
        if not right:
            text += f", true {np.exp(-one.loss[i]):.0%}"
        lines.append((text, float(one.confidence[i]), right))
    name = readable(class_names[example.label], example.label, 20)
    return example.view, f"{name}, image {i:,}", lines


def _attention(
    runs: Sequence[Run], examples: Sequence[Example], class_names
) -> list[Image | Text]:
    """The last block's attention, a row an image, a column a token of a run."""
    from deit_jax import trained_model

    spread = np.linspace(0, len(examples) - 1, min(LOOKED_AT, len(examples)))
    some = [examples[int(n)] for n in spread.round()]
    columns, missing = [], []
    for run in runs:
        try:
            trained = trained_model.load(run.directory)
        except InputError:
            missing.append(run.name)
            continue
        maps, logits = trained.attention([one.image for one in some])
        for t, head in enumerate(logits):
            title = f"{readable(run.name, 0, 18, kind='run')}\n{TOKENS[head]}"
            columns.append((title, maps.heads[:, t].mean(axis=1)))
    blocks = []
    if columns:
        rows = [
            (readable(class_names[one.label], one.label, 14), one.view) for one in some
        ]
        caption = (
            "Attention of the last block to the patches, the mean of its heads, each "
            "scaled to its maximum, a multiple of uniform attention."
        )
        blocks.append(Image("attention", figures.attention(rows, columns), caption))
    if missing:
        text = f"Without a checkpoint that loads, no attention: {joined(missing)}."
        blocks.append(Text(text))
    return blocks
