"""The torch side: networks, weight files and training."""

import dataclasses
import os
import re
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from wrapped_weights import WRAPPED

from deit_jax import teachers
from deit_jax.data import crops, sources
from deit_jax.distillation import classes
from deit_jax.errors import InputError
from teacher import accuracy, blocks, finetune, network
from teacher import classifier as classifiers

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def train():
    return sources.load("digits", "train[:48]")


def short_finetune(out, **changes):
    settings = {
        "dataset": "digits",
        "data_dir": None,
        "train_split": "train[:48]",
        "eval_split": "test[:32]",
        "arch": "mobilenet_v3_small",  # it has dropout
        "weights": "none",
        "stem": "standard",
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
        "crop_padding": 4,
        "flip": True,
        "precision": "float32",
        "device": "cpu",
        "seed": 0,
    }
    return finetune.finetune(out=out, **settings | changes)


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


# Networks


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet50", "fc"),
        ("resnext50_32x4d", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("vit_b_16", "heads.head"),
        ("convnext_tiny", "classifier.2"),
        ("efficientnet_b0", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("densenet121", "classifier"),
        ("swin_t", "head"),
        ("maxvit_t", "classifier.5"),
        ("vgg11", "classifier.6"),
    ],
)
def test_head_is_replaced(arch, head):
    with torch.device("meta"):
        model = network.build(arch, 7, image_size=224)
        assert network.find_head(model)[0] == head
        assert model.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet55", {}, r"unknown --arch=resnet55.*resnet50"),
        ("googlenet", {}, "not supported"),
        ("inception_v3", {}, "not supported"),
        ("squeezenet1_0", {}, "not supported"),
        ("densenet121", {"stem": "cifar"}, "for the ResNet family"),
        ("resnet18", {"stem": "patchify"}, "expected one of standard, cifar"),
        ("alexnet", {"image_size": 32}, "alexnet cannot take images of 32 px"),
        ("vit_b_32", {"image_size": 65}, "cannot be built for --image_size=65"),
    ],
)
def test_what_cannot_be_built_is_refused(arch, options, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        network.build(arch, 10, **{"image_size": 64} | options)


def test_vision_transformer_takes_the_image_size():
    with torch.device("meta"):
        model = network.build("vit_b_32", 5, image_size=64)
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_refused_download_names_the_ways_out(monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with pytest.raises(InputError, match=r"no route.*--weights=none .*--weights=FILE"):
        network.build("resnet18", 10, image_size=32, weights="DEFAULT")


# Images


@pytest.mark.parametrize("size", [32, 48, 80])
def test_preprocessing_resizes_bilinearly_and_normalises(size):
    """Pillow resizes with antialias; where an image grows there is none to do."""
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    x = classifiers.preprocess(image[None], size, mean, std, CPU)
    assert x.shape == (1, 3, size, size)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    mine = x[0].permute(1, 2, 0).numpy() * std + mean
    atol = 1e-3 if size == 48 else 1.01  # what has the size is not resampled
    np.testing.assert_allclose(mine * 255, np.asarray(resized), atol=atol)


def test_blocks_come_in_order(train):
    found = blocks.read_blocks(train, blocks.consecutive(3, 48, 20), None)
    images, labels = zip(*found, strict=True)
    assert [len(block) for block in images] == [20, 20, 5]
    np.testing.assert_array_equal(np.concatenate(images), train.images[3:])
    np.testing.assert_array_equal(np.concatenate(labels), train.labels[3:])


def test_images_of_any_size_are_seen_as_their_centre_view(teacher, folder):
    source = sources.load(folder, "train")
    teacher = dataclasses.replace(teacher, image_size=24, crop_ratio=0.5)
    [([images], labels)] = blocks.read_plain([teacher], source, [np.arange(9)])
    assert images.shape == (9, 24, 24, 3)
    for index, (picture, label) in enumerate(source.pil_images(range(9))):
        expected = crops.centre_view(picture, 24, 0.5)
        np.testing.assert_array_equal(images[index], expected)
        assert labels[index] == label


def test_random_crops_follow_from_seed_epoch_and_index(folder):
    """Not from the batches, nor from the order in which threads read them."""
    source = sources.load(folder, "train")

    def epoch_of(seed, epoch, batch_size):
        batches = finetune.augmented_batches(
            source,
            batch_size,
            image_size=16,
            crop_padding=4,
            flip=True,
            seed=seed,
            epoch=epoch,
        )
        return np.concatenate([images for images, _ in batches])

    first = epoch_of(0, 0, 8)
    assert first.shape == (32, 16, 16, 3)
    np.testing.assert_array_equal(epoch_of(0, 0, 8), first)
    np.testing.assert_array_equal(epoch_of(0, 0, 16), first)
    for other in ((0, 1), (1, 0)):
        assert not (epoch_of(*other, 8) == first).all(axis=(1, 2, 3)).any()


def test_augmentation_shifts_within_the_padding_and_keeps_pairs(train):
    options = {"image_size": 32, "crop_padding": 2, "flip": False}
    epoch = [
        list(finetune.augmented_batches(train, 10, seed=0, epoch=number, **options))
        for number in (0, 0, 1)
    ]
    for (a, b), (c, d), (e, _) in zip(*epoch, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
        assert not np.array_equal(a, e)
    assert len(epoch[0]) == 4  # of 48 images, 8 sit out
    padded = np.pad(train.images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    crops = np.lib.stride_tricks.sliding_window_view(padded, (32, 32), (1, 2))
    crops = np.moveaxis(crops, 3, -1)  # [N, 5, 5, 32, 32, 3]
    for images, labels in epoch[0]:
        for image, label in zip(images, labels, strict=True):
            fits = (crops == image).all(axis=(3, 4, 5)).any(axis=(1, 2))
            assert label in train.labels[fits]


# Files of weights


def test_saved_teacher_is_loaded(teacher, tmp_path):
    teacher = dataclasses.replace(teacher, top1=0.5, top1_split="test")
    classifiers.save(tmp_path / "teacher.pt", teacher)
    for path in (tmp_path, tmp_path / "teacher.pt"):
        loaded = classifiers.load(path)
        assert_same_weights(loaded.model, teacher.model)
        for field in dataclasses.fields(teacher):
            if field.name != "model":
                assert getattr(loaded, field.name) == getattr(teacher, field.name)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pt"]


def test_what_a_file_may_leave_out_is_of_imagenet(teacher, tmp_path):
    """Files from before a field was added stay readable."""
    classifiers.save(tmp_path / "teacher.pt", teacher)
    content = torch.load(tmp_path / "teacher.pt")
    assert content.pop("crop_ratio") == 0.875
    torch.save(content, tmp_path / "teacher.pt")
    assert classifiers.load(tmp_path).crop_ratio == 0.875


def test_bare_half_precision_state_dict_is_loaded(teacher, tmp_path):
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in teacher.model.state_dict().items()
    }
    torch.save(half, tmp_path / "bare.pt")
    loaded = classifiers.load(tmp_path / "bare.pt", arch="resnet18", image_size=32)
    assert loaded.num_classes == 10
    assert loaded.class_names is None
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, half[name].to(tensor.dtype))
        assert tensor.dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize("kind", ["script", "raw and ema", "ema only"])
def test_a_teacher_is_found_wherever_a_script_put_it(teacher, tmp_path, capfd, kind):
    """By the reader of students: test_weights_files.py."""
    wrap, note = WRAPPED[kind]
    torch.save(wrap(teacher.model.state_dict()), tmp_path / "w.pth.tar")
    loaded = classifiers.load(tmp_path / "w.pth.tar", arch="resnet18", image_size=32)
    assert_same_weights(loaded.model, teacher.model)
    out, said = capfd.readouterr()
    assert (out, said.count("\n")) == ("", note is not None)
    assert note is None or re.search(note, said)


def test_teachers_come_in_the_formats_of_students(teacher, tmp_path):
    state = teacher.model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    loaded = classifiers.load(tmp_path, arch="resnet18", image_size=32)
    assert_same_weights(loaded.model, teacher.model)

    # Old files lack BatchNorm's counters.
    state = {name: x.numpy() for name, x in state.items() if "num_" not in name}
    np.savez(tmp_path / "w.npz", **state)
    loaded = classifiers.load(tmp_path / "w.npz", arch="resnet18", image_size=32)
    for name, value in state.items():
        np.testing.assert_array_equal(loaded.model.state_dict()[name], value)


def test_hash_belongs_to_the_weights_not_to_the_file(teacher, tmp_path):
    classifiers.save(tmp_path / "teacher.pt", teacher)
    torch.save(teacher.model.state_dict(), tmp_path / "bare.pt")
    bare = classifiers.load(tmp_path / "bare.pt", arch="resnet18", image_size=32)
    saved = classifiers.load(tmp_path / "teacher.pt")
    in_jax = teachers.open_teacher(tmp_path / "teacher.pt", dtype="bfloat16")
    hashes = {one.sha256 for one in (teacher, saved, bare, in_jax)}
    assert len(hashes) == 1
    with torch.no_grad():
        bare.model.fc.bias[3] += 1e-3
    assert bare.sha256 not in hashes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "is a bare state dict: say"),
        ({"arch": "resnet18"}, "is a bare state dict: say"),
        ({"image_size": 32}, "is a bare state dict: say"),
        (
            {"arch": "resnet34", "image_size": 32},
            r"those of resnet34 (.|\n)*  layer1\.2\.conv1\.weight: missing, expected",
        ),
        (
            {"arch": "densenet121", "image_size": 32},
            r"holds no densenet121 .*: no features\.conv0\.weight, .* It has conv1\.w",
        ),
        (
            {"arch": "resnet18", "image_size": 32, "stem": "cifar"},
            r"conv1.weight: \(64, 3, 7, 7\), expected \(64, 3, 3",
        ),
    ],
)
def test_a_bare_state_dict_is_what_is_said(teacher, tmp_path, given, message):
    torch.save(teacher.model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match=message):
        classifiers.load(tmp_path / "bare.pt", **given)


