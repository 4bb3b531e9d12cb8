"""Not a test: an answering program that works until a signal comes, and then a little longer.

It notes in the file $CALLS that it has begun and that it has ended.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llava.common.signals import EXIT_INTERRUPTED
from llava.eval.run.interruption import Interruption


def main(argv: Sequence[str] | None = None) -> int:
    with Interruption():
        try:
            note("begun")
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            time.sleep(random.random() / 2)
            note("ended")
            return EXIT_INTERRUPTED


def note(word: str) -> None:
    with Path(os.environ["CALLS"]).open("a") as file:
        file.write(f"{word}\n")


if __name__ == "__main__":
    sys.exit(main())
