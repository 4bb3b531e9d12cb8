"""What an evaluation run is asked to do, and which of it decides what the answers are."""

from __future__ import annotations

import argparse
import json
import math
import typing
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from llava.common import json_files
from llava.constants import MERGE_TYPES, READINGS
from llava.conversation import conv_templates

#: What older versions always did and their records do not name.
OLDER = {
    "merge_type": "flat",
    "processing": "llava",
    "pruner.pivot_order": "norm",
    "pruner.raters": "reference",
    "pruner.to_the_letter": False,
    "pruner.budget_per": "sample",
    "pruner.tile_scores": "raw",
    "pruner.border_mask": False,
    "pruner.alpha": 0.5,
    "pruner.regions": "tiles",
    "pruner.shares": "whole",
    "pruner.border": "kept",
    "pruner.tile_order": "canvas",
    "pruner.newlines": "last",
}

ALWAYS, SAMPLED, NEVER = "always", "sampled", "never"

_COLDEST = 1e-6  # what is divided by less may not be a number any more


def _flag(
    shown: str | None = None,
    *,
    decides: str = ALWAYS,
    least: int | None = None,
    most: float = math.inf,
    **options: Any,
) -> dict[str, Any]:
    """Metadata of a field of `RunSettings`: its flag on every command line that has it, and more.

    shown: help of the flag. `options` is what argparse takes besides, and `name` where that is not
        the field's with dashes.
    decides: when the setting decides what the answers are: always, only where they are sampled, or
        never. Where files lie and how the work is spread changes no answer; greedy decoding depends
        neither on the seed nor on what else is in the batch. A feature cache changes what `prefill`
        measures, which `decisive` looks at by itself.
    least, most: outside of these a number is a slip, which memory, arithmetic or random numbers
        would end in the middle of a run.
    """
    bounds = None if least is None else (least, most)
    return {"decides": decides, "bounds": bounds, "flag": {**options, "help": shown}}


