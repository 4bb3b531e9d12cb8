"""The mini benchmarks as they lie in the repository: official files, balance, held-out scenes."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import BENCHMARKS
from llava.train.benchmarks import WRITERS
from llava.train.benchmarks.common import collect, jpeg, scenes
from llava.train.minibench import main
from llava.train.questions import ask
from llava.train.scenes import TEST_SEEDS, TRAINING_SEEDS, make_scene
from llava.train.turns import LETTER, OCR_LINE, SHORT
from llava.train.vocabulary import UNSEEN_THINGS, UNSEEN_WORDS

MINI = Path(__file__).parents[2] / "playground" / "data" / "mini"
NAMES = [name for name, bench in BENCHMARKS.items() if (MINI / bench.folder).is_dir()]


def _metadata(name: str) -> list[dict[str, Any]]:
    path = MINI / BENCHMARKS[name].folder / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _score(name: str, texts: list[str]) -> dict[str, Any]:
    bench = BENCHMARKS[name]
    questions = bench.load_questions(MINI / bench.folder)
    answers = [
        {
            "question_id": questions[i].question_id,
            "prompt": questions[i].text,
            "text": text,
            "metadata": {"index": questions[i].index},
        }
        for i, text in enumerate(texts)
    ]
    return bench.score(MINI / bench.folder, answers)


def test_every_folder_serves_a_benchmark() -> None:
    assert {BENCHMARKS[name].folder for name in NAMES} == set(WRITERS)
    assert {
        "vqav2",
        "gqa",
        "scienceqa",
        "textvqa",
        "textvqa-noocr",
        "pope",
        "mme",
        "mmbench",
    } == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_loader_reads_it_and_the_real_scorer_scores_it(name: str) -> None:
    metadata = _metadata(name)
    questions = BENCHMARKS[name].load_questions(MINI / BENCHMARKS[name].folder)
    assert 300 <= len(questions) == len(metadata) <= 1000
    for question, entry in zip(
        (questions[i] for i in range(len(questions))), metadata, strict=True
    ):
        assert (question.index, question.question_id) == (entry["index"], entry["question_id"])
    result = _score(name, [entry["answer"] for entry in metadata])
    best = result.get("best", BENCHMARKS[name].best)
    assert result[BENCHMARKS[name].metric] == pytest.approx(best)
    # MME gives 100 points for half of all questions right and none for pairs
    silent = _score(name, ["?"] * len(metadata))
    assert silent[BENCHMARKS[name].metric] <= 70 if name == "pope" else best / 10


@pytest.mark.parametrize("name", NAMES)
def test_pictures_can_be_opened(name: str) -> None:
    bench = BENCHMARKS[name]
    questions = bench.load_questions(MINI / bench.folder)
    seen = 0
    for question in (questions[i] for i in range(0, len(questions), 40)):
        if question.image is not None:
            picture = questions.open_image(question, MINI / bench.folder / bench.images)
            assert isinstance(picture, Image.Image) and max(picture.size) == 336
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_pictures_is_wide_and_another_tall(name: str) -> None:
    bench = BENCHMARKS[name]
    questions = bench.load_questions(MINI / bench.folder)
    pictures = {}
    for entry in _metadata(name):
        if entry["image"] is not None and entry["image"] not in pictures:
            question = questions[entry["index"]]
            question = replace(question, image=question.images[-1])  # the one it is about
            width, height = questions.open_image(question, MINI / bench.folder / bench.images).size
            known = "square" if width == height else "wide" if width > height else "tall"
            assert entry["aspect"] == known and min(width, height) >= 188
            pictures[entry["image"]] = known
    shares = {key: count / len(pictures) for key, count in Counter(pictures.values()).items()}
    assert shares["square"] > 0.55 and shares["wide"] > 0.1 and shares["tall"] > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_language_alone_does_not_answer(name: str) -> None:
    """Yes as often as no for every kind; no other answer of a kind in more than two fifths."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in _metadata(name):
        answers[entry["kind"]][entry["answer"]] += 1
    for kind, counts in answers.items():
        if counts.keys() <= {"yes", "no"}:
            assert counts["yes"] == counts["no"], kind
        elif len(counts) == 2:
            assert max(counts.values()) == min(counts.values()), kind
        else:
            assert max(counts.values()) <= 0.4 * counts.total(), kind


@pytest.mark.parametrize("name", ["pope", "mme", "gqa", "vqav2"])
def test_no_word_tells_yes_from_no(name: str) -> None:
    """Noun or predicate, each as often with yes as with no, but for one where pairs share a
    picture."""
    questions = BENCHMARKS[name].load_questions(MINI / BENCHMARKS[name].folder)
    surplus: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in _metadata(name):
        if entry["answer"] in ("yes", "no"):
            words = re.findall(r"\w+", questions[entry["index"]].text.removesuffix(SHORT))
            for word in words:
                surplus[entry["kind"]][word] += 1 if entry["answer"] == "yes" else -1
    assert surplus
    for kind, counts in surplus.items():
        limit = 0 if name == "pope" else 1
        assert all(abs(value) <= limit for value in counts.values()), (kind, counts)


