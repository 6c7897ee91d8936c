"""How good teachers are: asked alone and together, whatever they compute with."""

from collections.abc import Sequence

import numpy as np

from deit_jax.distillation import classes
from deit_jax.distillation.teacher import Answers, average
from teacher.blocks import consecutive, read_plain


def answers(
    teachers: Sequence,
    images: Sequence[np.ndarray],
    backend,
    columns: Sequence,
    *,
    features: bool = False,
) -> list[Answers]:
    """Each teacher's answers float32 [B, ...], in the order of the data's classes.

    Args:
      images: What each of them sees, uint8 [B, H, W, 3].
      backend: `teacher.classifier.TorchBackend` or `teacher.jax_backend.JaxBackend`.
      columns: Of each, as `classes.match` gives them.
    """
    found = []
    for teacher, seen, order in zip(teachers, images, columns, strict=True):
        logits, pooled = backend.answers(teacher, seen, features=features)
        found.append(Answers(logits[:, order], pooled))
    return found


def together(each: Sequence[Answers], tau: float) -> Answers:
    """`distillation.teacher.average` on the host; of one teacher the same bits."""
    if len(each) == 1:
        return each[0]
    return Answers(np.asarray(average([found.logits for found in each], tau)))


def evaluate(
    teachers: Sequence, source, backend, *, batch_size: int, tau: float = 1.0
) -> tuple[list[float], np.ndarray]:
    """Top-1 accuracies over all of `source`, and its labels' counts [C].

    Args:
      tau: Temperature at which several teachers are averaged.

    Returns:
      The accuracy of all together, in 0 .. 1, and of several teachers then each one's.
    """
    columns = [classes.match(teacher, source)[0] for teacher in teachers]
    correct, counts = 0, np.zeros(source.num_classes, np.int64)
    blocks = list(consecutive(0, len(source), batch_size))
    for images, labels in read_plain(teachers, source, blocks):
        each = answers(teachers, images, backend, columns)
        asked = [together(each, tau), *(each if len(each) > 1 else [])]
        correct += np.array([(x.logits.argmax(-1) == labels).sum() for x in asked])
        counts += np.bincount(labels, minlength=source.num_classes)
    return (correct / len(source)).tolist(), counts
