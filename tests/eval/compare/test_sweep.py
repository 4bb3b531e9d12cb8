"""A whole comparison in one command: what is run, kept, repeated, refused and told."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llava.common.images import read_file
from llava.eval.compare.progress import Steps
from llava.eval.compare.report import main as report_main
from llava.eval.compare.sweep import main
from llava.mm_utils import load_image_processor

from ... import tiny
from ..benchmark_files import BENCHMARKS, write_benchmark
from ..run.test_with_model import TinyTokenizer
from ..stub import StubModel, write_checkpoint

RUNS = ("--runs", "none", "autoprune:64,32", "random:8@seed=0", "random:8@seed=1")


@pytest.fixture
def data(tmp_path):
    write_benchmark(tmp_path / "data", "alpha", 6)
    write_benchmark(tmp_path / "data", "beta", 8)
    return tmp_path


def sweep(folder, *flags: str, cached: bool = False) -> int:
    command = ["--model-path", "stub-7b", "--data", str(folder / "data")]
    command += ["--out", str(folder / "out"), "--num-workers", "0", *flags]
    return main(command + ([] if cached else ["--no-feature-cache"]), BENCHMARKS)


def record(folder, run: str) -> dict:
    return json.loads((folder / "out" / f"{run}.run.json").read_text())


def table(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def loads(monkeypatch) -> list[str]:
    """Notes each loading of the stub model."""
    found: list[str] = []
    model = StubModel()

    def load(path: str, *_, **__):
        found.append(path)
        return model.load()

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", load)
    return found


def test_every_run_on_every_benchmark_with_one_model(data, monkeypatch, capsys):
    loaded = loads(monkeypatch)
    assert sweep(data, *RUNS) == 0
    assert loaded == ["stub-7b"]
    names = ["autoprune-32", "autoprune-64", "none", "random-8@seed=0", "random-8@seed=1"]
    for benchmark, count, tokens in (("alpha", 6, 128), ("beta", 8, 1024)):
        files = sorted((data / "out" / benchmark).glob("*.jsonl"))
        assert [file.stem for file in files] == names
        assert all(len(file.read_text().splitlines()) == count for file in files)
        settings = record(data, f"{benchmark}/autoprune-32")["settings"]
        assert settings["pruner"]["target_token_num"] == 32
        assert (settings["max_new_tokens"], settings["limit"]) == (tokens, None)
        assert settings["feature_cache_gb"] is None
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("| method | budget | Alpha | Beta | relative |")
    rows = [(row["method"], row["budget"], row["seeds"]) for row in json.loads(lines[-1])["rows"]]
    assert rows == [("none", None, []), ("autoprune", 64, []), ("autoprune", 32, []),
                    ("random", 8, [0, 1])]  # fmt: skip
    assert "[1/10] alpha: none\n" in err and "[10/10] beta: random-8@seed=1, about " in err


def test_complete_runs_are_not_repeated_and_a_cut_one_continues(data, monkeypatch, capsys):
    loads(monkeypatch)
    assert sweep(data, *RUNS) == 0
    first = table(capsys)
    untouched = (data / "out/beta/none.jsonl").read_bytes()
    cut = data / "out/alpha/autoprune-64.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:4]))
    summary = json.loads(cut.with_suffix(".run.json").read_text())
    cut.with_suffix(".run.json").write_text(json.dumps({**summary, "status": "running"}))
    assert sweep(data, *RUNS) == 0
    assert record(data, "alpha/autoprune-64")["counts"]["resumed"] == 4
    assert (data / "out/beta/none.jsonl").read_bytes() == untouched
    again = table(capsys)
    assert [row["benchmarks"] for row in again["rows"]] == [
        row["benchmarks"] for row in first["rows"]
    ]
    loaded = loads(monkeypatch)
    assert sweep(data, *RUNS) == 0
    assert loaded == []


def test_more_runs_can_be_added(data, monkeypatch, capsys):
    loads(monkeypatch)
    assert sweep(data, "--runs", "none") == 0
    assert sweep(data, "--runs", "none", "autoprune:16", "--benchmarks", "beta") == 0
    assert len(list((data / "out").rglob("*.jsonl"))) == 3
    assert [row["budget"] for row in table(capsys)["rows"]] == [None, 16]


def test_other_settings_are_refused_before_the_model_is_loaded(data, monkeypatch, no_model, capsys):
    loads(monkeypatch)
    assert sweep(data, *RUNS) == 0
    no_model()
    capsys.readouterr()
    assert sweep(data, *RUNS, "--x0", "7") == 2
    assert "pruner.x0: 14.9 in the record, 7.0 now" in capsys.readouterr().err
    assert sweep(data, *RUNS, "--limit", "4") == 2
    assert "limit: None in the record, 4 now" in capsys.readouterr().err
    assert sweep(data, *RUNS, cached=True) == 2
    assert "feature_cache: False in the record, True now" in capsys.readouterr().err


def test_depths_are_those_of_the_decoder(data, monkeypatch, capsys):
    loads(monkeypatch)
    runs = ("--runs", "autoprune:64,32", "fastv:64", "fastv:64@depth=2", "--benchmarks", "alpha")
    assert sweep(data, *runs, "--model-path", write_checkpoint(data, layers=12)) == 0
    pruners = {
        run: record(data, f"alpha/{run}")["settings"]["pruner"]
        for run in ("autoprune-64", "autoprune-32", "fastv-64", "fastv-64@depth=2")
    }
    assert [pruners[f"autoprune-{tokens}"]["x0"] for tokens in (64, 32)] == [5.5875, 5.5875]
    assert (pruners["fastv-64"]["depth"], pruners["fastv-64@depth=2"]["depth"]) == (1, 2)
    err = capsys.readouterr().err
    assert err.count("x0 14.9 is for 32 layers") == err.count("depth 2 is for 32 layers") == 1


def test_a_limit_takes_whole_groups_and_is_told(data, monkeypatch, capsys):
    loads(monkeypatch)
    assert sweep(data, "--runs", "none", "--limit", "5") == 0
    indices = {
        name: [
            json.loads(line)["metadata"]["index"]
            for line in (data / f"out/{name}/none.jsonl").read_text().splitlines()
        ]
        for name in BENCHMARKS
    }
    assert len(indices["alpha"]) == 5
    assert len(indices["beta"]) == 4 and {i // 2 for i in indices["beta"]} == {
        i // 2 for i in indices["beta"][::2]
    }
    assert record(data, "beta/none")["settings"]["limit"] == 5
    out = capsys.readouterr().out
    assert "- Alpha: alpha, accuracy; 5 of 6 questions (--limit 5), n = 5." in out
    assert "- Beta: beta, accuracy, in percent of 200; 4 of 8 questions (--limit 5), n = 4." in out
    assert sweep(data, "--runs", "none", "--limit", "7") == 2  # other questions
    assert "limit: 5 in the record" in capsys.readouterr().err


def test_a_limit_above_all_is_no_limit(data, monkeypatch):
    loads(monkeypatch)
    assert sweep(data, "--runs", "none", "--limit", "8") == 0
    assert sweep(data, "--runs", "none") == 0
    assert record(data, "alpha/none")["settings"]["limit"] is None


def test_only_benchmarks_that_are_there_and_the_first_of_a_folder(data, monkeypatch, capsys):
    loads(monkeypatch)
    (data / "data/beta").rename(data / "data/elsewhere")
    assert sweep(data, "--runs", "none") == 0
    assert list(table(capsys)["benchmarks"]) == ["alpha"]
    (data / "data/alpha").rename(data / "data/nowhere")
    assert sweep(data, "--runs", "none") == 2
    assert "has none of the folders alpha, beta" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--runs", "autoprun"), "did you mean 'autoprune'"),
        (("--runs", "none", "--limit", "0"), "--limit must be at least 1, got 0"),
        (("--runs", "none", "--feature-cache-gb", "0"), "feature_cache_gb must be above 0, got 0"),
        (("--runs", "none", "--depth-layers", "32"), "stub-7b"),
    ],
)
def test_wrong_flags_are_named_before_the_model_is_loaded(data, no_model, capsys, flags, message):
    no_model()
    assert sweep(data, *flags, cached="--feature-cache-gb" in flags) == 2
    assert message in capsys.readouterr().err
    assert not (data / "out").exists()


def test_missing_annotations_are_found_first(data, no_model, capsys):
    no_model()
    (data / "data/beta/annotations.json").unlink()
    assert sweep(data, "--runs", "none") == 2
    assert "annotations.json" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(data, use, capsys):
    def fail(call: int) -> None:
        if call == 3:
            raise ValueError("a budget that cannot be met")

    use(StubModel(fail))
    assert sweep(data, "--runs", "none", "autoprune:8", "--benchmarks", "alpha") == 1
    assert record(data, "alpha/none")["status"] == "refused"
    captured = capsys.readouterr()
    rows = json.loads(captured.out.splitlines()[-1])["rows"]
    assert [row["method"] for row in rows] == ["autoprune"]
    assert captured.err.endswith("Refused: alpha, none: a budget that cannot be met.\n")
    assert sweep(data, "--runs", "none", "autoprune:8", "--benchmarks", "alpha") == 0
    assert record(data, "alpha/none")["refusal"] is None
    captured = capsys.readouterr()
    rows = json.loads(captured.out.splitlines()[-1])["rows"]
    assert [row["method"] for row in rows] == ["none", "autoprune"]
    assert "Refused" not in captured.err


def test_a_budget_below_the_floor_is_refused_and_the_rest_goes_on(data, tiny_model, capsys):
    """16 of 4 layers' tokens leave layer 0, 2 any other: (16 + 3 x 2) / 4."""
    runs = ("autoprune:5,8@preselect_ratio=none", "no-image")
    flags = ("--benchmarks", "alpha", "--limit", "1", "--max_new_tokens", "1")
    assert sweep(data, "--runs", *runs, *flags) == 1
    captured = capsys.readouterr()
    rows = json.loads(captured.out.splitlines()[-1])["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("autoprune", 8),
        ("no-image", None),
    ]
    assert captured.err.count("Refused: ") == 1
    assert "target_token_num 5 is below the floor of 5.5: " in captured.err.splitlines()[-1]
    assert report_main([str(data / "out"), "--data", str(data / "data")], BENCHMARKS) == 0
    assert "is 'refused': target_token_num 5 is below the floor of 5.5" in capsys.readouterr().err


