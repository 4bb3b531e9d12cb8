"""LoRA adapters: recognised where a checkpoint is expected; which of them cannot be merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.eval.run.models import decoder_layers
from llava.model import reading
from llava.model.checkpoint import main

from .. import checkpoints
from ..adapters import UP, Q, matrices, write_adapter, write_trainables
from ..answers import answer, check, refused


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return checkpoints.write_original(tmp_path_factory.mktemp("base"), "safetensors")


class TestRecognised:
    def test_where_a_checkpoint_is_expected(self, tmp_path, base):
        lora = write_adapter(tmp_path / "my lora", matrices(Q))
        refused(
            lora,
            f"{lora} is a LoRA adapter (adapter_config.json, adapter_model.safetensors) of "
            "lmsys/vicuna-7b-v1.5",
            f"python -m llava.model.checkpoint merge '{lora}' lmsys/vicuna-7b-v1.5 DST",
        )
        write_trainables(lora, checkpoints.projector())
        assert "non_lora_trainables.bin" in refused(lora)
        assert f"merge '{lora}' {base} DST" in refused(lora, model_base=base)

    @pytest.mark.parametrize("name", [None, "", 7, ...])
    def test_one_that_names_no_base(self, tmp_path, name):
        lora = write_adapter(tmp_path, matrices(Q))
        checkpoints.edit_json(lora / "adapter_config.json", base_model_name_or_path=name)
        refused(lora, "of a base that it does not name", f"merge {lora} BASE DST")

    @pytest.mark.parametrize("kind", ["IA3", 7])
    def test_another_kind_of_adapter(self, tmp_path, kind):
        """The command would not merge it, so that it is not named."""
        message = refused(write_adapter(tmp_path, matrices(Q), peft_type=kind),
                          f"is an adapter of another kind than LoRA ({kind} in")  # fmt: skip
        assert "llava.model.checkpoint" not in message

    def test_a_part_of_one(self, tmp_path):
        write_trainables(tmp_path, checkpoints.projector())
        refused(tmp_path, "is a LoRA adapter (non_lora_trainables.bin)", f"{tmp_path} BASE DST")

    def test_beside_complete_weights(self, tmp_path, expected):
        folder = checkpoints.write_original(tmp_path / "llava")
        write_adapter(folder, matrices(Q))
        refused(folder, "is a LoRA adapter", "holds a model's weights besides", "elsewhere")
        # What is left of a merge in place: nothing but a description.
        (folder / "adapter_model.safetensors").unlink()
        check(answer(folder), expected)

    def test_as_the_model_base(self, tmp_path):
        checkpoints.write_projector_only(tmp_path / "projector", tmp_path / "base")
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        refused(tmp_path / "projector", f"{lora} is a LoRA adapter", model_base=lora)

    def test_where_the_config_alone_is_read(self, tmp_path):
        """The first thing that the answering programs ask of a checkpoint."""
        lora = write_adapter(tmp_path, matrices(Q))
        with pytest.raises(ValueError, match="is a LoRA adapter"):
            decoder_layers(str(lora))

    def test_on_the_hub(self, tmp_path, monkeypatch):
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        monkeypatch.setattr(reading, "snapshot_download", lambda name, **_: str(lora))
        refused("me/llava-lora", "is a LoRA adapter")


#: What is wrong with an adapter: its settings, tensors besides, and what the message says.
WRONG = {
    "another kind": ({"peft_type": "IA3"}, {}, "peft_type must be LORA, got 'IA3'"),
    "no rank": ({"r": None}, {}, "r must be an integer, got None"),
    "alpha in words": ({"lora_alpha": "16"}, {}, "lora_alpha must be a number, got 16"),
    "DoRA": ({"use_dora": True}, {}, "use_dora is a variant of LoRA that cannot be merged here"),
    "DoRA's tensors": (
        {},
        {f"{Q}.lora_magnitude_vector": torch.ones(64)},
        f"{Q}.lora_magnitude_vector belongs to a variant of LoRA",
    ),
    "a bias of B": ({}, {f"{UP}.lora_B.bias": torch.ones(64)}, f"{UP}.lora_B.bias belongs to"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights pissa_niter_4"),
    "some tokens": ({"trainable_token_indices": [3]}, {}, "trainable_token_indices is a variant"),
    "another rank": ({"r": 8}, {}, "lora_A [4, 64] and lora_B [64, 4], expected [8, in]"),
    "a rank of 0": ({"r": 0}, {}, "a rank (r, rank_pattern) must be at least 1, got 0"),
    "a rank of no number": ({"rank_pattern": {"q": "4"}}, {}, "rank_pattern: q must be an integer"),
    "no pattern": ({"alpha_pattern": {"(": 4}}, {}, "'(' is no pattern"),
    "half a pair": ({}, {f"{UP}.lora_A.weight": torch.ones(4, 64)}, "lora_A without its partner"),
    "a convolution": (
        {},
        {"x.lora_A.weight": torch.ones(4, 3, 2, 2), "x.lora_B.weight": torch.ones(8, 4, 1, 1)},
        "x has lora_A [4, 3, 2, 2] and lora_B [8, 4, 1, 1]",
    ),
    "a layer of another model": (
        {},
        {
            "model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 64),
            "model.layers.9.self_attn.q_proj.lora_B.weight": torch.ones(64, 4),
        },
        "the base has no model.layers.9.self_attn.q_proj.weight, which the adapter changes",
    ),
    "another width": (
        {},
        {f"{UP}.lora_A.weight": torch.ones(4, 64), f"{UP}.lora_B.weight": torch.ones(128, 4)},
        f"{UP}.weight has shape [96, 64], the adapter's product [128, 64]",
    ),
    "a table of another vocabulary": (
        {"modules_to_save": ["lm_head"]},
        {"lm_head.weight": torch.ones(99, 64)},
        "the adapter holds lm_head.weight as [99, 64], the base as [96, 64]",
    ),
    "a module that is not there": (
        {"modules_to_save": ["lm_head"]},
        {},
        "lacks the tensors of lm_head, which modules_to_save names",
    ),
    "a tensor that no LLaVA has": (
        {},
        {"model.resampler.weight": torch.ones(3)},
        "has tensors that its config.json does not call for: model.resampler.weight",
    ),
    "a bias that the tower has not": (
        {},
        {f"{checkpoints.VISION}encoder.layers.9.mlp.fc1.bias": torch.ones(3)},
        f"the base has no {checkpoints.VISION}encoder.layers.9.mlp.fc1.bias",
    ),
    "a training that diverged": (
        {},
        {
            f"{UP}.lora_A.weight": torch.full((4, 64), 1e4),
            f"{UP}.lora_B.weight": torch.ones(96, 4),
        },
        f"{UP}.weight would hold infinity or not-a-number in torch.float16",
    ),
}


class TestRefusals:
    def error(self, capsys, lora: Path, base: Path, target: Path) -> str:
        capsys.readouterr()
        assert main(["merge", str(lora), str(base), str(target)]) == 1
        output = capsys.readouterr()
        assert not output.out and output.err.startswith("error: ") and not target.exists()
        return output.err

    @pytest.mark.parametrize(("settings", "whole", "message"), WRONG.values(), ids=list(WRONG))
    def test_adapters(self, tmp_path, base, capsys, settings, whole, message):
        lora = write_adapter(tmp_path / "lora", matrices(Q), whole=whole, **settings)
        assert message in self.error(capsys, lora, base, tmp_path / "new")

    def test_files(self, tmp_path, base, capsys):
        lora, target = write_adapter(tmp_path / "lora", matrices(Q)), tmp_path / "new"
        (lora / "adapter_model.safetensors").write_bytes(b"x")
        assert "cannot read weight file" in self.error(capsys, lora, base, target)
        (lora / "adapter_model.safetensors").unlink()
        message = "no adapter_model.safetensors or adapter_model.bin"
        assert message in self.error(capsys, lora, base, target)
        save_file({}, lora / "adapter_model.safetensors")
        assert "holds no tensors" in self.error(capsys, lora, base, target)
        (lora / "adapter_config.json").write_text("[]")
        assert "adapter_config.json must hold an object" in self.error(capsys, lora, base, target)
        (lora / "adapter_config.json").unlink()
        assert f"no adapter_config.json in {lora}" in self.error(capsys, lora, base, target)

    def test_a_base_that_is_an_adapter(self, tmp_path, capsys):
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        assert f"{lora} is a LoRA adapter" in self.error(capsys, lora, lora, tmp_path / "new")

    def test_a_quantised_base(self, tmp_path, capsys):
        base = checkpoints.write_original(tmp_path / "base", "safetensors")
        checkpoints.edit_weights(
            base / "model.safetensors",
            lambda tensors: tensors.update({f"{Q}.weight": tensors[f"{Q}.weight"].to(torch.int8)}),
        )
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        message = self.error(capsys, lora, base, tmp_path / "new")
        assert f"{Q}.weight is torch.int8: give the base that is not quantised" in message

    def test_a_target_with_anything_in_it(self, tmp_path, base, capsys):
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        assert main(["merge", str(lora), str(base), str(base)]) == 1
        assert f"{base} is there already; choose a new or an empty" in capsys.readouterr().err