def test_simple_and_complex_questions_about_the_same_picture() -> None:
    bench = BENCHMARKS["gqa"]
    questions = bench.load_questions(MINI / bench.folder)
    hops: dict[str, set[int]] = defaultdict(set)
    for entry in _metadata("gqa"):
        hops[questions[entry["index"]].image].add(entry["hops"])
    assert sum(1 in found and max(found) > 1 for found in hops.values()) > 50
    assert {hop for found in hops.values() for hop in found} == {1, 2, 3}


def test_prompts_are_those_of_the_real_benchmarks() -> None:
    endings = {name: SHORT for name in NAMES} | {"scienceqa": LETTER, "mmbench": LETTER}
    for name in NAMES:
        questions = BENCHMARKS[name].load_questions(MINI / BENCHMARKS[name].folder)
        for i in range(0, len(questions), 25):
            assert questions[i].text.endswith(endings[name]), name
            assert (OCR_LINE in questions[i].text) == (name == "textvqa")


def test_scienceqa_has_questions_without_a_picture_and_mmbench_all_rotations() -> None:
    questions = BENCHMARKS["scienceqa"].load_questions(MINI / "scienceqa")
    blank = [questions[i].image is None for i in range(len(questions))]
    assert 0.25 < sum(blank) / len(blank) < 0.4
    result = _score("mmbench", [entry["answer"] for entry in _metadata("mmbench")])
    sizes = {int(size): count for size, count in result["rotations"].items()}
    assert sum(size * count for size, count in sizes.items()) == len(_metadata("mmbench"))
    assert min(sizes) == 2 and max(sizes) == 4


def test_six_questions_of_mmbench_come_with_two_pictures() -> None:
    """In all their rotations, the one that they are about behind another."""
    questions = BENCHMARKS["mmbench"].load_questions(MINI / "mmbench")
    two = [q for q in (questions[i] for i in range(len(questions))) if len(q.images) == 2]
    assert len({q.question_id % 1_000_000 for q in two}) == 6 and 12 <= len(two) <= 24
    known = {entry["index"]: entry["image"] for entry in _metadata("mmbench")}
    for question in two:
        seed = int(known[question.index].removeprefix("scene"))
        other, about = (
            questions.open_image(replace(question, image=image), MINI) for image in question.images
        )
        assert about.tobytes() == Image.open(BytesIO(jpeg(make_scene(seed)))).tobytes()
        assert other.tobytes() != about.tobytes()


def test_always_the_same_letter_is_worth_nothing_in_circles() -> None:
    count = len(_metadata("mmbench"))
    assert _score("mmbench", ["A"] * count)["circular"] == 0


def test_annotators_disagree_but_the_right_answer_counts_full() -> None:
    content = json.loads((MINI / "vqav2" / "v2_mscoco_val2014_annotations.json").read_text())
    agreement = [
        sum(a["answer"] == entry["multiple_choice_answer"] for a in entry["answers"])
        for entry in content["annotations"]
    ]
    assert min(agreement) >= 6 and 0.2 < sum(n < 10 for n in agreement) / len(agreement) < 0.9


def test_a_part_of_the_test_scenes_shows_what_training_never_does() -> None:
    shares = [sum(e["unseen"] for e in _metadata(n)) / len(_metadata(n)) for n in NAMES]
    assert all(0.1 < share < 0.35 for share in shares)
    for seed in TRAINING_SEEDS[:300]:
        scene = make_scene(seed)
        assert not scene.unseen
        assert not any(
            f"{colour} {shape}" in question.text
            for question in ask(scene, ("exists colored",))
            for colour, shape in UNSEEN_THINGS
        )
        assert not {sign.text for sign in scene.signs} & set(UNSEEN_WORDS)


def test_no_two_benchmarks_share_a_scene() -> None:
    first = [next(scenes(block)).seed for block in range(len(WRITERS))]
    assert len(set(first)) == len(WRITERS) and all(seed in TEST_SEEDS for seed in first)


def test_a_choice_meets_its_quotas_and_the_limit_of_a_picture() -> None:
    quotas = {"color": 10, "is color": 8, "count": 6}
    asked = collect(scenes(9), quotas, per_scene=3, seed=0)
    assert Counter(entry.question.kind for entry in asked) == quotas
    assert max(Counter(entry.scene.seed for entry in asked).values()) <= 3
    assert asked == collect(scenes(9), quotas, per_scene=3, seed=0)


@pytest.mark.parametrize("folder", WRITERS)
def test_writing_again_gives_the_same_bytes(folder: str, tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--only", folder])

    def files(root: Path) -> set[Path]:
        return {p.relative_to(root) for p in (root / folder).rglob("*") if p.is_file()}

    assert files(tmp_path) == files(MINI) and len(files(MINI)) > 1
    for name in files(MINI):
        assert (tmp_path / name).read_bytes() == (MINI / name).read_bytes(), name
