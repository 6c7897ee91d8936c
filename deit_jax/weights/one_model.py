"""The one model of a file of weights, wherever a training script has put it."""

import collections
import re
from collections.abc import Callable, Mapping

from deit_jax.errors import InputError, listed
from deit_jax.weights.tensor_files import Weights

AVERAGES = {"ema", "swa", "avg", "average", "averaged"}  # words in the name of one
FEWEST = 8  # tensors of a model; fewer names that fit are chance


def choose(
    file: Weights, is_part: Callable[[str], bool], what: str, *, average: bool = False
) -> Weights:
    """The one model of a file, with the names that it has by itself.

    Wherever a training script, a wrapper (`module.`, `_orig_mod.`, Lightning's
    `model.`) or both have put it, its names follow one prefix. Raw weights are taken
    before their moving average.

    Args:
      file: Of `open_file`.
      is_part: Whether a name is one of the model.
      what: The model and some of its names, for a message.
      average: Take the average; the raw weights do not count.

    Raises:
      InputError: There is no such model, or there are several.
    """
    found = collections.Counter()
    for name in file.tensors:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        if start := [i for i in starts if is_part(name[i:])][:1]:
            found[name[: start[0]]] += 1
    most = max(found.values(), default=0)
    places = [p for p, count in found.items() if count >= max(FEWEST, most / 2)]
    if not places:
        names = listed(file.tensors) or "no tensors"
        raise InputError(f"{file.where} holds no {what}. It has {names}.")
    averages = [p for p in places if AVERAGES & set(re.split(r"[._]", p.lower()))]
    raw = [place for place in places if place not in averages]
    if average and not averages:
        raise InputError(f"{file.where} has no averaged weights beside {_show(raw)}.")
    chosen = averages if average or not raw else raw
    if len(chosen) > 1:
        raise InputError(
            f"{file.where} holds several models: {_show(chosen)}. Save one alone."
        )
    [place] = chosen
    inner = tuple(p for p in places if p != place and p.startswith(place))
    tensors = {
        name.removeprefix(place): tensor
        for name, tensor in file.tensors.items()
        if name.startswith(place) and not (inner and name.startswith(inner))
    }
    where = f"{file.where} ({_show(chosen)})" if place else file.where
    note = None
    if averages:
        kind, other = ("raw", averages) if chosen is raw else ("averaged", raw)
        rest = f"not those of {_show(other)}" if other else "there are no raw ones"
        note = f"the {kind} weights of {_show(chosen)} are taken, {rest}"
    return Weights(where, tensors, file.content, note)


def _show(places: list[str]) -> str:
    return ", ".join(place.rstrip(".") or "the top level" for place in sorted(places))


def check(found: Weights, expected: Mapping, what: str) -> None:
    """Refuses tensors that are not just those of a model, `what` for the message.

    Args:
      expected: Its arrays, or tensors of torch: names, shapes and types.

    Raises:
      InputError: Lists what is missing, left over, or of another shape or type.
    """
    lines = []
    for name in sorted(found.tensors.keys() | expected.keys()):
        tensor, model = found.tensors.get(name), expected.get(name)
        if tensor is None:
            problem = f"missing, expected {tuple(model.shape)}"
        elif model is None:
            problem = f"{tensor.shape}, left over"
        elif tensor.shape != tuple(model.shape):
            problem = f"{tensor.shape}, expected {tuple(model.shape)}"
        elif str(tensor.dtype) not in ("float32", str(model.dtype).split(".")[-1]):
            problem = f"{tensor.dtype}, expected a floating-point type"
        else:
            continue
        lines.append(f"  {name}: {problem}")
    if lines:
        more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise InputError(
            f"the weights of {found.where} are not quite those of {what}, and nothing "
            "is taken in part:\n" + "\n".join(lines[:20]) + more
        )
