"""Senna's questions answered by a tiny random Senna: the program, the script, the sweep's table."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval import model_vqa_senna
from llava.eval.benchmarks.senna.plan import plan_question
from llava.eval.compare import sweep
from tests import checkpoints, senna_files
from tests.eval.programs import calls, perform, run_script, value, write_recorder
from tests.eval.stub import StubModel

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "scripts" / "senna" / "eval.sh"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Senna, its tower in `clip` and, in `senna`, three questions."""
    folder = tmp_path_factory.mktemp("place")
    senna_files.write_senna(folder / "Senna")
    senna_files.write_questions(folder / "senna")
    return folder


def command(place: Path, answers: Path, *more: str) -> list[str]:
    return [
        *("--model-path", str(place / "Senna"), "--vision-tower", str(place / "clip")),
        *("--question-file", str(place / "senna" / "eval_plan_qa.json")),
        *("--image-folder", str(place / "senna"), "--answers-file", str(answers)),
        *("--num-workers", "0", "--device", "cpu", "--dtype", "float32"),
        *("--max_new_tokens", "3", *more),
    ]


class Senna(StubModel):
    """A stub that passes for a Senna; `reply` sees the prompt without its images."""

    def get_model(self) -> SimpleNamespace:
        return SimpleNamespace(img_adapter="there")


def test_the_prompt_keeps_each_image_at_its_label(place, tmp_path, use, monkeypatch) -> None:
    model, heard = use(Senna()), []
    generate = model.generate

    def listen(input_ids, **more):
        heard.append(input_ids[0].tolist())
        return generate(input_ids, **more)

    monkeypatch.setattr(model, "generate", listen)
    assert model_vqa_senna.main(command(place, tmp_path / "a.jsonl")) == 0
    tokenizer = model.tokenizer
    text = "".join(
        "<image>" if i == IMAGE_TOKEN_INDEX else tokenizer.decode([i], True) for i in heard[0][1:]
    )
    assert text == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the human's questions. USER: "
        f"{plan_question(10, 'turn left')} ASSISTANT:"
    )
    assert model.calls[0]["max_new_tokens"] == 3 and len(heard) == 3
    assert model.calls[0]["image_sizes"] == [(64, 36)] * 6


def read(answers: Path) -> list[dict]:
    return [json.loads(line) for line in answers.read_text().splitlines()]


def test_a_batch_answers_as_one_by_one_and_is_counted(place, tmp_path) -> None:
    pruning = ("--method", "autoprune", "--target-token-num", "192", "--x0", "1.4")
    answers = []
    for size in ("1", "3"):
        path = tmp_path / f"{size}.jsonl"
        assert model_vqa_senna.main(command(place, path, "--batch-size", size, *pruning)) == 0
        answers.append(read(path))
    one, three = answers
    assert [a["text"] for a in one] == [a["text"] for a in three]
    assert [a["question_id"] for a in three] == ["t0", "t1", "t2"]
    record = json.loads((tmp_path / "3.run.json").read_text())
    assert record["status"] == "complete"
    assert record["settings"]["conv_mode"] == "llava_v1"
    for a, b in zip(one, three):
        assert a["metadata"]["n_visual"] == b["metadata"]["n_visual"] == 6 * 128
        assert a["metadata"]["cost"] == b["metadata"]["cost"]
        assert a["prompt"].startswith("<FRONT VIEW>:\n<image>\n<FRONT LEFT VIEW>:\n<image>\n")
    assert record["tokens"]["leaving"] == pytest.approx(192, abs=1.5)


def test_methods_that_need_patches_stop_with_their_reason(place, tmp_path, capsys) -> None:
    more = ("--method", "fastervlm", "--target-token-num", "192")
    assert model_vqa_senna.main(command(place, tmp_path / "a.jsonl", *more)) == 1
    assert "method fastervlm works on the vision tower's patches" in capsys.readouterr().err


def test_a_checkpoint_without_the_adapter_is_refused(place, tmp_path, capsys) -> None:
    folder = checkpoints.write_original(tmp_path / "llava")
    tower = str(folder / checkpoints.CLIP)
    more = ("--model-path", str(folder), "--vision-tower", tower)
    assert model_vqa_senna.main(command(place, tmp_path / "a.jsonl", *more)) == 2
    said = capsys.readouterr().err
    assert "no adapter (model.img_adapter.adapter.*)" in said and "rb93dett/Senna" in said
    assert not (tmp_path / "a.jsonl").exists()


def test_a_view_that_is_missing_is_named(place, tmp_path, capsys) -> None:
    entries = json.loads((place / "senna" / "eval_plan_qa.json").read_text())
    entries[2]["images"][4] = "samples/nowhere.jpg"
    questions = tmp_path / "some.json"
    questions.write_text(json.dumps(entries))
    more = ("--question-file", str(questions), "--method", "no-image")
    assert model_vqa_senna.main(command(place, tmp_path / "a.jsonl", *more)) == 3
    (failed,) = read(tmp_path / "a.errors.jsonl")
    assert failed["question_id"] == "t1" and "samples/nowhere.jpg" in failed["error"]
    assert [a["question_id"] for a in read(tmp_path / "a.jsonl")] == ["t0", "t2"]


