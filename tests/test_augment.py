"""The image of (augment seed, view, index) is the same wherever it is made."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
import pytest

from deit_jax.data import plan, rng, student_views
from deit_jax.data.augment import augment, augment_batch, augment_pair, mix, recipes
from deit_jax.distillation import losses
from deit_jax.models.vit import VisionTransformer
from deit_jax.training import inputs, optimizer, state, step

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED, CLASSES, SIZE = 3, 10, 16
# Between the two, every operation there is.
EVERYTHING = {
    "deit": {"color_jitter": (0.4, 0.4, 0.4, 0.1), "erase_probability": 0.5},
    "three_augment": {"erase_probability": 0.5, "erase_mode": "constant"},
    "crop_flip": {"mixup": 0.8, "cutmix": 1.0},
}
COUNT, LENGTH = 2048, 512  # images in all: four views of 512


def settings(recipe="deit", **changes):
    fields = EVERYTHING.get(recipe, {}) | changes
    return recipes.resolve(recipe, fields, mean=MEAN, std=STD)


@functools.cache
def pictures():
    """Noise of several grains, so that warps and blurs have something to move."""
    random = np.random.default_rng(0)
    fine = random.integers(0, 256, (LENGTH, SIZE, SIZE, 3))
    coarse = random.integers(0, 256, (LENGTH, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return ((fine + 3 * coarse) // 4).astype(np.uint8)


@functools.cache
def rows():
    """(index, view) of `COUNT` images, partners side by side."""
    pairs = [plan.pairs(SEED, view, LENGTH).reshape(-1) for view in range(4)]
    return np.concatenate(pairs), np.repeat(np.arange(4, dtype=np.int32), LENGTH)


@functools.cache
def compiled(recipe):
    return jax.jit(
        functools.partial(augment_batch, augment_seed=SEED, settings=settings(recipe))
    )


def make(recipe, index, view):
    return np.asarray(compiled(recipe)(pictures()[index], index, view)[0])


@functools.cache
def reference(recipe="deit"):
    """All `COUNT` images by (view, index), from batches of 512."""
    index, view = rows()
    made = np.empty((4, LENGTH, SIZE, SIZE, 3), np.uint8)
    for part in np.arange(COUNT).reshape(-1, 512):
        made[view[part], index[part]] = make(recipe, index[part], view[part])
    return made


@pytest.mark.slow
def test_batch_size_and_position_do_not_matter():
    index, view = rows()
    order = np.random.default_rng(1).permutation(COUNT // 2)
    shuffled = (2 * order[:, None] + np.arange(2)).reshape(-1)
    for size, count in ((2, 128), (4, 128), (64, COUNT)):
        for part in shuffled[:count].reshape(-1, size):
            np.testing.assert_array_equal(
                make("deit", index[part], view[part]),
                reference()[view[part], index[part]],
            )


@pytest.mark.slow
def test_partners_may_come_in_either_order():
    index, view = rows()
    part = np.arange(64)
    swapped = part.reshape(-1, 2)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(
        make("deit", index[swapped], view[swapped]),
        reference()[view[swapped], index[swapped]],
    )


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_all_branches_at_once_give_the_chosen_ones(platform, monkeypatch):
    """What GPUs and TPUs compute, against the one pair after the other of CPUs."""
    expected = reference()
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *args, default, **forms: forms.get(platform, default)(*args),
    )
    index, view = (x[:512].reshape(-1, 2) for x in rows())
    keys = rng.image_keys(SEED, view.reshape(-1), index.reshape(-1)).reshape(-1, 2)
    one = functools.partial(augment_pair, settings=settings())
    at_once, _ = jax.jit(jax.vmap(one))(keys, index, view, pictures()[index])
    np.testing.assert_array_equal(at_once, expected[view, index])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_train_step_sees_the_same_images(devices, monkeypatch):
    """Fused with all the rest of the step, on any number of devices."""
    seen = {}

    def tap(images, index, view):
        for n, key in enumerate(zip(view.tolist(), index.tolist(), strict=True)):
            seen[key] = images[n]

    def prepare(batch):
        real = inputs.normalise

        def tapped(images, mean, std):
            jax.debug.callback(tap, images, batch["index"], batch["view"])
            return real(images, mean, std)

        with monkeypatch.context() as patch:
            patch.setattr(inputs, "normalise", tapped)
            return inputs.prepare(
                batch,
                num_classes=CLASSES,
                label_smoothing=0.1,
                augment_seed=SEED,
                augmentation=settings(),
            )

    model = VisionTransformer(
        num_classes=CLASSES,
        image_size=SIZE,
        patch_size=8,
        width=12,
        depth=1,
        num_heads=1,
        distilled=False,
    )
    tx = optimizer.create("sgd", 0.1)
    train_step = step.pmap_train_step(
        jax.local_devices()[:devices],
        model=model,
        optimizer=tx,
        inputs=prepare,
        loss=lambda logits, targets, *_: {"loss": (logits["class"] * targets).sum(-1)},
        seed=0,
        ema_decay=0.0,
    )
    current = state.create(model, tx, seed=0, ema=False)
    current = step.replicate(current, jax.local_devices()[:devices])
    index, view = rows()
    for part in np.arange(COUNT).reshape(-1, devices, 256 // devices):
        batch = {
            "image": pictures()[index[part]],
            "label": index[part] % CLASSES,
            "index": index[part],
            "view": view[part],
        }
        current, _ = train_step(current, batch, None)
    jax.effects_barrier()
    assert len(seen) == COUNT
    for key, image in seen.items():
        np.testing.assert_array_equal(image, reference()[key])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "golden"),
    [("deit", "cce09266bee08cd9"), ("three_augment", "cf57d304be250495")],
)
def test_golden_images(recipe, golden):
    """The same pixels on every JAX version: a cache relies on it."""
    made = reference(recipe)
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == golden


@pytest.mark.slow
def test_another_view_index_or_seed_gives_another_image():
    made = reference()
    assert (made[0] != made[1]).any(axis=(1, 2, 3)).mean() > 0.99
    same_picture = np.repeat(pictures()[:1], 64, axis=0)
    index, view = (x[:64] for x in rows())
    other = functools.partial(augment_batch, augment_seed=4, settings=settings())
    images = [
        np.asarray(one(same_picture, index, view)[0])
        for one in (compiled("deit"), jax.jit(other))
    ]
    assert len(np.unique(images[0].reshape(64, -1), axis=0)) > 48
    assert (images[0] != images[1]).any(axis=(1, 2, 3)).mean() > 0.75


def test_switching_an_operation_off_leaves_the_others():
    picture, key = pictures()[0], jax.random.key(5)
    both = augment(key, picture, settings("crop_flip"))
    cropped = augment(key, picture, settings("crop_flip", flip=False))
    assert (both == cropped).all() or (both == cropped[:, ::-1]).all()
    assert (augment(key, picture, settings("none")) == picture).all()


def student(recipe):
    return student_views.StudentViews(
        augment_seed=SEED, repeats=1, size=SIZE, settings=settings(recipe)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "count"), [(2, 8), (16, 40), (64, 40), (16, 2)], ids=str
)
def test_the_chunks_of_the_host_do_not_matter(chunk, count, monkeypatch):
    """Nor does what JAX's default device is, which elsewhere is no CPU."""
    monkeypatch.setattr(student_views, "CHUNK", chunk)
    index, view = (x[:count] for x in rows())
    with jax.default_device(jax.local_devices()[3]):
        found = student("crop_flip").augment(pictures()[index], index, view)
    expected = compiled("crop_flip")(pictures()[index], index, view)
    jax.tree.map(np.testing.assert_array_equal, found, tuple(expected))
    assert len(np.unique(found[1].weight)) > 1 or count == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EVERYTHING)
