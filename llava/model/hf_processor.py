"""The processor of a llava-hf folder: with it `AutoProcessor` prepares inputs as LLaVA does.

Pictures are padded to a square by transformers' own LlavaImageProcessor, to the same pixels. The
chat template writes the turns of `vicuna_v1`, and a space behind `<image>`: with it transformers'
tokenizer gives LLaVA's ids, as LLaVA tokenises what follows a picture by itself. In a prompt that
is written by hand the space has to be written, too. LLaVA-1.6's processor pads and tiles by
transformers' own rules, and gets no template, since its decoders were trained with several.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from ..common.image_processor import PLAIN_FILE, load_image_processor
from ..constants import DEFAULT_IMAGE_TOKEN
from ..conversation import conv_templates
from .tokenizer import load_tokenizer
from .tokenizer_files import NAMES
from .weights import write_json

PAD_TOKEN = "<pad>"

logger = logging.getLogger(__name__)


def chat_template() -> str:
    """Jinja for messages whose content is a text, or a list of {"type": "image"} and texts."""
    style = conv_templates["vicuna_v1"]
    user, assistant = style.roles
    content = (
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{% if part.type == 'image' %}"
        f"{DEFAULT_IMAGE_TOKEN} \n"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )
    return (
        f"{style.system}{style.sep}{{% for message in messages %}}"
        f"{{% if message.role == 'user' %}}{user}: {content}{style.sep}"
        f"{{% else %}}{assistant}: {content}{style.sep2}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}:{{% endif %}}"
    )


def hf_tokenizer(folder: Path, image_token: int) -> LlamaTokenizer | None:
    """The tokenizer of a folder with <image> and <pad> behind its other tokens; None without one.

    image_token: the row of <image> in the embeddings. Of a tokenizer that does not give a prompt
    LLaVA's ids in transformers nothing is made but a warning, and None is returned.

    Raises ValueError for damaged files.
    """
    if not any((folder / name).is_file() for name in NAMES[:2]):
        return None
    llava = load_tokenizer(folder)
    # Not AutoTokenizer, which goes by the model_type and takes "llava" for another kind.
    tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "left"
    text, question = "Two words. USER: ", "\nWhat is it? ASSISTANT:"
    expected = [*llava(text).input_ids, image_token, *llava(question).input_ids[1:]]
    ids = tokenizer(f"{text}{DEFAULT_IMAGE_TOKEN} {question}").input_ids
    if ids != expected:
        logger.warning(
            "transformers' tokenizer of %s gives a prompt the ids %s, LLaVA's %s: no processor is "
            "written, and AutoProcessor will not read the folder",
            folder, ids, expected,
        )  # fmt: skip
        return None
    return tokenizer


def write_processor(
    target: Path, tokenizer: LlamaTokenizer, processor_folder: Path, values: Mapping[str, Any]
) -> None:
    """Write tokenizer, image processor and chat template into `target`.

    processor_folder: where the image processor is described; CLIP's at 336 px where it is not.
    values: config of the checkpoint in llava-hf's format.
    """
    tokenizer.save_pretrained(target)
    kind = "LlavaNext" if values["model_type"] == "llava_next" else "Llava"
    description = load_image_processor(processor_folder).to_dict()
    padded = values["image_aspect_ratio"] in ("pad", "anyres")
    description.update(image_processor_type=f"{kind}ImageProcessor", do_pad=padded)
    if kind == "LlavaNext":
        description["image_grid_pinpoints"] = values["image_grid_pinpoints"]
    write_json(target / PLAIN_FILE, description)
    processor = {
        "processor_class": f"{kind}Processor",
        "image_token": DEFAULT_IMAGE_TOKEN,
        "num_additional_image_tokens": 1,
        "patch_size": values["vision_config"]["patch_size"],
        "vision_feature_select_strategy": values["vision_feature_select_strategy"],
    }
    write_json(target / "processor_config.json", processor)
    if kind == "Llava":
        (target / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
