"""Damaged checkpoints: each gets an error that names the file or tensor, and what was found.

Whatever is wrong, nothing is loaded: a tensor that is not there is never made up.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .. import checkpoints
from ..answers import refused

INDEX = "pytorch_model.bin.index.json"
SHARD = "pytorch_model-00002-of-00002.bin"


@pytest.fixture
def folder(tmp_path) -> Path:
    """An original checkpoint in the layout of the published one, for the test to damage."""
    return checkpoints.write_original(tmp_path / "llava")


@pytest.fixture
def single(tmp_path) -> Path:
    """An original checkpoint whose tensors lie in two safetensors files: decoder, and tower."""
    folder = checkpoints.write_original(
        tmp_path / "llava", "safetensors", ("weights",), tower=False, mm_vision_tower="clip"
    )
    checkpoints.write_clip(folder / "clip", full=False)
    return folder


LANGUAGE = "model.layers.1.mlp.up_proj.weight"
PROJECTOR = "model.mm_projector.2.bias"
TOWER = "vision_model.encoder.layers.2.self_attn.q_proj.bias"
#: kind of tensor, file it is in, name and shape
TENSORS = [("decoder", "", LANGUAGE, [96, 64]), ("projector", "", PROJECTOR, [64]),
           ("tower", "clip", TOWER, [32])]  # fmt: skip


@pytest.mark.parametrize(("kind", "place", "name", "shape"), TENSORS)
class TestTensors:
    def damage(self, folder: Path, place: str, change: Callable) -> str:
        checkpoints.edit_weights(folder / place / "model.safetensors", change)
        return str(folder / place) if place else str(folder)

    def test_missing(self, single, kind, place, name, shape):
        where = self.damage(single, place, lambda tensors: tensors.pop(name))
        total = 55 if kind == "tower" else 34
        message = refused(single)
        assert re.fullmatch(
            rf"{re.escape(where)} lacks 1 of {total} tensors: expected "
            rf"{re.escape(name)} {re.escape(str(shape))}", message
        ), message  # fmt: skip

    def test_wrong_shape(self, single, kind, place, name, shape):
        found = [*shape[:-1], shape[-1] + 1]
        where = self.damage(single, place, lambda ts: ts.update({name: torch.zeros(found)}))
        assert refused(single) == (
            f"{where}: {name} has shape {found}, expected {shape} by config.json"
        )

    def test_unknown(self, single, kind, place, name, shape):
        extra = name.replace("2.", "9.").replace("1.", "9.")
        where = self.damage(single, place, lambda ts: ts.update({extra: torch.zeros(5, 7)}))
        refused(single, f"{where} has tensors that its config.json does not call for: {extra}",
                "[5, 7]")  # fmt: skip

    def test_missing_from_llava_hf(self, tmp_path, kind, place, name, shape):
        checkpoints.write_hf(tmp_path, "safetensors")
        names = checkpoints.hf_names({checkpoints.VISION + "x": 0, PROJECTOR: 0, LANGUAGE: 0})
        prefix = {"decoder": f"language_model.{LANGUAGE}", "tower": f"vision_tower.{TOWER}",
                  "projector": "multi_modal_projector.linear_2.bias"}[kind]  # fmt: skip
        assert kind == "tower" or prefix in names
        self.damage(tmp_path, "", lambda tensors: tensors.pop(prefix))
        refused(tmp_path, f"{tmp_path} lacks 1 of", f"expected {prefix} {shape}")


def test_many_missing_tensors_are_counted(single):
    def halve(tensors):
        for name in [name for name in tensors if "layers.1" in name]:
            del tensors[name]

    checkpoints.edit_weights(single / "model.safetensors", halve)
    refused(single, "lacks 9 of 34 tensors", "model.layers.1.input_layernorm.weight", "and 5 more")


def test_a_projector_that_is_nowhere(tmp_path):
    folder = checkpoints.write_original(tmp_path, projector_in=())
    refused(folder, "lacks 4 of 34 tensors", "model.mm_projector.0.bias [64]")


def test_a_tower_missing_from_llava_hf(tmp_path):
    checkpoints.write_hf(tmp_path, "safetensors")

    def strip(tensors):
        for name in [name for name in tensors if name.startswith("vision_tower.")]:
            del tensors[name]

    checkpoints.edit_weights(tmp_path / "model.safetensors", strip)
    refused(tmp_path, "lacks 55 of 55 tensors", "vision_tower.vision_model.embeddings")


def test_sizes_of_another_model(tmp_path):
    folder = checkpoints.write_original(tmp_path, hidden_size=128)
    refused(folder, "model.embed_tokens.weight has shape [96, 64], expected [96, 128]")


class TestFiles:
    def test_shard_missing(self, folder):
        (folder / SHARD).unlink()
        refused(folder, str(folder / SHARD), "missing", error=FileNotFoundError)

    @pytest.mark.parametrize("name", [SHARD, "mm_projector.bin"])
    @pytest.mark.parametrize("keep", [0, 300, -100])
    def test_bin_cut_short(self, folder, name, keep):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:keep])
        message = refused(folder, f"cannot read weight file {folder / name}", "get it again")
        assert f"({len(content[:keep])} bytes)" in message

    @pytest.mark.parametrize("keep", [0, 5, 300, -100])
    def test_safetensors_cut_short(self, single, keep):
        file = single / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        refused(single, f"cannot read weight file {file}", "get it again")

    @pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
    def test_git_lfs_pointer(self, tmp_path, suffix):
        folder = checkpoints.write_original(tmp_path, suffix[1:])
        (file,) = folder.glob(f"*model{suffix}")
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976\n")
        message = refused(folder, f"cannot read weight file {file}", "not downloaded completely")
        # torch's own message advises to run whatever code the file holds.
        assert "weights_only" not in message

    def test_code_in_a_bin_file_does_not_run(self, folder, tmp_path):
        class Bomb:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        def new_zip():
            torch.save({"model.norm.weight": Bomb()}, folder / SHARD)

        def old_file():
            (folder / SHARD).write_bytes(pickle.dumps(Bomb(), protocol=2))

        def newer_pickle():
            (folder / SHARD).write_bytes(pickle.dumps(Bomb(), protocol=4))

        for write, named in ((new_zip, "getattr"), (old_file, "getattr"), (newer_pickle, "not")):
            write()
            message = refused(folder, "cannot read weight file", "refused, because it is a pickle")
            assert named in message and "safetensors" in message
            # It is whole, and nothing advises to switch the safeguard off.
            assert not any(word in message for word in ("damaged", "get it again", "weights_only"))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [[torch.zeros(3)], {"step": 7}])
    def test_bin_with_something_else(self, folder, content):
        torch.save(content, folder / SHARD)
        refused(folder, f"weight file {folder / SHARD} must hold tensors by name")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not JSON"),
            ("\xff\xfe", "is not JSON"),
            ("[]", "must hold an object, got []"),
            ("{}", "must map tensors to files in weight_map"),
            ('{"weight_map": ["a"]}', "must map tensors to files in weight_map"),
        ],
    )
    def test_index(self, folder, content, message):
        (folder / INDEX).write_text(content, encoding="latin-1")
        refused(folder, f"{folder / INDEX} {message}")

    @pytest.mark.parametrize(
        "name", ["../other/x.bin", "/elsewhere/x.bin", "a/../../x.bin", "..", 7, None, ["x"], {}]
    )
    def test_an_index_names_files_of_its_folder_only(self, folder, name):
        content = json.loads((folder / INDEX).read_text())
        content["weight_map"]["model.norm.weight"] = name
        checkpoints.write_json(folder / INDEX, content)
        refused(folder, f"{folder / INDEX}: weight_map must name files of the folder it is in",
                f"got {name} for model.norm.weight")  # fmt: skip

    @pytest.mark.parametrize("name", ["", ".", "no\0name", "\udcff", "x" * 300])
    def test_an_index_that_names_no_file(self, folder, name):
        content = json.loads((folder / INDEX).read_text())
        content["weight_map"]["model.norm.weight"] = name
        checkpoints.write_json(folder / INDEX, content)
        refused(folder, error=OSError)

    def test_shards_without_an_index(self, folder):
        (folder / INDEX).unlink()
        refused(folder, f"no weights in {folder}", "there are pytorch_model-00001-of-00002.bin",
                "but no index", error=FileNotFoundError)  # fmt: skip

    def test_no_weights(self, folder):
        for file in folder.glob("pytorch_model*"):
            file.unlink()
        refused(folder, f"no weights in {folder}", "pytorch_model.bin", error=FileNotFoundError)

    def test_no_projector_for_a_base_model(self, folder, tmp_path):
        checkpoints.write_projector_only(tmp_path / "lora", tmp_path / "base")
        (tmp_path / "lora" / "mm_projector.bin").unlink()
        refused(tmp_path / "lora", "must hold mm_projector.bin", "LoRA", error=FileNotFoundError,
                model_base=tmp_path / "base")  # fmt: skip

    def test_a_base_model_of_another_size(self, folder, tmp_path):
        checkpoints.write_projector_only(tmp_path / "mine", tmp_path / "base", num_hidden_layers=4)
        checkpoints.write_clip(tmp_path / "mine" / checkpoints.CLIP)
        refused(tmp_path / "mine", f"{tmp_path / 'mine'} on {tmp_path / 'base'} lacks 9 of",
                "model.layers.3.input_layernorm", model_base=tmp_path / "base")  # fmt: skip

    @pytest.mark.parametrize(
        "files", ["bin", "safetensors", "bin-shards", "safetensors-shards", "no index"]
    )
    def test_a_base_model_for_a_complete_checkpoint(self, tmp_path, files):
        """It lies beside its projector, as in liuhaotian/llava-v1.5-7b."""
        checkpoints.write_original(tmp_path, files.replace("no index", "bin-shards"))
        if files == "no index":
            (tmp_path / INDEX).unlink()
        refused(tmp_path, "is complete", "leave out the model base", model_base=tmp_path)

    def test_a_base_model_for_a_llava_hf_folder(self, tmp_path):
        checkpoints.write_hf(tmp_path)
        refused(tmp_path, "is complete", "leave out the model base", model_base=tmp_path)

    def test_no_tokenizer(self, folder):
        (folder / "tokenizer.model").unlink()
        refused(folder, "neither tokenizer.model nor tokenizer.json", error=FileNotFoundError)

    def test_an_image_processor_that_is_not_clips(self, folder):
        file = folder / checkpoints.CLIP / "preprocessor_config.json"
        checkpoints.edit_json(file, feature_extractor_type="SiglipImageProcessor")
        refused(folder, str(file), "SiglipImageProcessor")
