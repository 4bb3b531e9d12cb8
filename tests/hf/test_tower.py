"""`tower_scores` "received" in stock models: towers without a CLS token, and tokens of several
patches."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from llava import hf, pruning
from llava.hf.tower import _attention, scored
from tests.closeness import assert_close

from . import zoo
from .masked import check
from .test_oracle import samples
from .test_session import traces

NAMES = ["llava", "internvl", "idefics3", "smolvlm", "gemma3", "paligemma"]
AUTOPRUNE = {"target_token_num": 8, "x0": 2.0, "recycle_ratio": 0.0, "positions": "original"}


def received(method: str, **settings: Any) -> pruning.Pruner:
    return pruning.build(method, tower_scores="received", **settings)


@torch.no_grad()
def embeds(model: Any, batch: dict[str, Any], patch: int | None = None) -> Tensor:
    """What the decoder gets of the first view's tokens, `patch` of it having been changed behind
    the tower's last layer: (tokens, d)."""
    states: list[Tensor] = []

    def change(module: Any, args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        first = hidden.shape[1] % 2  # the CLS token
        hidden = hidden.clone()
        hidden[0, first + patch, 0] += 9
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        states.append(kwargs["inputs_embeds"])

    layer = _layer(model)
    handles = [model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)]
    if patch is not None:
        handles.append(layer.register_forward_hook(change))
    model(**batch)
    for handle in handles:
        handle.remove()
    return states[0][0][batch["input_ids"][0] == zoo.IMAGE][:16]


def _layer(model: Any) -> Any:
    attention = _attention(model)
    return next(m for m in model.modules() if any(c is attention for c in m.children()))


@cache
def patches_of_tokens(name: str) -> list[list[int]]:
    """Which patches of a view each of its 16 tokens is made of, by changing them one by one."""
    if name == "llava":  # no layer's output shows behind the one that transformers records
        return [[patch] for patch in range(16)]
    model = zoo.shared(name)
    batch = zoo.inputs(name, ["iq" if name == "paligemma" else "tiq"])
    before = embeds(model, batch)
    owners: list[list[int]] = [[] for _ in range(16)]
    for patch in range(64 if name in ("internvl", "idefics3", "smolvlm") else 16):
        changed = (embeds(model, batch, patch) != before).any(-1).nonzero().flatten().tolist()
        assert len(changed) == 1
        owners[changed[0]].append(patch)
    return owners


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_eager_matrix(name: str, generating: bool) -> None:
    """Of a batch with two pictures in one prompt and none in another."""
    model = zoo.shared(name)
    batch = zoo.inputs(name, ["q", "iiq" if name == "paligemma" else "tiiq"])
    rows: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        first = hidden.shape[1] % 2
        per_head = []
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            query, key = (p(hidden)[..., part] for p in (module.q_proj, module.k_proj))
            matrix = (query @ key.mT / 8**0.5).softmax(-1)
            per_head.append(matrix[:, first:, first:].mean(1))
        rows.append(sum(per_head) / 2)

    cache = hf.cache(model, received("autoprune", **AUTOPRUNE))
    handle = _attention(model).register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        if generating:
            model.generate(**batch, past_key_values=cache, max_new_tokens=2)
        else:
            model(**batch, past_key_values=cache)
    handle.remove()
    groups = torch.tensor(patches_of_tokens(name))
    expected = rows[0][:, groups].mean(-1).flatten()
    layout = cache.trace.first
    assert_close(layout.cls[layout.is_visual], expected)
    assert not layout.cls[0].any() and expected.std() > 1e-4


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("autoprune", AUTOPRUNE),
        ("autoprune", {"preset": "balanced", "target_token_num": 8, "x0": 2.0}),
        ("fastervlm", {"target_token_num": 6}),
        ("vispruner", {"target_token_num": 6}),
    ],
    ids=["autoprune", "balanced", "fastervlm", "vispruner"],
)
@pytest.mark.parametrize("name", NAMES)
def test_methods_equal_the_oracle(name: str, method: str, settings: dict[str, Any]) -> None:
    entering = check(name, received(method, **settings), samples(name), steps=2)
    assert all(counts[-1] <= 8 for counts in entering)


def test_the_best_are_kept_and_beams_share_a_tower() -> None:
    model, batch = zoo.shared("internvl"), zoo.inputs("internvl", ["tiq", "titiqt"])
    with hf.pruning(model, received("fastervlm", target_token_num=6)) as pruned:
        single = model.generate(**batch, max_new_tokens=3, do_sample=False)
        first, kept = pruned.trace.first, pruned.trace.kept_patches(0)[0]
        best = first.cls[0][first.is_visual[0]].topk(6).indices
        assert kept == sorted(best.tolist())
        costs = hf.cost(model, batch, pruned.pruner, new_tokens=3)
        assert costs == pruned.cost
        model.generate(**batch, max_new_tokens=3, num_beams=4)
        assert pruned.trace.kept_patches(3)[0] == kept
    assert len(single) == 2 and not traces(model)


def test_it_is_off_by_default_and_refused_where_it_is_not_known() -> None:
    model, batch = zoo.shared("gemma3"), zoo.inputs("gemma3", ["tiq"])
    with hf.pruning(model, "autoprune", **AUTOPRUNE) as pruned:
        model.generate(**batch, max_new_tokens=1)
    assert pruned.trace.first.cls is None
    for name in ("qwen2_5_vl", "llava_next"):
        with pytest.raises(ValueError, match=f'tower_scores="received" of {name}.*internvl'):
            hf.cache(zoo.shared(name), received("autoprune"))
    layout = pruned.trace.first
    with pytest.raises(ValueError, match="16 visual tokens, and a tower of"):
        scored(layout, torch.zeros(1, 9))
    with pytest.raises(ValueError, match="has to run"):
        scored(layout, None)
