"""Write the mini benchmarks in the official files of the real ones, byte for byte the same.

    python -m llava.train.minibench --out playground/data/mini [--only pope gqa]

Beside them, `metadata.jsonl` tells of every question its kind, its answer and how hard it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.train.benchmarks import WRITERS
from llava.train.benchmarks.common import Folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the folders to write")
    parser.add_argument("--only", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    args = parser.parse_args(arguments)
    for name in args.only:
        WRITERS[name](Folder(args.out / name))
        print(f"wrote {args.out / name}")


if __name__ == "__main__":
    program.run(main)
