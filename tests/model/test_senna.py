"""Senna: its checkpoint, its token adapter, and pruning the six runs of mixed tokens."""

from __future__ import annotations

import re

import pytest
import torch

from llava import pruning
from llava.eval.run.models import decoder_layers
from llava.model import checkpoint
from llava.model.builder import load_pretrained_model
from llava.pruning.layout import TEXT
from tests import senna_files, tiny
from tests.answers import refused
from tests.closeness import ROUNDED, assert_close
from tests.senna_files import LAYERS

from .method_cases import small_settings
from .oracle import check_against_the_oracle
from .prompts import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return senna_files.write_senna(tmp_path_factory.mktemp("senna") / "Senna")


@pytest.fixture(scope="module")
def tower(folder):
    return folder.parent / senna_files.TOWER


@pytest.fixture(scope="module")
def model():
    return tiny.double(senna_files.model())


def test_a_checkpoint_in_upstreams_names_loads(folder, tower) -> None:
    _, model, processor, _ = load_pretrained_model(
        folder, vision_tower=tower, device="cpu", dtype="float32"
    )
    assert model.config.mm_token_adapter == [576, 128]
    loaded = model.state_dict()
    for name, shape in senna_files.ADAPTER.items():
        assert tuple(loaded[name].shape) == shape
        assert torch.equal(loaded[name], senna_files.weights()[name].float())
    assert processor.crop_size["height"] == 336


def test_the_foreign_tower_path_is_named_and_can_be_overridden(folder) -> None:
    said = refused(folder, senna_files.FOREIGN, "--vision-tower", error=FileNotFoundError)
    assert "openai/clip-vit-large-patch14-336" in said and "another machine" in said


def test_a_tower_of_another_size_is_refused(folder, tmp_path) -> None:
    small = senna_files.write_tower(tmp_path / "small", image_size=224)
    refused(folder, "takes 576 tokens a view", "gives 256", "--vision-tower", vision_tower=small)


@pytest.mark.parametrize(
    ("without", "count", "named"),
    [
        ("adapter.2.weight", 1, "model.img_adapter.adapter.2.weight [128, 128]"),
        ("adapter.0.", 2, "model.img_adapter.adapter.0.weight [128, 576]"),
    ],
)
def test_an_adapter_in_part_is_refused(tmp_path, tower, without, count, named) -> None:
    broken = senna_files.write_senna(tmp_path / "Senna", without=without)
    refused(broken, f"lacks {count} of", named, vision_tower=tower)


def test_an_adapter_that_the_config_names_must_be_there(tmp_path, tower) -> None:
    broken = senna_files.write_senna(
        tmp_path / "Senna", without="img_adapter", mm_token_adapter=[576, 128]
    )
    refused(broken, "lacks 6 of", "model.img_adapter.adapter.0.bias [128]", vision_tower=tower)


def test_it_converts_to_the_original_format_and_not_to_llava_hf(folder, tower, tmp_path) -> None:
    checkpoint.convert(folder, tmp_path / "copy", "original", tower)
    _, model, _, _ = load_pretrained_model(tmp_path / "copy", device="cpu")
    name = "model.img_adapter.adapter.4.weight"
    assert torch.equal(model.state_dict()[name], senna_files.weights()[name])
    assert decoder_layers(str(tmp_path / "copy")) == 3
    with pytest.raises(ValueError, match="no place for Senna's token adapter"):
        checkpoint.convert(folder, tmp_path / "hf", "llava-hf", tower)


@torch.no_grad()
def test_each_view_is_projected_and_mixed_on_the_token_axis(model) -> None:
    """128 = W3 gelu(W2 gelu(W1 x + b1) + b2) + b3, for each channel of a view by itself."""
    views = senna_files.pixels(3, 2)
    made = model.encode_images(views)
    features = model.get_vision_tower()(views).patches
    projected = model.model.mm_projector(features)
    w = {k: v for k, v in model.state_dict().items() if "img_adapter" in k}
    gelu = torch.nn.functional.gelu
    for view, tokens in zip(projected, made):
        columns = view.T  # (d, 16)
        for layer in (0, 2, 4):
            weight = w[f"model.img_adapter.adapter.{layer}.weight"]
            columns = columns @ weight.T + w[f"model.img_adapter.adapter.{layer}.bias"]
            columns = gelu(columns) if layer < 4 else columns
        assert_close(tokens.embeds, columns.T)
        assert tokens.cls is None and tokens.letterbox is None and tokens.mixed


@torch.no_grad()
def test_six_runs_of_visual_tokens_with_text_between(model) -> None:
    ids = senna_files.prompt(1)
    layout = model.embed_prompt(ids[None], None, senna_files.pixels(1)).layout
    image = layout.image[0].tolist()
    runs = [a for a, b in zip(image, [None, *image]) if a != b]
    assert runs == [TEXT, 0, TEXT, 1, TEXT, 2, TEXT, 3, TEXT, 4, TEXT, 5, TEXT]
    assert [image.count(view) for view in range(6)] == [8] * 6
    assert layout.n_visual == layout.whole == (48,) and layout.mixed
    # Numbered on, view after view.
    assert layout.patch[0][layout.is_visual[0]].tolist() == list(range(48))


CASES = {
    "autoprune": {"target_token_num": 20, "x0": 3.0, "recycle_ratio": 0.0},
    "autoprune-recycling": {"target_token_num": 20, "x0": 3.0},
    "autoprune-paper": {"target_token_num": 20, "x0": 3.0, "preset": "paper"},
    "fastv": {"target_token_num": 20},
    "sparsevlm": {"target_token_num": 20, "stages": (1, 2, 3)},
    "pdrop": {"target_token_num": 20, "stages": (1, 2, 4)},
    "divprune": {"target_token_num": 20},
    "random": {"target_token_num": 20, "seed": 1},
    "no-image": {},
}


