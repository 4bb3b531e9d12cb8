"""Conversion between the formats: every tensor and every answer stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava.model import weights
from llava.model.checkpoint import EXTRA_ROWS, convert, main
from llava.model.tensor_names import rename

from .. import checkpoints, tiny
from ..answers import answer, check


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder that `convert` wrote, the vision tower's under `vision_tower/`."""
    result = {}
    for file in sorted(folder.glob("*.safetensors")):
        result.update(load_file(file))
    tower = folder / "vision_tower" / "model.safetensors"
    if tower.is_file():
        result.update({f"vision_tower/{k}": v for k, v in load_file(tower).items()})
    return result


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def run(source: Path, target: Path, to: str, *flags: str) -> Path:
    assert main(["convert", str(source), str(target), "--to", to, *flags]) == 0
    return target


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="session")
def to_hf(original, tmp_path_factory) -> Path:
    return run(original, tmp_path_factory.mktemp("to-hf") / "new" / "folder", "llava-hf")


@pytest.fixture(scope="session")
def to_original(hf, tmp_path_factory) -> Path:
    return run(hf, tmp_path_factory.mktemp("to-original") / "new", "original")


class TestToLlavaHf:
    def test_every_tensor_is_there(self, to_hf):
        written = tensors(to_hf)
        expected = checkpoints.hf_names(checkpoints.weights())
        assert written.keys() == expected.keys()
        for name, tensor in expected.items():
            # CLIP's file is in float32, the rest in float16: no dtype changes on the way.
            dtype = torch.float32 if name.startswith("vision_tower.") else torch.float16
            assert written[name].dtype == dtype
            assert torch.equal(written[name][: len(tensor)], tensor.to(dtype)), name
            rows = EXTRA_ROWS if "embed_tokens" in name or "lm_head" in name else 0
            assert len(written[name]) == len(tensor) + rows

    def test_added_rows_cannot_win(self, to_hf):
        head = tensors(to_hf)["language_model.lm_head.weight"].float()
        logits = torch.randn(200, head.shape[1], generator=torch.Generator().manual_seed(0))
        assert ((logits @ head.T).argmax(1) < tiny.VOCAB).all()

    def test_the_config(self, to_hf):
        config = config_of(to_hf)
        assert config["model_type"] == "llava"
        assert config["architectures"] == ["LlavaForConditionalGeneration"]
        assert config["vocab_size"] == config["text_config"]["vocab_size"] == 160
        assert (config["image_token_index"], config["pad_token_id"]) == (96, 97)
        assert config["vision_feature_layer"] == -2
        assert config["dtype"] == "float16"
        assert config["text_config"]["rms_norm_eps"] == 1e-5
        assert config["vision_config"]["hidden_act"] == "quick_gelu"
        assert not any(key.startswith("mm_") for key in config["text_config"])

    def test_transformers_loads_all_of_it(self, to_hf):
        model, info = LlavaForConditionalGeneration.from_pretrained(
            to_hf, dtype="auto", output_loading_info=True
        )
        assert not any(info.values())
        assert model.dtype == torch.float16
        expected = {rename(k, "llava-hf", "stock"): v.half() for k, v in tensors(to_hf).items()}
        same(model.state_dict(), expected)

    def test_answers_as_before(self, original, to_hf):
        check(answer(to_hf), answer(original))

    def test_back_again(self, original, to_hf, tmp_path):
        same(tensors(run(to_hf, tmp_path / "back", "original")),
             tensors(run(original, tmp_path / "direct", "original")))  # fmt: skip
        back, direct = config_of(tmp_path / "back"), config_of(original)
        for key in ("_name_or_path", "transformers_version", "tokenizer_class"):
            back.pop(key, None)
            direct.pop(key, None)
        changed = {key for key in direct if back.get(key) != direct[key]}
        # The tower's new place, and a key of training that means nothing to inference.
        assert changed == {"mm_vision_tower", "mm_use_im_patch_token"}
        assert set(back) - set(direct) == {"dtype"}

    @pytest.mark.parametrize("layout", ["square", ..., "pad"])
    def test_how_images_are_prepared_is_kept(self, tmp_path, layout):
        source = checkpoints.write_original(tmp_path / "llava", image_aspect_ratio=layout)
        target = run(source, tmp_path / "hf", "llava-hf")
        check(answer(target), answer(source))


