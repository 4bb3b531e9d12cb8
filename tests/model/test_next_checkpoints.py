"""LLaVA-1.6 checkpoints: both formats load the same model, and what is wrong gets its error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration

from llava.mm_utils import ask
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main

from .. import checkpoints, checkpoints_next, tiny, tiny_next
from ..answers import Answer, check, refused

SIZES = [(200, 100), (40, 20)]


def answer(folder: Path, **options) -> Answer:
    """Logits and greedy tokens for a question about two pictures."""
    options = {"dtype": "float32", "device": "cpu", **options}
    tokenizer, model, processor, _ = load_pretrained_model(folder, **options)
    return ask_about(tokenizer, model, processor)


def ask_about(tokenizer, model, processor) -> Answer:
    pictures = [tiny_next.picture(size, seed) for seed, size in enumerate(SIZES)]
    inputs = ask("What is on the sign?", pictures, tokenizer, processor, model)
    ids = inputs.pop("inputs")
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0]
    tokens = model.generate(ids, do_sample=False, max_new_tokens=8, **inputs)
    return Answer(tokens[0].tolist(), logits[:, : tiny.VOCAB])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return checkpoints_next.write_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return checkpoints_next.write_hf(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def expected(original) -> Answer:
    """What the model itself answers; only ids and pixels come from a loaded checkpoint."""
    tokenizer, loaded, processor, _ = load_pretrained_model(original, device="cpu")
    reference = checkpoints_next.reference()
    reference.generation_config.eos_token_id = loaded.generation_config.eos_token_id
    made = ask_about(tokenizer, reference, processor)
    # 52 and 26 tokens of the pictures, the system's sentence and the question.
    assert len(made.logits) > 78
    return made


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llava_llama"},
        {"image_grid_pinpoints": str(tiny_next.PINPOINTS)},
        {
            "model_type": "llava_mistral",
            "architectures": ["LlavaMistralForCausalLM"],
            "sliding_window": None,
        },
    ],
    ids=["as published", "llava_llama", "pinpoints as a string", "llava_mistral"],
)
def test_the_original_format(tmp_path, expected, config):
    check(answer(checkpoints_next.write_original(tmp_path, **config)), expected)


def test_the_llava_hf_format(hf, expected):
    check(answer(hf), expected)


def test_a_mistral_decoder_in_the_llava_hf_format(tmp_path, expected):
    """Named sizes and a null window, as llava-v1.6-mistral-7b-hf has; its rotary base as well."""
    file = checkpoints_next.write_hf(tmp_path) / "config.json"
    text = json.loads(file.read_text())["text_config"]
    text |= {"model_type": "mistral", "sliding_window": None}
    checkpoints.edit_json(file, text_config=text)
    check(answer(tmp_path), expected)
    checkpoints.edit_json(file, text_config={**text, "rope_theta": 1e6})
    model = load_pretrained_model(tmp_path, device="cpu")[1]
    # 16 channels a head: the second of 8 frequencies is base^(-1/8).
    assert model.model.rotary_emb.inv_freq[1].item() == pytest.approx(1e6 ** (-1 / 8))


@pytest.mark.parametrize("source", ["original", "hf"])
@pytest.mark.parametrize("to", ["original", "llava-hf"])
def test_conversion(source, to, tmp_path, expected, request):
    folder = request.getfixturevalue(source)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", to]) == 0
    check(answer(tmp_path / "out"), expected)
    if to == "llava-hf":
        _, info = LlavaNextForConditionalGeneration.from_pretrained(
            tmp_path / "out", dtype="float32", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_tower_elsewhere_is_not_taken(tmp_path, expected):
    """CLIP's own weights are there, as on most machines: those inside are the trained ones."""
    folder = checkpoints_next.write_original(tmp_path)
    checkpoints.write_clip(folder / checkpoints.CLIP)
    check(answer(folder), expected)


def test_a_tower_that_the_caller_gives_is_not_taken_either(tmp_path, original, expected, caplog):
    """CLIP's own weights beside trained ones: it says so, and that only the rest is lent."""
    checkpoints.write_clip(tmp_path / "clip")
    check(answer(original, vision_tower=tmp_path / "clip"), expected)
    assert "trained its own vision tower, which answers" in caplog.text


def test_the_published_tower_needs_no_clip(tmp_path, monkeypatch):
    """Its config is known; nothing is asked for. The tiny tensors then have another width."""
    monkeypatch.setattr("llava.model.reading.snapshot_download", None)
    name = "openai/clip-vit-large-patch14-336"
    pinpoints = [[336, 672], [672, 336]]
    folder = checkpoints_next.write_original(
        tmp_path, mm_vision_tower=name, image_grid_pinpoints=pinpoints
    )
    refused(folder, "model.mm_projector.0.weight has shape [64, 32], expected [64, 1024]")


