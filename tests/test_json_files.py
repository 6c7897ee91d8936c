"""JSON that no program of ours has written."""

import json
import os

import pytest

from deit_jax import json_files

NULL = json_files.NULL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 33 + b"]" * 33, "nested too deeply"),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, "nested too deeply"),
        (b"1" + b"0" * 18, "whole number of 19 digits"),
        (b"[-" + b"9" * 5000 + b"]", "whole number of 5,001 digits"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'{"\\uDC00": 1}', "surrogates not allowed"),
    ],
)
def test_what_later_code_could_not_take_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        json_files.parse(text)


def test_what_a_run_writes_is_read(tmp_path):
    content = {"a": [1, -(10**17), 0.5, None, True], "ä\n\\ud800 🙂": [[{}]] * 3}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert json_files.read(tmp_path / "a.json") == content
    assert json_files.parse(b"\xef\xbb\xbf" + b"[" * 31 + b"]" * 31)  # of Windows


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zeros")
    for name in ("pipe", "zeros"):
        with pytest.raises(ValueError, match="no regular file"):
            json_files.read(tmp_path / name)
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 2**40)
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes, more than 67,1"):
        json_files.read(tmp_path / "big")
    with pytest.raises(OSError, match="No such file"):
        json_files.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "it is bool, expected int"),
        (True, float, "it is bool, expected float"),
        (1.0, int, "it is float, expected int"),
        ("1", (float, NULL), "it is str, expected float or null"),
        ([], {}, "it is no object"),
        ({}, [int], "it is no list"),
        ({"a": 1}, {"a": int, "b": int}, "it has no b"),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": [int]}}, r"a\.b\[1\] is str"),
        ({"a": 1, "b": None}, {...: float}, "b is NoneType, expected float"),
    ],
)
def test_the_place_of_another_kind_is_named(value, kind, message):
    with pytest.raises(ValueError, match=message):
        json_files.check(value, kind)


def test_kinds():
    json_files.check(1, float)
    json_files.check(None, (int, NULL))
    json_files.check({"a": [{"b": 1.5, "more": 2}], "c": []}, {"a": [{"b": float}]})
    json_files.check({"x": 1, "y": 2.5}, {...: float})
