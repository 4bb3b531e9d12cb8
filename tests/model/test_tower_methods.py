"""What is particular to methods in the vision tower: loops that follow their equations, and costs.

What all methods do: `test_methods`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava import pruning
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.layout import TEXT
from llava.pruning.methods.tome import Merging
from tests import tiny
from tests.closeness import assert_close

from .prompts import SAMPLES, one


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.double(tiny.model(7, attn=request.param, layers=2))


@torch.no_grad()
def visionzip(features, count: int, merged: int) -> tuple[list[Tensor], list[int]]:
    """Section by section, in loops: CLS, dominant patches in order, contextual tokens."""
    probe, patches = features.probes[features.ran - 1], features.patches[0]
    heads = range(probe.query.shape[1])
    rows = [(probe.keys[0, h] @ probe.query[0, h] * 8**-0.5).softmax(-1)[1:] for h in heads]
    ranked = sum(rows).argsort(descending=True).tolist()
    dominant = sorted(ranked[: count - merged - 1])
    rest = [i for i in range(16) if i not in dominant]
    targets = rest[:: len(rest) // merged][:merged]
    keys = sum(probe.keys[0, h, 1:] for h in heads)
    joined: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            similar = [torch.cosine_similarity(keys[i], keys[t], dim=0).item() for t in targets]
            joined[targets[similar.index(max(similar))]].append(i)
    tokens = [features.token[0], *(patches[i] for i in dominant)]
    for target, own in joined.items():
        extra = patches[own].mean(0) if own else 0
        tokens.append(patches[target] + extra)
    return tokens, [16, *dominant, *targets]


@torch.no_grad()
def prumerge(features, count: int, neighbours: int) -> tuple[list[Tensor], list[int]]:
    """PruMerge with `count` tokens: the best patches with their neighbours, then the others."""
    probe, patches = features.probes[features.ran], features.patches[0]
    query, keys = probe.query[0].flatten(), probe.keys[0].transpose(0, 1).flatten(1)
    weight = (keys @ query * 32**-0.5).softmax(-1)[1:]
    kept = weight.argsort(descending=True).tolist()[: count - 1]
    tokens = []
    for i in kept:
        similar = torch.cosine_similarity(keys[1:], keys[1 + i][None])
        near = [j for j in similar.argsort(descending=True).tolist() if j != i][:neighbours]
        tokens.append(patches[i] + sum(weight[j] * patches[j] for j in near))
    dropped = [j for j in range(16) if j not in kept]
    tokens.append(sum(weight[j] * patches[j] for j in dropped))
    return tokens, [*kept, max(dropped, key=lambda j: weight[j])]


@pytest.mark.parametrize(
    ("method", "settings", "loop"),
    [
        ("visionzip", {"contextual_ratio": 0.5}, lambda f: visionzip(f, 7, 3)),
        ("prumerge+", {"plus": False, "neighbours": 5}, lambda f: prumerge(f, 7, 5)),
    ],
)
@torch.no_grad()
def test_what_the_decoder_gets_is_what_the_equations_say(model, method, settings, loop) -> None:
    pruner = pruning.build(method, target_token_num=7, **settings)
    images, tower = tiny.pixels(5, 2), model.get_vision_tower()
    made = model.encode_images(images, pruner=pruner)
    for i, tokens in enumerate(made):
        features = tower(images[i : i + 1], probe=pruner.tower_layers(tower.run_layers))
        expected, patch = loop(features)
        assert tokens.patch.tolist() == patch
        projected = model.get_model().mm_projector(torch.stack(expected))
        assert_close(tokens.embeds, projected)


@torch.no_grad()
def test_vscan_merges_as_its_equations_say() -> None:
    """64 patches in 16 windows of 4, T = 22: T1 = 33, one local token a window, 17 global ones."""
    model = tiny.double(tiny.model(7, image_size=112))
    pruner = pruning.build("vscan", target_token_num=22, layer=3)
    ids, images, tower = tiny.prompt(1)[None], tiny.pixels(5, 1, size=112), model.get_vision_tower()
    prompt = model.embed_prompt(ids, None, images, pruner=pruner)
    run = pruner.start(prompt.layout, DecoderShape.from_config(model.config))
    selection = run.at_entry(prompt.layout, prompt.embeds)
    after = prompt.layout.select(selection)

    features = tower(images, probe=(0, 1))
    early, late = (features.probes[i].cls_attention()[0].mean(0) for i in (0, 1))
    kept = set()
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            window = [8 * (row + y) + column + x for y in (0, 1) for x in (0, 1)]
            kept.add(max(window, key=lambda i: early[i].item()))
    assert len(kept) == 16
    rest = sorted(set(range(64)) - kept, key=lambda i: -late[i].item())
    kept = sorted(kept | set(rest[:17]))
    assert [p for p in after.patch[0].tolist() if p != TEXT] == kept

    embeds = prompt.embeds[0, prompt.layout.is_visual[0]]
    groups = {i: [embeds[i]] for i in kept}
    for i in set(range(64)) - set(kept):
        similar = torch.cosine_similarity(embeds[kept], embeds[i][None])
        groups[kept[int(similar.argmax())]].append(embeds[i])
    expected = torch.stack([torch.stack(groups[i]).mean(0) for i in kept])
    merged = pruning.apply(selection, prompt.embeds)[0]
    assert_close(merged[after.is_visual[0]], expected)
    assert torch.equal(merged[~after.is_visual[0]], prompt.embeds[0, ~prompt.layout.is_visual[0]])
    assert run.scoring_flops() == [2 * 64 * (31 * 33 + 31)]


@torch.no_grad()
def test_prumerge_needs_a_layer_behind_the_features() -> None:
    model = tiny.model(7, layers=2, mm_vision_select_layer=-1)
    with pytest.raises(ValueError, match="looks into layer 3 of a vision tower with 3 layers"):
        model.encode_images(tiny.pixels(1), pruner=pruning.build("prumerge+", target_token_num=4))


@torch.no_grad()
def test_proportional_attention_is_what_separates_the_two_tomes(model) -> None:
    def features(proportional: bool) -> Tensor:
        pruner = pruning.build("tome", target_token_num=12, proportional_attention=proportional)
        (made,) = model.encode_images(tiny.pixels(8), pruner=pruner)
        return made.embeds

    assert (features(True) - features(False)).abs().max() > 1e-4


def test_sizes_cannot_weigh_in_flash_attention(monkeypatch) -> None:
    tower, tokens = tiny.model(7, layers=2).get_vision_tower(), torch.zeros(1, 7, 2)
    monkeypatch.setattr(tower.config, "_attn_implementation", "flash_attention_2")
    run = Merging([2], True)
    run.after_attention(0, tokens, tokens[:, None])
    with pytest.raises(ValueError, match="flash_attention_2 cannot do"):
        tower.merge(tiny.pixels(8), run)


@pytest.mark.parametrize(
    ("method", "scoring"),
    [
        ("fastervlm", 0),
        ("hired", 0),
        ("vispruner", 2 * 11**2 * 32),  # int(0.5 x 10) patches by attention, 11 are compared
        ("tome", 2 * (9 * 8 + 7 * 7) * 8),  # 17 and then 14 tokens, keys 8 wide
        # 7 patches join one target, by keys 8 wide, and are averaged.
        ("visionzip", 2 * 7 * (8 + 32)),
        # Keys of 17 and a query; 9 patches against 16; 15 neighbours of each, and the 7 others.
        ("prumerge+", 2 * (18 * 32 * 32 + (9 * 16 + 9 * 15 + 7) * 32)),
    ],
)
def test_what_a_prefill_costs(model, method, scoring) -> None:
    shape = DecoderShape.from_config(model.config)
    out, _ = one(model, pruning.build(method, target_token_num=10))
    cost = measure(out.past_key_values.trace.samples[0], shape)
    assert cost.scoring_flops == scoring and cost.merging_flops == 0
    assert (cost.tokens_entering, cost.tokens_leaving) == (10, 10)
    text = len(SAMPLES[0]) - 1
    assert cost.prefill_flops == 2 * shape.layer_flops(text + 10, text + 10)
    assert cost.dense_prefill_flops == 2 * shape.layer_flops(text + 16, text + 16)
