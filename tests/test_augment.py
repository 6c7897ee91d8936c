import functools
import hashlib

import jax
import numpy as np

from deit_jax.data import views
from deit_jax.data.augment import augment
from deit_jax.data.augment.geometry import horizontal_flip, pad_and_crop
from deit_jax.training import step

SETTINGS = {
    "num_classes": 10,
    "label_smoothing": 0.0,
    "mean": (0.0,) * 3,
    "std": (1 / 255,) * 3,  # the pixels come out as they are
    "augment_seed": 3,
    "crop_padding": 4,
    "flip": True,
}


def images(count, side=12):
    return np.random.default_rng(0).integers(1, 256, (count, side, side, 3), np.uint8)


@jax.jit
def crop_all(view, index, pictures):
    keys = views.image_keys(3, view, index)
    return jax.vmap(lambda key, image: pad_and_crop(key, image, 4))(keys, pictures)


@jax.jit
def augment_all(view, index, pictures):
    keys = views.image_keys(3, view, index)
    one = functools.partial(augment, crop_padding=4, flip=True)
    return jax.vmap(one)(keys, pictures)


def shift_of(original, cropped):
    """(top, left) of the crop in the padded image; the original has no black pixel."""
    padded = np.pad(original, ((4, 4), (4, 4), (0, 0)))
    side = original.shape[0]
    for top in range(9):
        for left in range(9):
            if (padded[top : top + side, left : left + side] == cropped).all():
                return top, left
    raise AssertionError("not a crop of the padded image")


def test_crops_are_windows_of_the_padded_image_at_every_position():
    pictures = np.repeat(images(1), 2000, axis=0)
    cropped = crop_all(np.zeros(2000, np.int32), np.arange(2000), pictures)
    shifts = [shift_of(pictures[0], one) for one in np.asarray(cropped)]
    counts = np.bincount([9 * top + left for top, left in shifts], minlength=81)
    assert (counts > 0).all()
    assert (
        (counts - 2000 / 81) ** 2 / (2000 / 81)
    ).sum() < 130  # chi2, 80 dof: p ~ 4e-4


def test_every_second_image_is_mirrored():
    pictures = images(2000)
    keys = views.image_keys(0, np.zeros(2000, np.int32), np.arange(2000))
    flipped = np.asarray(jax.jit(jax.vmap(horizontal_flip))(keys, pictures))
    mirrored = (flipped == pictures[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == pictures).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 900 < mirrored.sum() < 1100


def test_switching_an_operation_off_leaves_the_others():
    picture, key = images(1)[0], jax.random.key(5)
    both = augment(key, picture, crop_padding=4, flip=True)
    cropped = augment(key, picture, crop_padding=4, flip=False)
    assert (both == cropped).all() or (both == cropped[:, ::-1]).all()
    assert (augment(key, picture, crop_padding=0, flip=False) == picture).all()


def test_an_image_depends_on_view_and_index_alone():
    pictures, index = images(64), np.arange(64, dtype=np.int32)
    view = index % 5
    whole = augment_all(view, index, pictures)
    for size in (1, 2, 16):
        rows = np.arange(64).reshape(-1, size)[::-1]  # other batches, another order
        for part in rows:
            np.testing.assert_array_equal(
                augment_all(view[part], index[part], pictures[part]), whole[part]
            )
    assert (augment_all(view + 1, index, pictures) != whole).any(
        axis=(1, 2, 3)
    ).mean() > 0.9


def test_golden_images():
    """The same pixels on every JAX version: a cache relies on it."""
    index = np.arange(256, dtype=np.int32)
    cropped = augment_all(index % 7, index, images(256))
    assert (
        hashlib.sha256(np.asarray(cropped).tobytes()).hexdigest()[:16]
        == "e5c356e71dc7c7ca"
    )


def test_inputs_are_augmented_and_normalised_and_one_hot_labels():
    pictures, index = images(16), np.arange(16, dtype=np.int32)
    batch = {"image": pictures, "label": index % 10, "index": index, "view": index * 0}
    seen, targets = step.inputs(batch, **SETTINGS)
    np.testing.assert_allclose(
        seen, augment_all(batch["view"], index, pictures), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_array_equal(targets, np.eye(10)[index % 10])
