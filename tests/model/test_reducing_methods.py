"""VisionZip, PruMerge and VScan in the whole model, against loops that follow their equations."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.layout import TEXT
from tests import tiny

from .test_oracle import check_against_the_oracle

NEW = 3
#: Settings, and the counts that enter the 6 layers from 16 patches. Depths: 3 of 6 layers.
SETTINGS = [
    ("visionzip", {"target_token_num": 9}, [9] * 6),
    ("visionzip", {"target_token_num": 6, "contextual_ratio": 0.5}, [6] * 6),
    ("prumerge+", {"target_token_num": 9}, [9] * 6),
    ("prumerge+", {"target_token_num": 5, "plus": False, "neighbours": 4}, [5] * 6),
    ("vscan", {"target_token_num": 8, "layer": 3, "windows": 2}, [12] * 3 + [4] * 3),
    (
        "vscan",
        {"target_token_num": 8, "layer": 2, "windows": 2, "merge": False},
        [12] * 2 + [6] * 4,
    ),
]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.model(7, attn=request.param)


@pytest.fixture(scope="module")
def samples() -> list[Tensor]:
    """Prompts with 1, 2, 0 and 1 images and different lengths of text."""
    return [
        tiny.prompt(1, before=2, after=5),
        tiny.prompt(2, before=6, after=9, images=2),
        tiny.prompt(3, before=3, after=4, images=0),
        tiny.prompt(4, before=9, after=14),
    ]


def generate(model, ids, mask, images, pruner):
    out = model.generate(
        ids,
        images=images if len(images) else None,
        attention_mask=mask,
        pruner=pruner,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out, torch.stack(out.logits, 1)


def text_positions(layout, sample: int) -> list[int]:
    is_text = (layout.image[sample] == TEXT) & layout.valid[sample]
    return layout.position[sample, is_text].tolist()


@pytest.mark.parametrize(("method", "settings", "entering"), SETTINGS)
def test_a_batch_equals_its_samples_and_meets_the_budget(
    model, samples, method, settings, entering
) -> None:
    modes = [pruning.build(method, **settings, budget_mode=m) for m in ("published", "strict")]
    images, state = tiny.pixels(8, 4), {k: v.clone() for k, v in model.state_dict().items()}
    shape = DecoderShape.from_config(model.config)
    together, logits = generate(model, *tiny.batch(samples), images, modes[0])
    strict, again = generate(model, *tiny.batch(samples), images, modes[1])
    assert torch.equal(logits, again) and torch.equal(together.sequences, strict.sequences)
    trace, first = together.past_key_values.trace, 0
    for i, ids in enumerate(samples):
        n = int((ids == IMAGE_TOKEN_INDEX).sum())
        alone, own = generate(model, ids[None], None, images[first : first + n], modes[0])
        first += n
        single = alone.past_key_values.trace
        assert single.kept_patches(0) == trace.kept_patches(i)
        torch.testing.assert_close(logits[i], own[0], atol=1e-5, rtol=0)
        assert torch.equal(together.sequences[i], alone.sequences[0])
        counts = trace.samples[i]
        assert counts.n_visual == 16 * n and counts.n_text == len(ids) - n
        assert counts.scoring == single.samples[0].scoring
        assert counts.entering == (entering if n else [0] * 6)
        if n:
            assert measure(counts, shape).tokens_entering == settings["target_token_num"]
        text = text_positions(trace.first, i)
        assert len(text) == len(ids) - n
        assert all(text_positions(x, i) == text for x in (*trace.entered, trace.last))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    _, dense = generate(model, samples[0][None], None, images[:1], None)
    _, plain = generate(
        tiny.model(7, attn=model.config._attn_implementation),
        samples[0][None],
        None,
        images[:1],
        pruning.build("none"),
    )
    assert torch.equal(dense, plain), "the model runs as one that never pruned"


def test_the_adaptive_rule_counts_per_image(model, samples) -> None:
    pruner, images = pruning.build("prumerge+", adaptive=True), tiny.pixels(8, 4)
    together, logits = generate(model, *tiny.batch(samples), images, pruner)
    first = 0
    for i, ids in enumerate(samples):
        n = int((ids == IMAGE_TOKEN_INDEX).sum())
        alone, own = generate(model, ids[None], None, images[first : first + n], pruner)
        first += n
        torch.testing.assert_close(logits[i], own[0], atol=1e-5, rtol=0)
        counts = together.past_key_values.trace.samples[i].entering
        assert counts == alone.past_key_values.trace.samples[0].entering
        assert len(set(counts)) == 1 and 4 * n <= counts[0] <= 16 * n


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
        torch.testing.assert_close(tokens.embeds, projected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vscan_merges_as_its_equations_say() -> None:
    """64 patches in 16 windows of 4, T = 22: T1 = 33, one local token a window, 17 global ones."""
    model = tiny.model(7, image_size=112)
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
    torch.testing.assert_close(merged[after.is_visual[0]], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged[~after.is_visual[0]], prompt.embeds[0, ~prompt.layout.is_visual[0]])
    assert run.scoring_flops() == [2 * 64 * (31 * 33 + 31)]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("images", [1, 2])
def test_vscan_without_merging_equals_the_oracle(positions, images) -> None:
    chosen = pruning.build(
        "vscan", target_token_num=8, layer=3, windows=2, merge=False, positions=positions
    )
    model = tiny.model(0, attn="eager")
    counts = check_against_the_oracle(model, chosen, positions, images)
    assert counts.entering == [12] * 3 + [4] * 3
    assert counts.ahead == [0, 0, 1, 0, 0, 0]


@torch.no_grad()
def test_vscan_ranks_by_the_attention_of_its_layer() -> None:
    """The second stage is the layer's own attention, as an unpruned layer gives it."""
    model, ids, pixels = tiny.model(0, attn="eager"), tiny.prompt(2)[None], tiny.pixels(2)
    pruner = pruning.build("vscan", target_token_num=16, layer=3)
    wide = pruning.build("vscan", target_token_num=15, layer=3, first_ratio=2)
    dense = model(ids, images=pixels, pruner=pruner, use_cache=True).past_key_values
    assert dense.trace.samples[0].entering == [16] * 6
    caught = []
    hook = model.model.layers[3].self_attn.register_forward_hook(
        lambda module, inputs, output: caught.append(output[1])
    )
    model(ids, images=pixels, pruner=pruner, use_cache=True)
    hook.remove()
    row = caught[0][0, :, -1].mean(0)[dense.trace.first.is_visual[0]]
    out = model(ids, images=pixels, pruner=wide, use_cache=True).past_key_values
    assert out.trace.samples[0].entering == [16] * 3 + [14] * 3
    best = sorted(row.argsort(descending=True)[:14].tolist())
    assert out.trace.kept_patches(0)[3] == best


@pytest.mark.parametrize(("method", "settings", "entering"), SETTINGS)
def test_settings_survive_json(method, settings, entering) -> None:
    pruner = pruning.build(method, **settings)
    assert pruning.build(**json.loads(json.dumps(pruner.to_dict()))) == pruner


def test_a_target_above_the_patches_changes_nothing(model, samples) -> None:
    ids, images = samples[0][None], tiny.pixels(8, 1)
    _, dense = generate(model, ids, None, images, None)
    for method, more in (("visionzip", {}), ("prumerge+", {}), ("vscan", {"layer": 3})):
        pruner = pruning.build(method, target_token_num=16, **more)
        assert torch.equal(generate(model, ids, None, images, pruner)[1], dense)


@torch.no_grad()
def test_prumerge_needs_a_layer_behind_the_features() -> None:
    model = tiny.model(7, layers=2, mm_vision_select_layer=-1)
    with pytest.raises(ValueError, match="looks into layer 3 of a vision tower with 3 layers"):
        model.encode_images(tiny.pixels(1), pruner=pruning.build("prumerge+", target_token_num=4))