def test_an_unreadable_image_leaves_its_run_out_of_the_table(data, use, capsys):
    use(StubModel())
    (data / "data/alpha/images/1.png").write_text("no image")
    assert sweep(data, "--runs", "none") == 3
    captured = capsys.readouterr()
    assert list(json.loads(captured.out.splitlines()[-1])["benchmarks"]) == ["beta"]
    listed = data / "out/alpha/none.errors.jsonl"
    said = f"Left out: alpha, none: 2 of 6 questions have no answer, see {listed}."
    assert captured.err.splitlines()[-1] == said
    assert report_main([str(data / "out"), "--data", str(data / "data")], BENCHMARKS) == 0
    said = "is 'incomplete': none.errors.jsonl says why questions have no answer."
    assert said in capsys.readouterr().err


def test_interruption_ends_the_sweep(data, use, capsys):
    def interrupt(call: int) -> None:
        if call == 3:
            raise KeyboardInterrupt

    use(StubModel(interrupt))
    assert sweep(data, "--runs", "none", "autoprune:8") == 130
    assert capsys.readouterr().out == ""
    assert not (data / "out/alpha/autoprune-8.jsonl").exists()


@pytest.fixture
def tiny_model(monkeypatch):
    model = tiny.model(layers=4)
    processor = load_image_processor("no such folder")
    processor.size, processor.crop_size = {"shortest_edge": 56}, {"height": 56, "width": 56}
    loaded = TinyTokenizer(), model, processor, 512
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", lambda *_, **__: loaded)
    return model