def test_what_contradicts_the_file_is_refused(teacher, tmp_path):
    path = tmp_path / "teacher.pt"
    classifiers.save(path, teacher)
    with pytest.raises(InputError, match="has image_size=32, not --image_size=64"):
        classifiers.load(tmp_path, image_size=64)
    with pytest.raises(InputError, match="holds a resnet18, --arch=resnet34"):
        network.build("resnet34", 10, image_size=32, weights=str(path))


def test_a_pickled_network_and_an_address_are_refused(teacher, tmp_path):
    torch.save(teacher.model, tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"torch.save\(model.state_dict\(\), FILE\)"):
        classifiers.load(tmp_path / "whole.pt", arch="resnet18", image_size=32)
    address = "https://download.pytorch.org//models/resnet18.pth"
    with pytest.raises(InputError, match=f"{address} is an address. Download it"):
        network.build("resnet18", 10, image_size=32, weights=address)


def test_missing_and_unfinished_teachers_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"has no teacher\.pt or model\.safetensors"):
        classifiers.load(tmp_path)
    (tmp_path / finetune.CHECKPOINT).touch()
    with pytest.raises(InputError, match="not trained to its end"):
        classifiers.load(tmp_path)


def test_weights_of_another_class_count_keep_all_but_the_head(teacher, tmp_path):
    torch.save(teacher.model.state_dict(), tmp_path / "bare.pt")
    model = network.build(
        "resnet18", 3, image_size=32, weights=str(tmp_path / "bare.pt")
    )
    assert model.fc.out_features == 3
    assert torch.equal(
        model.layer4[1].conv2.weight, teacher.model.layer4[1].conv2.weight
    )