class TestMergeType:
    """52 + 26 tokens with newlines; views of 16 patches, 3 of each picture, without."""

    def visual(self, folder: Path, merge_type: str | None) -> tuple[int, str]:
        tokenizer, model, processor, _ = load_pretrained_model(
            folder, device="cpu", dtype="float32", merge_type=merge_type
        )
        pictures = [tiny_next.picture(size) for size in SIZES]
        inputs = ask("What?", pictures, tokenizer, processor, model)
        prompt = model.embed_prompt(inputs["inputs"], None, inputs["images"], inputs["image_sizes"])
        return prompt.layout.n_visual[0], model.config.mm_patch_merge_type

    @pytest.mark.parametrize("folder", ["original", "hf"])
    def test_another_than_the_checkpoints(self, folder, request):
        folder = request.getfixturevalue(folder)
        assert self.visual(folder, None) == (78, "spatial_unpad")
        assert self.visual(folder, "spatial_unpad") == (78, "spatial_unpad")
        assert self.visual(folder, "spatial") == (96, "spatial")
        assert self.visual(folder, "flat") == (96, "flat")

    def test_one_that_is_unknown_or_cannot_be(self, original, tmp_path):
        refused(original, "merge_type must be one of flat", "'maxpool'", merge_type="maxpool")
        plain = checkpoints.write_original(tmp_path / "1.5")
        refused(plain, "for models that tile pictures", "leave it out", merge_type="spatial")
        spatial = checkpoints_next.write_original(tmp_path / "1.6", mm_patch_merge_type="spatial")
        refused(spatial, "needs an image_newline", "'spatial'", merge_type="spatial_unpad")
        # The newline that is there all the same is left alone.
        assert self.visual(spatial, None) == (96, "spatial")


class TestCanvas:
    """Views of 16 patches. 160 x 107 covers more pixels of 112 x 112, and more of 112 x 56 for its
    size."""

    def shapes(self, folder: Path, processing: str) -> tuple[list[int], int]:
        tokenizer, model, processor, _ = load_pretrained_model(
            folder,
            device="cpu",
            dtype="float32",
            merge_type="spatial",
            processing=processing,
        )
        assert model.config.anyres_reading == processing
        pictures = [tiny_next.picture(size) for size in ((160, 107), (40, 20))]
        inputs = ask("What?", pictures, tokenizer, processor, model)
        prompt = model.embed_prompt(inputs["inputs"], None, inputs["images"], inputs["image_sizes"])
        return [len(views) for views in inputs["images"]], prompt.layout.n_visual[0]

    @pytest.mark.parametrize("folder", ["original", "hf"])
    def test_another_rule_than_the_checkpoints(self, folder, request):
        folder = request.getfixturevalue(folder)
        assert self.shapes(folder, "llava") == ([5, 3], 8 * 16)
        assert self.shapes(folder, "fill") == ([3, 3], 6 * 16)
        assert self.shapes(folder, "112x112") == ([5, 5], 10 * 16)
        assert self.shapes(folder, "112x168") == ([7, 7], 14 * 16)

    def test_one_that_is_unknown_or_cannot_be(self, original, tmp_path):
        refused(
            original, "processing must be one of llava, llava-hf, fill", "'best'", processing="best"
        )
        refused(original, "112x112, multiples of 56", "'100x112'", processing="100x112")
        plain = checkpoints.write_original(tmp_path / "1.5")
        for processing in ("fill", "112x112"):
            said = (
                f"processing '{processing}' chooses the canvas",
                "tile pictures",
                "leave it out",
            )
            refused(plain, *said, processing=processing)


class TestDamage:
    def without(self, folder: Path, part: str) -> Path:
        checkpoints_next.write_original(folder, "safetensors")

        def strip(tensors):
            for name in [name for name in tensors if part in name]:
                del tensors[name]

        checkpoints.edit_weights(folder / "model.safetensors", strip)
        return folder

    def test_the_tower_is_missing(self, tmp_path):
        folder = self.without(tmp_path, "vision_tower")
        checkpoints.write_clip(folder / checkpoints.CLIP)
        said = ("lacks its vision tower", "stock CLIP is another one", "--vision-tower DIR")
        refused(folder, *said)
        # The name that LLaVA-NeXT gives it.
        parts = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
        config = {"unfreeze_mm_vision_tower": ..., "mm_tunable_parts": parts}
        checkpoints.edit_json(folder / "config.json", **config)
        refused(folder, *said)

    def test_a_part_of_the_tower_is_missing(self, tmp_path):
        folder = self.without(tmp_path, "encoder.layers.1.mlp.fc1.bias")
        refused(folder, "lacks 1 of 55 tensors", "layers.1.mlp.fc1.bias [64]")

    def test_the_newline_is_missing(self, tmp_path):
        refused(
            self.without(tmp_path, "image_newline"), "lacks 1 of 35", "model.image_newline [64]"
        )

    @pytest.mark.parametrize(
        ("config", "parts"),
        [
            ({"mm_patch_merge_type": "maxpool2x2"}, ("mm_patch_merge_type", "'maxpool2x2'")),
            ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, ("image_grid_pinpoints", "(1x1)")),
            ({"image_grid_pinpoints": ...}, ("image_grid_pinpoints", "got None")),
            ({"image_grid_pinpoints": [[56, 100]]}, ("multiples of 56", "[[56, 100]]")),
            ({"image_aspect_ratio": "anyres_max_9"}, ("image_aspect_ratio", "'anyres_max_9'")),
        ],
    )
    def test_its_config(self, tmp_path, config, parts):
        folder = checkpoints_next.write_original(tmp_path, **config)
        refused(folder, f"{folder}/config.json", *parts)


def test_a_prompt_beyond_the_context_is_not_cut_off(original):
    tokenizer, model, processor, _ = load_pretrained_model(original, device="cpu", dtype="float32")
    model.config.tokenizer_model_max_length = 100
    picture = [Image.new("RGB", (112, 112))]
    inputs = ask("What?", picture, tokenizer, processor, model)
    length = inputs["inputs"].shape[1] - 1 + 88
    with pytest.raises(ValueError, match=f"{length} tokens, 88 of them visual.* is 100 .*question"):
        model.generate(max_new_tokens=1, **inputs)
    model.config.tokenizer_model_max_length = length
    assert model.generate(max_new_tokens=1, **inputs).shape == (1, 1)