class TestToOriginal:
    def test_every_tensor_is_there(self, hf, to_original):
        source = {}
        for shard in hf.glob("*.safetensors"):
            source.update(load_file(shard))
        expected = {}
        for name, tensor in source.items():
            new = rename(name, "llava-hf", "original")
            tower = new.startswith("model.vision_tower.")
            expected["vision_tower/" + rename(new, "original", "clip") if tower else new] = tensor
        same(tensors(to_original), expected)
        assert "model.layers.0.self_attn.q_proj.weight" in expected
        assert "model.mm_projector.2.weight" in expected and "lm_head.weight" in expected
        assert "vision_tower/vision_model.embeddings.class_embedding" in expected

    def test_the_config(self, to_original):
        config = config_of(to_original)
        assert (config["model_type"], config["architectures"]) == (
            "llava", ["LlavaLlamaForCausalLM"]
        )  # fmt: skip
        assert config["mm_vision_tower"] == "vision_tower"
        assert config["mm_projector_type"] == "mlp2x_gelu"
        assert config["mm_vision_select_layer"] == -2
        assert (config["image_aspect_ratio"], config["mm_hidden_size"]) == ("pad", 32)
        assert config["vocab_size"] == 160
        assert "text_config" not in config and "vision_config" not in config
        tower = config_of(to_original / "vision_tower")
        assert (tower["model_type"], tower["image_size"]) == ("clip_vision_model", 56)

    def test_answers_as_before(self, hf, to_original):
        check(answer(to_original), answer(hf))

    def test_back_again(self, hf, to_original, tmp_path):
        """llava-hf's own extra rows are random: nothing could make them again."""
        back = tensors(run(to_original, tmp_path / "back", "llava-hf"))
        same(back, tensors(run(hf, tmp_path / "direct", "llava-hf")))
        config = config_of(tmp_path / "back")
        assert (config["image_token_index"], config["vocab_size"]) == (96, 160)
        info = LlavaForConditionalGeneration.from_pretrained(
            tmp_path / "back", output_loading_info=True
        )[1]
        assert not any(info.values())

    def test_bin_becomes_safetensors(self, original, tmp_path):
        written = tensors(run(original, tmp_path / "out", "original"))
        same({k: v for k, v in written.items() if "/" not in k}, checkpoints.language_model())
        assert not list((tmp_path / "out").rglob("*.bin"))
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_files_of_tokenizer_and_processor_come_along(original, hf, to_hf, to_original):
    names = ["tokenizer.model", "generation_config.json", "tokenizer_config.json"]
    for source, target, kept in ((original, to_hf, names[:2]), (hf, to_original, names)):
        for name in kept:
            assert (target / name).read_bytes() == (source / name).read_bytes()
    name = "preprocessor_config.json"
    assert (to_original / "vision_tower" / name).read_bytes() == (hf / name).read_bytes()
    assert sorted(path.name for path in to_original.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model",
        "tokenizer_config.json", "vision_tower",
    ]  # fmt: skip


@pytest.mark.parametrize("to", ["original", "llava-hf"])
@pytest.mark.parametrize("given", [True, False])
def test_no_path_of_the_machine_is_written(tmp_path, to, given):
    checkpoints.write_clip(tmp_path / "clip", full=False)
    checkpoints.edit_json(tmp_path / "clip" / "config.json", _name_or_path=str(tmp_path / "clip"))
    source = checkpoints.write_original(
        tmp_path / "llava",
        tower=False,
        mm_vision_tower="/data/somebody/clip" if given else str(tmp_path / "clip"),
        _name_or_path=str(tmp_path / "work"),
    )
    flags = ("--vision-tower", str(tmp_path / "clip")) if given else ()
    target = run(source, tmp_path / "out", to, *flags)
    for file in target.rglob("*.json"):
        assert str(tmp_path) not in file.read_text() and "/data/somebody" not in file.read_text()
    answer(target)


