"""Programs written for LLaVA run on this package: the calls of lmms-eval's adapter, step by step.

Source: EvolvingLMMs-Lab/lmms-eval, `lmms_eval/models/simple/llava.py` (which calls it makes).
"""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import (
    get_model_name_from_path,
    load_image_from_base64,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.utils import disable_torch_init

TEXTS = ["What is on the sign?", "A sign"]


def load(path, **options):
    """As the adapter: once more without what this release of LLaVA does not know."""
    disable_torch_init()
    name = get_model_name_from_path(str(path))
    try:
        return load_pretrained_model(path, None, name, device_map="cpu", **options)
    except TypeError as error:
        assert "'multimodal'" in str(error)
        options.pop("multimodal")
    return load_pretrained_model(path, None, name, device_map="cpu", **options)


@pytest.fixture(scope="module")
def loaded(original):
    options = {"multimodal": True, "attn_implementation": "sdpa", "torch_dtype": torch.float32}
    tokenizer, model, processor, length = load(original, **options)
    model.tie_weights()
    return tokenizer, model.eval(), processor, length


def prompt(tokenizer, text: str, answer: str | None = None) -> torch.Tensor:
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{text}")
    conversation.append_message(conversation.roles[1], answer)
    text = conversation.get_prompt()
    return tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")


def generate(loaded, texts: list[str]) -> list[str]:
    tokenizer, model, processor, _ = loaded
    image = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    pixels = process_images([image] * len(texts), processor, model.config)
    rows = [prompt(tokenizer, text) for text in texts]
    if tokenizer.padding_side == "left":
        rows = [row.flip(0) for row in rows]
    pad = tokenizer.pad_token_id
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    if tokenizer.padding_side == "left":
        ids = ids.flip(1)
    new = model.generate(
        ids,
        attention_mask=ids.ne(pad),
        pad_token_id=pad,
        images=pixels,
        image_sizes=[image.size] * len(texts),
        do_sample=False,
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=8,
        use_cache=True,
    )
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_answers_as_its_questions_alone(loaded, side):
    tokenizer = loaded[0]
    assert tokenizer.padding_side == "right"
    tokenizer.padding_side = side
    together = generate(loaded, TEXTS)
    tokenizer.padding_side = "right"
    alone = [generate(loaded, [text])[0] for text in TEXTS]
    assert together == alone and len(set(together)) == 2 and all(together)


def test_text_to_ids_and_back(loaded):
    tokenizer = loaded[0]
    assert (
        tokenizer.encode("a sign", add_special_tokens=False)[-3:]
        == tokenizer("a sign").input_ids[-3:]
    )
    assert tokenizer.decode(tokenizer.eos_token_id) == ""


def test_the_likelihood_of_an_answer(loaded):
    tokenizer, model, processor, _ = loaded
    image = Image.new("RGB", (56, 56), (200, 30, 30))
    pixels = process_images([image], processor, model.config)
    context, whole = (prompt(tokenizer, TEXTS[0], answer)[None] for answer in (None, "the sign"))
    labels = whole.clone()
    labels[0, : context.shape[1]] = -100
    with torch.inference_mode():
        outputs = model(
            input_ids=whole, labels=labels, images=pixels, use_cache=True, image_sizes=[[56, 56]]
        )
    assert outputs["loss"].item() > 0 and outputs["logits"].shape[0] == 1


class TestSpellings:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
    def test_torch_dtype(self, original, dtype):
        options = {"device": "cpu", "low_cpu_mem_usage": True}
        model = load_pretrained_model(original, torch_dtype=dtype, **options)[1]
        assert model.dtype == torch.bfloat16

    def test_two_dtypes(self, original):
        with pytest.raises(ValueError, match="dtype or torch_dtype, not both"):
            load_pretrained_model(original, dtype="float32", torch_dtype=torch.float16)

    @pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
    def test_bits(self, original, monkeypatch, bits):
        monkeypatch.setattr("llava.model.builder.is_bitsandbytes_available", lambda: False)
        with pytest.raises(ImportError, match="pip install bitsandbytes"):
            load_pretrained_model(original, **{bits: True})

    def test_flash_attention(self, original, monkeypatch):
        def seen(name):
            raise InterruptedError(name)

        monkeypatch.setattr("llava.model.builder.check_backend", seen)
        with pytest.raises(InterruptedError, match="flash_attention_2"):
            load_pretrained_model(original, use_flash_attention_2=True)

    def test_one_place_said_twice(self, original):
        model = load_pretrained_model(original, device="cpu", device_map="cpu")[1]
        assert model.device.type == "cpu"

    @pytest.mark.parametrize("name", ["customized_config", "overwrite_config", "trust_remote"])
    def test_an_unknown_one_is_refused_by_name(self, original, name):
        with pytest.raises(TypeError, match=f"'{name}'"):
            load_pretrained_model(original, **{name: True})


def test_a_picture_in_base64():
    picture, data = Image.new("L", (3, 2), 7), io.BytesIO()
    picture.save(data, "PNG")
    read = load_image_from_base64(base64.b64encode(data.getvalue()).decode())
    assert (read.mode, read.size, read.getpixel((0, 0))) == ("L", (3, 2), 7)
