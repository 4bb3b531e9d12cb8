"""What `llava.eval.lmms` needs of lmms-eval: the package itself, or where it is not installed its
interface (lmms_eval/api and lmms_eval/models/registry_v2.py of release 0.7.3), without a body."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

INSTALLED = importlib.util.find_spec("lmms_eval") is not None


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None

    def to_dict(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None


class Model:
    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank


def provide(monkeypatch: Any) -> None:
    """Make the interface importable where lmms-eval is not installed."""
    if INSTALLED:
        return
    contents: Mapping[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": object,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": Model},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llava.eval.lmms.model", raising=False)