def test_the_host_gives_the_step_what_the_device_does(recipe):
    """Bit for bit: images, labels, and answers that are mixed linearly."""
    mix_teacher = functools.partial(losses.mix_teacher_logits, tau=2.5)
    batch, device = inputs_of(recipe, mix_teacher=mix_teacher)
    images, mixes = student(recipe).augment(
        batch["image"], batch["index"], batch["view"]
    )
    made = {"image": images, **mixes._asdict()}
    _, host = inputs_of(recipe, made, mix_teacher=mix_teacher)
    jax.tree.map(np.testing.assert_array_equal, device, host)


def inputs_of(recipe, made=(), **changes):
    index, view = (x[:64] for x in rows())
    teacher = np.random.default_rng(2).normal(0, 3, (64, CLASSES)).astype(np.float16)
    batch = {
        "image": pictures()[index],
        "label": index % CLASSES,
        "index": index,
        "view": view,
        "teacher_logits": teacher,
    } | dict(made)
    options = {
        "num_classes": CLASSES,
        "label_smoothing": 0.0,
        "augment_seed": SEED,
        "augmentation": settings(recipe),
    } | changes
    return batch, jax.jit(functools.partial(inputs.prepare, **options))(batch)


def test_inputs_are_normalised_images_and_one_hot_labels():
    batch, seen = inputs_of("none")
    expected = (batch["image"] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(seen.images, expected, atol=1e-5)
    np.testing.assert_array_equal(seen.targets, np.eye(CLASSES)[batch["label"]])
    np.testing.assert_array_equal(seen.teacher.logits, batch["teacher_logits"])


@pytest.mark.slow
def test_views_from_the_end_of_mixing_on_are_those_without_it():
    """And the others those of a run that mixes to its end: bit for bit."""
    some = dict(
        zip(("index", "view"), (x[COUNT // 2 - 32 :][:64] for x in rows()), strict=True)
    )
    some |= {"image": pictures()[some["index"]], "label": some["index"] % CLASSES}
    mixing = settings("crop_flip")
    ending = dataclasses.replace(mixing, mix_off_view=2)
    (_, always), (_, off), (_, never) = (
        inputs_of("crop_flip", some, augmentation=each)
        for each in (mixing, ending, mixing.unmixed())
    )
    assert some["view"].tolist() == [1] * 32 + [2] * 32
    for name in ("images", "targets"):
        a, b, c = (np.asarray(getattr(x, name)) for x in (always, off, never))
        np.testing.assert_array_equal(b[:32], a[:32])
        np.testing.assert_array_equal(b[32:], c[32:])
        assert (a[32:] != c[32:]).any()
    host = student_views.StudentViews(SEED, 1, SIZE, ending)
    images, mixes = host.augment(some["image"], some["index"], some["view"])
    seen = inputs.normalise(images, MEAN, STD)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(off.images))
    assert (mixes.weight[16:] == 1).all()
    assert (mixes.share[16:] == mix.LAMBDA).all()
    assert not mixes.box[16:].any()


def test_mixed_labels_weigh_what_is_seen_of_each_image():
    batch, seen = inputs_of("crop_flip", label_smoothing=0.1)
    _, mixes = compiled("crop_flip")(batch["image"], batch["index"], batch["view"])
    own = np.repeat(np.asarray(mixes.weight), 2)[:, None]
    labels = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.1 / CLASSES
    partners = labels.reshape(-1, 2, CLASSES)[:, ::-1].reshape(labels.shape)
    np.testing.assert_allclose(
        seen.targets, own * labels + (1 - own) * partners, atol=1e-6
    )
    np.testing.assert_allclose(seen.targets.sum(-1), 1, atol=1e-6)
    assert len(np.unique(own)) > 16, "each pair draws its own"
    np.testing.assert_array_equal(seen.teacher.logits, batch["teacher_logits"])


def test_linear_mixing_gives_the_mixture_of_two_answers():
    tau = 2.5
    mix_teacher = functools.partial(losses.mix_teacher_logits, tau=tau)
    batch, seen = inputs_of("crop_flip", mix_teacher=mix_teacher)
    _, mixes = compiled("crop_flip")(batch["image"], batch["index"], batch["view"])
    own = np.repeat(np.asarray(mixes.weight), 2)[:, None]
    said = jax.nn.softmax(batch["teacher_logits"].astype(np.float32) / tau)
    partners = said.reshape(-1, 2, CLASSES)[:, ::-1].reshape(said.shape)
    np.testing.assert_allclose(
        jax.nn.softmax(seen.teacher.logits / tau),
        own * said + (1 - own) * partners,
        atol=1e-6,
    )
