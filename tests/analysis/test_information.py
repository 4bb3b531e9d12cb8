"""What is said about MI and complexity, on samples whose answer is known, and the program."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from llava.analysis.information import (
    analyse,
    correlations,
    distributions,
    draw,
    histogram,
    main,
    verdict,
)
from llava.analysis.information_samples import Sample
from llava.analysis.rank_statistics import Comparison

from ..eval.sweep_files import Asked, write_benchmark, write_run


def sample(mi: float, hops: int = 1, image: str = "a", **more) -> Sample:
    defaults = {"kind": "color", "distractors": 2, "target_patches": 4.0, "right": None}
    return Sample(image=("gqa", image), mi=mi, hops=hops, **{"n_text": 40, **defaults, **more})


def drawn(effect: float, pictures: int = 100, seed: int = 0) -> list[Sample]:
    """Two questions a picture, of one step and of two; `effect` is what the first has more MI."""
    rng = np.random.default_rng(seed)
    return [
        sample(
            float(rng.normal() + effect * (hops == 1)),
            hops,
            f"image {picture}",
            n_text=int(rng.integers(30, 50)),
        )
        for picture in range(pictures)
        for hops in (1, 2)
    ]


def test_distributions() -> None:
    samples = [
        sample(1.0, 1, distractors=2, target_patches=None, kind="color"),
        sample(2.0, 1, distractors=None, target_patches=1.0, kind="shape"),
        sample(4.0, 2, distractors=10, target_patches=2.0, kind="shape"),
        sample(5.0, 3, distractors=10, target_patches=3.0, kind="shape"),
        sample(6.0, 3, distractors=10, target_patches=4.5, kind="shape"),
    ]
    found = distributions(samples)
    shown = {
        factor: {value: (summary["n"], summary["mean"]) for value, summary in by.items()}
        for factor, by in found.items()
    }
    assert shown == {
        "hops": {"1": (2, 1.5), "2": (1, 4), "3": (2, 5.5)},
        "distractors": {"2": (1, 1), "10": (3, 5)},
        # the edges of 1, 2, 3, 4.5 are 1.75, 2.5 and 3.375
        "target patches": {
            **{"Q1: 1 to 1": (1, 2), "Q2: 2 to 2": (1, 4)},
            **{"Q3: 3 to 3": (1, 5), "Q4: 4.5 to 4.5": (1, 6)},
        },
        "kind": {"color": (1, 1), "shape": (4, 4.25)},
    }
    assert list(found["distractors"]) == ["2", "10"]  # by number, not by letter
    assert found["hops"]["1"] == {
        **{"n": 2, "mean": 1.5, "sd": pytest.approx(0.5**0.5)},
        **{"q1": 1.25, "median": 1.5, "q3": 1.75},
    }


def test_equal_sizes_are_not_torn_apart() -> None:
    sizes = [1.0, 4.0, 4.0, 4.0, 4.0, 4.0, 9.0, 10.0]
    found = distributions([sample(0.0, target_patches=size) for size in sizes])
    counts = {value: by["n"] for value, by in found["target patches"].items()}
    assert counts == {"Q1: 1 to 4": 6, "Q4: 9 to 10": 2}


def test_correlations() -> None:
    samples = [
        sample(1.0, 4, n_text=2, distractors=None, target_patches=9.0),
        sample(2.0, 2, n_text=1, distractors=5, target_patches=None),
        sample(3.0, 3, n_text=3, distractors=6, target_patches=5.0),
        sample(4.0, 1, n_text=4, distractors=7, target_patches=1.0),
    ]
    found = correlations(samples)
    # ranks of hops against those of MI differ by 3, 0, 0, 3: 1 - 6 x 18 / 60
    assert found["hops"] == pytest.approx(-0.8)
    assert found["n_text"] == pytest.approx(0.8)  # 1, 1, 0, 0
    assert found["distractors"] == pytest.approx(1)
    assert found["target_patches"] == pytest.approx(-1)
    # hops and n_text differ by 2, 1, 0, 3: 1 - 84 / 60 = -0.4
    partial = (-0.8 + 0.8 * 0.4) / ((1 - 0.64) * (1 - 0.16)) ** 0.5
    assert found["hops_given_n_text"] == pytest.approx(partial)


@pytest.mark.parametrize(
    ("effect", "claim"), [(2.0, "holds"), (0.0, "undecided"), (-2.0, "reversed")]
)
def test_the_claim_is_judged(effect, claim) -> None:
    result = analyse(drawn(effect), resamples=300)
    assert (result["samples"], result["simple"], result["complex"]) == (200, 100, 100)
    over_all, same_image = result["simple_over_complex"].values()
    assert over_all["claim"] == same_image["claim"] == claim
    assert (over_all["pairs"], same_image["pairs"]) == (10_000, 100)
    # normals two apart: P(x > y) = 0.92, and MI falls with hops
    assert over_all["auc"] == pytest.approx({2: 0.92, 0: 0.5, -2: 0.08}[effect], abs=0.05)
    assert result["correlations"]["hops"] == pytest.approx(-0.36 * effect, abs=0.1)


def test_a_claim_between_pictures_alone_shows_as_such() -> None:
    """Simple questions about pictures of high MI: within a picture there is no difference."""
    rng = np.random.default_rng(0)
    samples = []
    for picture in range(120):
        level, hops = (3, (1, 1, 2)) if picture % 2 else (0, (1, 2, 2))
        samples += [sample(float(level + rng.normal()), h, f"{picture}") for h in hops]
    found = analyse(samples, resamples=300)["simple_over_complex"]
    assert found["all_pairs"]["claim"] == "holds"
    assert found["same_image"]["claim"] == "undecided"


def test_prompt_length_alone_leaves_no_partial_correlation() -> None:
    rng = np.random.default_rng(3)
    samples = []
    for _ in range(1500):
        hops = int(rng.integers(1, 4))
        n_text = 30 + 8 * hops + int(rng.integers(0, 16))
        samples.append(sample(float(-n_text + rng.normal()), hops, n_text=n_text))
    found = correlations(samples)
    assert found["hops"] < -0.7 and abs(found["hops_given_n_text"]) < 0.1


def test_right_answers_against_wrong_ones() -> None:
    samples = [
        sample(3.0, image="a", right=True),
        sample(1.0, image="b", right=True),
        sample(2.0, image="c", right=False),
        sample(9.0, image="d", right=None),
    ]
    found = analyse(samples, resamples=50)["right_over_wrong"]
    assert (found["right"], found["wrong"], found["auc"], found["pairs"]) == (2, 1, 0.5, 2)


def test_verdict() -> None:
    assert verdict(Comparison(0.6, 0.51, 0.7, 9)) == "holds"
    assert verdict(Comparison(0.6, 0.5, 0.7, 9)) == "undecided"
    assert verdict(Comparison(0.4, 0.3, 0.49, 9)) == "reversed"
    assert verdict(Comparison(1.0, None, None, 1)) is None


def test_histogram() -> None:
    found = histogram([0.0, 0.1, 1.6, 1.6, 0.1], [True, True, True, True, False])
    assert found["edges"] == pytest.approx(np.arange(17) / 10)
    assert found["simple"] == [1, 1, *[0] * 13, 2]
    assert found["complex"] == [0, 1, *[0] * 14]
    lines = draw(found).splitlines()
    assert lines[0].split() == ["MI", "simple", "(n", "=", "4)", "complex", "(n", "=", "1)"]
    # The longest bar, 30 wide, is all of the complex ones.
    assert lines[2].split() == ["0.1", "to", "0.2", "25%", "#" * 8, "100%", "#" * 30]
    assert lines[16].split() == ["1.5", "to", "1.6", "50%", "#" * 15, "0%"]


def test_nothing_to_say_is_none() -> None:
    for samples in ([], [sample(1.0)], [sample(1.0), sample(1.0)]):
        result = analyse(samples, resamples=10)
        assert set(result["correlations"].values()) == {None}
        for found in (*result["simple_over_complex"].values(), result["right_over_wrong"]):
            assert found["auc"] is found["low"] is None and found["pairs"] == 0
        assert draw(result["histogram"])


@pytest.fixture
def sweep(tmp_path):
    """Simple questions have more MI in GQA and less in MME; their answers are right."""
    for folder, sign in (("gqa", 1), ("MME", -1)):
        asked = [
            Asked(
                image=f"{picture}.jpg",
                hops=hops,
                mi=5 + sign * (hops == 1) + 0.001 * picture,
                text="red" if hops == 1 else "blue",
                n_text=40 + picture % 3,
            )
            for picture in range(10)
            for hops in (1, 2)
        ]
        asked.append(Asked(None, 1, None))
        write_benchmark(tmp_path / "data", folder, asked)
        out = tmp_path / "out" / folder
        write_run(out / "n_64.jsonl", asked, entering=80)
        # A smaller budget in which MI says nothing: not the one to take by default.
        flat = [replace(a, mi=1.0) for a in asked]
        write_run(out / "n_32.jsonl", flat, entering=50, target_token_num=32)
    return tmp_path


def call(sweep, *arguments: str) -> int:
    return main([*arguments, "--data", str(sweep / "data"), "--resamples", "100"])


def test_the_program(sweep, capsys) -> None:
    assert call(sweep, "--runs", str(sweep / "out")) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["answers"]["gqa"].endswith("n_64.jsonl")
    assert result["text_only"] == {"gqa": 1, "mme": 1}
    assert result["settings"]["mi_layer"] == 1 and result["settings"]["target_token_num"] == 64
    claims = {name: found["simple_over_complex"] for name, found in result["benchmarks"].items()}
    assert claims["gqa"]["all_pairs"] == claims["gqa"]["all_pairs"] | {"auc": 1, "pairs": 100}
    assert claims["mme"]["same_image"]["claim"] == "reversed"
    pooled = result["pooled"]
    # Pictures of one name in two benchmarks are two pictures: 10 wins, 10 defeats.
    assert pooled["simple_over_complex"]["same_image"]["pairs"] == 20
    assert pooled["simple_over_complex"]["same_image"]["auc"] == 0.5
    assert result["benchmarks"]["gqa"]["right_over_wrong"]["auc"] == 1
    text = "\n".join(shown)
    one = "1.000 [1.000, 1.000] | holds"
    assert f"| gqa | 10 | 10 | 100 | {one} | 10 | {one} |" in shown
    assert "| gqa | 10 | 10 | 1.000 [1.000, 1.000] |" in shown  # right against wrong
    assert "20 answers, 1 without a picture left out" in text
    assert "## MI in pooled" in text and "| hops | 1 | 20 |" in text and "#" * 5 in text


def test_a_run_by_name_and_by_file(sweep, capsys) -> None:
    assert call(sweep, "--runs", str(sweep / "out"), "--run", "n_32") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["settings"]["target_token_num"] == 32
    assert result["pooled"]["simple_over_complex"]["all_pairs"]["claim"] == "undecided"
    assert call(sweep, str(sweep / "out/gqa/n_64.jsonl")) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["benchmarks"]) == ["gqa"] and result["pooled"] is None


def test_wrong_input_is_an_error(sweep, capsys) -> None:
    write_run(sweep / "out/gqa/none.jsonl", [Asked("0.jpg", 1, None)] * 20, method="none")
    assert call(sweep, str(sweep / "out/gqa/none.jsonl")) == 2
    assert "error: " in (err := capsys.readouterr().err) and "Only AutoPrune measures it" in err
    both = [str(sweep / "out" / folder / "n_64.jsonl") for folder in ("gqa", "gqa")]
    assert call(sweep, *both) == 2
    assert "more than one run of gqa" in capsys.readouterr().err
    assert call(sweep, "--runs", str(sweep / "nothing")) == 2
    assert "holds no sweep" in capsys.readouterr().err
    for arguments in ([], ["x.jsonl", "--runs", "out"], ["x.jsonl", "--run", "n_64"]):
        with pytest.raises(SystemExit) as caught:
            call(sweep, *arguments)
        assert caught.value.code == 2
        assert "give answer files, or --runs" in capsys.readouterr().err


def test_the_code_is_named_with_its_mark(sweep, capsys) -> None:
    record = next((sweep / "out").glob("*/n_64.run.json"))
    code = {"environment": {"git_commit": "0123abc", "git_dirty": True}}
    record.write_text(json.dumps(json.loads(record.read_text()) | code))
    assert call(sweep, "--runs", str(sweep / "out")) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert "Made with git_commit 0123abc (with uncommitted changes)" in shown
    assert json.loads(last)["git_commits"] == ["0123abc (with uncommitted changes)"]