def _reading(text: str) -> str:
    from llava.anyres import fixed_canvas  # brings torch, which not every command waits for

    try:
        fixed_canvas(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


@dataclass(frozen=True)
class RunSettings:
    """One evaluation run; the command line builds it and repeats no default.

    `merge_type` is that of a model that tiles pictures, None for the checkpoint's own; the record
    of a run names the one that was used. `processing` is how pictures and prompts are prepared, of
    a model that tiles also which canvas a picture goes on, see `load_pretrained_model`.
    `pruner` is a config of `llava.pruning`, None for the dense model. `visual_token_num` bounds
    the tokens that the vision tower hands over, None for all. `temperature` 0 decodes greedily.
    `device` None is the best one there is, `dtype` "auto" the model builder's choice. `limit` says
    that the questions are those of `llava.eval.run.subset`, None for all. `feature_cache_gb` (10^9
    bytes) is the size of the model's `FeatureCache`, None if it has none.

    Raises:
        ValueError: a number out of its range, or both quantisations at once.
    """

    model_path: str = field(metadata=_flag("checkpoint folder"))
    question_file: Path = field(metadata=_flag(decides=NEVER))  # its digest decides
    answers_file: Path = field(metadata=_flag("continued if it exists", decides=NEVER))
    image_folder: Path = field(
        default=Path("."), metadata=_flag("where the questions' images lie", decides=NEVER)
    )
    model_base: str | None = field(
        default=None, metadata=_flag("base checkpoint, for projector-only checkpoints")
    )
    vision_tower: str | None = field(
        default=None,
        metadata=_flag(
            "CLIP folder instead of the one the config names; to a checkpoint with a tower "
            "inside it lends config and image processor"
        ),
    )
    load_4bit: bool = field(default=False, metadata=_flag("needs bitsandbytes"))
    load_8bit: bool = field(default=False, metadata=_flag("needs bitsandbytes"))
    dtype: str = field(
        default="auto", metadata=_flag(choices=("auto", "float32", "float16", "bfloat16"))
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata=_flag(choices=("sdpa", "eager", "flash_attention_2"), metavar="KERNEL"),
    )
    compile: bool = field(
        default=False,
        metadata=_flag(
            "compile the decoder's layers: fewer kernels for a GPU to launch, of little use on a "
            "CPU; the first answers wait for it",
            decides=NEVER,
        ),
    )
    merge_type: str | None = field(
        default=None,
        metadata=_flag(
            "LLaVA-1.6: order of the tiles' tokens, in place of the checkpoint's own",
            choices=MERGE_TYPES,
        ),
    )
    processing: str = field(
        default="llava",
        metadata=_flag(
            "prepare pictures and prompts as LLaVA does, or as llava-hf's processors do; LLaVA-1.6 "
            "also: put a picture on the canvas that it fills best (fill, the official AutoPrune's "
            "rule), or always on this one (672x672, VisPruner's)",
            type=_reading,
            metavar="{" + ",".join(READINGS) + ",WxH}",
        ),
    )
    offline: bool = field(
        default=False,
        metadata=_flag(
            "download nothing from the Hugging Face hub; its cache is read", decides=NEVER
        ),
    )
    conv_mode: str = field(
        default="vicuna_v1", metadata=_flag(choices=sorted(conv_templates), metavar="TEMPLATE")
    )
    visual_token_num: int | None = field(
        default=None,
        metadata=_flag(
            "upper bound on the tokens that the vision tower hands over", least=1, most=10**9
        ),
    )
    # Its flags are those of `llava.pruning.arguments`.
    pruner: Any = field(default=None, metadata=_flag())
    temperature: float = field(default=0.0, metadata=_flag("0 is greedy", least=0, most=10**6))
    top_p: float | None = field(
        default=None,
        metadata=_flag("only with a temperature above 0", decides=SAMPLED, name="--top_p"),
    )
    num_beams: int = field(default=1, metadata=_flag(least=1, most=1024, name="--num_beams"))
    max_new_tokens: int = field(
        default=128, metadata=_flag(least=1, most=10**6, name="--max_new_tokens")
    )
    seed: int = field(
        default=0,
        metadata=_flag(
            "only matters with a temperature above 0", decides=SAMPLED, least=0, most=2**32 - 1
        ),
    )
    # Chunks decide which questions the file answers.
    num_chunks: int = field(default=1, metadata=_flag("parts the question file is split into"))
    chunk_idx: int = field(default=0, metadata=_flag("the part to answer, from 0"))
    batch_size: int = field(
        default=1,
        metadata=_flag("questions answered at a time", decides=SAMPLED, least=1, most=10**6),
    )
    num_workers: int = field(
        default=2,
        metadata=_flag("processes that prepare images ahead", decides=NEVER, least=0, most=1024),
    )
    device: str | None = field(
        default=None,
        metadata=_flag("cpu, cuda, cuda:1, mps; default: the best there is", decides=NEVER),
    )
    limit: int | None = field(
        default=None,
        metadata=_flag(
            "only N questions of each, spread over its file", least=1, most=10**9, metavar="N"
        ),
    )
    feature_cache_gb: float | None = field(
        default=None, metadata=_flag("memory for them", decides=NEVER, metavar="GB")
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if value is None or setting.metadata["bounds"] is None:
                continue
            least, most = setting.metadata["bounds"]
            if value < least:
                bound = f"be at least {least}" if least else "not be negative"
                raise ValueError(f"{name} must {bound}, got {value}.")
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
        if self.pruner is not None:
            self.pruner.demand_complete()

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
        result = {setting.name: getattr(self, setting.name) for setting in fields(self)}
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


#: When each setting of a record decides what the answers are.
DECIDES: dict[str, str] = {
    **{setting.name: setting.metadata["decides"] for setting in fields(RunSettings)},
    "question_sha256": ALWAYS,
}


@cache
def kinds() -> dict[str, type]:
    """The type of each setting, where it is not None."""
    return {
        name: next(t for t in (*typing.get_args(hint), hint) if t is not type(None))
        for name, hint in typing.get_type_hints(RunSettings).items()
    }


@cache
def recorded_types() -> dict[str, json_files.Types]:
    """What each setting is in a record, where it is not null."""
    types = {name: str if kind is Path else kind for name, kind in kinds().items()}
    return {**types, "pruner": dict, "question_sha256": str}


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
