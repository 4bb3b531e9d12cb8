"""Replays a recorded run of a decoder method on this package; see `methods/README.md`."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava import pruning
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.prefill import Prefill
from llava.pruning.registry import METHODS

from . import recipe


class Recording:
    """A case: its `facts`, its `tensors`, and what the official code made of every layer."""

    def __init__(self, path: Path) -> None:
        self.facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.tensors = load_file(path.with_suffix(".safetensors"))
        self.layers: list[dict[str, Any]] = self.facts.get("layers_facts", [])

    @property
    def entering(self) -> dict[int, list[int]]:
        """By layer, the patches that enter it; -(1000 L + c) is a merged token."""
        if "kept_stage1" in self.facts:
            return {0: self.facts["kept_stage1"], 16: self.facts["kept_stage2"]}
        return self._of_layers("visual_entering")

    @property
    def positions(self) -> dict[int, list[int]]:
        """By layer, the rotary positions of all tokens that enter it."""
        named = {k: v for k, v in self.facts.items() if k.startswith("positions_layer")}
        read = {int(k.removeprefix("positions_layer")): v for k, v in named.items()}
        return {k: as_list(v) for k, v in (read or self._of_layers("positions")).items()}

    def _of_layers(self, name: str) -> dict[int, Any]:
        """What is noted of each layer, or else of the last one before it."""
        values: dict[int, Any] = {}
        for entry in self.layers:
            layer = entry["layer"]
            values[layer] = entry[name] if name in entry else values[layer - 1]
        return values

    @property
    def recycled(self) -> dict[int, tuple[list[int], int]]:
        """By layer, the pool behind it by falling score, and the number of clusters."""
        noted = {entry["layer"]: entry.get("recycled_after") for entry in self.layers}
        return {k: (v["pool_in_score_order"], v["clusters"]) for k, v in noted.items() if v}

    @property
    def decode_positions(self) -> list[int]:
        """Of each layer the rotary position of the token that is decoded."""
        if self.facts.get("version") == "1.5":
            return self.facts["cache_lengths_after_prefill_or_step"]
        return [row[0] for row in self.facts["positions_handed_to_layers_in_decode_step"]]

    @property
    def pruner(self) -> pruning.Pruner:
        """The method as it ran: every setting that it has a field for, by the same name."""
        method = self.facts["method"]
        known = {field.name for field in fields(METHODS[method])}
        settings = {name: value for name, value in self.facts.items() if name in known}
        if "target" in self.facts:
            settings["target_token_num"] = self.facts["target"]
        if method == "dart":
            settings["pivot_order"] = "norm"
        return pruning.build(method, **settings)


class Replay:
    """The same prefill here, and one decode step; with another pruner if there is one."""

    def __init__(self, recording: Recording, pruner: pruning.Pruner | None = None) -> None:
        facts, pruner = recording.facts, pruner or recording.pruner
        source = recipe.decoder(facts)
        if "input_ids" in facts:
            vision = recipe.vision(facts)
            model = build(facts, {**source.weights, **vision.weights})
            ids, pixels = torch.tensor([facts["input_ids"]]), torch.from_numpy(vision.pixels)
            prompt = model.embed_prompt(ids, None, pixels, pruner=pruner)
            embeds, layout = prompt.embeds, prompt.layout
        else:
            model = build(facts, source.weights)
            embeds, n = torch.from_numpy(source.embeds), facts["visual"]
            image = Segment(n, 0, torch.arange(n))
            runs = [Segment(facts["prefix"]), image, Segment(facts["text"])]
            layout = TokenLayout.from_segments([runs])
        self.embeds, self.layout = embeds, layout
        self.cache = PrunedCache(pruner, layout)
        #: By layer what entered it, and before the final norm what left the last: (n, d).
        self.states: list[Tensor] = []
        enter = Prefill.enter

        def remember(prefill: Prefill, index: int, hidden: Tensor) -> Any:
            self.states.append(hidden[0])
            return enter(prefill, index, hidden)

        norm = model.model.norm.register_forward_pre_hook(
            lambda _, args: self.states.append(args[0][0])
        )
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Prefill, "enter", remember)
            out = model.model(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True)
            norm.remove()
            self.lengths = [layer.keys.shape[-2] for layer in self.cache.layers]
            self.decode_positions = self.cache.next_positions(1)
            step = torch.from_numpy(source.following)
            step = model.model(inputs_embeds=step, past_key_values=self.cache, use_cache=True)
        self.hidden, self.step = out.last_hidden_state[0], step.last_hidden_state[0]

    @cached_property
    def tokens(self) -> tuple[list[list[int]], dict[int, tuple[list[int], int]]]:
        """What entered each layer and what was recycled after it, named as the recordings do."""
        trace = self.cache.trace
        entering, recycled = [], {}
        ids = trace.entered[0].patch[0]
        for layer, (layout, choice) in enumerate(zip(trace.entered, trace.choices)):
            entering.append(ids[layout.is_visual[0]].tolist())
            if choice is None:
                continue
            before, selection = choice
            if before is not layout:
                ids = ids[before.index[0]]
            merge, pool = selection.merge, None
            if merge is not None:
                pool = ids[merge.source[0, : merge.pools[0]]].tolist()
                recycled[layer] = (pool, merge.clusters)
            ids = ids[selection.index[0]]
            if pool is not None:
                # They follow the visual tokens, and text follows them.
                end = len(ids) - before.tail[0]
                number = torch.arange(merge.clusters)
                ids[end - merge.clusters : end] = -(1000 * (layer + 1) + number)
        return entering, recycled

    def positions(self, layer: int) -> list[int]:
        layout = self.cache.trace.entered[layer]
        return layout.positions(self.cache.positions)[0].tolist()

    def visual_states(self, layer: int) -> Tensor:
        """States of the visual tokens that entered a layer: (n, d)."""
        return self.states[layer][self.cache.trace.entered[layer].is_visual[0]]


def as_list(positions: str | list[int]) -> list[int]:
    """Positions as numbers, "0..k" being a range."""
    if isinstance(positions, str):
        first, last = map(int, positions.split(".."))
        return list(range(first, last + 1))
    return positions


def build(facts: dict[str, Any], weights: dict[str, Any]) -> LlavaLlamaForCausalLM:
    """The model of a case, with the weights below its `model.`."""
    vision = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "vision_tower",
        "mm_hidden_size": recipe.WIDTH,
        "mm_vision_config": {**recipe.CLIP, "model_type": "clip_vision_model"},
    }
    config = LlavaConfig(
        vocab_size=recipe.VOCAB,
        hidden_size=facts["hidden"],
        intermediate_size=facts["intermediate"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        num_key_value_heads=facts.get("kv_heads", facts["heads"]),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **(vision if "input_ids" in facts else {}),
    )
    model = LlavaLlamaForCausalLM(config).eval()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    model.model.load_state_dict(tensors)
    return model
