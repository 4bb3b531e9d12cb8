"""A checkpoint that holds its vision tower: its tensors answer, whatever else names a tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.model import reading, vision_tower
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main
from llava.model.vision_tower import CLIP_CONFIG, CLIP_NAME, misfit, was_trained
from llava.model.weights import vision_config

from .. import checkpoints, checkpoints_next, tiny
from ..answers import Answer, answer, check, refused

FOREIGN = "/nas/someone/towers/clip-ft"
BIAS = f"{checkpoints.VISION}pre_layrnorm.bias"


def with_tower(folder: Path, trained: bool = True, **config) -> Path:
    """An original checkpoint with its tower inside; one that was trained differs from CLIP's."""
    values = {"mm_vision_tower": FOREIGN, **config}
    checkpoints.write_original(folder, "safetensors", ("weights",), tower=False, **values)

    def put_in(tensors):
        tensors.update({k: v for k, v in checkpoints.weights().items() if "vision_tower" in k})
        if trained:
            tensors[BIAS] = tensors[BIAS] + 1

    checkpoints.edit_weights(folder / "model.safetensors", put_in)
    return folder


def hf_with_tower(folder: Path) -> Path:
    checkpoints.write_hf(folder, "safetensors")
    name = "vision_tower.vision_model.pre_layrnorm.bias"
    checkpoints.edit_weights(folder / "model.safetensors", lambda tensors: tensors[name].add_(1))
    return folder


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """CLIP itself, with its weights."""
    folder = tmp_path_factory.mktemp("towers") / "stock"
    checkpoints.write_clip(folder)
    return folder


@pytest.fixture(scope="module")
def trained(stock) -> Answer:
    """What the checkpoints with a trained tower answer, by a tower folder of its own."""
    folder = stock.parent / "trained"
    checkpoints.write_clip(folder, full=False)
    checkpoints.edit_weights(
        folder / "model.safetensors", lambda ts: ts["vision_model.pre_layrnorm.bias"].add_(1)
    )
    made = checkpoints.write_original(stock.parent / "llava", tower=False)
    return answer(made, vision_tower=folder)


def test_a_config_out_of_reach_is_asked_for_and_not_the_weights(tmp_path, trained, stock):
    folder = with_tower(tmp_path / "llava")
    said = refused(folder, "holds the tensors of its vision tower", f"no folder {FOREIGN}",
                   "--vision-tower DIR", "stay the ones that answer",
                   error=FileNotFoundError)  # fmt: skip
    assert CLIP_NAME not in said
    # As it says: the folder holds no tensor.
    lent = tmp_path / "lent"
    checkpoints.write_clip(lent)
    (lent / "pytorch_model.bin").unlink()
    check(answer(folder, vision_tower=lent), trained)


@pytest.mark.parametrize("write", [with_tower, hf_with_tower])
def test_weights_beside_a_lent_config_are_left_aside(tmp_path, trained, stock, caplog, write):
    folder = write(tmp_path / "llava")
    check(answer(folder, vision_tower=stock), trained)
    assert f"{folder} holds its own vision tower, which answers; {stock} only lends" in caplog.text


@pytest.mark.parametrize(
    "parts", ["mm_mlp_adapter,mm_vision_tower", ["mm_vision_tower"], " mm_vision_tower , x"]
)
def test_a_tower_that_was_trained_along_is_called_that(tmp_path, trained, stock, caplog, parts):
    folder = with_tower(tmp_path / "llava", mm_tunable_parts=parts)
    check(answer(folder, vision_tower=stock), trained)
    assert f"{folder} trained its own vision tower" in caplog.text


@pytest.mark.parametrize("value", [None, "", "mm_mlp_adapter", 7, "mm_vision_tower_lr"])
def test_other_parts_train_no_tower(value):
    assert not was_trained({"mm_tunable_parts": value})


def test_nothing_is_said_where_the_towers_are_the_same(tmp_path, expected, stock, caplog):
    """CLIP's file is in float32, the checkpoint's in float16."""
    check(answer(with_tower(tmp_path / "llava", trained=False), vision_tower=stock), expected)
    assert not caplog.records


