"""The grid shows what the train step sees, where it says so."""

import functools
import types

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import crops, plan, sources
from deit_jax.data.augment import mix, recipes
from deit_jax.data.student_views import StudentViews
from deit_jax.errors import InputError
from deit_jax.reporting import grid

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED, SIZE, LENGTH = 3, 16, 15  # odd: in each view one image rests
INDEX, VIEWS = np.arange(LENGTH, dtype=np.int32), np.arange(2, 6, dtype=np.int32)
# fmt: off
WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi",
         "lynx", "mole", "newt", "owl")
# fmt: on


@functools.cache
def source():
    """Noise, so that no two images are the same; each is of a class of its own."""
    return sources.ArraySource(
        name="noise",
        split="train",
        images=np.random.default_rng(0).integers(
            0, 256, (LENGTH, SIZE, SIZE, 3), np.uint8
        ),
        labels=np.arange(LENGTH, dtype=np.int32)[::-1],
        class_names=WORDS,
        fingerprint="0",
    )


def student(recipe="crop_flip", repeats=1, size=SIZE, **fields):
    return StudentViews(
        augment_seed=SEED,
        repeats=repeats,
        size=size,
        settings=recipes.resolve(recipe, fields, mean=MEAN, std=STD),
    )


MIXED = student(repeats=2, mixup=0.8, cutmix=1.0, mix_probability=0.7)


def replayed(seen):
    """The images of the train step, by (view, index), a whole view at a time."""
    index = [
        plan.view_pairs(SEED, int(view), LENGTH, seen.repeats).reshape(-1)
        for view in VIEWS
    ]
    requests = [
        (row, np.full_like(row, v)) for row, v in zip(index, VIEWS, strict=True)
    ]
    with seen.read_few(source()) as opened:
        made = [images for images, _ in seen.replay(opened, requests)]
    return {
        (view, i): made[v][n]
        for v, view in enumerate(VIEWS)
        for n, i in enumerate(index[v])
    }


def places(picture, image):
    """The top left corners (y, x) of all places where the enlarged image stands."""
    scale = -(-128 // len(image))
    enlarged = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    side = len(enlarged)
    height, width = (n - side + 1 for n in picture.shape[:2])
    found = np.ones((height, width), bool)
    for y, x in np.random.default_rng(0).integers(0, side, (32, 2)):
        found &= (picture[y : y + height, x : x + width] == enlarged[y, x]).all(-1)
    return [
        (y, x)
        for y, x in np.argwhere(found)
        if (picture[y : y + side, x : x + side] == enlarged).all()
    ]


@pytest.mark.slow
def test_each_cell_is_the_image_of_the_train_step():
    index, chosen = [4, 0, 11], [5, 2]
    picture = grid.draw(MIXED, source(), index=index, views=chosen, title="noise")
    made = replayed(MIXED)
    expected = [
        [source().images[i], *(made[view, i] for view in chosen)] for i in index
    ]
    found = [[places(picture, image) for image in row] for row in expected]
    assert all(len(place) == 1 for row in found for place in row)
    corners = np.array(found)[:, :, 0]  # [rows, columns, (y, x)]
    assert (corners[..., 0] == corners[:, :1, 0]).all(), "a row is level"
    assert (corners[..., 1] == corners[:1, :, 1]).all(), "a column is upright"
    assert (np.diff(corners[:, 0, 0]) > 128).all()
    assert (np.diff(corners[0, :, 1]) > 128).all()


@pytest.mark.slow
def test_captions_say_what_the_pixels_are_mixed_of():
    """All of both kinds, with the partner that one finds in the pixels."""
    plain = replayed(MIXED.unmixed())
    kinds = {"MixUp": 0, "CutMix": 0, "": 0, "rests": 0}
    rows = grid.make_rows(MIXED, source(), INDEX, VIEWS)
    for i, (label, cells) in enumerate(rows):
        assert label == (f"image {i}", WORDS[::-1][i])
        assert cells[0][1] == ("source",)
        for view, (image, lines) in zip(VIEWS, cells[1:], strict=True):
            assert lines[0] == f"view {view}"
            own = plain[view, i].astype(float)
            if len(lines) == 1:
                np.testing.assert_array_equal(image, own)
                matching = plan.pairs(SEED, int(view) // 2, LENGTH)
                kinds["" if i in matching else "rests"] += 1
                continue
            kind, share, name = lines[1].split()
            other = plain[view, WORDS[::-1].index(name)].astype(float)
            assert name != WORDS[::-1][i]
            if kind == "MixUp":
                blended = float(share) * own + (1 - float(share)) * other
                # Two digits of the share, and one rounding.
                assert np.abs(image - blended).max() <= 0.005 * 255 + 0.5
            else:
                is_own = (image == own).all(-1)
                is_other = (image == other).all(-1)
                assert (is_own | is_other).all()
                # Where both have the black border of a crop, it is of either.
                assert is_own.mean() >= float(share) - 0.005
                assert is_other.mean() >= 1 - float(share) - 0.005
            kinds[kind] += 1
    assert kinds["rests"] == len(VIEWS)
    assert all(kinds.values()), kinds


def drawn(share, box, weight):
    return mix.Mix(np.int32(share), np.array(box, np.int32), np.float32(weight))


@pytest.mark.parametrize(
    ("mixed", "partner", "lines"),
    [
        (drawn(187, [0] * 4, 187 / 256), "owl", ("view 4", "MixUp 0.73 owl")),
        (drawn(256, [2, 0, 9, 9], 0.611), "owl", ("view 4", "CutMix 0.61 owl")),
        (drawn(0, [0] * 4, 0.0), "owl", ("view 4", "MixUp 0.00 owl")),
        (drawn(256, [0] * 4, 1.0), "owl", ("view 4",)),
        (drawn(256, [2, 5, 9, 5], 1.0), "owl", ("view 4",)),  # a box without a width
        (drawn(187, [0] * 4, 187 / 256), None, ("view 4",)),
    ],
)
def test_caption(mixed, partner, lines):
    assert grid.caption(4, mixed, partner) == lines


def test_unmixed_recipes_name_no_partner():
    [(_, cells)] = grid.make_rows(student("none"), source(), INDEX[:1], VIEWS)
    assert [lines for _, lines in cells[1:]] == [(f"view {v}",) for v in VIEWS]
    for image, _ in cells:
        np.testing.assert_array_equal(image, source().images[0])


def test_images_of_another_size_show_their_centre(tmp_path):
    random = np.random.default_rng(1)
    for n, shape in enumerate([(40, 60, 3), (70, 50, 3), (32, 32, 3), (90, 33, 3)]):
        folder = tmp_path / "train" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    pictures = sources.load(f"folder:{tmp_path}", "train")
    seen = student(size=32, mixup=0.8)
    made = grid.make_rows(seen, pictures, np.arange(4, dtype=np.int32), VIEWS)
    for n, (lines, cells) in enumerate(made):
        picture, label = pictures.pil_image(n)
        assert lines == (f"image {n}", "ab"[label])
        centre = crops.centre_view(picture, 32, crops.CROP_RATIO)
        np.testing.assert_array_equal(cells[0][0], centre)
        assert len({image.tobytes() for image, _ in cells}) == len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 100, 224])
