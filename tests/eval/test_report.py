"""The table of runs: every number comes from the record or the scorer."""

from __future__ import annotations

import json

import pytest

from llava import pruning
from llava.eval.benchmarks.textvqa import load_annotations
from llava.eval.report import main, markdown, row

QUESTION = "what is written?"


def write_run(folder, name: str, text: str, **changes):
    answers = folder / f"{name}.jsonl"
    answers.write_text(
        json.dumps(
            {
                "question_id": "im1",
                "prompt": f"{QUESTION}\nReference OCR token: \nAnswer shortly.",
                "text": text,
                "metadata": {},
            }
        )
        + "\n"
    )
    record = {
        "status": "complete",
        "settings": {"pruner": {"method": "autoprune", "target_token_num": 64}},
        "counts": {"answered": 4},
        "tokens": {"entering": 81.8, "leaving": 64.0},
        "flops": {"prefill_ratio": 0.231, "prefill_ratio_with_scoring_and_merging": 0.24},
        "kv_bytes": {"ratio": 0.2},
        "seconds": {"prefill": 2.0},
        **changes,
    }
    (folder / f"{name}.run.json").write_text(json.dumps(record))
    return answers


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"data": [{"image_id": "im1", "question": QUESTION, "answers": ["stop"] * 10}]})
    )
    return path


def test_rows_and_table(tmp_path, annotations, capsys) -> None:
    good = write_run(tmp_path, "good", "Stop.")
    bad = write_run(tmp_path, "bad", "go", settings={"pruner": {"method": "none"}})
    assert main(["--annotation-file", str(annotations), str(good), str(bad)]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[2] == "| autoprune 64 | 100.0 | 81.8 | 64.0 | 23.1% | 24.0% | 20.0% | 500.0 |"
    assert table[3].startswith("| none | 0.0 |")
    rows = json.loads(last)["rows"]
    assert rows[0]["prefill_ms"] == 500 and rows[0]["samples"] == 1


@pytest.mark.parametrize(
    ("pruner", "name"),
    [
        (pruning.build("none"), "none"),
        (pruning.build("autoprune", target_token_num=32), "autoprune 32"),
        (pruning.build("autoprune", budget_mode="strict"), "autoprune strict 64"),
        (pruning.build("autoprune", target_flops=0.25), "autoprune target_flops 0.25"),
    ],
)
def test_a_run_is_called_by_its_budget(tmp_path, annotations, pruner, name) -> None:
    answers = write_run(tmp_path, "run", "stop", settings={"pruner": pruner.to_dict()})
    assert row(answers, load_annotations(annotations))["run"] == name


def test_missing_values_are_empty_cells() -> None:
    entry = dict.fromkeys(
        (
            "accuracy",
            "tokens_entering",
            "tokens_leaving",
            "prefill_flops_ratio",
            "prefill_flops_ratio_with_scoring",
            "kv_bytes_ratio",
            "prefill_ms",
        )
    )
    assert markdown([{"run": "none", **entry}]).splitlines()[-1] == "| none |" + "  |" * 7


def test_unfinished_and_unrecorded_runs_are_refused(tmp_path, annotations, capsys) -> None:
    unfinished = write_run(tmp_path, "half", "stop", status="interrupted")
    assert main(["--annotation-file", str(annotations), str(unfinished)]) == 2
    assert "'interrupted'" in capsys.readouterr().err
    unfinished.with_name("half.run.json").unlink()
    with pytest.raises(ValueError, match=r"no run record half\.run\.json"):
        row(unfinished, {})
