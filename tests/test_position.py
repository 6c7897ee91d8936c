import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from deit_jax.errors import InputError
from deit_jax.models import position

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def embeddings(side, *, prefix, width=5):
    random = np.random.default_rng(side)
    return random.normal(size=(1, prefix + side**2, width)).astype(np.float32)


def interpolated(grid, side):
    """As the main.py of facebookresearch/deit calls it; [n, n, d] -> [m, m, d]."""
    channels_first = torch.tensor(grid).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        channels_first, size=(side, side), mode="bicubic", align_corners=False
    )
    return resized[0].permute(1, 2, 0).numpy()


SIDES = [(14, 24), (24, 14), (7, 9), (9, 7), (4, 5), (5, 2), (8, 8), (1, 3), (3, 1)]


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(("old", "new"), SIDES)
def test_bicubic_is_the_references(old, new, prefix):
    before = embeddings(old, prefix=prefix)
    after = position.resize(before, new, prefix=prefix, method="bicubic")
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after[:, :prefix], before[:, :prefix])
    expected = interpolated(before[0, prefix:].reshape(old, old, -1), new)
    np.testing.assert_allclose(
        after[0, prefix:].reshape(new, new, -1), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (9, 4), (5, 5)])
def test_bicubic_antialias_is_timms(old, new, prefix):
    before = embeddings(old, prefix=prefix)
    after = position.resize(before, new, prefix=prefix, method="bicubic_antialias")
    expected = resample_abs_pos_embed(
        torch.tensor(before), [new, new], [old, old], num_prefix_tokens=prefix
    )
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 12])
def test_a_grid_that_is_not_square_is_refused(count):
    with pytest.raises(InputError, match=f"of {count} patches, which is no square"):
        position.resize(np.zeros((1, 1 + count, 4)), 4, prefix=1)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="Known: bicubic, bicubic_antialias"):
        position.resize(embeddings(4, prefix=1), 4, prefix=1, method="linear")