def answers(folder) -> dict[str, list[str]]:
    return {
        str(file.relative_to(folder / "out")): [
            json.loads(line)["text"] for line in file.read_text().splitlines()
        ]
        for file in (folder / "out").rglob("*.jsonl")
    }


def test_the_feature_cache_changes_no_answer_but_what_prefill_means(data, tiny_model, capsys):
    flags = ("--runs", "none", "autoprune:6", "--x0", "2", "--max_new_tokens", "3")
    assert sweep(data, *flags, "--batch-size", "3") == 0
    without = answers(data)
    assert record(data, "alpha/none")["seconds"]["vision"] is None
    assert "vision tower included" in capsys.readouterr().out
    (data / "out").rename(data / "first")
    assert sweep(data, *flags, "--batch-size", "3", cached=True) == 0
    assert answers(data) == without
    # Both benchmarks draw the same pictures: three of the four of beta are those of alpha. All are
    # encoded once, although only AutoPrune looks into a layer of the tower.
    assert tiny_model.get_vision_tower().encoded == 4
    assert record(data, "beta/autoprune-6")["seconds"]["vision"] is not None
    out = capsys.readouterr().out
    assert "without the vision tower" in out and json.loads(out.splitlines()[-1])["vision_apart"]


def test_no_run_reads_a_picture_whose_features_are_kept(data, tiny_model, monkeypatch):
    read: list[str] = []

    def noted(path):
        read.append(path.name)
        return read_file(path)

    monkeypatch.setattr("llava.common.images.read_file", noted)
    flags = ("--benchmarks", "beta", "--max_new_tokens", "3", "--batch-size", "3", "--runs")
    assert sweep(data, *flags, "none", "autoprune:6", "--x0", "2") == 0
    without, count = answers(data), len(read) // 2
    (data / "out").rename(data / "first")
    read.clear()
    assert sweep(data, *flags, "none", "autoprune:6", "--x0", "2", cached=True) == 0
    assert answers(data) == without and len(read) == count
    # ToMe merges in the tower, so it needs the pixels.
    assert sweep(data, *flags, "none", "tome:6", cached=True) == 0
    assert len(read) == 2 * count


