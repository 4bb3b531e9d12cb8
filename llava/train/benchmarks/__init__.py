"""The mini benchmarks: one file each, which chooses questions and writes the official files."""

from __future__ import annotations

from collections.abc import Callable

from llava.train.benchmarks import gqa, mmbench, mme, pope, scienceqa, textvqa, vqav2
from llava.train.benchmarks.common import Folder

#: Writers by the name of their folder.
WRITERS: dict[str, Callable[[Folder], None]] = {
    "textvqa": textvqa.write,
    "gqa": gqa.write,
    "pope": pope.write,
    "MME": mme.write,
    "scienceqa": scienceqa.write,
    "mmbench": mmbench.write,
    "vqav2": vqav2.write,
}
