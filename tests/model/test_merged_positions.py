"""Where merged tokens stand: an oracle that keeps states by patch and knows of no order but one.

Under original positions a merged token stands at its centre's position: a token sees those at or
before its own position, in whatever order they lie. Under compact ones merged tokens follow the
visual tokens of their centre's image, and are counted there.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava import pruning
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import TEXT, TokenLayout
from llava.pruning.trace import PruneTrace
from tests import tiny
from tests.closeness import assert_close, difference

from .prompts import SAMPLES, images_of, own_images

#: Several clusters, means and moved tokens; pools that are merged before and after a layer has run.
SETTINGS = [
    ("autoprune", {"target_token_num": 16, "x0": 3.0, "recycle_ratio": 0.5}),
    ("autoprune", {"target_token_num": 14, "x0": 4.0, "k0": 2.0, "budget_mode": "strict"}),
    ("sparsevlm", {"target_token_num": 16, "stages": (1, 3, 4)}),
]
#: A token's name: its patch, or what is before 0 and counts text.
Names = list[int]


@pytest.fixture(scope="module")
def model():
    return tiny.double(tiny.model(7, image_size=84))


def names_of(layout: TokenLayout, sample: int) -> Names:
    """Names of the tokens of an unpruned sample, in order."""
    patches = layout.patch[sample][layout.valid[sample]].tolist()
    return [-1 - column if patch == TEXT else patch for column, patch in enumerate(patches)]


def in_order(names: Names, images: dict[int, int], patches: list[int], policy: str) -> Names:
    """Text and the `patches` that are left, as they stand under a position policy.

    names: of the unpruned sample; images: of its patches; patches: as the trace has them.
    """
    if policy == "original":
        return [name for name in names if name < 0 or name in patches]
    left, seen = [], set()
    for name in names:
        if name < 0:
            left.append(name)
        elif images[name] not in seen:
            seen.add(images[name])
            left += [patch for patch in patches if images[patch] == images[name]]
    return left


@torch.no_grad()
def oracle(
    model,
    embeds: Tensor,
    layout: TokenLayout,
    trace: PruneTrace,
    sample: int,
    policy: str,
    shuffled: bool = True,
) -> Tensor:
    """Last hidden states (text tokens, d) of a sample, whose choices are those of the trace.

    Tokens are given to the layers backwards, so that only positions can say who comes first.
    Not `shuffled`: merged tokens lie behind their image's others, and order says who sees whom.
    """
    names = names_of(layout, sample)
    where = {name: column for column, name in enumerate(names)}
    valid = layout.valid[sample]
    images = dict(zip(names, layout.image[sample][valid].tolist()))
    states = dict(zip(names, embeds[sample][valid]))
    kept, merged = trace.kept_patches(sample), trace.merged_patches(sample)
    ever_merged: set[int] = set()
    for index, layer in enumerate(model.model.layers):
        here = in_order(names, images, kept[index], policy)
        if not shuffled:
            behind = sorted(kept[index], key=ever_merged.__contains__)
            here = in_order(names, images, behind, "compact")
        place = {name: i for i, name in enumerate(here)}
        position = [where[name] if policy == "original" else place[name] for name in here]
        sees = position if shuffled else list(range(len(here)))
        if shuffled:
            here, position, sees = here[::-1], position[::-1], sees[::-1]
        mine = torch.tensor(sees)
        hidden = torch.stack([states[name] for name in here])[None]
        mask = torch.where(mine <= mine[:, None], 0.0, -torch.inf).to(hidden)[None, None]
        rope = model.model.rotary_emb(hidden, torch.tensor(position)[None])
        out = layer(hidden, attention_mask=mask, position_embeddings=rope)[0]
        after = dict(zip(here, out))
        states = {name: state for name, state in after.items() if name < 0}
        ever_merged |= merged[index].keys()
        for patch in kept[index + 1]:
            members = merged[index].get(patch, [patch])
            states[patch] = torch.stack([after[name] for name in members]).mean(0)
    text = [name for name in names if name < 0]
    return model.model.norm(torch.stack([states[name] for name in text]))


@torch.no_grad()
def prefill(model, pruner, samples: list[Tensor], pixels: Tensor):
    prompt = model.embed_prompt(*tiny.batch(samples), pixels, pruner=pruner)
    cache = PrunedCache(pruner, prompt.layout)
    out = model.model(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True)
    return prompt, cache.trace, out.last_hidden_state


@pytest.mark.parametrize("policy", ["original", "compact"])
@pytest.mark.parametrize(("method", "settings"), SETTINGS, ids=str)
def test_causality_follows_the_position(method, settings, policy, model) -> None:
    """Each sample alone and all in a batch, in which they are padded."""
    pruner = pruning.build(method, **settings, positions=policy)
    pixels = tiny.pixels(8, sum(map(images_of, SAMPLES)), size=84)
    groups = [(SAMPLES, slice(None)), *(([s], own) for s, own in zip(SAMPLES, own_images(SAMPLES)))]
    sizes, gaps = set(), []
    for samples, images in groups:
        if not any(map(images_of, samples)):
            continue
        prompt, trace, hidden = prefill(model, pruner, samples, pixels[images])
        for i in range(len(samples)):
            text = trace.last.valid[i] & (trace.last.image[i] == TEXT)
            asked = (model, prompt.embeds, prompt.layout, trace, i, policy)
            assert_close(hidden[i][text], oracle(*asked))
            sizes |= {len(m) for layer in trace.merged_patches(i) for m in layer.values()}
            gaps.append(difference(oracle(*asked, shuffled=False), oracle(*asked)))
    assert max(sizes) > 2, "some tokens were merged"
    # With merged tokens behind the others it is something else, if that is not their position.
    assert (max(gaps) > 1e-4) == (policy == "original")


@torch.no_grad()
def test_a_merged_token_has_the_place_of_its_centre(model) -> None:
    """Positions rise in every layer under original positions, in each row of a batch."""
    pruner = pruning.build(SETTINGS[0][0], **SETTINGS[0][1], positions="original")
    pixels = tiny.pixels(8, sum(map(images_of, SAMPLES)), size=84)
    _, trace, _ = prefill(model, pruner, SAMPLES, pixels)
    merged = sum(len(layer) for i in range(len(SAMPLES)) for layer in trace.merged_patches(i))
    assert merged > 4
    for layout in [*trace.entered, trace.last]:
        for position, valid in zip(layout.position, layout.valid):
            own = position[valid].tolist()
            assert own == sorted(set(own))
