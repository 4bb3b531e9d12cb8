"""Which settings of a run decide its answers, field by field."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from llava import pruning
from llava.eval.run.settings import ALWAYS, DECIDES, NEVER, SAMPLED, RunSettings, differences

GREEDY = RunSettings("models/a", Path("q.jsonl"), Path("a.jsonl"))

#: Another value of each field, and when answers of both must not be in one file.
OTHER = {
    "model_path": ("models/b", ALWAYS),
    "question_file": (Path("r.jsonl"), NEVER),
    "answers_file": (Path("b.jsonl"), NEVER),
    "image_folder": (Path("images"), NEVER),
    "model_base": ("models/base", ALWAYS),
    "vision_tower": ("models/tower", ALWAYS),
    "load_4bit": (True, ALWAYS),
    "load_8bit": (True, ALWAYS),
    "dtype": ("float16", ALWAYS),
    "attn_implementation": ("eager", ALWAYS),
    "compile": (True, NEVER),
    "merge_type": ("spatial", ALWAYS),
    "processing": ("llava-hf", ALWAYS),
    "offline": (True, NEVER),
    "conv_mode": ("mistral_instruct", ALWAYS),
    "visual_token_num": (100, ALWAYS),
    "pruner": (pruning.build("fastv"), ALWAYS),
    "temperature": (0.7, ALWAYS),
    "top_p": (0.9, SAMPLED),
    "num_beams": (5, ALWAYS),
    "max_new_tokens": (16, ALWAYS),
    "seed": (1, SAMPLED),
    "num_chunks": (2, ALWAYS),
    "chunk_idx": (1, ALWAYS),
    "batch_size": (8, SAMPLED),
    "num_workers": (0, NEVER),
    "device": ("cpu", NEVER),
    "limit": (10, ALWAYS),
    "feature_cache_gb": (2.0, ALWAYS),  # by what `prefill` measures
}


def differ(settings: RunSettings, name: str) -> bool:
    """Whether answers under another value of this field are kept apart."""
    settings = replace(
        settings, dtype="float32"
    )  # "auto" is not known yet and differs from nothing
    other = replace(settings, **{name: OTHER[name][0]})
    return bool(differences(settings.to_dict("a" * 64), other.to_dict("a" * 64)))


def test_every_field_is_in_both_tables() -> None:
    names = [field.name for field in fields(RunSettings)]
    assert list(OTHER) == names
    assert sorted(DECIDES) == sorted([*names, "question_sha256"])


@pytest.mark.parametrize("name", OTHER)
def test_what_decides_the_answers_keeps_them_apart(name: str) -> None:
    when = OTHER[name][1]
    assert differ(GREEDY, name) == (when == ALWAYS)
    assert differ(replace(GREEDY, temperature=0.2), name) == (when != NEVER)


def test_other_questions_give_other_answers() -> None:
    assert differences(GREEDY.to_dict("a" * 64), GREEDY.to_dict("b" * 64))