def pruner(name: str) -> pruning.Pruner:
    return pruning.build(name.partition("-")[0] if name != "no-image" else name, **CASES[name])


@pytest.mark.parametrize("name", ["autoprune", "autoprune-paper", "fastv", "pdrop", "random"])
def test_pruned_equals_the_oracle(name, model) -> None:
    counts = check_against_the_oracle(model, pruner(name), images=6, steps=2).entering
    assert counts[-1] < 48


@pytest.mark.parametrize("name", CASES)
def test_a_batch_equals_its_samples(name, model) -> None:
    """Questions of 6, 3 and 6 views with different lengths of text."""
    samples = [
        senna_files.prompt(seed, views, after)
        for seed, views, after in ((1, 6, 5), (2, 3, 9), (3, 6, 12))
    ]
    starts, views = (0, 6, 9), (6, 3, 6)
    pixels = senna_files.pixels(4, 15)
    ids, mask = tiny.batch(samples)
    together, logits = generate(model, ids, mask, pixels, pruner(name))
    for i, (sample, start, count) in enumerate(zip(samples, starts, views)):
        own = pixels[start : start + count]
        alone, own_logits = generate(model, sample[None], None, own, pruner(name))
        assert_close(logits[i], own_logits[0], ROUNDED)
        assert torch.equal(together.sequences[i], alone.sequences[0])
        traces = together.past_key_values.trace.samples[i], alone.past_key_values.trace.samples[0]
        assert traces[0].entering == traces[1].entering
        assert traces[0].n_visual == 8 * count


@pytest.mark.parametrize("name", ["autoprune", "fastv", "random"])
def test_a_budget_for_each_view(name, model) -> None:
    """Two of eight tokens of every view at the end for FastV and random, two a layer on average
    for AutoPrune."""
    own = {**CASES[name], "target_token_num": 2, "budget_per": "image"}
    ids, views = senna_files.prompt(3)[None], senna_files.pixels(3)
    out, _ = generate(model, ids, None, views, pruning.build(name, **own), new=1)
    trace = out.past_key_values.trace
    if name == "autoprune":
        assert sum(trace.samples[0].leaving) / LAYERS == pytest.approx(12, abs=1)
    else:
        left = [patch // 8 for patch in trace.kept_patches(0)[-1]]
        assert [left.count(view) for view in range(6)] == [2] * 6
    # Each view has as many as the others, one more where they cannot all have the same.
    for kept in trace.kept_patches(0):
        left = [patch // 8 for patch in kept]
        counts = [left.count(view) for view in range(6)]
        assert max(counts) - min(counts) <= 1


@torch.no_grad()
def test_the_preselection_ranks_by_text_attention_alone(model) -> None:
    """After layer 0 int(2.5 x 8) = 20 of 48 stay: those that the text after the last view looks at
    most in that layer, whatever the weight of the text term."""
    ids, views = senna_files.prompt(2), senna_files.pixels(2)
    kept = []
    for weight in (0.3, 0.0):
        chosen = pruning.build("autoprune", target_token_num=8, x0=3.0, preselect_text=weight)
        out, _ = generate(model, ids[None], None, views, chosen, new=1)
        kept.append(out.past_key_values.trace.kept_patches(0)[1])
    eager = senna_files.model("eager")
    prompt = eager.embed_prompt(ids[None], None, views)
    layer, hidden = eager.model.layers[0], prompt.embeds
    rope = eager.model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    mask = torch.full((hidden.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
    normed = layer.input_layernorm(hidden)
    weights = layer.self_attn(normed, attention_mask=mask, position_embeddings=rope)[1]
    relevance = weights[0, :, -7:].mean((0, 1))  # heads, the 7 rows of text behind the last view
    visual = prompt.layout.is_visual[0]
    best = relevance[visual].argsort(descending=True)[:20].sort().values.tolist()
    assert kept == [best, best]


@pytest.mark.parametrize("method", pruning.METHODS)
def test_methods_that_need_patches_say_so(method, model) -> None:
    """The others run, and see all the tokens that there are."""
    chosen = pruning.build(method, **small_settings(pruning.METHODS[method], 20))
    prompt, views = senna_files.prompt(1)[None], senna_files.pixels(1)
    if chosen.needs_patches:
        message = f"method {re.escape(method)} works on the vision tower's patches"
        with pytest.raises(ValueError, match=message):
            generate(model, prompt, None, views, chosen)
    else:
        trace = generate(model, prompt, None, views, chosen)[0].past_key_values.trace
        assert trace.samples[0].n_visual == 48


def test_methods_that_look_at_text_or_at_nothing_need_no_patches() -> None:
    free = {name for name, cls in pruning.METHODS.items() if not cls().needs_patches}
    assert free >= {"none", "no-image", "random", "autoprune", "fastv", "sparsevlm", "pdrop"}
    assert free >= {"divprune", "dart", "zipvl"}


def test_a_bound_on_patches_is_refused_below_all_of_them(model) -> None:
    ids, views = senna_files.prompt(1)[None], senna_files.pixels(1)
    with pytest.raises(ValueError, match="visual_token_num 15 drops patches"):
        model.generate(ids, images=views, visual_token_num=15)
    model.generate(ids, images=views, visual_token_num=16, max_new_tokens=1)
