"""Generation under pruning: every mode of `generate`, and no state between calls."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from accelerate import cpu_offload
from transformers.generation.streamers import BaseStreamer

from llava import pruning
from llava.pruning.cache import PrunedCache
from tests import tiny

PRUNER = pruning.build("autoprune", target_token_num=6, x0=3.0)


@pytest.fixture(scope="module")
def model():
    return tiny.model(11)


def greedy(model, prompt, images, pruner=PRUNER, new=8, **options):
    return model.generate(
        prompt[None], images=images, pruner=pruner, do_sample=False, max_new_tokens=new, **options
    )


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_every_new_token(model) -> None:
    streamer = Collected()
    out = greedy(model, tiny.prompt(1), tiny.pixels(1), streamer=streamer)
    assert streamer.ended and streamer.tokens == out[0].tolist() and len(streamer.tokens) == 8


def test_sampling_is_reproducible_and_varies(model) -> None:
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return model.generate(
            tiny.prompt(1)[None],
            images=tiny.pixels(1),
            pruner=PRUNER,
            do_sample=True,
            temperature=1.5,
            max_new_tokens=12,
        )[0].tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_prefill_then_steps_equal_generate(model) -> None:
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    expected = greedy(model, prompt, images)[0].tolist()
    with torch.no_grad():
        out = model(prompt[None], images=images, pruner=PRUNER, logits_to_keep=1)
        tokens = [int(out.logits[0, -1].argmax())]
        while len(tokens) < 8:
            last = torch.tensor([[tokens[-1]]])
            out = model(last, past_key_values=out.past_key_values)
            tokens.append(int(out.logits[0, -1].argmax()))
    assert tokens == expected


def test_nothing_of_a_call_stays_on_the_model(model) -> None:
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    dense = greedy(model, prompt, images, pruner=None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    settings = copy.deepcopy(model.config.to_dict())
    greedy(model, prompt, images)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert model.config.to_dict() == settings
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(greedy(model, prompt, images, pruner=None), dense)


def test_an_error_in_a_call_leaves_the_next_one_alone(model) -> None:
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    expected = greedy(model, prompt, images)
    impossible = pruning.build("autoprune", target_token_num=1, budget_mode="strict")
    with pytest.raises(ValueError, match="below the floor"):
        greedy(model, prompt, images, pruner=impossible)
    assert torch.equal(greedy(model, prompt, images), expected)


def test_threads_do_not_mix(model) -> None:
    """Eight calls at once, dense and pruned ones with different budgets, each like alone."""
    cases = [
        (tiny.prompt(i, after=4 + i), tiny.pixels(i), None if i % 3 == 0 else pruner)
        for i, pruner in enumerate(
            pruning.build("autoprune", target_token_num=3 + i, x0=3.0) for i in range(8)
        )
    ]
    alone = [greedy(model, *case, new=6).tolist() for case in cases]
    together: dict[int, list] = {}

    def work(i: int) -> None:
        for _ in range(3):
            together[i] = greedy(model, *cases[i], new=6).tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(cases))] == alone


def test_a_conversation_goes_on_with_the_pruned_cache(model) -> None:
    """A second turn on the cache equals one long decode of the same tokens."""
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    first = greedy(model, prompt, images, return_dict_in_generate=True, new=5)
    question = torch.tensor([11, 12, 13])
    whole = torch.cat([prompt, first.sequences[0], question])
    second = greedy(model, whole, images, past_key_values=first.past_key_values, new=4)

    with torch.no_grad():
        out = model(prompt[None], images=images, pruner=PRUNER)
        for token in torch.cat([first.sequences[0], question]):
            out = model(token[None, None], past_key_values=out.past_key_values)
        tokens = [int(out.logits[0, -1].argmax())]
        while len(tokens) < 4:
            last = torch.tensor([[tokens[-1]]])
            out = model(last, past_key_values=out.past_key_values)
            tokens.append(int(out.logits[0, -1].argmax()))
    assert second[0].tolist() == tokens


def test_an_offloaded_model_answers_the_same() -> None:
    """accelerate keeps the weights elsewhere and brings each module's in when it runs."""
    prompt, images, whole = tiny.prompt(1, images=2), tiny.pixels(1, 2), tiny.model(11)
    expected = greedy(whole, prompt, images, visual_token_num=12)
    offloaded = cpu_offload(tiny.model(11), execution_device=torch.device("cpu"))
    assert offloaded.model.embed_tokens.weight.device.type == "meta"
    assert torch.equal(greedy(offloaded, prompt, images, visual_token_num=12), expected)


