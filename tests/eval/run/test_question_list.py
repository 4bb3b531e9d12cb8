"""Questions held in memory, and tables that are read again by offset."""

from __future__ import annotations

import pytest

from llava.eval.run.question_list import QuestionList, Table, file_digest
from llava.eval.run.questions import Question


def test_gaps_between_indices_are_nowhere(tmp_path):
    found = QuestionList(tmp_path, "", [Question(i, "a", "What?") for i in (2, 5)])
    assert [found.position(i) for i in range(7)] == [None, None, 0, None, None, 1, None]


def test_the_digest_depends_on_the_file_and_on_the_instruction(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"x" * 3_000_000)
    digests = {file_digest(path), file_digest(path, "Answer."), file_digest(path, "Reply.")}
    path.write_bytes(b"x" * 2_999_999 + b"y")
    assert len(digests | {file_digest(path)}) == 4


def test_cells_may_be_long(tmp_path):
    path = tmp_path / "long.tsv"
    path.write_text("index\timage\n1\t" + "x" * 300_000 + '\n\n2\t"a\n""b"""\n')
    table = Table(path)
    rows = list(table)
    assert [len(row["image"]) for _, row in rows] == [300_000, 5]
    assert table.row(rows[1][0]) == {"index": "2", "image": 'a\n"b"'}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"index\tA\tA\n", "a column is there twice"),
        (b"index\tA\n1\n", "1 cells, but the header has 2"),
        (b'index\tA\tB\n1\t"a\tb\n2\tc\td\n', "2 cells, but the header has 3"),
        (b"index\tA\n1\t\xff\n", "not a UTF-8 TSV"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(Table(path))
    with pytest.raises(FileNotFoundError, match="TSV"):
        Table(tmp_path / "none.tsv")
