"""The model class that lmms-eval calls, on a model that answers at once."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from llava.eval import lmms
from llava.pruning.checks import PromptError

from ..stub import LAYERS, StubModel
from . import interface


class SmallModel(StubModel):
    """Refuses a prompt of more than 400 characters."""

    def reply(self, prompt: str, images: int) -> str:
        if len(prompt) > 400:
            raise PromptError("it is longer than the context")
        return super().reply(prompt, images)


PICTURES = [Image.new("RGB", (8 + i, 8), (40 * i, 0, 0)) for i in range(3)]


@pytest.fixture
def make(monkeypatch, use, tmp_path):
    """The class that the manifest names, with a checkpoint of the stub model's."""
    interface.provide(monkeypatch)
    stub = use(SmallModel())
    config = {"model_type": "llava", "mm_vision_tower": "t", "num_hidden_layers": LAYERS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, _, name = lmms.manifest().simple_class_path.rpartition(".")
    model_class = getattr(importlib.import_module(module), name)

    def build(**arguments):
        return model_class(str(tmp_path), **arguments)

    build.stub = stub
    return build


def ask(model, questions, **generation):
    """Answers to (text, visuals) pairs, as lmms-eval's evaluator asks for them."""
    model.task_dict = {"task": {"test": [visuals for _, visuals in questions]}}
    instances = [
        SimpleNamespace(args=(text, dict(generation), lambda doc: doc, i, "task", "test"))
        for i, (text, _) in enumerate(questions)
    ]
    return model.generate_until(instances)


def test_batches_answer_as_single_questions_do_and_in_order(make):
    questions = [("a", [PICTURES[0]]), ("much longer", None), ("bcd", PICTURES[1:]), ("e", [])]
    answers = [answer.text for answer in ask(make(batch_size=3), questions)]
    assert answers == [answer.text for answer in ask(make(), questions)]
    assert len(set(answers)) == 4
    assert [answer.rpartition(".")[2] for answer in answers] == ["1", "0", "2", "0"]


def test_the_text_says_where_pictures_are_or_they_are_in_front(make):
    placed, front = "Compare <image> with <image>.", "What is <image>?"
    texts = [a.text for a in ask(make(), [(placed, PICTURES[:2]), (front, PICTURES[:2])])]
    assert all(text.endswith(".2") for text in texts)


def test_a_sample_says_what_was_spent_on_it(make):
    model = make(method="random", target_token_num=6, budget_mode="strict")
    counts = ask(model, [("a", PICTURES[:1])])[0].token_counts.to_dict()
    json.dumps(counts)
    assert counts["n_visual"] > counts["tokens_entering"] > 0
    assert counts["input_tokens"] > counts["n_visual"] and counts["output_tokens"] > 0
    assert counts["prefill_flops"] < counts["dense_prefill_flops"]


def test_a_question_that_cannot_be_answered_says_why(make, capsys):
    model = make(batch_size=2)
    too_long = "a" * 500
    answers = ask(model, [(too_long, PICTURES[:1]), ("b", PICTURES[:1])])
    assert answers[0].text == "" and answers[1].text
    assert "context" in answers[0].token_counts.to_dict()["error"]
    assert "1 questions could not be answered" in capsys.readouterr().err
    with pytest.raises(ValueError, match="context"):
        ask(model, [(too_long, PICTURES[:1])])


def test_a_task_says_how_answers_are_generated(make):
    model = make()
    ask(model, [("a", None)], max_new_tokens=7, num_beams=2, temperature=0.7, top_p=0)
    assert make.stub.calls[-1]["max_new_tokens"] == 7
    assert make.stub.calls[-1]["num_beams"] == 2
    assert make.stub.calls[-1]["temperature"] == 0.7
    ask(model, [("a", None)], temperature=0.7, do_sample=False, top_p=0.9)
    assert make.stub.calls[-1]["do_sample"] is False
    assert "temperature" not in make.stub.calls[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"method": "autoprun"}, "did you mean 'autoprune'"),
        ({"target_tokens": 64}, "did you mean 'target_token_num'"),
        ({"engine": "vllm"}, "engine must be one of auto, llava, hf"),
        ({"x0": "deep"}, "x0 must be"),
        ({"load_4bit": True, "load_8bit": True}, "exclude each other"),
        ({"preset": "papers"}, "did you mean 'paper'"),
        ({"answers_file": "x"}, "unknown setting"),
    ],
)
def test_wrong_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_settings_are_read_as_on_a_command_line_and_depths_scaled(make, capsys):
    pruner = make(method="pdrop", stages="1+2+3")._answerer._settings.pruner
    assert pruner.stages == (1, 2, 3)
    scaled = make(method="autoprune")._answerer._settings.pruner
    assert scaled.x0 == pytest.approx(14.9 * LAYERS / 32 if LAYERS != 32 else 14.9, rel=0.2)
    assert "autoprune: x0 14.9 is for 32 layers" in capsys.readouterr().err
    assert make(x0=2)._answerer._settings.pruner.x0 == 2


def test_likelihoods_and_rounds_are_refused(make):
    model = make()
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="not supported"):
            call([])
