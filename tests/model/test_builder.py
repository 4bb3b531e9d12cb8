"""Loading: every layout of a checkpoint's files gives the same model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava.model import reading
from llava.model.builder import load_pretrained_model

from .. import checkpoints, tiny
from ..answers import Answer, answer, check, inputs, logits_of, refused

VISUAL = 16


ORIGINAL = {
    "as published": {},
    "llava_llama": {"model_type": "llava_llama"},
    "one bin": {"files": "bin"},
    "one safetensors": {"files": "safetensors"},
    "safetensors shards": {"files": "safetensors-shards", "model_type": "llava_llama"},
    "projector in the shards only": {"projector_in": ("weights",)},
    "projector in its file only": {"projector_in": ("file",)},
    "no architectures": {"architectures": ...},
}


@pytest.mark.parametrize("layout", ORIGINAL.values(), ids=list(ORIGINAL))
def test_the_original_format(tmp_path, expected, layout):
    check(answer(checkpoints.write_original(tmp_path, **layout)), expected)


@pytest.mark.parametrize("files", ["safetensors-shards", "safetensors", "bin-shards"])
@pytest.mark.parametrize("tokenizer", ["model", "json"])
def test_the_llava_hf_format(tmp_path, expected, files, tokenizer):
    check(answer(checkpoints.write_hf(tmp_path, files, tokenizer)), expected)


@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_a_single_file_beside_a_left_over_index(tmp_path, expected, files, caplog):
    """As transformers has it; the old shards hold other numbers."""
    checkpoints.write_original(tmp_path, files)
    left_over = {k: v + 1 for k, v in checkpoints.language_model().items()}
    checkpoints.write_weights(tmp_path, left_over, f"{files}-shards")
    check(answer(tmp_path), expected)
    (single,) = tmp_path.glob(f"*model.{files}")
    assert f"{single} is read" in caplog.text and f"{single.name}.index.json" in caplog.text


@pytest.mark.parametrize("files", ["safetensors", "safetensors-shards"])
@pytest.mark.parametrize("older", ["bin", "bin-shards"])
def test_safetensors_beside_left_over_bin_files(tmp_path, expected, files, older):
    checkpoints.write_original(tmp_path, files)
    left_over = {k: v + 1 for k, v in checkpoints.language_model().items()}
    checkpoints.write_weights(tmp_path, left_over, older)
    check(answer(tmp_path), expected)


@pytest.mark.parametrize("stale", ["model-00001-of-00002", "model-00002-of-00002"])
def test_of_a_tensor_in_two_shards_the_index_names_the_right_one(tmp_path, expected, stale):
    """Left over from another sharding; and a shard that the index does not name is not read."""
    checkpoints.write_original(tmp_path, "safetensors-shards")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(k for k, v in index.items() if v != f"{stale}.safetensors")
    wrong = checkpoints.language_model()[name] + 1
    checkpoints.edit_weights(tmp_path / f"{stale}.safetensors", lambda ts: ts.update({name: wrong}))
    (tmp_path / "model-00003-of-00003.safetensors").write_text("cut short")
    check(answer(tmp_path), expected)


def test_another_projector_beside_the_weights_is_said(tmp_path, expected, caplog):
    checkpoints.write_original(tmp_path)
    check(answer(tmp_path), expected)
    assert not caplog.records
    stale = {k: v + 1 for k, v in checkpoints.projector().items()}
    torch.save(stale, tmp_path / "mm_projector.bin")
    check(answer(tmp_path), expected)
    assert f"{tmp_path} holds another projector in mm_projector.bin" in caplog.text


def test_projector_on_a_base_model(tmp_path, expected):
    folder, base = tmp_path / "projector", tmp_path / "vicuna"
    checkpoints.write_projector_only(folder, base, mm_vision_tower="tower")
    checkpoints.write_clip(folder / "tower")
    check(answer(folder, base), expected)


def test_projector_and_base_model_from_the_hub(tmp_path, expected, monkeypatch):
    folder, base = tmp_path / "projector", tmp_path / "vicuna"
    checkpoints.write_projector_only(folder, base, mm_vision_tower="openai/clip")
    checkpoints.write_clip(tmp_path / "clip")
    hub = {"me/projector": folder, "lmsys/vicuna": base, "openai/clip": tmp_path / "clip"}
    monkeypatch.setattr(reading, "snapshot_download", lambda name, **_: str(hub[name]))
    check(answer("me/projector", "lmsys/vicuna"), expected)


def test_a_folder_saved_by_save_pretrained(tmp_path, expected, reference):
    reference.save_pretrained(tmp_path)
    checkpoints.write_tokenizer(tmp_path)
    checkpoints.write_clip(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "preprocessor_config.json").rename(
        tmp_path / "preprocessor_config.json"
    )
    check(answer(tmp_path), expected)


def test_a_folder_saved_by_transformers_own_llava(tmp_path, hf, expected):
    """Their current releases leave a level out of the tower's names on disk."""
    checkpoints.write_hf(tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    LlavaForConditionalGeneration.from_pretrained(hf, dtype="float32").save_pretrained(tmp_path)
    check(answer(tmp_path), expected)


class TestVisionTower:
    """Where the tower comes from. A tower with other weights shows which one was taken."""

    @pytest.fixture
    def other(self, tmp_path):
        folder = tmp_path / "other"
        checkpoints.write_clip(folder, full=False)
        checkpoints.edit_weights(
            folder / "model.safetensors",
            lambda tensors: tensors["vision_model.pre_layrnorm.bias"].add_(1),
        )
        return folder

    def test_absolute_path_in_the_config(self, tmp_path, expected):
        checkpoints.write_clip(tmp_path / "clip")
        folder = checkpoints.write_original(
            tmp_path / "llava", tower=False, mm_vision_tower=str(tmp_path / "clip")
        )
        check(answer(folder), expected)

    @pytest.mark.parametrize("full", [True, False])
    def test_given_by_the_caller(self, tmp_path, expected, full):
        folder = checkpoints.write_original(tmp_path / "llava", tower=False)
        checkpoints.write_clip(tmp_path / "clip", full)
        check(answer(folder, vision_tower=tmp_path / "clip"), expected)

    def test_given_by_the_caller_where_the_config_names_none(self, tmp_path, expected):
        folder = checkpoints.write_original(tmp_path / "llava", tower=False, mm_vision_tower=...)
        checkpoints.write_clip(tmp_path / "clip")
        check(answer(folder, vision_tower=tmp_path / "clip"), expected)

    def test_as_transformers_saves_a_tower_alone(self, tmp_path, expected, reference):
        folder = checkpoints.write_original(tmp_path / "llava", tower=False)
        reference.get_model().vision_tower.vision_tower.save_pretrained(tmp_path / "clip")
        checkpoints.write_clip(tmp_path / "other")
        (tmp_path / "other" / "preprocessor_config.json").rename(
            tmp_path / "clip" / "preprocessor_config.json"
        )
        check(answer(folder, vision_tower=tmp_path / "clip"), expected)

    def test_inside_the_checkpoint_wins_over_the_named_one(self, tmp_path, expected, other):
        folder = checkpoints.write_original(
            tmp_path / "llava", "safetensors", tower=False, mm_vision_tower=str(other)
        )
        checkpoints.edit_weights(
            folder / "model.safetensors", lambda tensors: tensors.update(checkpoints.weights())
        )
        check(answer(folder), expected)

    def test_beside_the_checkpoint_wins_over_the_working_directory(
        self, tmp_path, expected, other, monkeypatch
    ):
        folder = checkpoints.write_original(tmp_path / "llava", mm_vision_tower="vision_tower")
        other.rename(tmp_path / "vision_tower")
        monkeypatch.chdir(tmp_path)
        check(answer(folder), expected)

    def test_given_by_the_caller_is_a_path_of_the_caller(
        self, tmp_path, expected, other, monkeypatch
    ):
        folder = checkpoints.write_original(tmp_path / "llava", mm_vision_tower="other")
        other.rename(folder / "tower")
        (folder / "other").rename(tmp_path / "tower")
        monkeypatch.chdir(tmp_path)
        check(answer(folder, vision_tower="tower"), expected)
        (tmp_path / "tower").rename(tmp_path / "gone")
        refused(folder, "no folder tower", error=FileNotFoundError, vision_tower="tower")

    def test_given_by_the_caller_wins_over_the_named_one(self, original, other):
        changed = answer(original, vision_tower=other)
        assert not torch.equal(changed.logits, answer(original).logits)

    def test_its_image_processor_comes_with_it(self, original, hf, tmp_path):
        checkpoints.write_clip(tmp_path / "clip")
        grey = [0.5, 0.5, 0.5]
        checkpoints.edit_json(tmp_path / "clip" / "preprocessor_config.json", image_mean=grey)
        for folder, options, lent in (
            (original, {}, False),
            (hf, {}, False),
            (original, {"vision_tower": tmp_path / "clip"}, True),
            (hf, {"vision_tower": tmp_path / "clip"}, True),
        ):
            processor = load_pretrained_model(folder, device="cpu", **options)[2]
            assert (list(processor.image_mean) == grey) == lent


def test_transformers_own_llava_answers_the_same(hf, expected):
    stock, info = LlavaForConditionalGeneration.from_pretrained(
        hf, dtype="float32", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, pixels = inputs(load_pretrained_model(hf, device="cpu", dtype="float32"))
    at = ids[0].tolist().index(-200)
    image = torch.full((1, VISUAL), tiny.VOCAB)
    ids = torch.cat([ids[:, :at], image, ids[:, at + 1 :]], dim=1)
    options = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = logits_of(stock.model(**options).last_hidden_state[0], stock.lm_head)
        new = stock.generate(
            **options,
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=list(range(tiny.VOCAB, tiny.VOCAB + checkpoints.EXTRA_ROWS)),
        )
    check(Answer(new[0, ids.shape[1] :].tolist(), logits), expected)


def test_padding_rows_of_the_vocabulary_are_never_chosen(tmp_path):
    checkpoints.write_hf(tmp_path, "safetensors")

    def inflate(tensors):
        head = tensors["language_model.lm_head.weight"]
        half = checkpoints.EXTRA_ROWS // 2
        # Of two opposite rows one is always positive.
        head[tiny.VOCAB : tiny.VOCAB + half] = 100 * head[:half]
        head[tiny.VOCAB + half :] = -100 * head[:half]

    checkpoints.edit_weights(tmp_path / "model.safetensors", inflate)
    loaded = load_pretrained_model(tmp_path, device="cpu", dtype="float32")
    ids, pixels = inputs(loaded)
    logits = loaded[1](input_ids=ids, images=pixels).logits
    assert logits[0, -1].argmax() >= tiny.VOCAB
    for options in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3}):
        torch.manual_seed(0)
        tokens = loaded[1].generate(ids, images=pixels, max_new_tokens=8, **options)
        assert tokens.max() < tiny.VOCAB


def test_nothing_is_random(original, hf):
    for folder in (original, hf):
        states = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            states.append(load_pretrained_model(folder, device="cpu")[1])
        first, second = (dict(model.named_parameters()) for model in states)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        buffers = [dict(model.named_buffers()) for model in states]
        assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
