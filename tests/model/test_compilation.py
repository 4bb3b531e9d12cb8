"""Compiled layers: the same answers, few graphs whatever comes, few kernels, and no surprise."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental import _config as shapes

from llava import pruning
from llava.model.compilation import check_compiler, compile_layers, missing_compiler
from tests import tiny
from tests.closeness import difference

from .method_cases import CASES

PRUNED = pruning.build("autoprune", target_token_num=20, x0=3.0, k0=0.8)
PRUNERS = [None, PRUNED]
MOST_GRAPHS, MOST_KERNELS = 4, 16


@pytest.fixture(scope="module")
def fresh() -> Iterator[None]:
    """Nothing is compiled before, and nothing stays behind."""
    before = shapes.use_duck_shape, dynamo.recompile_limit
    torch._dynamo.reset()
    yield
    shapes.use_duck_shape, dynamo.recompile_limit = before
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(fresh: None) -> Any:
    return tiny.model(3, image_size=112)


def compiled(model: Any, backend: str) -> Any:
    """A copy of the model, compiled from the start."""
    torch._dynamo.reset()
    made = copy.deepcopy(model)
    compile_layers(made, backend)
    counters.clear()
    return made


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def sample(i: int) -> torch.Tensor:
    return tiny.prompt(i, before=3 + i % 5, after=4 + 7 * i % 13)


@torch.inference_mode()
def answer(model: Any, samples: list[int], pruner: Any, **options: Any) -> tuple[Any, Any]:
    """Tokens, and the logits that each was chosen by, of a padded batch of samples."""
    ids, mask = tiny.batch([sample(i) for i in samples])
    side = model.config.mm_vision_config["image_size"]
    output = model.generate(
        ids,
        attention_mask=mask,
        images=tiny.pixels(samples[0], len(samples), size=side),
        pruner=pruner,
        do_sample=False,
        max_new_tokens=5,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output.sequences, torch.stack(output.logits)


def assert_answers_equal(one: Any, other: Any, samples: list[int], pruner: Any) -> None:
    """Equal tokens, and logits to 1e-4 relative in float32; 2e-6 was seen."""
    (tokens, logits), (expected, known) = (answer(m, samples, pruner) for m in (one, other))
    assert torch.equal(tokens, expected)
    assert difference(logits, known) <= 1e-4


@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="no C++ compiler")
def test_twenty_samples_get_equal_answers_of_four_graphs_of_few_kernels(model) -> None:
    made = compiled(model, "inductor")

    def run() -> None:
        for i in range(20):
            assert_answers_equal(made, model, [i], PRUNERS[i % 2])

    # A graph that comes out of torch's own cache shows no code.
    with inductor.patch(fx_graph_cache=False):
        codes = run_and_get_code(run)[1]
    assert graphs() == len(codes) == MOST_GRAPHS
    for code in codes:
        assert 8 <= kernels(code) <= MOST_KERNELS


def kernels(code: str) -> int:
    """What a generated module launches: its own kernels and calls to libraries."""
    called = code[code.index("def call(") : code.index("\nrunner = ")]
    generated = re.findall(r"^\s+cpp_fused\w+\(", called, re.MULTILINE)
    libraries = re.findall(r"extern_kernels\.\w+\(|= torch\.ops\.aten\.\w+\.default\(", called)
    assert generated and any("scaled_dot_product" in call for call in libraries)
    return len(generated) + len(libraries)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_ragged_batches_of_any_size_need_four_graphs(attn, fresh) -> None:
    model = tiny.model(3, attn=attn, image_size=112)
    made = compiled(model, "eager")
    for i in range(8):
        # Sixty-four tokens of 64 numbers and four samples of four heads are different things.
        samples = list(range(10 * i, 10 * i + 2 + i % 3))
        assert_answers_equal(made, model, samples, PRUNERS[i % 2])
    assert graphs() <= MOST_GRAPHS


def test_all_methods_and_beams_share_the_graphs(fresh) -> None:
    model = tiny.model(3)
    made = compiled(model, "eager")
    for case in {case.method: case for case in CASES}.values():
        assert_answers_equal(made, model, [1], case.pruner)
    assert graphs() <= MOST_GRAPHS
    # Beams have the graphs of a batch.
    pruner = pruning.build("autoprune", target_token_num=8, x0=3.0)
    assert torch.equal(*(answer(m, [1], pruner, num_beams=3)[0] for m in (made, model)))


def test_without_a_compiler_the_message_says_what_is_missing(model, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="C\\+\\+ compiler, and there is no no-such-compiler"):
        compile_layers(copy.deepcopy(model))
    monkeypatch.setattr("llava.model.compilation.has_triton", lambda: False)
    with pytest.raises(ValueError, match="compiling for cuda needs triton"):
        check_compiler("cuda:0")


def test_a_compiler_that_fails_is_named_before_a_run(monkeypatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Python.h: No such file\nand much more")

    monkeypatch.setattr("llava.model.compilation.missing_compiler", lambda kind: None)
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match=r"RuntimeError: Python\.h: No such file\)\. Mend"):
        check_compiler("cpu")
