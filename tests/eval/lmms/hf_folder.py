"""The embedded checkpoint as a folder of `AutoProcessor` and `AutoModelForImageTextToText`."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, LlavaProcessor

from llava.conversation import conv_templates
from llava.mm_utils import load_image_processor
from llava.model.checkpoint import convert

_TURN = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)


def write(checkpoint: Path, target: Path) -> Path:
    """Write it, with a chat template that asks as `vicuna_v1` does; returns `target`."""
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
