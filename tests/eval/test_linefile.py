"""Whole lines or nothing, whatever was in the file before."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.linefile import LineFile, read_lines


@settings(max_examples=25)
@given(
    whole=st.lists(st.integers(0, 100_000), max_size=3),
    half=st.integers(0, 150_000),
)
def test_only_a_half_written_last_line_is_lost(tmp_path_factory, whole, half):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    entries = [{"text": "x" * size} for size in whole]
    writer = LineFile(path)
    offsets = [writer.append(entry) for entry in entries]
    writer.close()
    with path.open("ab") as file:
        file.write(b"y" * half)
    again = LineFile(path)
    offsets.append(again.append({"text": "last"}))
    again.close()
    found = list(read_lines(path))
    assert [entry for _, _, entry in found] == [*entries, {"text": "last"}]
    assert [offset for _, offset, _ in found] == offsets
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))


def test_the_file_is_locked_until_it_is_closed(tmp_path):
    path = tmp_path / "new folder" / "a.jsonl"
    first = LineFile(path)
    with pytest.raises(ValueError, match="Another process is writing"):
        LineFile(path)
    first.close()
    LineFile(path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    """As image workers, which outlive a killed parent by seconds."""
    file = LineFile(tmp_path / "a.jsonl")
    (release, hold), (up, started) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.write(started, b".")
        os.read(release, 1)  # until the parent closes its end
        os._exit(0)
    try:
        os.read(up, 1)
        file.close()
        LineFile(tmp_path / "a.jsonl").close()
    finally:
        os.close(hold)
        os.waitpid(child, 0)
        for end in (release, up, started):
            os.close(end)


def test_any_text_fits_on_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    entry = {"text": "a\nb\u2028\ud800é"}
    writer = LineFile(path)
    writer.append(entry)
    writer.sync()
    writer.close()
    assert path.read_bytes().count(b"\n") == 1
    assert [found for _, _, found in read_lines(path)] == [entry]
