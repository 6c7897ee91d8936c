"""The convolutional teachers: torchvision's logits from torchvision's weights."""

import functools

import jax
import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import regnet as torchvision_regnet

from deit_jax import teachers
from deit_jax.distillation import teacher as jax_teacher
from deit_jax.errors import InputError
from deit_jax.models import convnets, regnet, resnet
from deit_jax.models.params import abstract_params
from deit_jax.weights import tensor_files
from deit_jax.weights import torchvision as files
from teacher import network

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CLASSES = 7


def trained(arch, stem="standard", seed=0):
    """A network whose norms matter: no two have the same statistics or scales."""
    torch.manual_seed(seed)
    model = network.build(arch, CLASSES, image_size=64, stem=stem)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0
        images = torch.randn(16, 3, 64, 64)
        model.train()(images)
        for norm in norms:
            spread = norm.running_var.sqrt()
            norm.running_mean += 0.2 * spread * torch.randn_like(spread)
            # None near 0, where rounding would be all that is left of a channel.
            norm.running_var.clamp_(min=float(norm.running_var.mean()) / 4)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
        model.fc.weight /= model.eval()(images).std()  # logits as of a trained one
    return model


def saved(model, path):
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    tensor_files.write_safetensors(path, state)
    return path


def answers(teacher, images):
    return jax.jit(functools.partial(jax_teacher.answers, teacher))(
        teacher.params, images
    ).logits


slow = pytest.mark.slow
NETWORKS = [
    ("resnet18", "standard"),
    ("resnet18", "cifar"),
    ("regnet_y_400mf", "standard"),
    ("resnet50", "standard"),
    ("wide_resnet50_2", "standard"),
    ("resnext50_32x4d", "standard"),
    ("regnet_x_400mf", "standard"),
    ("regnet_y_16gf", "standard"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "stem"), NETWORKS)
def test_the_logits_are_those_of_torchvision(arch, stem, tmp_path):
    model = trained(arch, stem)
    path = saved(model, tmp_path / "weights.safetensors")
    for size in (32, 48):
        given = {"arch": arch, "stem": stem, "image_size": size}
        teacher = teachers.open_teacher(path, **given)
        images = np.random.default_rng(size).integers(
            0, 256, (2, size, size, 3), np.uint8
        )
        x = (torch.tensor(images) / 255 - torch.tensor(teacher.mean)) / torch.tensor(
            teacher.std
        )
        with torch.inference_mode():
            expected = model(x.permute(0, 3, 1, 2)).numpy()
        found = answers(teacher, images)
        assert np.abs(expected).max() > 0.1
        assert np.abs(expected[0] - expected[1]).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_is_near(tmp_path):
    path = saved(trained("resnet18"), tmp_path / "weights.safetensors")
    given = {"arch": "resnet18", "image_size": 32}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    exact, near = (
        np.asarray(answers(teacher, images))
        for dtype in ("float32", "bfloat16")
        for teacher in [teachers.open_teacher(path, dtype=dtype, **given)]
    )
    assert near.dtype == np.float32
    assert 1e-4 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("arch", "stem"),
    [*((arch, "standard") for arch in resnet.SIZES), ("resnet34", "cifar")],
)
def test_every_resnet_has_the_tensors_of_torchvision(arch, stem):
    with torch.device("meta"):
        theirs = network.build(arch, CLASSES, image_size=64, stem=stem).state_dict()
    module = convnets.create(arch, num_classes=CLASSES, stem=stem)
    ours = files._state_dict(abstract_params(module, files.SIDE))
    assert {n: x.shape for n, x in ours.items()} == {
        n: tuple(x.shape) for n, x in theirs.items()
    }


@pytest.mark.parametrize("arch", regnet.SIZES)
def test_every_regnet_has_the_stages_of_torchvision(arch, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torchvision_regnet, "RegNet", lambda design, **_: design)
        design = torchvision.models.get_model(arch)
    assert regnet.stages(*regnet.SIZES[arch]) == list(
        zip(design.widths, design.depths, design.group_widths, strict=True)
    )
    assert design.se_ratio == (0.25 if arch.startswith("regnet_y") else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",
        "regnety_004",
        pytest.param("resnext50_32x4d", marks=slow),
        pytest.param("regnetx_004_tv", marks=slow),
    ],
)
def test_timms_networks_are_read(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name.partition(".")[0], num_classes=CLASSES)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32))
    model.eval()
    path = saved(model, tmp_path / "model.safetensors")
    path.with_name("config.json").write_text(
        f'{{"architecture": "{name}", "pretrained_cfg": {{"input_size": [3, 32, 32],'
        ' "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9}}'
    )
    teacher = teachers.open_teacher(path.parent)
    assert (teacher.image_size, teacher.crop_ratio) == (32, 0.9)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1)
    found = answers(teacher, images)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("regnety_160.deit_in1k", "regnet_y_16gf"),
        ("regnetx_016", "regnet_x_1_6gf"),
        ("regnetx_004_tv.tv2_in1k", "regnet_x_400mf"),
        ("regnety_008", "regnet_y_800mf"),
        ("regnety_1280", "regnet_y_128gf"),
        ("wide_resnet50_2.tv_in1k", "wide_resnet50_2"),
    ],
)
def test_timms_names_have_those_of_torchvision(theirs, ours):
    assert convnets.torchvision_name(theirs) == ours
    assert ours in convnets.ARCHITECTURES


@pytest.mark.parametrize(
    ("arch", "stem", "message"),
    [
        ("convnext_tiny", "standard", "convnext_tiny does not run in JAX.*torch"),
        ("regnet_y_16gf", "cifar", "--stem=cifar is for the ResNet family"),
        ("resnet18", "patchify", "expected one of standard, cifar"),
    ],
)
def test_what_does_not_run_in_jax_is_refused(arch, stem, message):
    with pytest.raises(InputError, match=message):
        convnets.create(arch, num_classes=2, stem=stem)