# Classes and accuracy


DIGITS = tuple("0123456789")


@pytest.mark.parametrize(
    ("theirs", "ours", "columns", "said"),
    [
        (DIGITS, DIGITS, range(10), ""),
        (list(DIGITS), DIGITS, range(10), ""),
        (DIGITS[::-1], DIGITS, range(9, -1, -1), "into the order of digits by name"),
        (None, DIGITS, range(10), "names no classes: .* those of digits, in that"),
        (DIGITS, (*DIGITS[:9], "x"), None, r"\(missing: 'x'; too many: '9'\)"),
        (DIGITS, (*DIGITS, "ten"), None, r"digits \(missing: 'ten'\)\. Train one: "),
        (DIGITS, DIGITS[:9], None, "too many: '9'"),
        (None, DIGITS[:9], None, "it has 10, not 9"),
    ],
)
def test_a_teachers_classes_are_matched_by_name(
    teacher, train, theirs, ours, columns, said
):
    teacher = dataclasses.replace(teacher, class_names=theirs)
    source = dataclasses.replace(train, class_names=ours)
    if columns is None:
        with pytest.raises(InputError, match=said):
            classes.match(teacher, source)
    else:
        found, sentence = classes.match(teacher, source)
        assert found == list(columns)
        assert re.search(said, sentence) and bool(said) == bool(sentence)


