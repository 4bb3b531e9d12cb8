"""What a traced answer says equals the trace of the same prefill, and the picture what was seen."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava import pruning
from llava.analysis import traced, views
from llava.mm_utils import ask, process_images
from llava.pruning.cost import DecoderShape, measure

from .conftest import QUESTION

PRUNER = pruning.build("autoprune", target_token_num=64, x0=5.6)


@pytest.fixture(scope="module")
def answer(demo, wide) -> traced.TracedAnswer:
    tokenizer, model, image_processor = demo
    return traced.run(model, tokenizer, image_processor, wide, QUESTION, PRUNER, max_new_tokens=4)


def test_it_is_what_generate_traces(demo, wide, answer) -> None:
    tokenizer, model, image_processor = demo
    inputs = ask(QUESTION, [wide], tokenizer, image_processor, model)
    out = model.generate(
        **inputs, pruner=PRUNER, return_dict_in_generate=True, max_new_tokens=4, do_sample=False
    )
    trace = out.past_key_values.trace
    assert answer.text == tokenizer.decode(out.sequences[0], skip_special_tokens=True).strip()
    assert answer.new_tokens == out.sequences.shape[1]
    assert [list(kept) for kept in answer.kept] == trace.kept_patches(0)
    assert [len(kept) for kept in answer.kept[:-1]] == answer.sample.entering
    assert [len(kept) for kept in answer.kept[1:]] == trace.samples[0].leaving
    assert answer.layers == 12 and answer.grid == 24
    assert answer.mutual_information == trace.samples[0].complexity["mi"] > 0
    shape = DecoderShape.from_config(model.config, kv_dtype_bytes=4)
    assert answer.cost == measure(trace.samples[0], shape, answer.new_tokens)
    assert answer.seconds["prefill"] > 0 and answer.seconds["decode"] >= 0


def test_merged_tokens_are_there_and_what_is_in_them_is_not(answer) -> None:
    assert not answer.merged[0] and not answer.merged[1] and answer.merged[2]
    for kept, merged in zip(answer.kept, answer.merged):
        for centre, members in merged.items():
            assert centre in kept
            assert not (set(members) - {centre}) & set(kept)
    made = sum(pools > 0 for pools in answer.sample.pools)
    assert sum(bool(merged) for merged in answer.merged) >= made > 0


def test_nothing_is_kept_back_without_a_pruner(demo, wide) -> None:
    tokenizer, model, image_processor = demo
    answer = traced.run(model, tokenizer, image_processor, wide, QUESTION, max_new_tokens=2)
    assert all(kept == tuple(range(576)) for kept in answer.kept) and len(answer.kept) == 13
    assert answer.mutual_information is None
    assert answer.cost.prefill_flops == answer.cost.dense_prefill_flops


def test_it_stops_when_it_is_told_to(demo, wide, monkeypatch) -> None:
    tokenizer, model, image_processor = demo
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    asked = []
    answer = traced.run(
        *(model, tokenizer, image_processor, wide, QUESTION),
        max_new_tokens=9,
        stop=lambda: asked.append(1) or len(asked) == 3,
    )
    assert (answer.new_tokens, len(asked)) == (3, 3)


def test_the_letterbox_is_above_and_below(answer) -> None:
    # 168 of 336 rows, grown by 14: rows of patches that begin below 70 or at 266 and above.
    rows = [*range(5), *range(19, 24)]
    assert answer.letterbox == tuple(24 * row + column for row in rows for column in range(24))


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_the_picture_is_what_the_tower_gets(demo, wide, aspect_ratio: str) -> None:
    image_processor = demo[2]
    config = SimpleNamespace(image_aspect_ratio=aspect_ratio)
    pixels = process_images([wide], image_processor, config)[0]
    mean, std = (torch.tensor(getattr(image_processor, f"image_{k}")) for k in ("mean", "std"))
    shown = (pixels * std[:, None, None] + mean[:, None, None]).permute(1, 2, 0) * 255
    seen = np.asarray(views.seen(wide, image_processor, config))
    difference = np.abs(seen - shown.numpy())
    if aspect_ratio == "square":
        # A crop before the resize sees less at its border than one behind it.
        assert difference[4:-4, 4:-4].max() < 3
    else:
        assert difference.max() < 0.01


def test_tiles_are_refused(demo, wide) -> None:
    with pytest.raises(ValueError, match="'anyres' sees no single square"):
        views.seen(wide, demo[2], SimpleNamespace(image_aspect_ratio="anyres"))


def test_groups_follow_merged_tokens_that_are_merged_again() -> None:
    # Layer 0: 1, 2 -> 1 and 4, 5 -> 5. Layer 1: the merged 5 with 3 -> 3. Layer 2: 1 is dropped.
    kept = [[0, 1, 2, 3, 4, 5], [0, 1, 3, 5], [0, 1, 3], [0, 3]]
    made = [{1: [1, 2], 5: [4, 5]}, {3: [5, 3]}, {}]
    assert traced.groups(kept, made) == [
        {}, {1: (1, 2), 5: (4, 5)}, {1: (1, 2), 3: (3, 4, 5)}, {3: (3, 4, 5)},
    ]  # fmt: skip
