"""The letterbox mask of AutoPrune's first cut on wide and tall pictures: from file to tokens."""

from __future__ import annotations

import json

import pytest

from llava import pruning
from llava.analysis import traced
from llava.eval.benchmarks import BENCHMARKS
from llava.mm_utils import letterbox_mask

from .conftest import MINI

_PICTURES = 3


@pytest.mark.parametrize("aspect", ["wide", "tall"])
def test_no_padding_is_kept_with_it_and_some_without(demo, aspect: str) -> None:
    benchmark = BENCHMARKS["pope"]
    folder = MINI / benchmark.folder
    with (folder / "metadata.jsonl").open() as lines:
        entries = [entry for entry in map(json.loads, lines) if entry["aspect"] == aspect]
    questions = benchmark.load_questions(folder)
    padded_without = 0
    for index in list({e["image"]: e["index"] for e in entries}.values())[:_PICTURES]:
        question = questions[index]
        picture = questions.open_image(question, folder / benchmark.images)
        padding = set(letterbox_mask(picture.size, 24).nonzero().flatten().tolist())
        assert padding
        kept = {}
        for masked in (True, False):
            pruner = pruning.build(
                "autoprune", target_token_num=64, x0=5.6, preselect_text=0, letterbox_mask=masked
            )
            tokenizer, model, image_processor = demo
            answer = traced.run(
                *(model, tokenizer, image_processor, picture, question.model_text, pruner),
                max_new_tokens=1,
            )
            assert set(answer.letterbox) == padding and len(answer.kept[1]) == 160
            kept[masked] = set(answer.kept[1])
        assert not kept[True] & padding
        padded_without += len(kept[False] & padding)
    assert padded_without > 0
