"""Retention curves from recorded answers equal the traces of the prefills that were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava import pruning
from llava.analysis import traced
from llava.analysis.curves import Panel, SampleCurve, figure, main, read

from .conftest import DEMO

QUESTIONS = ("What word is on the yellow sign?", "Where is the red heart?")


def record(folder: Path, pruner: pruning.Pruner, answers: list[traced.TracedAnswer]) -> Path:
    """A run as `llava.eval` writes it, as far as curves are concerned."""
    file = folder / "textvqa" / f"{pruner.method}-{len(list(folder.rglob('*.jsonl')))}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "question_id": number,
            "text": answer.text,
            "metadata": {
                "n_visual": answer.sample.n_visual,
                "n_text": answer.sample.n_text,
                "complexity": dict(answer.complexity),
                "cost": answer.cost.to_dict(),
            },
        }
        for number, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model_path": str(DEMO), "pruner": pruner.to_dict()}
    file.with_suffix(".run.json").write_text(json.dumps({"settings": settings}))
    return file


@pytest.fixture(scope="module")
def ask(demo, wide):
    tokenizer, model, image_processor = demo

    def ask(pruner: pruning.Pruner) -> list[traced.TracedAnswer]:
        return [
            traced.run(model, tokenizer, image_processor, wide, q, pruner, max_new_tokens=1)
            for q in QUESTIONS
        ]

    return ask


@pytest.mark.parametrize(
    ("settings", "counted", "budget", "title"),
    [
        ({"target_token_num": 64}, "leaving", 64, "released, 64"),
        ({"target_token_num": 64, "preset": "paper"}, "leaving", 64, "paper, 64"),
        (
            {"target_token_num": 100, "budget_mode": "strict"},
            *("entering", 100, "released, 100 strict"),
        ),
        # An eighth of 576 patches.
        ({"target_fraction": 0.125}, "leaving", 72, "released, target_fraction 0.125"),
        ({"target_token_num": 64, "budget_per": "image"}, "leaving", 64, "released, 64"),
        ({"target_kv": 0.5}, "leaving", None, "released, target_kv 0.5"),
    ],
    ids=["released", "paper", "strict", "a share of tokens", "an image", "a share of KV bytes"],
)
def test_curves_are_those_of_the_trace(ask, tmp_path, settings, counted, budget, title) -> None:
    pruner = pruning.build("autoprune", x0=5.6, **settings)
    answers = ask(pruner)
    panel = read(record(tmp_path, pruner, answers))
    assert (panel.counted, panel.budget, panel.whole) == (counted, budget, 0)
    for curve, answer in zip(panel.curves, answers, strict=True):
        assert list(curve.tokens) == getattr(answer.sample, counted)
        assert curve.mutual_information == answer.mutual_information
    assert panel.title == f"textvqa: {title}"


def test_samples_that_differ_in_their_budget_have_no_common_line(
    ask, tmp_path, monkeypatch
) -> None:
    pruner = pruning.build("autoprune", target_fraction=0.125, x0=5.6)
    file = record(tmp_path, pruner, ask(pruner))
    first, second = map(json.loads, file.read_text().splitlines())
    # As a tiled picture would be: 144 tokens beside 72. Which curve follows matters not here.
    second["metadata"]["n_visual"] = 1152
    monkeypatch.setattr("llava.analysis.curves._curve", lambda config, *_: SampleCurve(1.0, (3, 2)))
    file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    assert read(file).budget is None


def test_samples_within_the_budget_have_no_curve(ask, tmp_path) -> None:
    pruner = pruning.build("autoprune", target_token_num=64, x0=5.6)
    file = record(tmp_path, pruner, ask(pruner))
    first, second = map(json.loads, file.read_text().splitlines())
    second["metadata"] |= {"complexity": {}, "n_visual": 0}
    file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    panel = read(file)
    assert len(panel.curves) == 1 and panel.whole == 1
    first["metadata"]["complexity"] = {}
    file.write_text(json.dumps(first) + "\n")
    with pytest.raises(ValueError, match="no sample was pruned"):
        read(file)


def test_the_figure_has_a_line_a_sample_the_mean_and_the_budget() -> None:
    pytest.importorskip("matplotlib")
    curves = [SampleCurve(2.0, (90, 6, 3)), SampleCurve(1.0, (90, 4, 1))]
    left = Panel("one", "leaving", 5, curves, 0)
    right = Panel("two", "entering", None, curves[:1], 3)
    drawn = figure([left, right])
    first, second, *bars = drawn.axes
    assert len(bars) == 2 and {bar.get_ylabel() for bar in bars} == {"mutual information"}
    (lines,) = first.collections
    # From the lowest mutual information to the highest.
    assert [s[:, 1].tolist() for s in lines.get_segments()] == [[90, 4, 1], [90, 6, 3]]
    assert lines.get_array().tolist() == [1.0, 2.0]
    mean, budget = first.lines
    assert list(mean.get_ydata()) == [90, 5, 2] and mean.get_label() == "mean"
    assert list(budget.get_ydata()) == [5, 5] and budget.get_label() == "budget 5"
    assert first.get_title() == "one (n = 2)" and second.get_title() == "two (n = 1)"
    assert first.get_ylabel() == "visual tokens leaving it" and first.get_xlabel() == "layer"
    assert second.get_ylabel() == "visual tokens entering it" and len(second.lines) == 1
    # The curves part behind layer 0, whose 90 would leave them no room: 6 and a quarter.
    assert first.get_ylim() == (0, 7.5) and [t.get_text() for t in first.texts] == ["layer 0: 90"]
    assert second.get_ylim() == (0, 112.5) and not second.texts


def test_the_command_draws_presets_side_by_side(ask, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    files = []
    for preset in ("released", "paper"):
        pruner = pruning.build("autoprune", preset=preset, target_token_num=64, x0=5.6)
        files.append(str(record(tmp_path, pruner, ask(pruner))))
    out = tmp_path / "new" / "curves.svg"
    assert main([*files, "--out", str(out)]) == 0
    assert "<svg" in out.read_text()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["panels"]
    assert [panel["title"] for panel in told] == ["textvqa: released, 64", "textvqa: paper, 64"]
    assert all(panel["samples"] == 2 and len(panel["mean"]) == 12 for panel in told)
    assert sum(told[0]["mean"]) / 12 == pytest.approx(64, abs=1.5)


def test_without_matplotlib_the_message_says_so(ask, tmp_path, capsys, monkeypatch) -> None:
    def without(*size, **options):
        raise ImportError("figures need matplotlib")

    monkeypatch.setattr("llava.analysis.plotting.new_figure", without)
    pruner = pruning.build("autoprune", target_token_num=64, x0=5.6)
    out = tmp_path / "curves.png"
    assert main([str(record(tmp_path, pruner, ask(pruner))), "--out", str(out)]) == 2
    assert "figures need matplotlib" in capsys.readouterr().err and not out.exists()


def test_bad_records_get_their_message(ask, tmp_path, capsys) -> None:
    pruner = pruning.build("autoprune", target_token_num=64, x0=5.6)
    answers = ask(pruner)

    def fails(file: Path, message: str, *more: str) -> None:
        assert main([str(file), "--out", str(tmp_path / "x.png"), *more]) == 2
        assert message in capsys.readouterr().err

    file = record(tmp_path, pruner, answers)
    fails(tmp_path / "none.jsonl", "has no run record")
    fails(file, "no such", "--model-path", str(tmp_path / "no such"))
    lines = file.read_text()
    older = [json.loads(line) for line in lines.splitlines()]
    del older[1]["metadata"]["complexity"]["x0"]
    file.write_text("".join(json.dumps(line) + "\n" for line in older))
    fails(file, "line 2, metadata, complexity: x0 is missing")
    fails(file, "no recorded curve. These answers were written by an older")
    other = json.loads(lines.splitlines()[0])
    other["metadata"]["cost"]["tokens_leaving"] += 1
    file.write_text(json.dumps(other) + "\n")
    fails(file, "Another version or another checkpoint made it")
    settings = json.loads(file.with_suffix(".run.json").read_text())
    settings["settings"]["pruner"]["shape_of_old"] = 3
    file.with_suffix(".run.json").write_text(json.dumps(settings))
    fails(file, "settings are not those of this version (unknown setting")
    fails(record(tmp_path, pruning.build("fastv"), []), "is a run of 'fastv': only AutoPrune")
    static = pruning.build("autoprune", indicator="static")
    fails(record(tmp_path, static, []), "measured static and no mutual information")
    fails(record(tmp_path, pruner, answers), "--out must end in", "--out", "x.gif")
