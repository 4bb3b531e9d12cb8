"""flash attention on padded batches gives what sdpa gives, through transformers' own path to it."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from llava.model.language_model.backends import backend_of, check_backend
from tests import flash_kernels, tiny
from tests.closeness import ROUNDED, assert_close

from .method_cases import CASES, LAYERS
from .prompts import SAMPLES, generate, images_of, one

IMAGES = sum(map(images_of, SAMPLES))
FLASH = "flash_attention_2"


@pytest.fixture(scope="module")
def model():
    return tiny.double(tiny.model(7, layers=LAYERS, kv_heads=2))


@pytest.fixture
def kernels(monkeypatch):
    return flash_kernels.install(monkeypatch)


@pytest.fixture
def flash_model(model, kernels, monkeypatch):
    """The same model, with another name in its config for one test."""

    def switch(name: str = FLASH):
        monkeypatch.setattr(model.config, "_attn_implementation_internal", name)
        return model

    return switch


def batch(model, pruner, **options):
    """Samples of 1, 2, 0 and 1 images."""
    return generate(model, *tiny.batch(SAMPLES), tiny.pixels(8, IMAGES), pruner, **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_padded_batch_equals_sdpa(case, model, flash_model, kernels) -> None:
    expected, expected_logits = batch(model, case.pruner, new=3)
    out, logits = batch(flash_model(), case.pruner, new=3)
    assert torch.equal(out.sequences, expected.sequences)
    assert_close(logits, expected_logits, ROUNDED)
    assert kernels.runs["ragged"]
    held = [layer.keys.shape for layer in out.past_key_values.layers]
    assert held == [layer.keys.shape for layer in expected.past_key_values.layers]


@pytest.mark.parametrize("case", CASES[2:12:3], ids=str)
def test_more_tokens_on_a_padded_cache_equal_sdpa(case, model, flash_model) -> None:
    """Queries are fewer than keys then, and of all of them some keys are padding."""

    def turns(model):
        ids, mask = tiny.batch(SAMPLES)
        out, _ = batch(model, case.pruner, new=3)
        ids = torch.cat([ids, out.sequences, torch.full((len(ids), 4), 11)], 1)
        mask = torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], 1)
        return generate(model, ids, mask, past_key_values=out.past_key_values, new=3)

    expected, expected_logits = turns(model)
    out, logits = turns(flash_model())
    assert torch.equal(out.sequences, expected.sequences)
    assert_close(logits, expected_logits, ROUNDED)


def test_one_sample_needs_no_unpadding(model, flash_model, kernels) -> None:
    pruner = CASES[2].pruner
    _, expected = one(model, pruner)
    _, logits = one(flash_model(), pruner)
    assert_close(logits, expected, ROUNDED)
    assert kernels.runs["dense"] and not kernels.runs["ragged"]


@pytest.mark.skipif(
    is_flash_attn_2_available() or is_kernels_available(), reason="flash attention is installed"
)
class TestNames:
    """What transformers makes of `flash_attention_2`, and what that is here."""

    @pytest.fixture
    def renamed(self, monkeypatch):
        kernels = flash_kernels.install_from_hub(monkeypatch)
        model = tiny.model(7, layers=LAYERS)
        model.set_attn_implementation(FLASH)
        assert model.config._attn_implementation not in (FLASH, "sdpa")
        return model, kernels

    def test_a_kernel_of_the_hub_is_flash_attention(self, renamed) -> None:
        model, _ = renamed
        assert backend_of(model.config) == FLASH
        # who asks for that name asks for what the documentation does not offer
        with pytest.raises(ValueError, match="must be one of sdpa, eager, flash_attention_2"):
            check_backend(model.config._attn_implementation)

    def test_a_model_answers_with_it(self, renamed) -> None:
        model, kernels = renamed
        pruner = CASES[2].pruner
        out, _ = batch(model, pruner)
        assert kernels.runs["ragged"]
        expected, _ = batch(tiny.model(7, layers=LAYERS), pruner)
        assert torch.equal(out.sequences, expected.sequences)

    @pytest.mark.parametrize("name", ["sdpa", "eager", FLASH])
    def test_other_names_are_themselves(self, name) -> None:
        assert backend_of(tiny.config(attn=name)) == name

    @pytest.mark.parametrize(
        "name", ["flash_attention_3", "flex_attention", "kernels-community/another"]
    )
    def test_what_is_not_known_is_refused(self, name) -> None:
        with pytest.raises(ValueError, match=f"must be one of .*, got '{name}'"):
            backend_of(tiny.config(attn=name))
