"""README.md of exported weights, which the Hugging Face hub shows as a model's page.

Its front matter follows https://huggingface.co/docs/hub/model-cards: what the hub
searches and compares.
"""

import re
from collections.abc import Mapping

import yaml

from deit_jax.models.model_card import ModelCard
from deit_jax.models.variants import VARIANTS

LIBRARIES = {"timm": "timm", "hf": "transformers"}
SHOWN_CLASSES = 20
HUB_NAME = r"hf:([\w.-]+/[\w.-]+)"
# Of a summary: the metric, its type on the hub, and its title.
METRICS = (
    ("top1", "accuracy", "top-1"),
    ("top5", "accuracy", "top-5"),
    ("f1", "f1", "F1 (macro)"),
    ("auc", "roc_auc", "AUC (macro)"),
    ("ece", "ece", "calibration error"),
)
LOAD = {
    "hf": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModelForImageClassification.from_pretrained("{name}")
logits = model(**processor(Image.open("image.jpg"), return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])
""",
    "timm": """\
import timm
from PIL import Image

model = timm.create_model("{place}:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("image.jpg").convert("RGB"))[None])
print(model.pretrained_cfg["label_names"][logits.argmax()])
""",
}
PAGE = """\
---
{front}---

# {title}

{variant}, {parameters:,} parameters, {origin}.

## Classes

{classes}

## Images

The shorter side is resized to {shorter} pixels (bicubic) and the centre of {size} x
{size} is taken. Pixels in 0 .. 1 are normalised with mean ({mean}) and
standard deviation ({std}).
{results}
## Use

```python
{load}```

With deit_jax, from {source}:

```bash
deit-jax convert --src={src} --out=runs/{title}
deit-jax predict --workdir=runs/{title} image.jpg
```
"""


def text(
    card: ModelCard,
    *,
    layout: str,
    name: str,
    license: str,
    parameters: int,
    weights: str = "raw",
    summary: Mapping | None = None,
) -> str:
    """The page.

    Args:
      layout: `timm` or `hf`, which the files beside it are for.
      name: `org/name` on the hub; of a directory that is not there, its name.
      license: As the hub abbreviates it: https://huggingface.co/docs/hub/repositories-licenses.
      weights: `raw` or `ema`, those that were exported.
      summary: The run's summary.json, if these are the weights that it measured.
    """
    title, on_hub = name.rpartition("/")[2], "/" in name
    heads = {}
    if summary:
        measured = summary.get("eval" if weights == "raw" else "eval_ema", {})
        heads = {head: x for head, x in measured.items() if isinstance(x, Mapping)}
    shown = ", ".join(card.class_names[:SHOWN_CLASSES])
    if card.num_classes > SHOWN_CLASSES:
        shown += ", ...; config.json has them all"
    mean, std = (", ".join(f"{x:g}" for x in row) for row in (card.mean, card.std))
    return PAGE.format(
        front=_front(card, layout, license, title, summary, heads),
        title=title,
        variant=card.variant,
        parameters=parameters,
        origin=_origin(card, summary),
        classes=f"{card.num_classes:,}: {shown}",
        shorter=int(card.image_size / card.crop_ratio),
        size=card.image_size,
        mean=mean,
        std=std,
        results=_results(summary, heads) if heads else "",
        load=LOAD[layout].format(name=name, place="hf-hub" if on_hub else "local-dir"),
        source="the hub" if on_hub else "this directory",
        src=f"hf:{name}" if on_hub else name,
    )


def _front(
    card: ModelCard, layout: str, license: str, title: str, summary, heads: Mapping
) -> str:
    distilled = VARIANTS[card.variant]["distilled"]
    front = {
        "license": license,
        "library_name": LIBRARIES[layout],
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification",
            "deit_jax",
            *(["deit", "distillation"] if distilled else ["vit"]),
        ],
    }
    if base := re.fullmatch(HUB_NAME, card.origin):
        front["base_model"] = base[1]
    if heads:
        front |= _measured(title, summary, heads.get("mean", heads["class"]))
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def dataset(name: str) -> str:
    """A data set's name without the path on this machine: `folder:/my/pets` is pets."""
    on_hub = re.fullmatch(HUB_NAME, name)
    return on_hub[1] if on_hub else re.split("[:/]", name.rstrip("/"))[-1]


def _measured(title: str, summary: Mapping, head: Mapping) -> dict:
    """The metrics as the hub compares them."""
    name = dataset(summary["dataset"])
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": name, "name": name, "split": summary["eval_split"]},
        "metrics": [
            {"type": kind, "name": shown, "value": head[metric]}
            for metric, kind, shown in METRICS
            if metric in head
        ],
    }
    return {
        "metrics": list(dict.fromkeys(kind for _, kind, _ in METRICS)),
        "model-index": [{"name": title, "results": [result]}],
    }


def _origin(card: ModelCard, summary: Mapping | None) -> str:
    if card.origin != "training":
        known = card.origin.startswith(("hf:", "timm:"))  # others are local paths
        return f"converted from {card.origin if known else 'elsewhere'} by deit_jax"
    text = "trained with deit_jax in JAX and Flax"
    if summary:
        text += (
            f" on {dataset(summary['dataset'])}, {summary['steps']:,} steps of "
            f"{summary['batch_size']:,} images"
        )
        if teacher := summary.get("teacher"):
            text += f", distilled from {teacher['arch']} (top-1 {teacher['top1']:.2%})"
    return text


def _results(summary: Mapping, heads: Mapping[str, Mapping]) -> str:
    """A table, a row for each head."""
    columns = [c for c in METRICS if all(c[0] in values for values in heads.values())]
    rows = [["head", *(title for *_, title in columns)], ["---"] * (1 + len(columns))]
    for head, values in heads.items():
        rows.append([head, *(f"{values[metric]:.4f}" for metric, *_ in columns)])
    about = (
        f"{summary['eval_images']:,} images of {dataset(summary['dataset'])} "
        f"{summary['eval_split']}, each once"
    )
    if len(heads) > 1:
        about += "; the mean of both heads' logits predicts"
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"\n## Results\n\n{about}.\n\n{table}\n"
