"""Whatever stands in a file, each program that reads it ends with a message that names the file.

A good file of each kind is damaged in each of its places, with fewer values in those that may be
missing. A program may accept the damage, where it does not look or where the value is a good one;
it never ends otherwise than with its status.
"""

from __future__ import annotations

import copy
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from .. import malformed
from ..malformed import Program
from . import malformed_runs, malformed_scores

PROGRAMS = {**malformed_scores.PROGRAMS, **malformed_runs.PROGRAMS}


def outcome(program: Program, folder: Path) -> str | None:
    """The message of a program that refused its files, None of one that did not."""
    # Not capsys, whose streams take no lone surrogates; those of a program write them as escapes.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            code = program.run(folder)
        except ValueError as error:
            return str(error)
    return said.getvalue() if code else None


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_value_is_refused_by_the_name_of_its_file(name, tmp_path) -> None:
    program = PROGRAMS[name]
    content = program.write(tmp_path)
    path = tmp_path / program.damage
    good = path.read_bytes()
    reached = set()
    for place in list(malformed.places(content)):
        dotted = ".".join(map(str, place))
        reached.add(dotted)
        for what, text in malformed.damaged(path, copy.deepcopy(content), place):
            if dotted not in program.needed and what not in malformed.NEVER:
                continue
            path.write_text(text)
            message = outcome(program, tmp_path)
            case = f"{what} as {dotted}: {message}"
            refused = what in malformed.UNREADABLE
            refused |= dotted in program.needed and what in malformed.NEVER
            if refused:
                assert message is not None and str(path) in message, case
            elif message is not None:  # of values of the right type, another file may be told
                told = (str(tmp_path), "have no answer", "not found")
                assert any(text in message for text in told), case
            assert len(message or "") < 2500, case
    assert program.needed <= reached
    path.write_bytes(malformed.BOM + good)
    message = outcome(program, tmp_path)
    assert message is None or str(path) in message


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_file_is_refused_by_its_name(name, tmp_path) -> None:
    program = PROGRAMS[name]
    program.write(tmp_path)
    for what, content in malformed.CONTENTS.items():
        (tmp_path / program.damage).write_bytes(content)
        message = outcome(program, tmp_path)
        if what in ("empty", "half") and program.damage == "answers/2_0.jsonl":
            continue  # nothing is answered yet, or the last answer was cut off
        assert message is not None and str(tmp_path / program.damage) in message, (what, message)
