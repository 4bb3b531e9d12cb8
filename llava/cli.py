"""`autoprune`: one command for what people do with this package, also as `python -m llava`.

A sub-command is a program that `python -m` runs, too. It is imported when it is called.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from llava import __version__
from llava.common import program


class SubCommand(NamedTuple):
    """The module whose `main` it is; `shared`: with others, whose names are its first argument."""

    module: str
    help: str
    shared: bool = False


SUB_COMMANDS = {
    "benchmark": SubCommand("llava.eval.benchmark", "answer a benchmark and score the answers"),
    "sweep": SubCommand("llava.eval.compare.sweep", "methods x budgets x benchmarks, as one table"),
    "tables": SubCommand("llava.eval.compare.tables", "the paper's tables, beside what it printed"),
    "report": SubCommand("llava.eval.compare.report", "finished runs as a table"),
    "page": SubCommand("llava.analysis.page", "finished runs as an HTML page with pictures"),
    "score": SubCommand("llava.eval.score", "the score of an answers file"),
    "chat": SubCommand("llava.serve.cli", "talk about a picture in the terminal"),
    "view": SubCommand("llava.serve.viewer", "ask in a browser, and see which patches are kept"),
    "keep": SubCommand("llava.analysis.keep", "draw the patches that methods keep, by layer"),
    "attention": SubCommand("llava.analysis.attention", "draw where text looks, by layer"),
    "curves": SubCommand("llava.analysis.curves", "draw the retention curve of each sample"),
    "tradeoff": SubCommand("llava.analysis.tradeoff", "draw accuracy over tokens, FLOPs and time"),
    "verify": SubCommand("llava.analysis.verify", "is it right about a checkpoint of yours?"),
    "bench": SubCommand("llava.analysis.latency", "time a prefill, pruned and not"),
    "convert": SubCommand("llava.model.checkpoint", "a checkpoint in another format", shared=True),
    "merge": SubCommand("llava.model.checkpoint", "a LoRA adapter into its base", shared=True),
}


def start() -> NoReturn:
    """The console script."""
    program.run(dispatch)


# Not called main: signals tell a sub-command's `main`, in which a signal is to be raised, from what
# comes before it.
def dispatch(argv: Sequence[str] | None = None) -> int | None:
    """Run the sub-command that comes first, with the arguments behind it, and return its status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    name = parser.parse_args(argv[:1]).command
    if name is None:
        parser.print_help()
        return 2
    if name not in SUB_COMMANDS:
        near = difflib.get_close_matches(name, SUB_COMMANDS, n=1)
        parser.error(f"no command {name!r}{f'; did you mean {near[0]}?' if near else ''}")
    command, rest = SUB_COMMANDS[name], list(argv[1:])
    main = import_module(command.module).main
    if command.shared:
        with program.named(command.module, "autoprune"):
            return main([name, *rest])
    with program.named(command.module, f"autoprune {name}"):
        return main(rest)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, SUB_COMMANDS))
    rows = [f"  {name:{width}}  {command.help}" for name, command in SUB_COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="autoprune",
        usage="%(prog)s COMMAND [arguments]",
        description="Visual-token pruning for LLaVA. `autoprune COMMAND --help` says more of each.",
        epilog="\n".join(["commands:", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser
