"""LoRA adapters, merged into their base: W + alpha / r * B A, to the last bit.

PEFT's own merge_and_unload gave the same bits for float32 adapters of all these kinds when this was
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main
from llava.model.tensor_names import original_names
from llava.model.weights import read_tensors

from .. import checkpoints, checkpoints_next
from ..adapters import (
    ALPHA,
    RANK,
    TOWER,
    TREES,
    UP,
    Q,
    matrices,
    merged,
    plus,
    product,
    same,
    write_adapter,
    write_trainables,
)
from ..answers import answer, ask, check
from .test_checkpoint import config_of


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return checkpoints.write_original(tmp_path_factory.mktemp("base"), "safetensors")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The base's tensors: float16, but the tower's of its CLIP folder, float32."""
    state = checkpoints.weights()
    return {k: v.float() if k.startswith(checkpoints.VISION) else v for k, v in state.items()}


class TestLlava:
    """Adapters of finetune_lora.sh and finetune_task_lora.sh."""

    @pytest.fixture
    def lora(self, tmp_path) -> Path:
        folder = write_adapter(tmp_path / "llava-lora", matrices(Q, UP), files="bin")
        return write_trainables(folder, checkpoints.projector())

    def expected(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = matrices(Q, UP)
        changed = {f"{k}.weight": plus(state[f"{k}.weight"], product(pairs[k])) for k in pairs}
        return {**state, **changed}

    def test_on_a_language_model(self, tmp_path, lora, state):
        checkpoints.write_projector_only(tmp_path / "unused", tmp_path / "vicuna")
        checkpoints.write_clip(tmp_path / "clip")
        result = merged(
            lora, tmp_path / "vicuna", tmp_path / "new", "--vision-tower", tmp_path / "clip"
        )
        same(result, self.expected(state))

    def test_on_llava_itself(self, tmp_path, lora, base, state):
        """Its projector is replaced by the one that was trained along, in the base's dtype."""
        trained = {k: 2 * v.float() for k, v in checkpoints.projector().items()}
        tower = str(base / checkpoints.CLIP)
        config = {"image_aspect_ratio": "square", "torch_dtype": "bfloat16"}
        write_trainables(lora, trained, mm_vision_tower=tower, **config)
        result = merged(lora, base, tmp_path / "new")
        same(result, {**self.expected(state), **{k: v.half() for k, v in trained.items()}})
        values = config_of(tmp_path / "new")
        # What was trained is the adapter's to say; what the tensors are, the base's.
        assert (values["image_aspect_ratio"], values["torch_dtype"]) == ("square", "float16")

    def test_answers(self, tmp_path, lora, base):
        """The folder loads, and answers as the base does once its weights are changed."""
        (lora / "config.json").unlink()
        merged(lora, base, tmp_path / "new")
        loaded = load_pretrained_model(base, device="cpu", dtype="float32")
        with torch.no_grad():
            for name, pair in matrices(Q, UP).items():
                weight = loaded[1].get_submodule(name).weight
                weight.copy_(plus(weight.half(), product(pair)).float())
        result = answer(tmp_path / "new")
        check(result, ask(loaded))
        assert not torch.equal(result.logits, answer(base).logits)

    def test_a_tower_that_was_trained_along(self, tmp_path):
        """LLaVA-1.6, whose adapters hold the newline and the whole tower, as LLaVA-NeXT's do."""
        base = checkpoints_next.write_original(tmp_path / "base")
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        before = read_tensors(base)
        whole = {k: 2 * v for k, v in before.items() if "newline" in k or "vision_tower" in k}
        torch.save(
            {f"base_model.model.{k}": v for k, v in whole.items()}, lora / "non_lora_trainables.bin"
        )
        change = {f"{Q}.weight": plus(before[f"{Q}.weight"], product(matrices(Q)[Q]))}
        same(merged(lora, base, tmp_path / "new"), {**before, **whole, **change})
        load_pretrained_model(tmp_path / "new", device="cpu")

    def test_a_tower_of_llava_1_5_that_was_trained_along(self, tmp_path, lora, base, state):
        tower = {k: 2 * v.half() for k, v in state.items() if k.startswith(checkpoints.VISION)}
        config = {"unfreeze_mm_vision_tower": True, "mm_vision_tower": str(base / checkpoints.CLIP)}
        write_trainables(lora, {**checkpoints.projector(), **tower}, **config)
        same(merged(lora, base, tmp_path / "new"), {**self.expected(state), **tower})
        load_pretrained_model(tmp_path / "new", device="cpu")

    def test_a_language_model_needs_what_llava_writes(self, tmp_path, capsys):
        lora = write_adapter(tmp_path / "lora", matrices(Q))
        checkpoints.write_projector_only(tmp_path / "unused", tmp_path / "vicuna")
        assert main(["merge", str(lora), str(tmp_path / "vicuna"), str(tmp_path / "new")]) == 1
        message = capsys.readouterr().err
        assert f"{lora} lacks config.json and non_lora_trainables.bin" in message


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("format", ["original", "llava-hf"])
def test_every_part_of_either_format(tmp_path, base, state, hf, tree, format):
    """Adapters of any tree fit a base of any format, tower and projector included."""
    pairs = matrices(*TREES["LLaVA"])
    folder = base if format == "original" else hf
    before = state if format == "original" else original_names(read_tensors(hf), hf)
    lora = write_adapter(tmp_path / "lora", pairs, tree)
    changed = {f"{k}.weight": plus(before[f"{k}.weight"], product(pairs[k])) for k in pairs}
    same(merged(lora, folder, tmp_path / "new"), {**before, **changed})
    assert ("text_config" in config_of(tmp_path / "new")) == (format == "llava-hf")


class TestFormula:
    @pytest.mark.parametrize(
        ("settings", "rank", "scale"),
        [
            ({"use_rslora": True}, RANK, ALPHA / sqrt(RANK)),
            ({"lora_alpha": 0.5}, RANK, 0.5 / RANK),
            # Layers that hold their weight as (in, out): LLaVA has none, PEFT ignores it there.
            ({"fan_in_fan_out": True}, RANK, ALPHA / RANK),
            ({"rank_pattern": {"q_proj": 2}}, 2, ALPHA / 2),
            ({"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3}}, 2, ALPHA / 2),
            ({"rank_pattern": {"proj": 2}}, RANK, ALPHA / RANK),
            ({"alpha_pattern": {".*.1.self_attn.q_proj": 32}}, RANK, 32 / RANK),
            ({"alpha_pattern": {"q_proj": 3}, "use_rslora": True}, RANK, 3 / sqrt(RANK)),
        ],
    )
    def test_scale(self, tmp_path, base, state, settings, rank, scale):
        pairs = matrices(Q, rank=rank)
        lora = write_adapter(tmp_path / "lora", pairs, **settings)
        result = merged(lora, base, tmp_path / "new")
        same(result, {**state, f"{Q}.weight": plus(state[f"{Q}.weight"], product(pairs[Q], scale))})

    def test_matrices_in_bfloat16_are_multiplied_in_float32(self, tmp_path, base, state):
        pair = tuple(tensor.bfloat16() for tensor in matrices(Q)[Q])
        lora = write_adapter(tmp_path / "lora", {Q: pair})
        expected = plus(state[f"{Q}.weight"], product(tuple(tensor.float() for tensor in pair)))
        assert torch.equal(merged(lora, base, tmp_path / "new")[f"{Q}.weight"], expected)

    def test_an_embedding_and_the_head(self, tmp_path, base, state):
        """PEFT adds the tables as they were before (base_layer)."""
        table, head = "model.embed_tokens", "lm_head"
        a, b = 0.1 * torch.ones(RANK, 96), torch.arange(64.0 * RANK).view(64, RANK) / 100
        whole = {
            f"{table}.lora_embedding_A": a,
            f"{table}.lora_embedding_B": b,
            f"{table}.base_layer.weight": state[f"{table}.weight"],
            f"{head}.base_layer.weight": state[f"{head}.weight"],
        }
        lora = write_adapter(tmp_path / "lora", matrices(head), whole=whole)
        changed = {
            f"{table}.weight": plus(state[f"{table}.weight"], 2.0 * (b @ a).T),
            f"{head}.weight": plus(state[f"{head}.weight"], product(matrices(head)[head])),
        }
        same(merged(lora, base, tmp_path / "new"), {**state, **changed})

    def test_whole_modules_and_biases(self, tmp_path, base, state):
        """`modules_to_save`, and `bias` of the adapted layers, in a tower of its own folder."""
        bias = torch.linspace(0, 1, 64)
        whole = {
            "lm_head.weight": 2 * state["lm_head.weight"].float(),
            f"{TOWER}.base_layer.bias": bias,
        }
        settings = {"modules_to_save": ["lm_head"], "bias": "lora_only"}
        lora = write_adapter(tmp_path / "lora", matrices(TOWER), whole=whole, **settings)
        changed = {
            "lm_head.weight": 2 * state["lm_head.weight"],
            f"{TOWER}.bias": bias,
            f"{TOWER}.weight": plus(state[f"{TOWER}.weight"], product(matrices(TOWER)[TOWER])),
        }
        same(merged(lora, base, tmp_path / "new"), {**state, **changed})

    def test_a_projector_saved_whole_by_llama_factory(self, tmp_path, hf):
        name = "model.multi_modal_projector.linear_1.bias"
        settings = {"modules_to_save": ["multi_modal_projector"]}
        lora = write_adapter(tmp_path / "lora", {}, whole={name: torch.ones(64)}, **settings)
        before = original_names(read_tensors(hf), hf)
        changed = {"model.mm_projector.0.bias": torch.ones(64).half()}
        same(merged(lora, hf, tmp_path / "new"), {**before, **changed})

    def test_one_of_two_tied_tables(self, tmp_path):
        """The head alone was trained with the adapter: the tables are two from then on."""
        base = checkpoints.write_original(tmp_path / "b", "safetensors", tie_word_embeddings=True)
        checkpoints.edit_weights(base / "model.safetensors", lambda ts: ts.pop("lm_head.weight"))
        lora = write_adapter(tmp_path / "lora", matrices("lm_head"))
        result = merged(lora, base, tmp_path / "new")
        table = checkpoints.weights()["model.embed_tokens.weight"]
        assert torch.equal(result["model.embed_tokens.weight"], table)
        expected = plus(table, product(matrices("lm_head")["lm_head"]))
        assert torch.equal(result["lm_head.weight"], expected)
        assert config_of(tmp_path / "new")["tie_word_embeddings"] is False
        model = load_pretrained_model(tmp_path / "new", device="cpu")[1]
        assert torch.equal(model.lm_head.weight, expected)