def test_an_upper_bound_on_visual_tokens(model) -> None:
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    out = greedy(
        model, prompt, images, pruner=None, visual_token_num=5, return_dict_in_generate=True
    )
    trace = out.past_key_values.trace
    assert trace.samples[0].entering == [5] * 6
    cls = model.encode_images(images, pruner=pruning.build("autoprune"))[0].cls
    assert trace.kept_patches(0)[0] == sorted(cls.topk(5).indices.tolist())
    more = greedy(model, prompt, images, pruner=None, visual_token_num=2880)
    assert torch.equal(more, greedy(model, prompt, images, pruner=None))


def test_the_trace_tells_what_the_cache_holds(model) -> None:
    prompt = tiny.prompt(1, images=2)
    out = greedy(model, prompt, tiny.pixels(1, 2), return_dict_in_generate=True)
    cache = out.past_key_values
    sample = cache.trace.samples[0]
    held = [layer.keys.shape[-2] for layer in cache.layers]
    # 7 of the 8 new tokens were fed back.
    assert held == [n + sample.n_text + 7 for n in sample.entering]
    assert cache.get_seq_length() == 32 + sample.n_text + 7
    assert sample.leaving[:-1] == sample.entering[1:]
    patches = cache.trace.kept_patches(0)
    assert [len(p) for p in patches] == [*sample.entering, sample.leaving[-1]]
    assert patches[0] == list(range(32))
    for before, after, merged in zip(patches, patches[1:], cache.trace.merged_patches(0)):
        assert set(after) <= set(before)
        for centre, members in merged.items():
            assert centre in members and centre in after
            assert not (set(members) - {centre}) & set(after)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: greedy(m, tiny.prompt(1), None), "1 image placeholders, but 0 images"),
        (lambda m: greedy(m, tiny.prompt(1), tiny.pixels(1, 2)), "1 image placeholders, but 2"),
        (
            lambda m: greedy(m, tiny.prompt(1), tiny.pixels(1), image_sizes=[(1, 1)] * 2),
            "1 images but 2 image_sizes",
        ),
        (lambda m: greedy(m, tiny.prompt(1, after=0), tiny.pixels(1)), "text after the last image"),
        (
            lambda m: greedy(m, torch.tensor([1, tiny.VOCAB]), None),
            f"id {tiny.VOCAB} has no row among the {tiny.VOCAB} of the embeddings",
        ),
        (
            lambda m: greedy(m, tiny.prompt(1), tiny.pixels(1), visual_token_num=0),
            "visual_token_num must be at least 1",
        ),
        (
            lambda m: m(tiny.prompt(1)[None], images=tiny.pixels(1), output_attentions=True),
            "past_key_values.trace",
        ),
        (
            lambda m: m(tiny.prompt(1, images=0)[None], past_key_values=object()),
            "must be a PrunedCache, got object",
        ),
        (
            lambda m: m(
                tiny.prompt(1)[None],
                images=tiny.pixels(1),
                labels=tiny.prompt(1)[None],
                pruner=PRUNER,
            ),
            "train without a pruner",
        ),
        (
            lambda m: greedy(
                m,
                tiny.prompt(1),
                tiny.pixels(1),
                pruner=pruning.build("autoprune", mi_layer=6),
            ),
            "mi_layer 6 of a decoder of 6 layers",
        ),
    ],
)
def test_wrong_input_is_named(model, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_used_cache_refuses_other_input(model) -> None:
    layout = model.embed_prompt(tiny.prompt(1)[None], None, tiny.pixels(1)).layout
    with pytest.raises(ValueError, match="make a new PrunedCache"):
        model(tiny.prompt(2, images=0)[None], past_key_values=PrunedCache(None, layout))


def test_unknown_attention_backends_are_refused(model) -> None:
    other = tiny.model(1)
    other.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="must be one of sdpa, eager, flash_attention_2"):
        other(tiny.prompt(1, images=0)[None])