def test_large_checkpoints_are_sharded(original, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_SIZE", "100KB")
    target = run(original, tmp_path / "out", "llava-hf")
    assert len(list(target.glob("model-000*.safetensors"))) > 2
    assert answer(target).tokens == answer(original).tokens


def test_tensors_that_share_memory_are_all_written(tmp_path):
    source = checkpoints.write_original(tmp_path / "llava", "bin")
    state = torch.load(source / "pytorch_model.bin")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.norm.weight"] = state["model.layers.0.mlp.up_proj.weight"][3]
    torch.save(state, source / "pytorch_model.bin")
    written = tensors(run(source, tmp_path / "out", "original"))
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(written[name], state[name])
    assert answer(tmp_path / "out").tokens == answer(source).tokens


class TestRefusals:
    def error(self, capsys, *argv: object) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, argv)]) == 1
        output = capsys.readouterr()
        assert not output.out and output.err.startswith("error: ")
        return output.err

    def test_a_target_with_anything_in_it(self, original, tmp_path, capsys):
        for target in (tmp_path / "file", tmp_path / "folder" / "file"):
            target.parent.mkdir(exist_ok=True)
            target.write_text("mine")
        for name in ("file", "folder"):
            message = self.error(capsys, original, tmp_path / name, "--to", "llava-hf")
            assert f"{tmp_path / name} is there already" in message
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "file", "folder"]
        (tmp_path / "empty").mkdir()
        run(original, tmp_path / "empty", "llava-hf")

    def test_no_such_source(self, tmp_path, capsys):
        message = self.error(capsys, tmp_path / "none", tmp_path / "out", "--to", "original")
        assert f"no folder {tmp_path / 'none'}" in message

    def test_a_damaged_source_leaves_no_target(self, tmp_path, capsys):
        source = checkpoints.write_hf(tmp_path / "hf", "safetensors")
        checkpoints.edit_weights(
            source / "model.safetensors",
            lambda tensors: tensors.pop("multi_modal_projector.linear_1.bias"),
        )
        message = self.error(capsys, source, tmp_path / "out", "--to", "original")
        assert "lacks 1 of" in message and "multi_modal_projector.linear_1.bias [64]" in message
        assert not (tmp_path / "out").exists()

    def test_a_projector_that_llava_hf_does_not_have(self, tmp_path, capsys):
        source = checkpoints.write_original(tmp_path / "llava", "safetensors", ("weights",),
                                            mm_projector_type="linear")  # fmt: skip

        def make_linear(tensors):
            for name in list(tensors):
                if "mm_projector" in name:
                    tensor = tensors.pop(name)
                    if ".0." in name:
                        tensors[name.replace(".0.", ".")] = tensor

        checkpoints.edit_weights(source / "model.safetensors", make_linear)
        answer(source)
        message = self.error(capsys, source, tmp_path / "out", "--to", "llava-hf")
        assert "llava-hf's projector is mlp2x_gelu, this checkpoint has 'linear'" in message
        run(source, tmp_path / "out", "original")

    @pytest.mark.parametrize("argv", [[], ["convert"], ["convert", "a", "b", "--to", "gguf"]])
    def test_usage(self, argv):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2


def test_from_python(original, tmp_path):
    with pytest.raises(FileExistsError):
        convert(original, original, "original")
    convert(str(original), tmp_path / "out", "llava-hf", original / checkpoints.CLIP)
    assert (tmp_path / "out" / "config.json").is_file()
