"""Pruning LLaVA-1.6: pictures of unequal token counts, newlines, tiles, budgets per image."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.entry import EntryPruner
from llava.pruning.layout import NEWLINE
from tests import tiny, tiny_next
from tests.closeness import ROUNDED, assert_close

from .oracle import check_against_the_oracle

LAYERS = 6
#: 68 tokens (4 newlines), 26 (2), 88 (8) and 52 (4).
SIZES = [(300, 90), (40, 20), (112, 112), (200, 100)]
#: A prompt with two pictures, one without, two with one; the pictures in this order.
PROMPTS = [
    tiny.prompt(1, before=4, after=6, images=2),
    tiny.prompt(2, before=2, after=5, images=0),
    tiny.prompt(3, before=3, after=8),
    tiny.prompt(4, before=1, after=4),
]
OWN = [slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 4)]
VISUAL = [94, 0, 88, 52]

AUTOPRUNE = {"x0": 3.0, "recycle_ratio": 0.0}
#: Methods that act in the decoder and merge nothing, at 20 tokens, or more where all that enters
#: counts and layer 0, or layers 0 and 1, take up to 182 of it.
IN_THE_DECODER = [
    ("autoprune", AUTOPRUNE),
    ("autoprune", {**AUTOPRUNE, "tile_scores": "normalised", "budget_per": "image"}),
    ("autoprune", {"x0": 3.0, "preset": "paper", "budget_mode": "strict", "target_token_num": 64}),
    ("fastv", {}),
    ("fastv", {"budget_per": "image"}),
    ("dart", {}),
    ("pdrop", {"stages": (1, 2, 4), "target_token_num": 40}),
    ("sparsevlm", {"stages": (1, 3, 4), "version": "plus"}),
    ("topv", {"layer": 1}),
    ("zipvl", {}),
    ("divprune", {"newlines": "last"}),
    ("dpp", {}),
    ("holov", {}),
    ("id-selection", {}),
    ("vtw", {"target_token_num": 40}),
    ("random", {"budget_per": "image"}),
    ("uniform-grid", {}),
]
CHOOSES_NEWLINES = ("divprune", {})
IN_THE_TOWER = ["fastervlm", "hired", "vispruner"]
#: HiRED with all of its budget, which as published loses some of it in tiles.
WHOLE = {"hired": {"shares": "whole", "border": "kept"}}
#: Methods that make new tokens, in the decoder and (60 tokens: ToMe leaves at least 6 of a view) in
#: the tower.
MERGING = [
    ("autoprune", {"x0": 3.0}),
    ("autoprune", {"x0": 3.0, "budget_per": "image"}),
    ("sparsevlm", {"stages": (1, 3, 4)}),
]
MERGING_IN_THE_TOWER = [
    *((method, {"target_token_num": 60}) for method in ("visionzip", "prumerge+", "tome")),
    ("tome", {"target_token_num": 30, "budget_per": "image"}),
]


def name(case) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


def built(case) -> pruning.Pruner:
    return pruning.build(case[0], **{"target_token_num": 20, **case[1]})


@pytest.fixture(scope="module")
def model():
    return tiny.double(tiny_next.model(7, layers=LAYERS))


@pytest.fixture(scope="module")
def spatial():
    return tiny.double(tiny_next.model(7, layers=LAYERS, mm_patch_merge_type="spatial"))


def generate(model, chosen, prompts=PROMPTS, images=slice(None)):
    pixels = tiny_next.views(SIZES, model.config)[images]
    ids, mask = tiny.batch(prompts)
    out = model.generate(
        ids,
        images=pixels or None,
        image_sizes=SIZES[images] if pixels else None,
        attention_mask=mask,
        pruner=chosen,
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(out.logits, 1), out.past_key_values.trace


@pytest.mark.parametrize("case", [*IN_THE_DECODER, CHOOSES_NEWLINES], ids=name)
def test_several_pictures_equal_the_oracle(case, model):
    sizes = SIZES[:3]
    pixels = tiny_next.views(sizes, model.config)
    counts = check_against_the_oracle(model, built(case), 3, 2, pixels, sizes)
    entry = isinstance(built(case), EntryPruner)
    assert counts.n_visual == 68 + 26 + 88
    assert (counts.entering[0] < counts.n_visual) == entry
    assert counts.leaving[-1] < 94


@pytest.mark.parametrize("case", [*IN_THE_DECODER, CHOOSES_NEWLINES, *MERGING], ids=name)
def test_a_batch_of_unequal_counts_equals_its_samples(case, model):
    assert_batch_equals_samples(case, model, VISUAL)


@pytest.mark.parametrize(
    "case", [*((method, {}) for method in IN_THE_TOWER), *MERGING_IN_THE_TOWER], ids=name
)
def test_so_do_views_that_were_reduced_in_the_tower(case, spatial):
    """4 + 3, 5 and 3 views of 16 patches."""
    assert_batch_equals_samples(case, spatial, [112, 0, 80, 48])


def assert_batch_equals_samples(case, model, visual: list[int]) -> None:
    logits, trace = generate(model, built(case))
    assert [sample.n_visual for sample in trace.samples] == visual
    for i, own in enumerate(OWN):
        alone, single = generate(model, built(case) if visual[i] else None, [PROMPTS[i]], own)
        assert_close(logits[i], alone[0], ROUNDED)
        assert single.kept_patches(0) == trace.kept_patches(i)


def newlines_go_first(trace) -> bool:
    """Whether a picture that lacks a patch has no newline left, in any layer."""
    whole = trace.first
    assert whole.is_newline.sum(1).tolist() == [6, 0, 8, 4]
    seen_some_cut, first = False, True
    for layout in [*trace.entered, trace.last]:
        for image in (0, 1):
            left = (layout.is_patch & (layout.image == image)).sum(1)
            cut = left < (whole.is_patch & (whole.image == image)).sum(1)
            seen_some_cut |= bool(cut.any())
            first &= not ((layout.is_newline & (layout.image == image)).any(1) & cut).any()
    assert seen_some_cut
    return first


@pytest.mark.parametrize("case", IN_THE_DECODER, ids=name)
def test_newlines_go_before_any_patch_of_their_picture(case, model):
    """Unless a method chooses from them like patches, as the references of some do."""
    chosen = built(case)
    if getattr(chosen, "newlines", "last") == "candidates":
        assert not newlines_go_first(generate(model, chosen)[1])
        chosen = replace(chosen, newlines="last")
    assert newlines_go_first(generate(model, chosen)[1])


def test_newlines_can_be_chosen_like_patches(model):
    """They are one embedding, so the first is chosen early and the others last."""
    _, trace = generate(model, built(CHOOSES_NEWLINES), PROMPTS[2:3], OWN[2])
    assert trace.last.n_visual == (20,) and trace.first.is_newline.sum() == 8
    assert trace.last.is_newline.sum() == 1


@pytest.mark.parametrize("merge_type", ["spatial", "flat"])
@pytest.mark.parametrize("method", IN_THE_TOWER)
def test_tower_methods_choose_in_the_tiles(method, merge_type):
    """Eight views of 16 patches, of an overview and two tiles, and of one and four, share T."""
    model = tiny.double(tiny_next.model(7, layers=LAYERS, mm_patch_merge_type=merge_type))
    sizes = [(40, 20), (112, 112)]
    pixels = tiny_next.views(sizes, model.config)
    chosen = pruning.build(method, target_token_num=24, **WHOLE.get(method, {}))
    counts = check_against_the_oracle(model, chosen, 2, 2, pixels, sizes)
    assert counts.n_visual == 16 * (3 + 5) and counts.entering == [24] * LAYERS


def test_tokens_of_the_canvas_stand_in_its_order(spatial):
    pixels = tiny_next.views([(112, 112)], spatial.config)
    settings = {"visionzip": {"tile_order": "canvas"}}
    for method in ("fastervlm", "visionzip", "prumerge+", "tome"):
        chosen = pruning.build(method, target_token_num=40, **settings.get(method, {}))
        (made,) = spatial.encode_images(pixels, [(112, 112)], pruner=chosen)
        assert len(made.embeds) == 40 and made.whole == 80
        view, place = made.tile.tolist(), made.patch.tolist()
        assert [view.count(i) for i in range(5)] == [8] * 5
        assert view[:8] == [0] * 8 and max(place[:8]) <= 80
        assert place[8:] == sorted(place[8:])


@pytest.mark.parametrize("method", [*IN_THE_TOWER, "visionzip", "prumerge+", "tome"])
def test_tower_methods_refuse_a_canvas_that_is_cut_afterwards(method, model):
    with pytest.raises(ValueError, match=f"method {re.escape(method)} .* merge_type 'spatial'"):
        generate(model, pruning.build(method, target_token_num=48))


def test_vscan_refuses_tiles(spatial):
    with pytest.raises(ValueError, match="vscan does not cover tiled pictures"):
        generate(spatial, pruning.build("vscan", target_token_num=8, layer=3))


def test_a_bound_drops_newlines_first_and_never_fails(model):
    sizes = [(112, 112), (40, 20)]
    pixels = tiny_next.views(sizes, model.config)
    whole = model.encode_images(pixels, sizes)
    assert [len(one.embeds) for one in whole] == [88, 26]
    for bound in (2880, 88, 80):
        same = model.encode_images(pixels, sizes, visual_token_num=bound)
        assert all(torch.equal(a.embeds, b.embeds) for a, b in zip(whole, same))
    # 80 patches and 24: the second picture is below the bound and keeps its newlines.
    first, second = model.encode_images(pixels, sizes, visual_token_num=30)
    assert len(first.embeds) == first.whole == 30 and (first.tile != NEWLINE).all()
    assert len(second.embeds) == 26 and (second.tile == NEWLINE).sum() == 2
    scored = model.encode_images(pixels, sizes, pruner=built(("autoprune", AUTOPRUNE)))[0]
    best = scored.cls.argsort(descending=True, stable=True)[:30].sort().values
    assert torch.equal(first.patch, best)
    assert torch.equal(first.embeds, whole[0].embeds[best])


@pytest.mark.parametrize("merge_type", ["spatial", "flat"])
def test_the_border_of_the_canvas_is_ranked_or_goes_first(merge_type):
    """80 x 100: two of eight columns of the canvas are black, 16 of 16 + 64 patches."""
    model = tiny_next.model(7, layers=LAYERS, mm_patch_merge_type=merge_type)
    pixels = tiny_next.views([(80, 100)], model.config)

    def first_cut(**chosen) -> tuple[set[int], set[int]]:
        pruner = built(("autoprune", {**AUTOPRUNE, "preselect_text": 0.0, **chosen}))
        options = {"images": pixels, "image_sizes": [(80, 100)], "max_new_tokens": 1}
        out = model.generate(
            PROMPTS[2][None], pruner=pruner, return_dict_in_generate=True, **options
        )
        trace = out.past_key_values.trace
        box = trace.first.letterbox[0][trace.first.is_visual[0]]
        return set(trace.kept_patches(0)[1]), set(box.nonzero()[:, 0].tolist())

    kept, black = first_cut(border_mask=True)
    assert len(kept) == 50 and len(black) == 16 and not kept & black
    # Rows of eight patches, or tiles whose first or last column is black.
    assert {16, 16 + 16 + 3} <= black if merge_type == "flat" else {16, 16 + 7, 16 + 8} <= black
    kept, _ = first_cut()
    assert len(kept) == 50 and kept & black
    # Nothing of it is left to rank where it was cut off.
    model = tiny_next.model(7, layers=LAYERS)
    (tokens,) = model.encode_images(pixels, [(80, 100)])
    assert not tokens.letterbox.any()


def test_a_fraction_is_of_each_samples_own_tokens(model):
    """A quarter of 94, 88 and 52, half of a token to the even number: 24 (23.5), 22, 13."""
    chosen = pruning.build("random", target_fraction=0.25)
    _, trace = generate(model, chosen)
    assert [sample.entering for sample in trace.samples] == [[n] * LAYERS for n in (24, 0, 22, 13)]


@pytest.mark.parametrize("depths", [None, 32], ids=["as published", "scaled"])
def test_forty_layers(depths):
    """LLaVA-13B's depth: x0 is taken as it stands, as the paper does, or moved with the depth."""
    model = tiny_next.model(3, layers=40)
    chosen = pruning.build("autoprune", target_token_num=20)
    chosen = chosen if depths is None else chosen.scaled(depths, 40)
    assert chosen.x0 == (14.9 if depths is None else 18.625)
    _, trace = generate(model, chosen, PROMPTS[:1], OWN[0])
    leaving = trace.samples[0].leaving
    assert len(leaving) == 40 and sum(leaving) / 40 == pytest.approx(20, abs=1)