@pytest.mark.parametrize(
    ("ours", "rows"),
    [
        (DIGITS, dict(enumerate(range(10)))),
        (DIGITS[::-1], dict(enumerate(range(9, -1, -1)))),
        (("x", "7", "y"), {1: 7}),
        (("x", "y"), {}),
    ],
)
def test_a_start_from_a_teacher_keeps_known_classes(teacher, tmp_path, ours, rows):
    """So that --epochs=0 names each row of the head as it was trained."""
    classifiers.save(tmp_path / "teacher.pt", teacher)
    weights = str(tmp_path / "teacher.pt")
    options = {"image_size": 32, "weights": weights, "class_names": ours}
    head = network.build("resnet18", len(ours), **options).fc
    assert head.out_features == len(ours)
    old = teacher.model.fc
    for row, theirs in rows.items():
        assert torch.equal(head.weight[row], old.weight[theirs])
        assert head.bias[row] == old.bias[theirs]
    for row in set(range(len(ours))) - rows.keys():
        assert not (head.weight[row] == old.weight).all(1).any()


@pytest.mark.parametrize(
    ("top1", "counts", "weak"),
    [
        (0.18, [1000] * 10, True),
        (0.20, [1000] * 10, False),
        (0.25, [3] * 10, True),  # 30 images: three standard errors are 0.16
        (0.30, [3] * 10, False),
        (0.91, [90, 10], True),  # "always the first class" gets 0.9
        (0.999, [90, 10], False),
        (0.09, [50] * 1000, True),
        (0.11, [50] * 1000, False),
        (1.0, [1], False),
    ],
)
def test_weak_teacher_is_refused(top1, counts, weak):
    if weak:
        with pytest.raises(InputError, match=r"near chance: .* Train it\."):
            classes.check_strength(top1, np.array(counts), "test", "Train it.")
    else:
        classes.check_strength(top1, np.array(counts), "test", "Train it.")


