"""Blocks, caches and costs: what they serve, what they leave, what they refuse."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from transformers import DynamicCache, TextStreamer

from llava import hf, pruning
from tests.closeness import assert_close

from . import methods, zoo

FASTV, RANDOM = methods.pruner("fastv"), methods.pruner("random")
NONE = pruning.build("none")


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return zoo.inputs("llava", ["tiq", "titiqt"])


@pytest.fixture
def model() -> Any:
    yield (net := zoo.shared("llava"))
    gc.collect()
    assert not traces(net)


def traces(net: Any) -> list[Any]:
    """What is on a model while hooks are: these, and configs and functions of the package."""
    left: list[Any] = []
    for module in net.modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        values = [*hooks, *(type(value) for value in vars(module).values())]
        left += [value for value in values if value.__module__.startswith("llava")]
        methods_here = [vars(module).get(name) for name in ("forward", "generate")]
        left += [f for f in methods_here if f and f.__module__.startswith("llava")]
    return left


def answer(net: Any, batch: dict[str, Any], **options: Any) -> torch.Tensor:
    output = net.generate(
        **batch,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return torch.stack(output.logits)


def test_a_block_prunes_and_leaves_nothing(model, batch) -> None:
    plain = answer(model, batch)
    with hf.pruning(model, "fastv", target_token_num=6, depth=2) as pruned:
        assert pruned.trace.samples == [] and pruned.cost == []
        inside = answer(model, batch)
        assert pruned.trace.samples[1].entering == [32, 32, 6, 6, 6]
    assert (inside - plain).abs().max() > 1e-3
    assert torch.equal(inside, answer(model, batch, past_key_values=hf.cache(model, FASTV)))
    assert pruned.trace.samples[0].entering == [16, 16, 6, 6, 6]
    assert torch.equal(answer(model, batch), plain)


def test_the_last_call_is_the_one_that_counts(model, batch) -> None:
    short = zoo.inputs("llava", ["iq"])
    with hf.pruning(model, RANDOM) as pruned:
        answer(model, batch)
        model(**short)
    (cost,) = pruned.cost
    assert cost.tokens_entering == 8 and cost.decode_flops == 0
    with hf.pruning(model, RANDOM) as pruned:
        answer(model, batch)
    assert len(pruned.cost) == 2 and pruned.cost[0].decode_flops > 0
    assert pruned.cost[0].kv_bytes < pruned.cost[0].dense_kv_bytes


def test_an_error_in_a_block_leaves_nothing(model, batch) -> None:
    with pytest.raises(KeyError), hf.pruning(model, FASTV):
        raise KeyError
    assert not traces(model)
    # In the middle of a prefill.
    layer = model.get_decoder().layers[2]
    handle = layer.mlp.register_forward_pre_hook(lambda *call: {}["no"])
    with pytest.raises(KeyError), hf.pruning(model, FASTV):
        model(**batch)
    handle.remove()


def test_blocks_nest_and_other_models_are_left_alone(model, batch) -> None:
    other = zoo.model("llava")
    with hf.pruning(model, FASTV) as outer:
        with hf.pruning(model, RANDOM) as inner:
            answer(model, batch)
        assert inner.trace.samples and not outer.trace.samples
        assert not traces(other)
        model(**batch)
        assert outer.trace.samples[0].entering == [16, 16, 6, 6, 6]
        assert torch.equal(other(**batch).logits, zoo.model("llava")(**batch).logits)


@torch.no_grad()
def test_a_conversation_goes_on_behind_a_block(model, batch) -> None:
    """The hooks stay as long as a cache that needs them, and prune no other call."""
    cache = hf.cache(model, FASTV)
    out = model(**batch, past_key_values=cache)
    more = torch.tensor([[11, 12, 13]] * 2)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    next_logits = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
    assert out.past_key_values is cache and cache.get_seq_length() == mask.shape[1]
    assert traces(model)
    assert torch.equal(model(**batch).logits, zoo.model("llava")(**batch).logits)
    # Token by token it is the same.
    cache = hf.cache(model, FASTV)
    model(**batch, past_key_values=cache)
    for i in range(3):
        seen = mask[:, : mask.shape[1] - 2 + i]
        step = {"input_ids": more[:, i : i + 1], "attention_mask": seen}
        logits = model(**step, past_key_values=cache).logits
        assert_close(logits[:, 0], next_logits[:, i], 1e-6)  # tables of positions are float32
    del cache, out


@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.2"),
    reason="before 5.2 transformers collects a tower's hidden states by swapping its forward",
)
def test_two_threads_prune_by_two_methods_and_a_third_not_at_all(model, batch) -> None:
    pruners = [FASTV, RANDOM, None]
    expected = [answer(model, batch, past_key_values=hf.cache(model, p or NONE)) for p in pruners]
    barrier, results = threading.Barrier(3), [[], [], []]

    def work(index: int) -> None:
        barrier.wait()
        for _ in range(4):
            if pruners[index] is None:
                results[index].append(answer(model, batch))
                continue
            with hf.pruning(model, pruners[index]):
                results[index].append(answer(model, batch))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found_logits, logits in zip(results, expected):
        assert len(found_logits) == 4 and all(torch.equal(one, logits) for one in found_logits)
    assert not torch.equal(expected[0], expected[1])


@torch.no_grad()
def test_another_kernel_may_be_set_meanwhile(batch) -> None:
    net = zoo.model("llava")
    cache = hf.cache(net, FASTV)
    by_sdpa = answer(net, batch, past_key_values=cache)
    short = zoo.inputs("llava", ["tiq"])  # eager in float64 knows no padding
    net.set_attn_implementation("eager")
    stock = zoo.model("llava", attn="eager")
    assert torch.equal(net(**short).logits, stock(**short).logits)
    assert net(**short, output_attentions=True).attentions[0] is not None
    assert_close(
        answer(net, short, past_key_values=hf.cache(net, FASTV))[:, 0], by_sdpa[:, 0], 2e-6
    )
    del cache


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_beams_samples_and_streams(name: str) -> None:
    """Two beams are as they are alone, and as many returns as wanted come."""
    net = zoo.shared(name)
    batch, alone = zoo.inputs(name, ["tiq", "titiqt"]), zoo.inputs(name, ["tiq"])
    pruner = methods.pruner("autoprune", merging=True)
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with hf.pruning(net, pruner) as pruned:
        together = net.generate(**batch, num_return_sequences=2, **options)
        assert len(together) == 4 and len(pruned.trace.samples) == 6
        single = net.generate(**alone, num_return_sequences=2, **options)
        assert torch.equal(together[:2, -4:], single[:, -4:])
        torch.manual_seed(0)
        sampled = net.generate(**batch, do_sample=True, num_return_sequences=3, max_new_tokens=3)
        assert len(sampled) == 6
        words: list[str] = []
        streamer = TextStreamer(SimpleNamespace(decode=lambda ids, **kwargs: f"{len(ids)} "))
        streamer.on_finalized_text = lambda text, stream_end=False: words.append(text)
        net.generate(**alone, streamer=streamer, max_new_tokens=3)
        assert words
    with hf.pruning(net, "none"):
        unpruned = net.generate(**batch, **options)
    # Stock Gemma 3 decodes from layers that hold a window; ours hold everything.
    assert torch.equal(unpruned, net.generate(**batch, past_key_values=DynamicCache(), **options))


def test_autoprune_as_it_stands_ranks_by_text(model, batch) -> None:
    """Its pre-selection has no CLS attention to rank by, and ranks by what text attends to."""
    with hf.pruning(model, target_token_num=8, x0=2.0) as pruned:
        assert pruned.pruner.positions == "original" and pruned.pruner.preselect_ratio == 2.5
        answer(model, batch)
    assert pruned.trace.samples[1].entering[:2] == [32, 20]
    assert pruned.trace.complexity[0]["mi"] > 0


def test_prompts_without_pictures_are_not_pruned(model) -> None:
    batch = zoo.inputs("llava", ["tq", "t"])
    plain = answer(model, batch)
    with hf.pruning(model, FASTV) as pruned:
        assert torch.equal(answer(model, batch), plain)
    assert pruned.cost[0].tokens_entering == 0


def test_a_cost_without_running(model, batch) -> None:
    for method in ("none", "fastv", "dart", "random", "pdrop"):
        pruner = methods.pruner(method)
        with hf.pruning(model, pruner) as pruned:
            answer(model, batch)
        assert hf.cost(model, batch, pruner, new_tokens=4) == pruned.cost
    settings = {"target_token_num": 8, "x0": 2.0}
    with hf.pruning(model, "autoprune", **settings) as pruned:
        answer(model, batch)
    for guess, cost in zip(hf.cost(model, batch, "autoprune", **settings), pruned.cost):
        assert guess.tokens_leaving == pytest.approx(cost.tokens_leaving, abs=0.5)
        assert guess.prefill_flops == pytest.approx(cost.prefill_flops, rel=0.1)
        assert guess.dense_prefill_flops == cost.dense_prefill_flops > cost.prefill_flops


REFUSED_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"cache_implementation": "static"}, "StaticCache"),
    ({"cache_implementation": "offloaded"}, "an offloaded DynamicCache"),
    ({"use_cache": False}, "use_cache=False"),
    ({"prefill_chunk_size": 8}, "prefill.chunk"),
    ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
    ({"output_attentions": True}, "per-layer outputs"),
    ({"output_hidden_states": True}, "per-layer outputs"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_CALLS, ids=str)
@pytest.mark.parametrize("with_cache", [False, True])
def test_calls_that_cannot_be_pruned_are_refused(model, options, message, with_cache) -> None:
    """By name, in a block and with a cache (of which `generate` itself refuses some)."""
    batch = zoo.inputs("llava", ["titiq"])
    given = {"past_key_values": hf.cache(model, FASTV)} if with_cache else {}
    message = "cache_implementation" if with_cache and "cache_impl" in str(options) else message
    if with_cache and "use_cache" in options:
        pytest.skip("a cache that is given is used")
    with hf.pruning(model, FASTV), pytest.raises((ValueError, NotImplementedError), match=message):
        model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True, **options, **given)


def test_gradient_checkpointing_is_refused(batch) -> None:
    net = zoo.model("llava").train()
    net.gradient_checkpointing_enable()
    with hf.pruning(net, FASTV), pytest.raises(ValueError, match="gradient checkpointing"):
        net(**batch)


def test_an_assistant_is_refused(model) -> None:
    batch = zoo.inputs("llava", ["tiq"])
    assistant = zoo.model("llava")
    with hf.pruning(model, FASTV), pytest.raises(NotImplementedError, match="assisted decoding"):
        model.generate(**batch, max_new_tokens=3, assistant_model=assistant)


def test_a_row_without_a_picture_is_as_alone(model) -> None:
    batch, short = zoo.inputs("llava", ["q", "tiq"]), zoo.inputs("llava", ["q"])
    alone = answer(model, short)
    together = answer(model, batch, past_key_values=hf.cache(model, FASTV))
    assert_close(together[:, 0], alone[:, 0], 2e-6)  # `generate` gives float32


def test_quantised_caches_are_refused(model, batch) -> None:
    class QuantizedCache(DynamicCache):
        pass

    with hf.pruning(model, FASTV), pytest.raises(ValueError, match="QuantizedCache"):
        model(**batch, past_key_values=QuantizedCache())


def test_inputs_that_do_not_say_enough_are_refused(model, batch) -> None:
    embeds = torch.zeros(1, 4, 32, dtype=torch.float64)
    with hf.pruning(model, FASTV):
        with pytest.raises(ValueError, match="reads input_ids"):
            model(inputs_embeds=embeds)
        with pytest.raises(ValueError, match="labels"):
            model(**batch, labels=batch["input_ids"])
        nothing = torch.full_like(batch["input_ids"], -100)
        assert torch.equal(model(**batch, labels=nothing).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="a cost needs input_ids"):
        hf.cost(model, {}, FASTV)
    cache = hf.cache(model, FASTV)
    with pytest.raises(ValueError, match="call the model itself"):
        model.get_decoder()(inputs_embeds=embeds, past_key_values=cache)
    other, prompt = zoo.shared("llava_next"), zoo.inputs("llava_next", ["tiq"])
    with pytest.raises(ValueError, match="another model"):
        other(**prompt, past_key_values=cache)
    with hf.pruning(other, RANDOM), pytest.raises(ValueError, match="another model"):
        other(**prompt, past_key_values=cache)
    with pytest.raises(ValueError, match="visual tokens behind the prefill"):
        model(**batch, past_key_values=cache)
        model(**batch, past_key_values=cache)
    del cache


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("qwen3_5", "linear attention"),
        ("gemma4", "share keys and values"),
        ("mllama", "cross-attention"),
        ("aria", "a line in llava.hf.families"),
    ],
)
def test_other_models_are_refused_by_name(kind: str, message: str) -> None:
    net = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    with pytest.raises(ValueError, match=f"model_type '{kind}'.*{message}.*qwen2_5_vl"):
        hf.cache(net, FASTV)


def test_methods_and_positions_that_do_not_fit_are_refused(model, batch) -> None:
    for method in ("fastervlm", "visionzip", "topv", "uniform-grid"):
        with pytest.raises(ValueError, match=rf"method {method} needs.*CLS.*autoprune, dart"):
            hf.cache(model, method)
    with pytest.raises(ValueError, match="go with a method's name"):
        hf.cache(model, FASTV, depth=2)
    for name, reason in (("qwen2_vl", "three dimensions"), ("gemma3", "masks say by column")):
        net, prompts = zoo.shared(name), zoo.inputs(name, ["tiq"])
        for run in (
            lambda cache, net=net, prompts=prompts: net(**prompts, past_key_values=cache),
            lambda cache, net=net, prompts=prompts: hf.cost(net, prompts, cache.pruner),
        ):
            with pytest.raises(ValueError, match=f'positions="compact" of {name}: .*{reason}'):
                run(hf.cache(net, "fastv", target_token_num=6, depth=2, positions="compact"))