def kept_by_image(layout, sample: int = 0) -> list[int]:
    image = layout.image[sample]
    return [int((image == i).sum()) for i in range(int(image.max()) + 1)]


def test_a_budget_for_each_picture(model):
    """FastV keeps T after two layers: 20 for both, or 20 of 68 and 20 of 26."""
    _, trace = generate(model, pruning.build("fastv", target_token_num=20, budget_per="image"))
    assert kept_by_image(trace.last) == [20, 20]
    _, trace = generate(model, pruning.build("fastv", target_token_num=20))
    assert sum(kept_by_image(trace.last)) == 20
    # 40 of 68, and all 26 with their 2 newlines: none of their patches has to go.
    _, trace = generate(model, pruning.build("fastv", target_token_num=40, budget_per="image"))
    assert kept_by_image(trace.last) == [40, 26]


def test_what_is_fed_must_fit(model):
    pixels = tiny_next.views([(112, 112)], model.config)
    prompt = tiny.prompt(1)[None]
    with pytest.raises(ValueError, match="need image_sizes"):
        model.generate(prompt, images=pixels)
    with pytest.raises(ValueError, match=r"40 x 20 has 3 views, 5 came"):
        model.generate(prompt, images=pixels, image_sizes=[(40, 20)])
    with pytest.raises(ValueError, match=r"\(views, 3, h, w\) each of an anyres model"):
        model.generate(prompt, images=[pixels[0][0, 0]], image_sizes=[(40, 20)])


def test_frames_may_be_padded_instead_of_tiled(tmp_path):
    """A view each, without newlines; padding is known as in LLaVA-1.5."""
    model = tiny_next.model(7, layers=LAYERS, image_aspect_ratio="pad")
    sizes = [(300, 90), (40, 20)]
    pixels = tiny_next.pixels(sizes, model.config, tiny_next.processor(tmp_path))
    layout = model.embed_prompt(PROMPTS[0][None], None, pixels, sizes).layout
    assert layout.n_visual == (32,) and layout.tile is None and layout.letterbox.any()
