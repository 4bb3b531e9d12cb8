"""Stock transformers models, asked by the model class."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

from llava.eval.lmms import mini

from . import hf_folder, interface
from .test_model import ask

DEMO = Path(__file__).parents[3] / "playground/demo/llava-demo"


@pytest.fixture
def model_class(monkeypatch):
    interface.provide(monkeypatch)
    return importlib.import_module("llava.eval.lmms.model").AutoPruneModel


def questions(count: int) -> list[tuple[str, list[Image.Image]]]:
    lines = (mini.DATA / "textvqa/metadata.jsonl").read_text().splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [(mini.noocr_text(row), mini.noocr_pictures(row)) for row in rows]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return hf_folder.write(DEMO, tmp_path_factory.mktemp("demo") / "llava-hf")


@pytest.mark.parametrize("method", ["none", "fastv"])
def test_the_embedded_checkpoint_answers_as_by_the_loader(model_class, converted, method):
    budget = {} if method == "none" else {"target_token_num": 64}
    settings = {"method": method, "batch_size": 4, "dtype": "float32", "device": "cpu", **budget}
    stock = model_class(str(converted), engine="hf", **settings)
    positions = {} if method == "none" else {"positions": "original"}
    own_code = model_class(str(converted), processing="llava-hf", **settings, **positions)
    answers = [ask(model, questions(4), max_new_tokens=8) for model in (stock, own_code)]
    texts = [[answer.text for answer in of_model] for of_model in answers]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    spent = [[answer.token_counts.spent for answer in of_model] for of_model in answers]
    assert spent[0] == spent[1]
    if budget:
        assert all(counts["tokens_leaving"] < 576 for counts in spent[0])


@pytest.mark.parametrize("name", hf_folder.TINY)
def test_other_architectures(model_class, tmp_path, name):
    folder = hf_folder.write_tiny(name, tmp_path / name)
    pictures = [Image.linear_gradient("L").convert("RGB").rotate(90 * i) for i in range(3)]
    asked = [(f"w{10 + i} w20 " + "w30 " * i, [picture]) for i, picture in enumerate(pictures)]
    device = {"dtype": "float32", "device": "cpu", "engine": "hf"}
    settings = {**device, "target_fraction": 0.4}
    together = ask(model_class(str(folder), batch_size=3, **settings), asked, max_new_tokens=4)
    alone = ask(model_class(str(folder), **settings), asked, max_new_tokens=4)
    dense = ask(
        model_class(str(folder), method="none", **device),
        asked,
        max_new_tokens=4,
    )
    texts = [answer.text for answer in together]
    assert texts == [answer.text for answer in alone]
    assert len(set(texts)) > 1
    for pruned, whole in zip(together, dense):
        counts, dense_counts = pruned.token_counts.spent, whole.token_counts.spent
        assert counts["n_visual"] == dense_counts["n_visual"] == dense_counts["tokens_leaving"]
        assert counts["tokens_entering"] < dense_counts["tokens_entering"]
        assert counts["prefill_flops"] < dense_counts["prefill_flops"]