def test_evaluation_counts_every_image_once(teacher, held_out):
    [top1], counts = accuracy.evaluate(
        [teacher], held_out, classifiers.TorchBackend(device="cpu"), batch_size=5
    )
    with torch.inference_mode():
        x = classifiers.preprocess(held_out.images, 32, teacher.mean, teacher.std, CPU)
        predicted = teacher.model.eval()(x).argmax(-1).numpy()
    assert top1 == (predicted == held_out.labels).mean()
    assert counts.tolist() == np.bincount(held_out.labels, minlength=10).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: classifiers.choose_device("cuda:99"),
            "--device=cuda:99 cannot be used",
        ),
        (lambda: classifiers.choose_device("gpu"), "--device=gpu cannot be used"),
        (lambda: classifiers.choose_dtype("half", CPU), "--precision=half: expected"),
    ],
)
def test_wrong_device_and_precision_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Training


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted(tmp_path, monkeypatch, capsys):
    whole = short_finetune(tmp_path / "whole")
    real = finetune.augmented_batches

    def killed_in_the_second_epoch(*args, **kwargs):
        if (tmp_path / "killed" / finetune.CHECKPOINT).exists():
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(finetune, "augmented_batches", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        short_finetune(tmp_path / "killed")
    monkeypatch.setattr(finetune, "augmented_batches", real)
    capsys.readouterr()
    resumed = short_finetune(tmp_path / "killed")
    assert "1 of them done" in capsys.readouterr().out
    assert_same_weights(resumed.model, whole.model)
    assert resumed.top1 == whole.top1
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["teacher.pt"]

    # A finished run is not trained again, and another run does not replace it.
    assert_same_weights(short_finetune(tmp_path / "whole").model, whole.model)
    with pytest.raises(InputError, match=r"other settings \(epochs 2, now 3\)"):
        short_finetune(tmp_path / "whole", epochs=3)


def test_given_weights_are_stored_as_they_are_in_no_epochs(teacher, tmp_path):
    classifiers.save(tmp_path / "teacher.pt", teacher)
    weights = str(tmp_path / "teacher.pt")
    stored = short_finetune(
        tmp_path / "run", arch="resnet18", weights=weights, epochs=0
    )
    assert_same_weights(stored.model, teacher.model)
    assert 0 <= classifiers.load(tmp_path / "run").top1 <= 1


def test_half_precision_trains(tmp_path):
    trained = short_finetune(tmp_path, arch="resnet18", precision="bfloat16", epochs=1)
    state = trained.model.state_dict()
    assert all(tensor.dtype != torch.bfloat16 for tensor in state.values())
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_non_finite_loss_stops(tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan.*Lower --learning_rate"):
        short_finetune(tmp_path, arch="resnet18", learning_rate=1e30, epochs=1)
    assert not (tmp_path / "teacher.pt").exists()


def test_schedule_is_one_cycle():
    rates = [finetune.schedule(p) for p in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 20
    assert max(rates) == 1
    assert rates[0] > 0
    assert rates[-1] == 0


def test_memory_that_runs_out_names_the_batch_size(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
        )

    monkeypatch.setattr(classifiers, "preprocess", full)
    with pytest.raises(
        InputError, match=r"Tried to allocate 2.00 GiB\). Lower --batch_size"
    ):
        short_finetune(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("digits", None, "train", "test"), "--config=configs/deit.py:digits"),
        (
            ("cifar10", "data", "train[:9]", "test"),
            "--config=configs/deit.py:cifar10 --config.dataset.data_dir=data "
            "'--config.dataset.train_split=train[:9]'",
        ),
        (
            ("hf:org/pets", None, "train", "test"),
            "--config=configs/deit.py:folder --config.dataset.name=hf:org/pets",
        ),
        (
            ("svhn_cropped", None, "train", "test"),
            "--config=configs/deit.py:cifar10 --config.dataset.name=svhn_cropped",
        ),
    ],
)
def test_the_next_command_names_the_same_data(arguments, expected):
    assert finetune.student_flags(*arguments) == expected


def test_a_folder_of_images_gets_a_teacher(folder, tmp_path):
    trained = short_finetune(
        tmp_path,
        dataset=folder,
        train_split="train",
        eval_split="test",
        arch="regnet_y_400mf",
        epochs=1,
        batch_size=8,
    )
    assert trained.class_names == ("bright", "dark")
    assert classifiers.load(tmp_path).top1 == trained.top1


def test_every_torchvision_classifier_is_supported_or_refused():
    known = set(torchvision.models.list_models(module=torchvision.models))
    refused = known - set(network.architectures())
    assert {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"} == refused


def test_long_work_without_a_terminal_says_how_long_it_takes(monkeypatch, capsys):
    from deit_jax import patience

    times = iter(range(0, 1000, 20))
    monkeypatch.setattr(patience.time, "monotonic", lambda: next(times))
    assert list(patience.Patience("epoch 1/2", 6).over(range(6))) == [*range(6)]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "epoch 1/2: 2 of 6, 1.3 minutes left"
    assert len(said) == 3


def test_an_epoch_is_kept_where_its_accuracy_cannot_be_measured(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "evaluate", None)
        with pytest.raises(TypeError):
            short_finetune(tmp_path / "broken", epochs=1)
    resumed = short_finetune(tmp_path / "broken", epochs=1)
    whole = short_finetune(tmp_path / "whole", epochs=1)
    assert_same_weights(resumed.model, whole.model)
