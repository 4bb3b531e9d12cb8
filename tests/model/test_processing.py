"""llava-hf folders: LLaVA's ids and pixels by default, and llava-hf's own on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaNextImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.hf_tokenizer import HfTokenizer

from .. import checkpoints, checkpoints_next, tiny, tiny_next
from ..answers import picture, refused


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return named(checkpoints.write_hf(tmp_path_factory.mktemp("1.5"), "safetensors", "json"))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    return named(checkpoints_next.write_hf(tmp_path_factory.mktemp("1.6"), "json"))


def named(folder: Path) -> Path:
    """The tokenizer's files as complete as transformers wants them, in llava-hf's way."""
    checkpoints.edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    merges = [tuple(merge.split(" ")) for merge in model["merges"]]
    flags = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    made = Tokenizer(BPE(model["vocab"], merges, **flags))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    space = decoders.Replace("\u2581", " ")
    strip = decoders.Strip(" ", 1, 0)
    made.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), strip])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(path))
    return folder


def load(folder: Path, **options) -> tuple:
    return load_pretrained_model(folder, device="cpu", dtype="float32", **options)


def test_token_ids(plain):
    """One id is missing behind the image: the prefix space of the text there."""
    ours, theirs = load(plain)[0], load(plain, processing="llava-hf")[0]
    exact = tokenizer_image_token(checkpoints.PROMPT, ours)
    other = tokenizer_image_token(checkpoints.PROMPT, theirs)
    at = exact.index(IMAGE_TOKEN_INDEX)
    space = ours.convert_tokens_to_ids("\u2581")
    assert exact[at + 1] == space and other[at + 1] != space
    assert len(other) < len(exact)
    stock = AutoTokenizer.from_pretrained(plain)(checkpoints.PROMPT).input_ids
    assert other == [IMAGE_TOKEN_INDEX if i == tiny.VOCAB else i for i in stock]
    tensor = tokenizer_image_token(checkpoints.PROMPT, theirs, return_tensors="pt")
    assert tensor.tolist() == other


def test_the_tokenizer_of_transformers_decodes(plain):
    tokenizer = HfTokenizer(plain)
    ids = tokenizer("What is on the sign?").input_ids
    assert tokenizer.decode(ids) == "What is on the sign?"
    assert tokenizer.batch_decode([ids]) == [tokenizer.decode(ids)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.model nor tokenizer.json"):
        HfTokenizer(plain / "nowhere")


def test_pixels_of_llava_1_5(plain):
    """Padded to a square, or the centre cropped."""
    _, padding, processor, _ = load(plain)
    cropping = load(plain, processing="llava-hf")[1]
    exact = process_images([picture()], processor, padding.config)
    other = process_images([picture()], processor, cropping.config)
    stock = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(other, stock) and not torch.equal(other, exact)


def test_pixels_of_llava_1_6(tiled):
    """The canvas of a picture below one tile: tall, or wide."""
    _, exact, processor, _ = load(tiled)
    other = load(tiled, processing="llava-hf")[1]
    small = tiny_next.picture((40, 20))
    stock = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=tiny_next.PINPOINTS,
    )(small, return_tensors="pt")["pixel_values"]
    pixels = [process_images([small], processor, m.config) for m in (exact, other)]
    assert torch.equal(pixels[1], stock) and not torch.equal(pixels[0], stock)
    # 4 x 2 patches on the tall canvas; 8 x 4 on the wide one.
    counts = [
        len(m.encode_images(own, [(40, 20)])[0].embeds) for m, own in zip((exact, other), pixels)
    ]
    assert counts == [16 + 2 * 5, 16 + 4 * 9]


def test_an_unknown_processing(plain):
    refused(plain, "processing must be one of llava, llava-hf", "'hf'", processing="hf")
