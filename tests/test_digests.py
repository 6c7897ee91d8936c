import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.training import digests
from deit_jax.training.state import TrainState

ROW = np.arange(6, dtype=np.float32)


def digest(array):
    [value] = digests.of_arrays([array]).values()
    return value


def test_paths_are_those_of_the_state():
    params = {"head": {"bias": ROW}}
    state = TrainState(np.full((), 3, np.int32), params, (params, None), None)
    found = digests.of_arrays(state)
    assert set(found) == {"step", "params.head.bias", "opt_state.0.head.bias"}
    assert found["params.head.bias"] == found["opt_state.0.head.bias"]
    # What a part of the state has is what the whole has.
    assert digests.of_arrays({"params": params}).items() <= found.items()
    expected = hashlib.sha256(b"float32(6,)" + ROW.tobytes()).hexdigest()
    assert found["params.head.bias"] == expected


def test_type_shape_and_every_bit_count():
    flipped = ROW.copy()
    flipped.view(np.uint8)[-1] ^= 1
    arrays = [ROW, flipped, ROW.reshape(2, 3), ROW.view(np.int32), ROW[:0]]
    arrays += [jnp.asarray(ROW, jnp.bfloat16), -0.0 * ROW[:1], 0.0 * ROW[:1]]
    assert len({digest(array) for array in arrays}) == len(arrays)
    assert digest(ROW.reshape(2, 3).T) == digest(ROW.reshape(2, 3).T.copy())


def test_json_is_what_it_keeps():
    one = {"b": (1, 2.5), "a": None}
    assert digests.of_json(one) == digests.of_json({"a": None, "b": [1, 2.5]})
    assert digests.of_json(one) != digests.of_json({"a": None, "b": [1, 2.25]})


def test_differences_are_named():
    digests.check({"a": "1"}, {"a": "1"})
    with pytest.raises(ValueError, match=r"^2 of 3 values .* were written: b, c\.$"):
        digests.check({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
