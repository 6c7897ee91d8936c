"""Rows of a teacher cache: all logits, or the largest of them."""

import numpy as np
import pytest
import scipy.special

from deit_jax.distillation.encoding import Encoding
from deit_jax.distillation.teacher import Answers
from deit_jax.errors import InputError

MANY, KEPT, TAU = 200, 7, 3.0


@pytest.fixture(scope="module")
def teacher_says():
    """float32 [64, MANY], from nearly flat rows to nearly certain ones."""
    rng = np.random.default_rng(1)
    scale = np.linspace(0.1, 8, 64)[:, None]
    return (scale * rng.normal(size=(64, MANY))).astype(np.float32)


@pytest.fixture(scope="module")
def encoding():
    return Encoding(MANY, KEPT, TAU)


def stored(encoding, logits):
    """What `encode` gives, of the types that the files have."""
    encoded = encoding.encode(Answers(logits))
    assert encoded.keys() == encoding.arrays.keys()
    for name, (kind, shape) in encoding.arrays.items():
        assert encoded[name].dtype == kind
        assert encoded[name].shape == (len(logits), *shape)
    return encoded


@pytest.mark.parametrize("tau", [1.0, TAU])
def test_softmax_of_the_kept_logits_and_of_the_others_is_the_teachers(
    encoding, teacher_says, tau
):
    decoded = encoding.decode(stored(encoding, teacher_says), tau)
    assert decoded.dtype == np.float32
    theirs = scipy.special.softmax(teacher_says.astype(np.float64) / tau, axis=1)
    mine = scipy.special.softmax(decoded.astype(np.float64) / tau, axis=1)
    top = np.argsort(-teacher_says, axis=1)[:, :KEPT]
    others = np.ones_like(theirs, bool)
    np.put_along_axis(others, top, False, axis=1)
    tail = theirs.sum(axis=1, where=others)
    # The order of the logits rounds by 2**-7 at 16 .. 32.
    np.testing.assert_allclose(
        np.take_along_axis(mine, top, 1), np.take_along_axis(theirs, top, 1), rtol=0.01
    )
    np.testing.assert_allclose(mine.sum(axis=1, where=others), tail, rtol=1e-5)
    # What is lost is the shape of the tail, so much and no more.
    divergence = scipy.special.rel_entr(theirs, mine).sum(axis=1)
    shape = scipy.special.entr(theirs / tail[:, None]).sum(axis=1, where=others)
    lost = tail * (np.log(MANY - KEPT) - shape)
    np.testing.assert_allclose(divergence, lost, atol=1e-4)
    assert (lost <= tail * np.log(MANY - KEPT)).all()


def test_the_two_tails_are_not_one(encoding, teacher_says):
    """A softmax that is right at one temperature is wrong at the other."""
    decoded = encoding.decode(stored(encoding, teacher_says), TAU)
    theirs, mine = (
        scipy.special.softmax(logits.astype(np.float64), axis=1).max(axis=1)
        for logits in (teacher_says, decoded)
    )
    assert np.abs(theirs - mine).max() > 0.01


@pytest.mark.parametrize("tau", [1.0, TAU])
def test_decision_of_the_teacher_is_kept(encoding, teacher_says, tau):
    decoded = encoding.decode(stored(encoding, teacher_says), tau)
    np.testing.assert_array_equal(decoded.argmax(1), teacher_says.argmax(1))


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("tau", [1.0, TAU])
def test_equal_logits_keep_the_order_of_their_classes(kept, tau):
    logits = np.zeros((5, 5), np.float32)
    logits[1, [2, 4]] = 3  # a tie for the first place
    logits[2] = [1, 5, 1, 1, 1]  # for the last that is kept
    logits[3, 1:] = -9
    logits[4, [1, 3, 4]] = [2, 4, 2]
    encoding = Encoding(5, kept, TAU)
    encoded = stored(encoding, logits)
    for row, expected in enumerate(
        [[0, 1, 2], [2, 4, 0], [1, 0, 2], [0, 1, 2], [3, 1, 4]]
    ):
        assert encoded["indices"][row].tolist() == expected[:kept]
    decoded = encoding.decode(encoded, tau)
    np.testing.assert_array_equal(decoded.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("value", [0.0, 1.5, 12.25, -7.0])
@pytest.mark.parametrize("tau", [1.0, TAU])
def test_rounding_does_not_decide_between_equal_logits(value, tau):
    for classes in (3, 5, 7, 10, 11, 100, 1000):
        for kept in range(1, min(classes, 10)):
            encoding = Encoding(classes, kept, TAU)
            encoded = encoding.encode(Answers(np.full((1, classes), value, np.float32)))
            assert encoding.decode(encoded, tau).argmax() == 0


def test_a_vanished_tail_is_finite():
    logits = np.zeros((1, 10), np.float32)
    logits[0, 4] = 1000
    encoding = Encoding(10, 1, 1.0)
    encoded = stored(encoding, logits)
    assert encoded["tails"].max() == 0
    decoded = encoding.decode(encoded, 1.0)
    assert np.isfinite(decoded).all()
    assert scipy.special.softmax(decoded)[0, 4] == 1


@pytest.mark.parametrize("top_k", [0, -1, 10, 11])
def test_top_k_of_all_classes_or_none_is_refused(top_k):
    with pytest.raises(InputError, match=rf"--top_k={top_k}: expected 1 .. 9"):
        Encoding(10, top_k, TAU)


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan, None])
def test_tails_need_a_temperature(tau):
    with pytest.raises(InputError, match=f"distillation.tau={tau} is not above 0"):
        Encoding(10, 3, tau)


@pytest.mark.parametrize(
    ("classes", "kind"), [(2**16, np.uint16), (2**16 + 1, np.uint32)]
)
def test_class_numbers_have_room(classes, kind):
    encoding = Encoding(classes, 2, TAU)
    assert encoding.arrays["indices"] == (kind, (2,))
    logits = np.zeros((1, classes), np.float32)
    logits[0, -1] = 20
    encoded = stored(encoding, logits)
    assert encoded["indices"].tolist() == [[classes - 1, 0]]
    assert encoding.decode(encoded, 1.0).argmax() == classes - 1


@pytest.mark.parametrize("encoding", [Encoding(10), Encoding(10, 3, TAU)])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "non-finite logits"), (np.inf, "non-finite"), (7e4, "exceed float16")],
)
def test_logits_that_float16_cannot_hold_are_refused(encoding, value, message):
    with pytest.raises(InputError, match=message):
        encoding.encode(Answers(np.full((2, 10), value, np.float32)))
