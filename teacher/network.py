"""torchvision's classification networks: built by name, with another head or stem."""

import difflib
from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from deit_jax.data.sources.layout import plain_name
from deit_jax.errors import InputError
from deit_jax.models.resnet import STEMS
from deit_jax.weights import one_model, tensor_files
from deit_jax.weights import torchvision as files

# Their training loss needs a second, auxiliary head.
AUXILIARY = ("inception_v3", "googlenet")


def build(
    arch: str,
    num_classes: int | None,
    *,
    image_size: int,
    weights: str = "none",
    stem: str = "standard",
    class_names: Sequence[str] = (),
) -> nn.Module:
    """Makes a torchvision classification network with `num_classes` outputs.

    Args:
      arch: Any classification network of torchvision by name.
      num_classes: A head of another width is replaced by a new one; None keeps the
        head that the weights have.
      image_size: Side of the input in pixels.
      weights: `none` (random), `DEFAULT` (torchvision's best, downloaded once), or a
        file, as `load_weights` takes it.
      stem: See `replace_stem`.
      class_names: Of the outputs; a file that names its own gives each known class its
        row of the head (`match_head`).

    Raises:
      InputError: The name, weights, stem or size cannot work.
    """
    model = _create(arch, image_size, pretrained=weights == "DEFAULT")
    if stem not in STEMS:
        raise InputError(f"--stem={stem}: expected one of {', '.join(STEMS)}.")
    if stem == "cifar":
        replace_stem(model, arch)
    if weights not in ("none", "DEFAULT"):
        found = files.Described(
            tensor_files.open_file(weights),
            arch=arch,
            stem=stem,
            image_size=image_size,
        )
        content = found.file.content
        if files.is_teacher(content) and content["arch"] != arch:
            raise InputError(
                f"{weights} holds a {content['arch']}, --arch={arch} is asked for."
            )
        load_weights(model, found)
        if class_names and content.get("class_names"):
            match_head(model, content["class_names"], class_names)
    if num_classes not in (None, find_head(model)[1].out_features):
        replace_head(model, num_classes)
    _check_image_size(model, arch, image_size)
    return model


def architectures() -> list[str]:
    """The names that `build` knows."""
    return [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if name not in AUXILIARY and not name.startswith("squeezenet")
    ]


def _create(arch: str, image_size: int, *, pretrained: bool) -> nn.Module:
    if arch not in architectures():
        if arch in torchvision.models.list_models(module=torchvision.models):
            raise InputError(
                f"--arch={arch}: networks with an auxiliary head or without a linear "
                "one are not supported. Take another, e.g. resnet50."
            )
        close = difflib.get_close_matches(arch, architectures(), n=4, cutoff=0.5)
        raise InputError(
            f"unknown --arch={arch}. Any classification network of torchvision "
            f"{torchvision.__version__} will do, e.g. "
            f"{', '.join(close or ['resnet50', 'regnet_y_16gf', 'convnext_tiny'])}."
        )
    # A vision transformer's position embeddings fix the input size.
    options = {"image_size": image_size} if arch.startswith("vit_") else {}
    try:
        return torchvision.models.get_model(
            arch, weights="DEFAULT" if pretrained else None, **options
        )
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"--arch={arch} cannot be built for --image_size={image_size}: {error}"
        ) from error
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise InputError(
            f"--weights=DEFAULT: torchvision's weights of {arch} could not be "
            f"downloaded ({error}). Use --weights=none to train from scratch, or "
            "--weights=FILE with a state dict fetched elsewhere."
        ) from error


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer and its name: the head of every network we accept."""
    return [x for x in model.named_modules() if isinstance(x[1], nn.Linear)][-1]


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Gives `model` a new, randomly initialised head."""
    name, old = find_head(model)
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    model.set_submodule(name, new)


def match_head(model: nn.Module, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Makes the head of classes `theirs` one of `ours`, with new rows where unknown."""
    theirs, ours = [*map(plain_name, theirs)], [*map(plain_name, ours)]
    if theirs == ours:
        return
    old = find_head(model)[1].state_dict()
    replace_head(model, len(ours))
    head = find_head(model)[1].state_dict()  # shares the head's memory
    place = {name: row for row, name in enumerate(theirs)}
    known = [number for number, name in enumerate(ours) if name in place]
    for name, values in old.items():
        head[name][known] = values[[place[ours[number]] for number in known]]
    print(f"the head keeps {len(known)} of {len(ours)} classes, matched by name")


def replace_stem(model: nn.Module, arch: str) -> None:
    """A 3 x 3 convolution of stride 1 and no max-pool, for images of about 32 px.

    Raises:
      InputError: The network is not of the ResNet family.
    """
    if not isinstance(model, torchvision.models.ResNet):
        raise InputError(
            f"--stem=cifar is for the ResNet family (resnet, resnext, wide_resnet), "
            f"not for {arch}. Leave --stem out."
        )
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _check_image_size(model: nn.Module, arch: str, image_size: int) -> None:
    """Raises InputError where the network cannot see images of this size."""
    model.eval()
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{arch} cannot take images of {image_size} px ({error}). Give another "
            "--image_size; most networks take 224."
        ) from error


def load_weights(model: nn.Module, found: files.Described) -> None:
    """Loads the weights of `model`, whose head becomes as wide as theirs.

    Raises:
      InputError: The file has no such network, or not quite.
    """
    weights = files.choose(found, model.state_dict())
    head = weights.tensors.get(find_head(model)[0] + ".weight")
    if head is not None:
        replace_head(model, head.shape[0])
    state_dict = model.state_dict()
    one_model.check(weights, state_dict, found.words)
    with torch.no_grad():
        for name, tensor in state_dict.items():
            tensor.copy_(torch.from_numpy(weights.tensors[name]))
