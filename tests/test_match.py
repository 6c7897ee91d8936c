"""A cache belongs to a run when its teacher saw the run's images: the real ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch

from deit_jax import train
from deit_jax.data import sources
from deit_jax.distillation import match, teacher_cache
from deit_jax.errors import InputError
from deit_jax.files import sha256
from deit_jax.recipe import student_views
from deit_jax.training import inputs, step
from teacher import classifier as classifiers
from teacher import network
from teacher.export import Export
from teacher.export import export as export_cache

pytestmark = pytest.mark.usefixtures("small_nano")

VIEWS, LENGTH = 8, 65  # an odd one: in each view another image rests
TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def teacher():
    """A network that answers differently to all that is different."""
    torch.manual_seed(0)
    model = network.build("resnet18", 10, image_size=32)
    with torch.no_grad():
        model.fc.weight *= 20
    names = tuple(str(n) for n in range(10))
    return classifiers.Classifier(
        model.eval(),
        arch="resnet18",
        stem="standard",
        image_size=32,
        class_names=names,
    )


@pytest.fixture(scope="module")
def source():
    return sources.load("digits", f"train[:{LENGTH}]")


def make_config(**augment):
    """Crops, erasing and mixing, eight views in eight epochs; no RandAugment.

    The whole recipe of the paper: tests/test_export_logits.py and test_augment.py.
    """
    from configs import deit

    config = deit.get_config("digits")
    config.dataset.train_split = f"train[:{LENGTH}]"
    config.dataset.eval_split = "test[:20]"
    config.epochs = float(VIEWS)
    config.batch_size = 32
    config.schedule.warmup_epochs = 0.0
    config.eval.every_epochs = 0.0
    config.checkpoint.every_steps = 5
    config.distillation.num_views = VIEWS
    config.augment.recipe = "seed_study"
    config.augment.update(augment)
    return config


def export(teacher, source, out, *, mixing="exact", config=None, **augment):
    config = config or make_config(**augment)
    student = student_views(config, source)
    job = Export(
        [teacher],
        source,
        sources.load("digits", "test[:20]"),
        classifiers.TorchBackend(device="cpu"),
        seen=match.seen_by_teacher(student, mixing),
        num_views=config.distillation.num_views,
        batch_size=16,
    )
    export_cache(job, out, allow_weak_teacher=True)
    return out


@pytest.fixture(scope="module")
def cache(teacher, source, tmp_path_factory):
    return export(teacher, source, tmp_path_factory.mktemp("teacher") / "exact")


@pytest.fixture
def seen(monkeypatch):
    """Collects {(view, index): uint8 image} of the train steps that follow."""
    images = {}

    def tap(pixels, index, view):
        for n, key in enumerate(zip(view.tolist(), index.tolist(), strict=True)):
            images.setdefault(key, []).append(pixels[n])

    real_inputs, real_normalise = inputs.prepare, inputs.normalise

    def prepare(batch, **options):
        def tapped(pixels, mean, std):
            jax.debug.callback(tap, pixels, batch["index"], batch["view"])
            return real_normalise(pixels, mean, std)

        with monkeypatch.context() as patch:
            patch.setattr(inputs, "normalise", tapped)
            return real_inputs(batch, **options)

    monkeypatch.setattr(inputs, "prepare", prepare)
    return images


def live(teacher, images):
    backend = classifiers.TorchBackend(device="cpu")
    return backend.answers(teacher, np.stack(images)).logits


@pytest.mark.slow
def test_the_cache_is_what_the_teacher_says_of_the_train_steps_images(
    teacher, source, cache, tmp_path, seen
):
    """The images come out of a pmapped run on four devices, stopped and resumed."""
    config = make_config()
    config.distillation.logits_dir = str(cache)
    real = step.pmap_train_step

    def stopping(*args, **kwargs):
        mapped, calls = real(*args, **kwargs), []

        def one(*step_args):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return mapped(*step_args)

        return one

    step.pmap_train_step = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config, tmp_path / "run")
    finally:
        step.pmap_train_step = real
    train.train_and_evaluate(config, tmp_path / "run")
    jax.effects_barrier()

    assert len(seen) == VIEWS * (LENGTH // 32 * 32)
    twice = [images for images in seen.values() if len(images) > 1]
    assert twice, "what the stopped run had done after its checkpoint is done again"
    assert all((images[0] == image).all() for images in twice for image in images)
    keys = list(seen)
    view, index = np.array(keys).T
    answers = live(teacher, [seen[key][0] for key in keys])
    cached = teacher_cache.open_cache(cache)
    assert np.abs(cached.batch(view, index).logits - answers).max() <= TOLERANCE

    # Another cache would not have passed: of the next view, of another seed, or of the
    # images before they were mixed.
    next_view = cached.batch((view + 1) % VIEWS, index).logits
    assert np.abs(next_view - answers).max() > 10 * TOLERANCE
    for name, options in {"seed": {"seed": 1}, "unmixed": {"mixing": "linear"}}.items():
        other = export(teacher, source, tmp_path / name, **options)
        logits = teacher_cache.open_cache(other).batch(view, index).logits
        difference = np.abs(logits - answers).max(axis=1)
        assert (difference > TOLERANCE).mean() > 0.8, name


# What the manifest says ---------------------------------------------------------------


def check(cache, source, config, *, mixing="exact"):
    distillation = config.distillation
    opened = teacher_cache.open_cache(cache)
    student = student_views(config, source)
    match.check(
        opened,
        source,
        student,
        view=distillation.view,
        mixing=mixing,
        num_views=distillation.num_views,
        config="c.py:x",
    )
    match.check_examples(opened, source, student, mixing=mixing)


@pytest.mark.slow
def test_the_cache_of_the_same_config_passes(cache, source):
    check(cache, source, make_config())
    fewer = make_config()
    fewer.distillation.num_views = 3
    check(cache, source, fewer)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("augment.seed", 5, "augment.seed: 0 in the cache, 5 in this run"),
        ("augment.repeats", 2, "augment.repeats: 1 in the cache, 2 in this run"),
        ("augment.cutmix", 0.3, "augment.cutmix: 1.0 in the cache, 0.3 in this run"),
        ("augment.flip", False, "augment.flip: True in the cache, False"),
        ("augment.randaugment", "rand-m9-mstd0.5-inc1", "augment.randaugment: '' in"),
        ("dataset.std", (0.1, 0.2, 0.3), "dataset.std: [0.376, 0.376, 0.376] in the"),
        ("dataset.image_size", 64, "image size: 32 in the cache, 64 in this run"),
        ("distillation.num_views", 9, "holds 8 views.*num_views=8, or export more"),
    ],
)
def test_another_config_is_refused_by_field(cache, source, field, value, message):
    config = make_config()
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(InputError) as caught:
        check(cache, source, config)
    for part in message.split(".*"):
        assert part in str(caught.value)
    assert "python -m teacher.export_logits --config=c.py:x" in str(caught.value)


def test_mixed_and_unmixed_caches_are_told_apart(cache, source):
    with pytest.raises(InputError, match=r"saw mixed images.*'linear' wants unm"):
        check(cache, source, make_config(), mixing="linear")
    unmixed = make_config(mix_probability=0.0)
    with pytest.raises(InputError, match=r"mixing='none' wants unmixed .*switch the"):
        check(cache, source, unmixed, mixing="none")


@pytest.mark.slow
def test_the_cached_views_of_the_last_epochs_are_unmixed(teacher, source, tmp_path):
    """The manifest says from which view on, and a run of another length is refused."""
    recipe = {"recipe": "crop_flip", "mixup": 0.8, "color_jitter": (0.0,) * 4}
    short = {"mix_off_epoch": 6, **recipe}

    def config(**changes):
        made = make_config(**short)
        made.distillation.num_views = 4
        made.update_from_flattened_dict(changes)
        return made

    out = export(teacher, source, tmp_path / "c", config=config())
    about = json.loads((out / "manifest.json").read_text())["views"]["augmentation"]
    assert about["mix_off_view"] == 2
    examples = teacher_cache.open_cache(out).examples()
    mixed = (examples["share"] < 256) | examples["box"].any(axis=1)
    assert examples["view"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert mixed[:4].any()  # lambda may be 1
    assert not mixed[4:].any()
    check(out, source, config())
    for change in ({"epochs": 7.0}, {"augment.mix_off_epoch": 0}):
        with pytest.raises(InputError, match=r"unmixed from view: 2 in the cache"):
            check(out, source, config(**change))


def copied(cache, tmp_path, edit):
    """A cache with other examples, whose checksum fits."""
    manifest = json.loads((cache / "manifest.json").read_text())
    for path in cache.glob("view-*.npy"):
        (tmp_path / path.name).symlink_to(path)
    examples = dict(np.load(cache / "examples-008.npz"))
    edit(examples)
    np.savez(tmp_path / "examples-008.npz", **examples)
    manifest["examples_sha256"] = sha256(tmp_path / "examples-008.npz")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_other_pixels_are_counted(cache, source, tmp_path):
    def edit(examples):
        examples["image"][2, 5, 7, 1] ^= 4
        examples["image"][2, 5, 8, 0] ^= 1
        examples["image"][6, 0, 0, 2] ^= 2

    other = copied(cache, tmp_path, edit)
    with pytest.raises(
        InputError, match=r"2 of 8 images differ, in 3 pixels, by up to 4 levels"
    ):
        check(other, source, make_config())


@pytest.mark.parametrize("name", ["view", "index", "partner", "share", "box"])
def test_other_pairs_are_refused(cache, source, tmp_path, name):
    def edit(examples):
        examples[name] = examples[name] + 1

    other = copied(cache, tmp_path, edit)
    with pytest.raises(InputError, match=f"saw other pairs .*: {name} "):
        check(other, source, make_config())


def test_examples_of_another_shape_or_none_are_refused(cache, source, tmp_path):
    def edit(examples):
        examples["image"] = examples["image"][:, ::2]

    other = copied(cache, tmp_path, edit)
    with pytest.raises(InputError, match=r"keeps images of \(8, 16, 32, 3\)"):
        check(other, source, make_config())
    (other / "examples-008.npz").unlink()
    with pytest.raises(InputError, match=r"examples-008.npz is missing or damaged"):
        check(other, source, make_config())


def test_examples_are_partners_of_views_from_first_to_last(cache):
    examples = teacher_cache.open_cache(cache).examples()
    assert examples["view"].tolist() == [0, 0, 2, 2, 5, 5, 7, 7]
    pairs = examples["index"].reshape(-1, 2)
    np.testing.assert_array_equal(examples["partner"].reshape(-1, 2), pairs[:, ::-1])
    assert examples["image"].shape == (8, 32, 32, 3)


# Which mixing is possible -------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "mixing", "resolved"),
    [
        ("same", "exact", "exact"),
        ("same", "linear", "linear"),
        ("plain", "linear", "linear"),
        ("plain", "exact", None),
        ("same", "none", None),
        ("plain", "none", None),
    ],
)
def test_mixed_images_want_a_teacher_for_both_halves(source, view, mixing, resolved):
    student = student_views(make_config(), source)
    if resolved:
        assert match.resolve_mixing(view, mixing, student) == resolved
    else:
        with pytest.raises(InputError, match="answer for both halves"):
            match.resolve_mixing(view, mixing, student)
    # Without mixing there is nothing to resolve.
    plain = dataclasses.replace(student, settings=student.settings.unmixed())
    assert match.resolve_mixing(view, mixing, plain) == "none"


def test_which_pairs_there_are_is_no_matter_without_mixing(source):
    student = student_views(make_config(repeats=2), source)
    described = match.describe("same", 4, student.unmixed())
    assert described["repeats"] == 1
    assert described["mixing"] == "none"
    assert described["augmentation"]["mixup"] == 0