def test_what_a_small_cache_has_dropped_meanwhile_is_read_again(data, tiny_model, capsys):
    flags = ("--benchmarks", "beta", "--max_new_tokens", "3", "--batch-size", "3", "--runs")
    assert sweep(data, *flags, "none", "random:6") == 0
    without = answers(data)
    (data / "out").rename(data / "first")
    room = 2.5 * (16 + 1) * 32 * 4 / 1e9  # of four pictures
    assert (
        sweep(data, *flags, "none", "random:6", "--feature-cache-gb", str(room), cached=True) == 0
    )
    assert answers(data) == without
    assert "feature cache was full" in capsys.readouterr().err
    # The second run knew two, and dropped them for those before them.
    assert tiny_model.get_vision_tower().encoded == 4 + 4


def test_a_cache_that_is_too_small_says_so(data, tiny_model, capsys):
    flags = ("--runs", "none", "--max_new_tokens", "1", "--feature-cache-gb", "5e-6")
    assert sweep(data, *flags, cached=True) == 0
    assert "feature cache was full and dropped 5 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "told"),
    [(2, "replaced by another file"), (7, "has changed it since")],
    ids=["during its run", "when it is complete"],
)
def test_answers_that_are_lost_are_an_error_of_the_sweep(data, monkeypatch, capsys, call, told):
    """Six answers of alpha, then those of beta."""
    file = data / "out" / "alpha" / "none.jsonl"

    def change(number: int) -> None:
        if number == call:
            file.unlink()
            file.write_text("another's\n")
            file.with_suffix(".run.json").unlink()

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", StubModel(change).load)
    assert sweep(data, "--runs", "none") == 1
    out, err = capsys.readouterr()
    assert told in err and "Traceback" not in err
    assert file.read_text() == "another's\n"
    assert list(json.loads(out.splitlines()[-1])["benchmarks"]) == ["beta"]


def test_the_rest_takes_as_long_as_answers_take_not_loading(monkeypatch, capsys):
    times = iter([0.0, 100.0, 100.0])
    monkeypatch.setattr("llava.eval.compare.progress.perf_counter", lambda: next(times))
    task = SimpleNamespace(
        benchmark=SimpleNamespace(name="alpha"), planned=SimpleNamespace(name="none"), left=2
    )
    steps = Steps([task, task])
    steps.begin(task)
    steps.end(task, [{"counts": {"answered": 2, "resumed": 0}}], loading=80.0)
    steps.begin(task)
    assert capsys.readouterr().err.splitlines()[-1] == "[2/2] alpha: none, about 20 s left"
