"""What is wrong with one question: it is recorded, all others are answered, and the run goes on."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval import (
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    model_vqa_senna,
)
from llava.eval.benchmarks.senna.plan import MARK as PLAN
from llava.eval.model_vqa_loader import main
from llava.mm_utils import load_image_processor
from llava.pruning.checks import BudgetError, PromptError

from ... import senna_files, tiny
from ..programs import write_lines
from ..stub import (
    StubModel,
    StubTokenizer,
    command,
    essence,
    expected,
    read_answers,
    read_record,
    write_data,
    write_questions,
)
from .test_with_model import TinyTokenizer

MARK = "beyond the context"


class Short(StubModel):
    """A stub whose context ends before a prompt with `MARK` in it."""

    error: type[ValueError] = PromptError

    def generate(self, input_ids: Any, **more: Any) -> Any:
        for row in input_ids.tolist():
            if MARK in self.tokenizer.decode([i for i in row if i >= 0], skip_special_tokens=True):
                raise self.error(f"a prompt is {MARK}")
        return super().generate(input_ids, **more)

    def get_model(self) -> Any:
        return type("Senna", (), {"img_adapter": "there"})


class Dear(Short):
    error = BudgetError


def failures(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "out" / "answers.errors.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("batch", ["1", "2", "5"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [(MARK, f"a prompt is {MARK}"), ("Half \ud800 of it?", "half of a surrogate pair, U+D800")],
)
def test_one_question_fails_alone(tmp_path, use, capsys, batch, text, reason):
    questions = write_data(tmp_path)
    questions[2]["text"] = text
    write_questions(tmp_path, questions)
    use(Short())
    rest = [answer for i, answer in enumerate(expected(questions)) if i != 2]
    for _ in range(2):  # the same command tries it again
        assert main(command(tmp_path, "--batch-size", batch)) == 3
        assert essence(read_answers(tmp_path)) == rest
        (entry,) = failures(tmp_path)
        assert (entry["index"], entry["question_id"]) == (2, "q2") and reason in entry["error"]
        out, err = capsys.readouterr()
        assert "1 of 5 questions have no answer, see" in err and "image" not in err.splitlines()[-1]
        assert json.loads(out.splitlines()[-1])["counts"]["failed"] == 1
    if text == MARK:  # a model with more room answers it, and the file is in order again
        use(StubModel())
        assert main(command(tmp_path)) == 0
        assert essence(read_answers(tmp_path)) == expected(questions)


def test_an_id_that_is_no_text_is_an_id(tmp_path, use):
    questions = write_data(tmp_path, 2)
    questions[1]["question_id"] = "q\ud800"
    write_questions(tmp_path, questions)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_an_image_name_that_no_file_can_have(tmp_path, use):
    questions = write_data(tmp_path, 2)
    questions[0]["image"] = "\ud800.png"
    write_questions(tmp_path, questions)
    use(StubModel())
    assert main(command(tmp_path)) == 3
    assert failures(tmp_path)[0]["image"] == "\ud800.png" and len(read_answers(tmp_path)) == 1


class Unknown(StubTokenizer):
    """Does not know what the answer to the third question is made of."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        text = super().decode(ids, skip_special_tokens)
        if text.strip() == self.odd:
            raise ValueError("id 40 is not in the vocabulary")
        return text


def test_an_answer_that_cannot_be_decoded(tmp_path, use):
    questions = write_data(tmp_path)
    model = use(StubModel())
    model.tokenizer = Unknown()
    model.tokenizer.odd = expected(questions)[2][-1]
    assert main(command(tmp_path, "--batch-size", "5")) == 3
    assert [a["question_id"] for a in read_answers(tmp_path)] == ["q0", "q1", "q3", "q4"]
    assert "its answer cannot be decoded: id 40" in failures(tmp_path)[0]["error"]


def test_a_prompt_with_places_for_other_images(tmp_path, use):
    write_data(tmp_path, 3)
    model = use(StubModel())

    class Doubling(StubTokenizer):
        """Puts an image too many into the second prompt."""

        def encode_prompt(self, prompt: str) -> list[int]:
            ids = [1, *self.encode(prompt.replace("<image>", "")), -200]
            return [*ids, -200] if prompt.count("this") == 1 else ids

    model.tokenizer = Doubling()
    assert main(command(tmp_path, "--batch-size", "3")) == 3
    (entry,) = failures(tmp_path)
    assert entry["error"] == "its prompt has places for 2 images, and 1 came"
    assert len(read_answers(tmp_path)) == 2


