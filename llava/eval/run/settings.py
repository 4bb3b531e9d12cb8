"""What an evaluation run is asked to do, and which of it decides what the answers are."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from llava.common import json_files

#: What older versions always did and their records do not name.
OLDER = {
    "merge_type": "flat",
    "processing": "llava",
    "pruner.budget_per": "sample",
    "pruner.tile_scores": "raw",
    "pruner.border_mask": False,
    "pruner.alpha": 0.5,
    "pruner.regions": "tiles",
}

ALWAYS, SAMPLED, NEVER = "always", "sampled", "never"

#: When a setting decides what the answers are: always, only where they are sampled, or never. Where
#: files lie and how the work is spread changes no answer; greedy decoding depends neither on the
#: seed nor on what else is in the batch. A feature cache changes what `prefill` measures, which
#: `decisive` looks at by itself.
DECIDES = {
    "model_path": ALWAYS,
    "question_file": NEVER,  # its digest decides
    "answers_file": NEVER,
    "image_folder": NEVER,
    "model_base": ALWAYS,
    "vision_tower": ALWAYS,
    "load_4bit": ALWAYS,
    "load_8bit": ALWAYS,
    "dtype": ALWAYS,
    "attn_implementation": ALWAYS,
    "merge_type": ALWAYS,
    "processing": ALWAYS,
    "offline": NEVER,
    "conv_mode": ALWAYS,
    "visual_token_num": ALWAYS,
    "pruner": ALWAYS,
    "temperature": ALWAYS,
    "top_p": SAMPLED,
    "num_beams": ALWAYS,
    "max_new_tokens": ALWAYS,
    "seed": SAMPLED,
    "num_chunks": ALWAYS,  # which questions the file answers
    "chunk_idx": ALWAYS,
    "batch_size": SAMPLED,
    "num_workers": NEVER,
    "device": NEVER,
    "limit": ALWAYS,
    "feature_cache_gb": NEVER,
    "question_sha256": ALWAYS,
}


# Above these a number is a slip, which memory, arithmetic or random numbers would end in the middle
# of a run.
_MOST = {
    **dict.fromkeys(("max_new_tokens", "batch_size"), 10**6),
    **dict.fromkeys(("visual_token_num", "limit"), 10**9),
    "num_beams": 1024,
}
_MOST_FROM_0 = {"temperature": 10**6, "num_workers": 1024, "seed": 2**32 - 1}
_COLDEST = 1e-6  # what is divided by less may not be a number any more


@dataclass(frozen=True)
class RunSettings:
    """One evaluation run; the command line builds it and repeats no default.

    `merge_type` is that of a model that tiles pictures, None for the checkpoint's own; the record
    of a run names the one that was used. `processing` "llava-hf" prepares pictures and prompts as
    llava-hf does, see `load_pretrained_model`.
    `pruner` is a config of `llava.pruning`, None for the dense model. `visual_token_num` bounds
    the tokens that the vision tower hands over, None for all. `temperature` 0 decodes greedily.
    `device` None is the best one there is, `dtype` "auto" the model builder's choice. `limit` says
    that the questions are those of `llava.eval.run.subset`, None for all. `feature_cache_gb` (10^9
    bytes) is the size of the model's `FeatureCache`, None if it has none.

    Raises:
        ValueError: a number out of its range, or both quantisations at once.
    """

    model_path: str
    question_file: Path
    answers_file: Path
    image_folder: Path = Path(".")
    model_base: str | None = None
    vision_tower: str | None = None
    load_4bit: bool = False
    load_8bit: bool = False
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    merge_type: str | None = None
    processing: str = "llava"
    offline: bool = False
    conv_mode: str = "vicuna_v1"
    visual_token_num: int | None = None
    pruner: Any = None
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    seed: int = 0
    num_chunks: int = 1
    chunk_idx: int = 0
    batch_size: int = 1
    num_workers: int = 2
    device: str | None = None
    limit: int | None = None
    feature_cache_gb: float | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if value is not None and value > most:
                raise ValueError(f"{name} must be at most {most:,}, got {value}.")
        for name, most in _MOST_FROM_0.items():
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
            if not value <= most:
                raise ValueError(f"{name} must be at most {most:,}, got {value}.")
        if 0 < self.temperature < _COLDEST:
            raise ValueError(
                f"temperature must be 0, which is greedy, or at least {_COLDEST}, got "
                f"{self.temperature}."
            )
        if self.feature_cache_gb is not None and not 0 < self.feature_cache_gb < math.inf:
            raise ValueError(f"feature_cache_gb must be above 0, got {self.feature_cache_gb}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.load_4bit and self.load_8bit:
            raise ValueError("load_4bit and load_8bit exclude each other; give one of them.")

    @property
    def sampling(self) -> bool:
        return self.temperature > 0

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for `generate`."""
        arguments: dict[str, Any] = {
            "do_sample": self.sampling,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.sampling:
            arguments["temperature"] = self.temperature
            if self.top_p is not None:
                arguments["top_p"] = self.top_p
        if self.visual_token_num is not None:
            arguments["visual_token_num"] = self.visual_token_num
        return arguments

    def to_dict(self, question_sha256: str) -> dict[str, Any]:
        """Every setting as JSON values, with the questions' digest and the model's full path."""
        result = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in result.items():
            if isinstance(value, Path):
                result[name] = str(value)
        for name in ("model_path", "model_base", "vision_tower"):
            value = result[name]
            if value is not None and Path(value).exists():
                result[name] = str(Path(value).resolve())
        result["pruner"] = {"method": "none"} if self.pruner is None else self.pruner.to_dict()
        result["question_sha256"] = question_sha256
        return json.loads(json.dumps(result))  # what a record on disk can be compared with


@cache
def recorded_types() -> dict[str, json_files.Types]:
    """What each setting is in a record, where it is not null."""
    types: dict[str, json_files.Types] = {"pruner": dict, "question_sha256": str}
    for name, hint in typing.get_type_hints(RunSettings).items():
        kind = next(t for t in (*typing.get_args(hint), hint) if t is not type(None))
        if name not in types:
            types[name] = str if kind is Path else kind
    return types


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of `RunSettings.to_dict` that decides the answers; the pruner's get dotted names.

    A feature cache changes no answer, but what `prefill` measures, which one run must not mix. A
    setting that `DECIDES` does not know, of a newer version, decides.
    """
    decided = (ALWAYS, SAMPLED) if settings.get("temperature") else (ALWAYS,)
    flat = {
        name: value
        for name, value in settings.items()
        if DECIDES.get(name, ALWAYS) in decided and name != "pruner"
    }
    pruner = settings.get("pruner") or {}
    flat["feature_cache"] = settings.get("feature_cache_gb") is not None
    return flat | {f"pruner.{name}": value for name, value in pruner.items()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name each setting that decides the answers and differs, with both values.

    `dtype` "auto" and `merge_type` None are not known before the model is loaded and then differ
    from nothing. What an older record does not name had the value of `OLDER`.
    """
    before, after = decisive(old), decisive(new)
    unknown = {"dtype": "auto", "merge_type": None}
    result = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, OLDER.get(name)), after.get(name)
        if was != now and not (name in unknown and now == unknown[name]):
            result.append(f"{name}: {was!r} in the record, {now!r} now")
    return result
