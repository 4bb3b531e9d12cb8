"""Folders that `AutoProcessor` and `AutoModelForImageTextToText` read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerFast

from llava.conversation import conv_templates
from llava.mm_utils import load_image_processor
from llava.model.checkpoint import convert

from ...hf import zoo

_TURN = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)
_SIZE = {"height": 56, "width": 56}


def write(checkpoint: Path, target: Path) -> Path:
    """Of a LLaVA checkpoint, with a chat template that asks as `vicuna_v1` does."""
    convert(checkpoint, target, "llava-hf")
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = LlavaProcessor(
        load_image_processor(target),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=conv_templates["vicuna_v1"].system + " " + _TURN,
    )
    processor.save_pretrained(target)
    return target


def _llava_next(tokenizer: Any) -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=_SIZE, image_grid_pinpoints=[[56, 56]]
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TURN,
    )


def _gemma3(tokenizer: Any) -> Any:
    images = transformers.Gemma3ImageProcessorPil(size=_SIZE)
    template = _TURN.replace("<image>", "<start>")
    return transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=16, chat_template=template
    )


#: Processors for models of `tests.hf.zoo`.
TINY: dict[str, Callable[[Any], Any]] = {"llava_next": _llava_next, "gemma3": _gemma3}


def write_tiny(name: str, target: Path) -> Path:
    """Of a random model of `tests.hf.zoo`, whose tokens are words."""
    words = {f"w{i}": i for i in range(zoo.VOCAB)}
    words = {
        word: i for word, i in words.items() if i > 3 and i not in (zoo.IMAGE, zoo.START, zoo.END)
    }
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    marks = {"<image>": zoo.IMAGE, "<start>": zoo.START, "<end>": zoo.END}
    tokens = Tokenizer(WordLevel({**special, **words, **marks}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<start>",
            "eoi_token": "<end>",
        },
    )
    TINY[name](tokenizer).save_pretrained(target)
    zoo.model(name, torch.float32).save_pretrained(target)
    return target
