"""Visual-token pruning: the engine, and the methods in `methods`. Imports torch only.

    pruner = pruning.build("autoprune", target_token_num=64)
    model.generate(ids, images=..., pruner=pruner)

A method is one file: a frozen dataclass under the decorator `register`, and its run. In `methods`
it is found by itself; one that is defined elsewhere is there once its file is imported.
"""

from .base import Observation, Pruner, PrunerRun
from .layout import Segment, TokenLayout
from .methods import load_all
from .registry import METHODS, NOT_IMPLEMENTED, build, find, label, register
from .selection import Selection, apply
from .trace import PruneTrace, SampleTrace

__all__ = [
    "METHODS",
    "NOT_IMPLEMENTED",
    "Observation",
    "PruneTrace",
    "Pruner",
    "PrunerRun",
    "SampleTrace",
    "Segment",
    "Selection",
    "TokenLayout",
    "apply",
    "build",
    "find",
    "label",
    "register",
]

load_all()
