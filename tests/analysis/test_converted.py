"""The embedded checkpoint as llava-hf, read by transformers alone, against this package's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from llava import mm_utils, pruning
from llava.analysis import converted
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.eval.run.settings import RunSettings
from llava.model.checkpoint import convert

from .conftest import DEMO, MINI

METHODS = {
    "none": {},
    "autoprune": {"target_token_num": 64, "x0": 5.6, "preselect_ratio": None},
    "fastv": {"target_token_num": 64, "depth": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "llava-hf"
    convert(DEMO, target, "llava-hf")
    return target


@pytest.fixture(scope="module")
def exact(demo) -> tuple[Any, Any, Any]:
    """The embedded checkpoint in float64."""
    tokenizer, model, image_processor = demo
    return tokenizer, copy.deepcopy(model).double(), image_processor


@pytest.fixture(scope="module")
def questions(exact) -> list[converted.Item]:
    return converted.questions_of(MINI, 3, exact[2], exact[1].config)


@pytest.mark.parametrize("method", METHODS)
def test_stock_transformers_answers_as_this_package(exact, folder, questions, method: str) -> None:
    tokenizer, model, _ = exact
    pruner = pruning.build(method, **METHODS[method])
    settings = RunSettings(str(DEMO), MINI, Path("answers.jsonl"), max_new_tokens=4, pruner=pruner)
    stock = converted.Stock(folder, model)
    result = converted.compare(questions, settings, tokenizer, model, stock)
    assert len({item.benchmark for item in questions}) == 3
    assert (result.questions, result.same_answers, result.differing) == (3, 3, [])
    assert result.difference <= 1e-9
    if method == "fastv":  # and it does see a difference
        stock.model.lm_head.weight.data[:] = 1e-3
        result = converted.compare(questions[:1], settings, tokenizer, model, stock)
        assert (result.same_answers, result.bitwise, len(result.differing)) == (0, 0, 1)


@pytest.mark.parametrize("size", [(336, 336), (333, 500), (501, 200)])
def test_its_processor_prepares_what_llava_does(demo, wide, folder, size) -> None:
    """Pixels to the last bit, and ids of a conversation of two turns about two pictures."""
    tokenizer, model, image_processor = demo
    processor: Any = AutoProcessor.from_pretrained(folder)
    image = wide.resize(size)
    user = [{"type": "image", "image": image}, {"type": "image", "image": image}]
    messages = [
        {"role": "user", "content": [*user, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it?\nSay yes or no."}]},
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    style = conv_templates["vicuna_v1"].copy()
    for role, text in (
        (0, "<image>\n<image>\nWhat is it?"),
        (1, "red"),
        (0, "Is it?\nSay yes or no."),
        (1, None),
    ):
        style.append_message(style.roles[role], text)
    expected = mm_utils.tokenizer_image_token(style.get_prompt(), tokenizer)
    token = processor.image_token_id
    runs = [[token] * 576 if i == IMAGE_TOKEN_INDEX else [i] for i in expected]
    assert inputs["input_ids"][0].tolist() == [i for run in runs for i in run]
    pixels = mm_utils.process_images([image] * 2, image_processor, model.config)
    assert torch.equal(inputs["pixel_values"], pixels)


def test_the_command_counts_answers(demo, folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(converted, "load_model", lambda args: demo)
    few = ["--questions", "2", "--data", str(MINI), "--method", "fastv:64", "--max-new-tokens", "4"]
    assert converted.main([*few, "--folder", str(folder)]) == 0
    assert "fastv-64: 2 of 2 answers the same" in capsys.readouterr().out
    assert converted.main([*few, "--data", str(folder)]) == 2
    assert "has none of the folders" in capsys.readouterr().err
    assert converted.main(["--method", "fastervlm:64", *few[:4], "--folder", str(folder)]) == 2
    assert "which hooks on a stock decoder do not see" in capsys.readouterr().err
