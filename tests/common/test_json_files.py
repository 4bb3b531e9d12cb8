"""JSON from outside: what is wrong is said with its place, whatever it is."""

import pytest

from llava.common import json_files

NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [b"\xff{}", b"{", b"", NESTED.encode(), NESTED, '{"a":' * 100_000, "1" * 5000],
    ids=["not-utf8", "cut", "empty", "deep", "deep-text", "deep-objects", "digits"],
)
def test_what_is_not_json_names_its_place(content):
    with pytest.raises(ValueError, match=r"^answers\.jsonl, line 7 is n"):
        json_files.parse(content, "answers.jsonl, line 7")


def test_a_byte_order_mark_is_no_fault():
    assert json_files.parse(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


def test_a_file_has_the_type_that_is_expected(tmp_path):
    path = tmp_path / "index.json"
    with pytest.raises(FileNotFoundError, match=r"no index\.json in"):
        json_files.read(path)
    path.write_text("[1, 2]")
    assert json_files.read(path, list) == [1, 2]
    with pytest.raises(ValueError, match=r"index\.json must hold an object, got \[1, 2\]"):
        json_files.read(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "expected an object with id, score, got []"),
        ({"id": 1}, "score is missing (found id)"),
        ({"id": True, "score": 1}, "id must be a string or an integer, got True"),
        ({"id": {}, "score": "1"}, "score must be a number, got 1"),
        ({"id": 1, "score": 1, "name": 3}, "name must be a string, got 3"),
        ({"id": 10**5000, "score": []}, "score must be a number, got []"),
    ],
)
def test_a_field_of_another_type_is_named(entry, message):
    with pytest.raises(ValueError) as raised:
        json_files.check(entry, "f.json", {"id": (str, int), "score": float}, {"name": str})
    assert str(raised.value).startswith("f.json: ") and message in str(raised.value)


def test_what_fits_comes_back():
    entry = {"id": "a", "score": 1, "name": None, "more": [1]}
    fields = {"id": (str, int), "score": float}
    assert json_files.check(entry, "f.json", fields, {"name": str}) is entry


def test_a_message_can_always_be_written():
    json_files.shorten("\ud800" * 200).encode()
    assert json_files.shorten(10**5000) == "a int"
