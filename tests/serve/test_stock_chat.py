"""A chat with a model that transformers loads by itself: what each turn asks, and what is said."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch

from llava import hf, pruning
from llava.analysis.stock_answers import fitting
from llava.analysis.stock_subject import prepared
from llava.pruning.checks import PromptError
from llava.serve import cli
from llava.serve.chat import ContextFull
from llava.serve.startup import load
from llava.serve.stock_chat import StockChat

from .. import tiny_next
from ..analysis.test_verify_stock import paligemma_folder
from ..hf import zoo

QUESTIONS = ("What is on the sign ?", "What color is the sign ?", "Is there a word ?")
PRUNER = pruning.build("autoprune", target_token_num=8, x0=2.0, recycle_ratio=0.5)
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}"
    "{{ 'assistant :' if add_generation_prompt }}"
)
#: It takes no parts of an answer.
OLDER = TEMPLATE.replace(
    "{% for part in turn.content %}",
    "{% if turn.role == 'assistant' %}{{ turn.content + ' .' }}{% endif %}"
    "{% for part in turn.content if turn.role == 'user' %}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return paligemma_folder(tmp_path_factory.mktemp("stock") / "model")


@pytest.fixture(scope="module")
def loaded(folder):
    flags = ["--model-path", str(folder), "--device", "cpu", "--dtype", "float32"]
    checkpoint = load(cli.build_parser().parse_args([*flags, "--image-file", "none"]))
    checkpoint.image_processor.chat_template = TEMPLATE
    # So that random weights say words, and end no answer.
    checkpoint.model.generation_config.suppress_tokens = checkpoint.tokenizer.all_special_ids
    return checkpoint


def chat(loaded, **options) -> StockChat:
    options = {"temperature": 0.0, "max_new_tokens": 4, "pruner": PRUNER, **options}
    pictures = [tiny_next.picture((60, 40))]
    return StockChat(loaded.model, loaded.image_processor, pictures, **options)


def test_each_turn_asks_anew_with_the_whole_conversation(loaded) -> None:
    talk, written = chat(loaded), "user : <image>"
    for number, question in enumerate(QUESTIONS):
        pieces: list[str] = []
        turn = talk.say(question, pieces.append)
        written += f"{question} assistant :"
        assert "".join(pieces).strip() == turn.text != ""

        pictures = [tiny_next.picture((60, 40))]
        inputs = prepared([written], [pictures], loaded.image_processor, loaded.model)
        with hf.pruning(loaded.model, fitting(PRUNER)) as pruned:
            ids = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert turn.text == loaded.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert turn.sample == pruned.trace.samples[0] and turn.sample.n_visual == 16
        assert turn.prefill_flops == pruned.cost[0].prefill_flops < turn.dense_prefill_flops
        assert turn.unpruned == turn.fed + turn.new_tokens - 1
        assert turn.first and turn.anew and turn.new_tokens == len(new)
        written += f" {turn.text} user : "
        assert len(talk.turns) == number + 1
    talk.reset()
    assert talk.turns == [] and talk.prompt("Why ?") == "user : <image>Why ? assistant :"


def test_a_template_of_answers_without_parts(loaded, monkeypatch) -> None:
    monkeypatch.setattr(loaded.image_processor, "chat_template", OLDER)
    talk = chat(loaded)
    answer = talk.say(QUESTIONS[0]).text
    expected = f"user : <image>{QUESTIONS[0]} assistant : {answer} . user : Why ? assistant :"
    assert talk.prompt("Why ?") == expected


def test_without_a_template_each_question_stands_alone(loaded, monkeypatch) -> None:
    monkeypatch.setattr(loaded.image_processor, "chat_template", None)
    talk = chat(loaded)
    first = talk.say(QUESTIONS[0])
    assert talk.prompt(QUESTIONS[0]) == f"<image>{QUESTIONS[0]}"
    assert talk.say(QUESTIONS[0]).text == first.text


def test_marks_of_pictures_written_as_text_are_none(loaded) -> None:
    talk = chat(loaded)
    turn = talk.say(f"<ima<image>ge> {QUESTIONS[0]}")
    assert turn.sample.n_visual == 16 and talk.turns == [(QUESTIONS[0], turn.text)]


def test_what_the_processor_refuses_does_not_end_the_chat(loaded, monkeypatch) -> None:
    def refuse(*_, **__):
        raise ValueError("2 marks and 1 picture")

    talk = chat(loaded)
    with monkeypatch.context() as patch:
        patch.setattr("llava.serve.stock_chat.prepared", refuse)
        with pytest.raises(PromptError, match="the processor refuses this text: 2 marks"):
            talk.say("Is it ?")
    assert talk.turns == [] and talk.say("Is it ?").text


def test_a_context_ends_answers_and_conversations(loaded) -> None:
    fed = chat(loaded).say(QUESTIONS[0]).fed
    talk = chat(loaded, context_len=fed + 2)
    turn = talk.say(QUESTIONS[0])
    assert (turn.ended, turn.new_tokens) == ("context", 2)
    with pytest.raises(ContextFull, match=f"context holds {fed + 2}"):
        talk.say(QUESTIONS[1])
    assert len(talk.turns) == 1
    with pytest.raises(PromptError, match="context holds 3"):
        chat(loaded, context_len=3).say(QUESTIONS[0])


def test_an_answer_ends_at_its_end_or_when_it_is_stopped(loaded, monkeypatch) -> None:
    turn = chat(loaded).say(QUESTIONS[0], stop=lambda: True)
    assert (turn.ended, turn.new_tokens) == ("stopped", 1)
    assert chat(loaded).say(QUESTIONS[0]).ended == "length"
    every = list(range(len(loaded.tokenizer)))
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", every)
    pieces: list[str] = []
    turn = chat(loaded).say(QUESTIONS[0], pieces.append)
    assert (turn.ended, turn.new_tokens, turn.text, pieces) == ("end", 1, "", [])


def test_a_method_that_does_not_fit_is_refused(loaded) -> None:
    with pytest.raises(ValueError, match="needs the vision tower"):
        chat(loaded, pruner=pruning.build("hired"))


def test_the_program_on_a_folder(folder, loaded, tmp_path, monkeypatch, capsys) -> None:
    image = tmp_path / "picture.png"
    tiny_next.picture((60, 40)).save(image)
    monkeypatch.setattr(cli, "load", lambda args: loaded)
    lines = f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n/reset\n{QUESTIONS[0]}\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    flags = ["--temperature", "0", "--method", "fastv", "--target-token-num", "8", "--debug"]
    asked = ["--model-path", str(folder), "--image-file", str(image), "--max-new-tokens", "3"]
    assert cli.main([*asked, *flags]) == 0
    shown = capsys.readouterr()
    first, second, third, end = shown.out.split("\n")
    assert first.startswith("USER: ASSISTANT: ") and second.startswith("USER: ASSISTANT: ")
    assert third == f"USER: {first}" and end == "USER: "
    assert shown.err.count("of 16 visual tokens") == 3
    assert shown.err.count("What this question dropped is there again for the next.") == 3
    kinds = [line.split("]")[0] for line in shown.err.splitlines() if line.startswith("[")]
    assert kinds.count("[tokens") == kinds.count("[flops") == kinds.count("[time") == 3
    assert f"entering: {' '.join(['16'] * zoo.LAYERS)}; " not in shown.err


def test_a_beginning_that_the_template_wrote_is_not_added_again() -> None:
    asked = []

    def processor(**arguments):
        asked.append(arguments.get("add_special_tokens"))
        return {"input_ids": torch.ones(1, 2, dtype=torch.long), "labels": torch.ones(1)}

    processor.tokenizer = SimpleNamespace(bos_token="<s>")
    model = SimpleNamespace(device="cpu", dtype=torch.float32)
    for prompt in ("<s>[INST]", "[INST]"):
        assert list(prepared([prompt], [[]], processor, model)) == ["input_ids"]
    assert asked == [False, None]