def test_no_text_is_cut_off_or_meets_another(size):
    """Even the longest: white stays around all, and between the columns."""
    long = "of a class with a very long name indeed " * 4
    images = np.random.default_rng(0).integers(0, 99, (6, size, size, 3), np.uint8)
    cells = [
        (image, (f"view {n}", f"CutMix 0.61 {long}")) for n, image in enumerate(images)
    ]
    picture = grid.paint(
        [(("image 1,281,166", long), cells[row::2]) for row in range(2)],
        title=long,
        about="x" * 999 + " " + long,
    )
    side = -(-128 // size) * size
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == 255).all()
    corners = np.array([places(picture, image) for image in images])
    assert corners.shape == (6, 1, 2), "nothing is written over an image"
    tops, lefts = (sorted(set(corners[:, 0, axis].tolist())) for axis in (0, 1))
    assert (len(tops), len(lefts)) == (2, 3)
    assert lefts[0] < 200, "the longest name does not push the images away"
    body = picture[tops[0] :]
    for left in lefts:
        assert (body[:, left - 8 : left] == 255).all()
    for top in tops:
        assert (picture[top - 8 : top] == 255).all()
        for left in lefts:
            # Of both lines something is there, and white between them.
            under = picture[top + side : top + side + grid.GAP + 24, left : left + side]
            dark = (under < 128).any(axis=(1, 2))
            assert np.count_nonzero(np.diff(dark.astype(int)) == 1) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Bücher", "Bücher"), ("two\nlines", "two lines"), ("7", "class 7"),
     ("猫", "class 0"), ("犬 dog", "? dog")],
)  # fmt: skip
def test_class_names_are_of_letters_that_the_font_has(name, shown):
    named = types.SimpleNamespace(class_names=(name,))
    assert grid.class_name(named, 0) == shown


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [(4, 100, [0, 25, 50, 75]), (3, 10, [0, 3, 6]), (8, 3, [0, 1, 2])],
)
def test_indices_are_spread_over_the_source(count, length, expected):
    assert grid.spread(count, length).tolist() == expected


@pytest.mark.parametrize(
    ("index", "views", "message"),
    [
        ([0, -1], [0], r"no image -1 in noise train.* 0 \.\. 14"),
        ([0, LENGTH], [0], rf"no image {LENGTH} in noise train"),
        (INDEX, range(9999), r"15 images x 9,999 views .* million"),
    ],
)
def test_what_cannot_be_drawn_is_refused(index, views, message):
    with pytest.raises(InputError, match=message):
        grid.draw(MIXED, source(), index=index, views=views, title="")
