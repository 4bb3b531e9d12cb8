"""Whole lines or nothing, whatever was in the file before."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.run.linefile import LineFile, read_lines


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


@pytest.mark.parametrize("end", ["", "\r", "\n", "\r\n", "\n\n", "\n \t\r\n\n", "\n\r"])
def test_a_whole_last_line_counts_however_it_ends(tmp_path, end):
    """Editors, other programs and '"\\n".join' leave such files."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\r\n\n{"n": 2}' + end.encode())
    assert [entry["n"] for _, _, entry in read_lines(path)] == [1, 2]
    file = LineFile(path)
    offset = file.append({"n": 3})
    file.verify()
    file.close()
    found = list(read_lines(path))
    assert [entry["n"] for _, _, entry in found] == [1, 2, 3]
    assert found[-1][1] == offset and path.read_bytes()[offset:] == b'{"n": 3}\n'


@pytest.mark.parametrize("half", [b'{"n": 2', b'{"n": 2}}', b"2", b"[1]", b"\0\0", b'{"n": 2, '])
def test_what_is_no_whole_object_is_cut_off(tmp_path, half):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\r\n' + half)
    LineFile(path).close()
    assert path.read_bytes() == b'{"n": 1}\r\n'


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b'{"n": 1}\n{"n":', 'line 2: expected a JSON object, got {"n":. The last line is cut'),
        (b'{"n": 1}\noops\n{"n": 3}\n', "line 2: expected a JSON object, got oops. Correct the"),
        (b'[{"n": 1},\n{"n": 2}]\n', "line 1: .* An array does not do: write each"),
        (b'{"n": 1} {"n": 2}\n', "line 1: .* begin a line with each of them"),
        (b'{"n": 1}{"n": 2}', "line 1: .* begin a line with each of them"),
    ],
    ids=["cut off", "wrong", "an array", "two on a line", "two on the last line"],
)
def test_no_error_advises_to_remove_a_line(tmp_path, content, advice):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=advice) as raised:
        list(read_lines(path))
    assert "emove" not in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n')
    assert [(at, entry["n"]) for _, at, entry in read_lines(path)] == [(3, 1), (12, 2)]


def test_a_line_that_a_signal_cuts_is_taken_back(tmp_path, monkeypatch):
    """A handler may raise after the system took the line and before anybody noted it."""
    file = LineFile(tmp_path / "a.jsonl")
    file.append({"n": 1})

    class Interrupted:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, fd, data):
            os.write(fd, data)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llava.eval.run.linefile.os", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            file.append({"n": 2})
    file.append({"n": 3})
    file.verify()
    file.close()
    assert [entry["n"] for _, _, entry in read_lines(tmp_path / "a.jsonl")] == [1, 3]


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