def test_a_sweep_has_senna_as_a_benchmark(place, tmp_path, capsys) -> None:
    """With the tower's features kept; the run that is refused keeps no other from its row."""
    argv = [
        *("--model-path", str(place / "Senna"), "--vision-tower", str(place / "clip")),
        *("--data", str(place), "--out", str(tmp_path), "--benchmarks", "senna"),
        *("--runs", "fastervlm:192", "none", "autoprune:192"),
        *("--num-workers", "0", "--device", "cpu", "--dtype", "float32"),
        *("--max_new_tokens", "3"),
    ]
    assert sweep.main(argv) == 1
    said = capsys.readouterr()
    assert "method fastervlm works on the vision tower's patches" in said.err
    table = json.loads(said.out.splitlines()[-1])
    rows = {row["method"]: row for row in table["rows"]}
    assert rows.keys() == {"none", "autoprune"}
    assert rows["none"]["tokens_entering"] == 768
    assert rows["autoprune"]["tokens_leaving"] == pytest.approx(192, abs=1.5)
    assert rows["none"]["benchmarks"]["senna"]["percent"] is not None
    record = json.loads((tmp_path / "senna" / "none.run.json").read_text())
    assert record["settings"]["conv_mode"] == "llava_v1"


def run(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    names = ("MODEL_PATH", "DATA", "PYTHON", "CUDA_VISIBLE_DEVICES")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    own = {"MODEL_PATH": "Senna", "DATA": "senna", "CALLS": str(place / "calls")}
    return run_script(["bash", str(SCRIPT), *arguments], place, inherited | own | environment)


def test_what_the_script_runs_answers_and_scores(place, tmp_path, capsys) -> None:
    flags = ("--vision-tower", "clip", "--device", "cpu", "--max_new_tokens", "3")
    write_recorder(tmp_path / "python")
    own = {"PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls")}
    assert run(place, "26", *flags, "--num-workers", "0", **own).returncode == 0
    assert [perform(call) for call in calls(tmp_path)] == [0, 0]
    said = capsys.readouterr().out
    answers = place / "senna" / "answers" / "Senna" / "autoprune" / "n_26.jsonl"
    record = json.loads(answers.with_suffix(".run.json").read_text())
    # 26 a view are 156 of the 768; depths are scaled to the 3 layers.
    assert record["settings"]["pruner"]["target_token_num"] == 156
    assert record["settings"]["pruner"]["x0"] == pytest.approx(14.9 * 3 / 32)
    assert record["settings"]["conv_mode"] == "llava_v1"
    assert "Planning accuracy (both words occur, upstream's rule)" in said
    result = json.loads(said.splitlines()[-1])
    assert result["samples"] == 3 and result["by_class"].keys() == {"KEEP_STRAIGHT"}


def test_the_script_passes_a_total_of_six_views_on(place, tmp_path) -> None:
    write_recorder(tmp_path / "python")
    own = {"PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls")}
    assert run(place, "51", "--method", "pdrop", **own).returncode == 0
    answering, scoring = calls(tmp_path)
    assert answering[2] == "llava.eval.model_vqa_senna"
    assert value(answering, "--target-token-num") == "306"
    assert value(answering, "--image-folder") == str(place / "senna")
    assert "--conv-mode" not in answering and "--visual-token-num" not in answering
    assert scoring[2] == "llava.eval.eval_senna"
    answers = str(place / "senna" / "answers" / "Senna" / "pdrop" / "n_51.jsonl")
    assert value(scoring, "--result-file") == value(answering, "--answers-file") == answers


@pytest.mark.parametrize(
    ("given", "flag", "passed"),
    [
        (["32", "--budget-per", "sample"], "--target-token-num", "192"),
        (["32", "--budget-per", "image"], "--target-token-num", "32"),
        (["32", "--budget-per=image"], "--target-token-num", "32"),
        (["0.25"], "--target-fraction", "0.25"),
    ],
)
def test_the_script_takes_a_views_own_budget_and_a_share(
    place, tmp_path, given, flag, passed
) -> None:
    write_recorder(tmp_path / "python")
    own = {"PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls")}
    assert run(place, *given, **own).returncode == 0
    answering = calls(tmp_path)[0]
    assert value(answering, flag) == passed
    other = {"--target-token-num", "--target-fraction"} - {flag}
    assert not other & set(answering)


def test_the_script_says_what_is_missing(tmp_path) -> None:
    done = run(tmp_path, "26", MODEL_PATH="./nowhere", DATA="./nothing")
    assert done.returncode == 2
    for text in (
        "rb93dett/Senna",
        "eval_plan_qa.json",
        "llava.eval.benchmarks.senna.build",
        "nuscenes.org",
    ):
        assert text in done.stderr


def test_the_embedded_checkpoint_plans_as_it_was_taught(tmp_path) -> None:
    """The first eight frames, unpruned: nearly all right, where one in three could be guessed."""
    data = ROOT / "playground" / "data" / "drive" / "senna"
    asked = json.loads((data / "eval_plan_qa.json").read_text())[:8]
    questions, answers = tmp_path / "eval_plan_qa.json", tmp_path / "a.jsonl"
    questions.write_text(json.dumps(asked))
    arguments = [
        *("--model-path", str(ROOT / "playground" / "demo" / "drive-demo"), "--method", "none"),
        *("--question-file", str(questions), "--image-folder", str(data)),
        *("--answers-file", str(answers), "--num-workers", "0", "--device", "cpu"),
    ]
    assert model_vqa_senna.main(arguments) == 0
    plans = [entry["conversations"][1]["value"].strip() for entry in asked]
    right = [line["text"].strip() == plan for line, plan in zip(read(answers), plans, strict=True)]
    assert len(set(plans)) > 1 and sum(right) >= 7
