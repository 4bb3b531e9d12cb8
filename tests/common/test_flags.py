"""Numbers on the command lines of all programs: what cannot be meant is refused by its flag."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from llava.common import flags

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "llava").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
WRONG = ("nan", "inf", "-inf", "1e400", "1e308", "1" + "0" * 30, "9" * 5000, "one", "", "1_0_")


class Built(Exception):
    """A program has built its parser."""


def parser_of(program: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The command line of a program, taken where it is about to be read."""

    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        raise Built(parser)

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_known_args"):
            patched.setattr(argparse.ArgumentParser, name, stop)
        with pytest.raises(Built) as built:
            importlib.import_module(program).main()
    return built.value.args[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_flag_takes_a_number_that_is_none(program: str, monkeypatch) -> None:
    parser = parser_of(program, monkeypatch)
    for action in parser._actions:
        if action.type in (None, Path) or not action.option_strings:
            continue
        assert action.type not in (int, float), f"{action.option_strings}: use llava.common.flags"
        for text in WRONG:
            with pytest.raises(argparse.ArgumentError) as refused:
                parser._get_value(action, text)
            assert action.option_strings[0] in str(refused.value)
            assert len(str(refused.value)) < 1000


def test_the_ends_of_a_range_belong_to_it() -> None:
    whole, number = flags.whole(1, 5), flags.number(0, 1)
    assert [whole("1"), whole("5"), number("0"), number("1"), number("0.5")] == [1, 5, 0, 1, 0.5]
    for read, text in ((whole, "0"), (whole, "6"), (whole, "1.5"), (number, "-0.1"), (number, "2")):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            read(text)
    assert flags.whole()(str(flags.MOST)) == flags.MOST
