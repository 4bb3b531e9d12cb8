"""A small sentencepiece tokenizer in the layout of the original LLaVA checkpoints.

It has Llama's settings (BPE, byte fallback, identity normalisation, dummy prefix, digits apart,
whitespace kept; `<unk>`, `<s>`, `</s>` = 0, 1, 2 and the bytes from 3, so a newline is 13), only
the pieces are fewer and are learned from the prompts, questions and answers of the benchmarks.
"""

from __future__ import annotations

import io
import json
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path

import sentencepiece

from llava.conversation import conv_templates
from llava.train.data import CONV_MODE
from llava.train.scenes import TRAINING_SEEDS, make_scene
from llava.train.turns import training_turns

VOCAB_SIZE = 720
_FILE = "tokenizer.model"
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b(?<!USER)(?<!ASSISTANT)(?<!OCR)")


def corpus(scenes: int = 400) -> list[str]:
    """Lines the pieces are learned from: the prompts and answers of training scenes.

    The words on signs are left out: they come as capitals, and without them no piece joins these,
    so that a model spells a word letter by letter, also one it has never met.
    """
    lines = []
    for seed in TRAINING_SEEDS[:scenes]:
        for turn in training_turns(make_scene(seed), 12):
            conversation = conv_templates[CONV_MODE].copy()
            conversation.append_message(conversation.roles[0], turn.text)
            conversation.append_message(conversation.roles[1], turn.answer)
            text = _CAPITALS.sub("", conversation.get_prompt().removesuffix("</s>"))
            lines += text.split("\n")
    return [*lines, *(f" {letter}" for letter in string.ascii_uppercase for _ in range(50))]


def train_tokenizer(lines: Iterable[str], vocab_size: int = VOCAB_SIZE) -> bytes:
    """Learn the pieces and return the model file. The same lines give the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def kept_tokenizer(
    folder: Path, lines: Callable[[], Iterable[str]], vocab_size: int = VOCAB_SIZE
) -> bytes:
    """The model file of a work folder, learned from `lines()` when there is none yet.

    A run that goes on needs the ids it began with, whatever the questions are by then.
    """
    path = folder / _FILE
    if not path.exists():
        write_tokenizer(folder, train_tokenizer(lines(), vocab_size))
    return path.read_bytes()


def write_tokenizer(folder: Path, model: bytes, max_length: int = 2048) -> None:
    """Write `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_bytes(model)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        **special,
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": max_length,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", {**special, "pad_token": "<unk>"}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