def test_a_budget_that_some_questions_cannot_meet(tmp_path, use):
    """Those with many visual or text tokens; the method can do what is asked for all others."""
    questions = write_data(tmp_path)
    questions[0]["text"] = MARK
    write_questions(tmp_path, questions)
    use(Dear())
    assert main(command(tmp_path)) == 3
    assert len(read_answers(tmp_path)) == 4 and len(failures(tmp_path)) == 1
    assert read_record(tmp_path)["status"] == "incomplete"


class Tiling(Dear):
    """Pictures of a model that tiles them have unequally many tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.config.image_aspect_ratio = "anyres"
        self.config.image_grid_pinpoints = [[336, 672]]

    def generate(self, input_ids: Any, *, images: list[Any], **more: Any) -> Any:
        return super().generate(input_ids, images=[views[0] for views in images], **more)


def test_where_pictures_differ_a_later_one_may_meet_the_budget(tmp_path, use):
    questions = write_data(tmp_path, 10)
    for question in questions[:9]:
        question["text"] = f"{question['question_id']} {MARK}"
    write_questions(tmp_path, questions)
    use(Tiling())
    assert main(command(tmp_path)) == 3
    assert len(read_answers(tmp_path)) == 1 and len(failures(tmp_path)) == 9


@pytest.mark.parametrize("count", [3, 20])
def test_a_budget_that_no_question_meets_is_refused_soon(tmp_path, use, count):
    questions = write_data(tmp_path, count)
    for question in questions:
        question["text"] = f"{question['question_id']} {MARK}"
    write_questions(tmp_path, questions)
    use(Dear())
    assert main(command(tmp_path)) == 1
    record = read_record(tmp_path)
    assert record["status"] == "refused" and record["refusal"] == f"a prompt is {MARK}"
    assert record["counts"]["failed"] == min(count, 8)


def table(folder: Path) -> Path:
    cell = base64.b64encode((folder / "images" / "0.png").read_bytes()).decode()
    rows = [
        {"index": i, "question": text, "A": "x", "B": "y", "image": cell}
        for i, text in enumerate(("Which?", MARK, "Why?"))
    ]
    with (folder / "q.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "q.tsv"


def science(folder: Path) -> Path:
    texts = ("<image>\nWhich?", "Half \ud800?", f"<image>\n{MARK}")
    entries = [
        {
            "id": f"q{i}",
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A"}],
        }
        | ({"image": "0.png"} if "<image>" in text else {})
        for i, text in enumerate(texts)
    ]
    (folder / "q.json").write_text(json.dumps(entries))
    return folder / "q.json"


def senna(folder: Path) -> Path:
    senna_files.write_questions(folder / "images")
    path = folder / "images" / "eval_plan_qa.json"
    entries = json.loads(path.read_text())
    humans = [entry["conversations"][0] for entry in entries]
    next(human for human in humans if PLAN in human["value"])["value"] += MARK
    path.write_text(json.dumps(entries))
    return path


def lines(folder: Path) -> Path:
    texts = ("Which?", MARK, "Why \udfff?")
    questions = [{"question_id": i, "image": "0.png", "text": t} for i, t in enumerate(texts)]
    return write_lines(folder / "q.jsonl", questions)


@pytest.mark.parametrize(
    ("program", "write", "answered", "failed"),
    [
        (model_vqa, lines, 1, 2),
        (model_vqa_loader, lines, 1, 2),
        (model_vqa_mmbench, table, 2, 1),
        (model_vqa_science, science, 1, 2),
        (model_vqa_senna, senna, 2, 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_every_answering_program(tmp_path, use, program, write, answered, failed):
    write_data(tmp_path, 1)
    use(Short())
    file = write(tmp_path)
    arguments = command(tmp_path, "--question-file", str(file), "--batch-size", "3")
    assert program.main(arguments) == 3
    assert len(read_answers(tmp_path)) == answered and len(failures(tmp_path)) == failed
    assert read_record(tmp_path)["counts"]["questions"] == answered + failed


def test_parts_are_not_merged_and_the_reasons_are_named(tmp_path, use, capsys):
    questions = write_data(tmp_path)
    questions[4]["text"] = MARK
    write_questions(tmp_path, questions)
    use(Short())
    for k, code in ((0, 0), (1, 3)):
        part = ("--num-chunks", "2", "--chunk-idx", str(k))
        file = tmp_path / "out" / "answers" / f"2_{k}.jsonl"
        assert main(command(tmp_path, *part, "--answers-file", str(file))) == code
    assert main(command(tmp_path, "--merge-chunks", "2")) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "question 'q4' (line 5)" in err
    assert err.endswith(f"Reasons are in {tmp_path / 'out' / 'answers' / '2_1.errors.jsonl'}.")


@pytest.fixture
def small(monkeypatch):
    """A random model with a context of 400 tokens, one a character."""
    model = tiny.model(layers=3)
    model.config.max_position_embeddings = 400
    processor = load_image_processor("no such folder")
    processor.size, processor.crop_size = {"shortest_edge": 56}, {"height": 56, "width": 56}
    loaded = TinyTokenizer(), model, processor, 400
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", lambda *_, **__: loaded)
    return model


def test_a_batch_without_its_longest_prompt_answers_as_each_alone(tmp_path, small):
    questions = write_data(tmp_path, 4)
    questions[1]["text"] = "long " * 80
    write_questions(tmp_path, questions)
    texts = []
    for batch in ("1", "4"):
        file = tmp_path / batch / "answers.jsonl"
        flags = ("--max_new_tokens", "4", "--target-token-num", "8", "--x0", "1")
        flags = (*flags, "--batch-size", batch, "--answers-file", str(file))
        assert main(command(tmp_path, *flags)) == 3
        texts.append([json.loads(line)["text"] for line in file.read_text().splitlines()])
        errors = file.with_name("answers.errors.jsonl").read_text().splitlines()
        assert len(errors) == 1
        assert "the context of this model is 400 (max_position_embeddings)" in errors[0]
    assert texts[0] == texts[1] and len(texts[0]) == 3


def test_an_answer_ends_where_the_context_does(tmp_path, small, capsys):
    """Alone and beside one with more room, and a line says so once."""
    questions = write_data(tmp_path, 3)
    # What the stub says of an empty question is how long the rest of its prompt is.
    template = int(expected([{**questions[0], "text": ""}])[0][-1].partition(".")[0])
    for question, room in zip(questions, (5, 9, 150)):
        question["text"] = "x" * (400 - (1 + template + 16) - room)  # BOS, text, picture
    write_questions(tmp_path, questions)
    answers = []
    for batch in ("1", "3"):
        file = tmp_path / batch / "answers.jsonl"
        flags = ("--max_new_tokens", "12", "--method", "none", "--batch-size", batch)
        assert main(command(tmp_path, *flags, "--answers-file", str(file))) == 0
        assert capsys.readouterr().err.count("the context is full before --max_new_tokens") == 1
        answers.append([json.loads(line) for line in file.read_text().splitlines()])
    for alone, together in zip(*answers):
        assert alone["text"] == together["text"]
    metadata = [answer["metadata"] for answer in answers[1]]
    assert [m["new_tokens"] for m in metadata] == [5, 9, 12]
    assert [m.get("context_full") for m in metadata] == [True, True, None]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_wide_grey_is_scaled_and_said_once_a_run(tmp_path, use, capsys, workers):
    write_data(tmp_path, 4)
    grey = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    for i in range(3):
        Image.fromarray(grey).save(tmp_path / "images" / f"{i}.png")
    use(StubModel())
    for _ in range(2):
        assert main(command(tmp_path, "--num-workers", workers, "--batch-size", "2")) == 0
        err = capsys.readouterr().err
        assert err.count("16-bit grey is divided by 257") == 1
        assert "warning: question 'q0' (line 1): 16-bit" in err
        (tmp_path / "out" / "answers.jsonl").unlink()


def test_a_picture_without_a_scale_or_too_large_fails_alone(tmp_path, use, monkeypatch):
    write_data(tmp_path, 4)
    images = tmp_path / "images"
    depth = Image.fromarray(np.full((5, 5), 1e4, np.float32))
    buffer = io.BytesIO()
    depth.save(buffer, "TIFF")
    (images / "0.png").write_bytes(buffer.getvalue())
    Image.new("L", (40_000, 1)).save(images / "1.png")
    monkeypatch.setattr("llava.common.images.MAX_SIDE", 39_999)
    use(StubModel())
    assert main(command(tmp_path, "--batch-size", "2")) == 3
    first, second = failures(tmp_path)
    assert "0.png: its float values go from 10000 to 10000" in first["error"]
    assert "1.png: too large (40000 x 1)" in second["error"]
    assert len(read_answers(tmp_path)) == 2
