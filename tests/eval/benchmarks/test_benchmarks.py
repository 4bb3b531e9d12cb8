"""The list of benchmarks, as tables and command lines take it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.__main__ import table

ROOT = Path(__file__).parents[3]


PLACES = {  # in the order of the paper: folder, and images in it
    "vqav2": ("vqav2", "val2014"),
    "gqa": ("gqa", "data/images"),
    "vizwiz": ("vizwiz", "val"),
    "scienceqa": ("scienceqa", "images/test"),
    "textvqa": ("textvqa", "train_images"),
    "textvqa-noocr": ("textvqa", "train_images"),
    "pope": ("pope", "val2014"),
    "mme": ("MME", "MME_Benchmark_release_version"),
    "mmbench": ("mmbench", "."),
    "mmbench_cn": ("mmbench_cn", "."),
    "mmvet": ("mm-vet", "images"),
    "senna": ("senna", "."),
}


def test_names_in_the_order_of_the_paper() -> None:
    assert [name for name in BENCHMARKS if name in PLACES] == list(PLACES)
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())


def test_folders_and_images_are_those_of_the_official_scripts() -> None:
    places = {name: (BENCHMARKS[name].folder, BENCHMARKS[name].images) for name in PLACES}
    assert places == PLACES
    assert len({benchmark.title for benchmark in BENCHMARKS.values()}) == len(BENCHMARKS)


SOURCES = {  # of the questions, of the true answers
    "vqav2": ("visualqa.org", "visualqa.org"),
    "gqa": ("LLaVA's eval.zip", "gqadataset.org"),
    "vizwiz": ("makes it from val.json", "vizwiz.org"),
    "scienceqa": ("LLaVA's eval.zip", "lupantech/ScienceQA"),
    "textvqa": ("LLaVA's eval.zip", "textvqa.org"),
    "textvqa-noocr": ("LLaVA's eval.zip", "textvqa.org"),
    "pope": ("LLaVA's eval.zip", "LLaVA's eval.zip"),  # it looks for the questions first
    "mme": ("LLaVA's eval.zip", "BradyFU/Awesome-Multimodal-Large-Language-Models"),
    "mmbench": ("open-compass/MMBench", "open-compass/MMBench"),
    "mmbench_cn": ("open-compass/MMBench", "open-compass/MMBench"),
    "mmvet": ("LLaVA's eval.zip", "yuweihao/MM-Vet"),
    "senna": ("llava.eval.benchmarks.senna.build", "llava.eval.benchmarks.senna.build"),
}


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda b: b.name)
def test_an_empty_folder_has_neither_questions_nor_a_score(benchmark, tmp_path) -> None:
    questions, truth = SOURCES.get(benchmark.name, (None, None))
    with pytest.raises(FileNotFoundError, match=questions) as missing:
        benchmark.load_questions(tmp_path)
    assert str(tmp_path) in str(missing.value)
    # Whose answers are graded elsewhere has no score with files either.
    error = FileNotFoundError if benchmark.scored_here else ValueError
    with pytest.raises(error, match=truth):
        benchmark.score(tmp_path, [], allow_missing=True)


def test_only_mm_vet_is_scored_elsewhere() -> None:
    assert [name for name in PLACES if not BENCHMARKS[name].scored_here] == ["mmvet"]


def test_each_split_is_scored_here_or_submitted() -> None:
    for benchmark in BENCHMARKS.values():
        for split in benchmark.splits:
            assert (split.scored_as in BENCHMARKS) is (split.submission is None)


def test_the_document_has_the_table_of_files() -> None:
    """As `python -m llava.eval.benchmarks` prints it."""
    printed = table(BENCHMARKS.values())
    assert printed in (ROOT / "EVAL.md").read_text(encoding="utf-8"), "print it into EVAL.md again"


def test_neither_the_list_nor_the_scorer_waits_for_torch() -> None:
    code = "import llava.eval.score, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "llava.eval.benchmarks.mmbench" in loaded
    assert not loaded & {"torch", "transformers", "PIL"}
