"""A small sentencepiece tokenizer in the layout of the original LLaVA checkpoints.

It has Llama's settings (BPE, byte fallback, identity normalisation, dummy prefix, digits apart,
whitespace kept; `<unk>`, `<s>`, `</s>` = 0, 1, 2 and the bytes from 3, so a newline is 13), only
the pieces are fewer and are learned from the prompts, questions and answers of the benchmarks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from llava.conversation import conv_templates
from llava.train.questions import KINDS, LIST_PROMPT, TEXTVQA_PROMPT, ask, describe
from llava.train.scenes import COLOURS, PLACES, TRAINING_SEEDS, WORDS, make_scene

VOCAB_SIZE = 600
CONV_MODE = "vicuna_v1"


def corpus(scenes: int = 300) -> list[str]:
    """Lines the pieces are learned from: prompts with answers, and every word of the answers."""
    lines = []
    for seed in TRAINING_SEEDS[:scenes]:
        scene = make_scene(seed)
        turns = [
            (TEXTVQA_PROMPT.format(question=q.text), q.answer) for q in ask(scene, tuple(KINDS))
        ]
        for text, answer in [*turns, (LIST_PROMPT, describe(scene))]:
            conversation = conv_templates[CONV_MODE].copy()
            conversation.append_message(conversation.roles[0], text)
            conversation.append_message(conversation.roles[1], answer)
            lines += conversation.get_prompt().removesuffix("</s>").split("\n")
    words = [*WORDS, *COLOURS, *(place for row in PLACES for place in row)]
    return lines + [word for word in words for _ in range(scenes)]


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


def write_tokenizer(folder: Path, model: bytes, max_length: int = 2048) -> None:
    """Write `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
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
