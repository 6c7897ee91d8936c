"""How good teachers are: asked alone and together, whatever they compute with."""

from collections.abc import Sequence

import numpy as np

from deit_jax.distillation import classes
from deit_jax.distillation.teacher import average
from deit_jax.errors import InputError
from teacher.blocks import consecutive, read_plain


def answers(
    teachers: Sequence, images: Sequence[np.ndarray], backend, columns: Sequence
) -> list[np.ndarray]:
    """Each teacher's logits float32 [B, C], in the order of the data's classes.

    Args:
      teachers: `teacher.classifier.Classifier` or `distillation.teacher.Teacher`, as
        `backend` takes them.
      images: What each of them sees, uint8 [B, H, W, 3].
      backend: `teacher.classifier.TorchBackend` or `teacher.jax_backend.JaxBackend`.
      columns: Of each, as `classes.match` gives them.
    """
    return [
        backend.logits(teacher, seen)[:, order]
        for teacher, seen, order in zip(teachers, images, columns, strict=True)
    ]


def together(logits: Sequence[np.ndarray], tau: float) -> np.ndarray:
    """`distillation.teacher.average` on the host; of one teacher the same bits."""
    return logits[0] if len(logits) == 1 else np.asarray(average(logits, tau))


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
        logits = answers(teachers, images, backend, columns)
        asked = [together(logits, tau), *(logits if len(logits) > 1 else [])]
        correct += np.array([(x.argmax(-1) == labels).sum() for x in asked])
        counts += np.bincount(labels, minlength=source.num_classes)
    return (correct / len(source)).tolist(), counts


def check_strength(
    top1: float, counts: np.ndarray, split: str, name: str = "the teacher"
) -> None:
    """Refuses a teacher near chance, which points at a wrong file or preprocessing.

    Chance is the share of the most frequent class: what one constant answer gets. A
    teacher has to come a tenth of the way from there to 1, and more than three
    standard errors of chance above it.

    Args:
      top1: Measured accuracy in 0 .. 1.
      counts: Images of each class in the split, int [C].
      split, name: Of the data and the teacher, for the message.
    """
    chance = counts.max() / counts.sum()
    error = np.sqrt(chance * (1 - chance) / counts.sum())
    needed = min(max(chance + 0.1 * (1 - chance), chance + 3 * error), 1.0)
    if top1 < needed:
        raise InputError(
            f"{name} is near chance: top-1 {top1:.1%} on {split}, where one "
            f"constant answer gets {chance:.1%} and {needed:.1%} is the least. "
            "Check --arch, --image_size, --stem and the order of the classes, train it "
            "longer, or pass --allow_weak_teacher."
        )