@pytest.mark.parametrize("write", [with_tower, hf_with_tower])
def test_a_tower_of_another_size_replaces_it_and_says_so(tmp_path, caplog, write):
    folder, other = write(tmp_path / "llava"), tmp_path / "other"
    checkpoints.write_clip(other, full=False)
    weight = "vision_model.embeddings.position_embedding.weight"
    checkpoints.edit_weights(
        other / "model.safetensors", lambda ts: ts.update({weight: torch.ones(5, 32)})
    )
    checkpoints.edit_json(other / "config.json", image_size=28)
    checkpoints.edit_json(other / "preprocessor_config.json", size=28, crop_size=28)
    model = load_pretrained_model(folder, device="cpu", vision_tower=other)[1]
    assert model.get_vision_tower().inner.embeddings.position_embedding.weight.eq(1).all()
    assert f"{other} replaces the vision tower inside {folder}" in caplog.text
    (other / "model.safetensors").unlink()
    refused(folder, "no weights in", error=FileNotFoundError, vision_tower=other)


def test_a_named_config_that_does_not_fit_is_refused(tmp_path):
    folder = with_tower(tmp_path / "llava", mm_vision_tower="tower")
    checkpoints.write_clip(folder / "tower", full=False)
    checkpoints.edit_json(folder / "tower" / "config.json", intermediate_size=128)
    refused(folder, f"inside {folder} does not fit {folder / 'tower'}/config.json",
            "expected [128", "--vision-tower DIR")  # fmt: skip


def test_the_published_config_is_lent_where_it_fits(tmp_path, trained, caplog, monkeypatch):
    """Said, because they fit other towers too. Here the published config is of the tiny size."""
    monkeypatch.setattr(vision_tower, "CLIP_CONFIG", tiny.vision_config())
    folder = with_tower(tmp_path / "llava")
    checkpoints.write_clip(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").rename(folder / "preprocessor_config.json")
    check(answer(folder), trained)
    assert "out of reach" in caplog.text and f"shapes of {CLIP_NAME}" in caplog.text


def test_the_published_config_is_clips():
    published = checkpoints.published_config("clip-vit-large-patch14-336")["vision_config"]
    assert {k: v for k, v in vision_config(published).items() if k in CLIP_CONFIG} == CLIP_CONFIG


def test_a_tower_fits_the_config_that_it_is_of():
    tower = {k: v for k, v in checkpoints.weights().items() if k.startswith(checkpoints.VISION)}
    assert misfit(tower, tiny.vision_config()) is None
    assert "has shape" in misfit(tower, CLIP_CONFIG)
    extra = {**tower, checkpoints.VISION + "encoder.layers.9.mlp.fc1.bias": torch.zeros(3)}
    assert "expected no such tensor" in misfit(extra, tiny.vision_config())


class TestHub:
    def test_only_the_config_of_a_named_tower_is_taken(self, tmp_path, trained, monkeypatch):
        folder = with_tower(tmp_path / "llava", mm_vision_tower="me/clip-ft")
        lent, asked = tmp_path / "lent", []
        checkpoints.write_clip(lent)

        def download(name, **options):
            asked.append((name, options))
            return str(lent)

        monkeypatch.setattr(reading, "snapshot_download", download)
        check(answer(folder), trained)
        assert asked == [("me/clip-ft", {"allow_patterns": ["*.json"]})]

    def test_offline_the_same_checkpoint_is_refused_with_the_reason(self, tmp_path, monkeypatch):
        folder = with_tower(tmp_path / "llava", mm_vision_tower="me/clip-ft")
        monkeypatch.delattr(reading, "snapshot_download")
        refused(folder, "config is out of reach", "offline nothing is",
                error=FileNotFoundError, offline=True)  # fmt: skip


@pytest.mark.parametrize(
    "flag", [{"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": "mm_vision_tower"}]
)
def test_a_trained_tower_stays_inside_when_it_is_converted(tmp_path, trained, stock, flag):
    folder = with_tower(tmp_path / "llava", mm_vision_tower=str(stock), **flag)
    for to in ("original", "llava-hf"):
        assert main(["convert", str(folder), str(tmp_path / to), "--to", to]) == 0
        check(answer(tmp_path / to), trained)
    assert not (tmp_path / "original" / "vision_tower" / "model.safetensors").exists()


def test_of_llava_1_6_likewise(tmp_path, stock):
    """The tiles' tower inside answers, by a lent config, where the named one is out of reach."""
    folder = checkpoints_next.write_original(tmp_path / "llava", mm_vision_tower=FOREIGN)
    refused(folder, "config is out of reach", error=FileNotFoundError)
    model = load_pretrained_model(folder, device="cpu", vision_tower=stock)[1]
    inside = checkpoints_next.weights()[BIAS]
    assert torch.equal(model.get_vision_tower().inner.pre_layrnorm.bias, inside)
