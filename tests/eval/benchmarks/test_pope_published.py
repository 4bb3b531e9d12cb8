"""POPE's official questions and labels, and the published answers of LLaVA-1.5-13B to them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from llava.eval.benchmarks.pope import BENCHMARK

from .. import pope_files
from ..pope_files import Labels, counts, label

SHA256 = {
    "coco/coco_pope_random.json": (
        "b65021b4425a6b2ae77703a39f19868978c2c2320379ea5e36600f0fc1e62a7c"
    ),
    "coco/coco_pope_popular.json": (
        "7bb5ad04f3c58e13a726942a6779224f2f03520611d6733efb88fc597ccf3bb2"
    ),
    "coco/coco_pope_adversarial.json": (
        "9ca9c075445ce7fa090c7d191816584b23ad8ebad537e80229e5926fe07a6f76"
    ),
    "llava_pope_test.jsonl": ("1d3b41f0dced74b4f361c659787ef673497cfac54a6be7bde00eb405bab03c70"),
}
PUBLISHED = {  # tp, fp, tn, fn and F1
    "random": (1182, 31, 1379, 318, 87.14),
    "popular": (1182, 59, 1441, 318, 86.25),
    "adversarial": (1182, 117, 1383, 318, 84.46),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, Labels, list[dict]]:
    """The official files in a folder, their labels, and the published answers."""
    folder = tmp_path_factory.mktemp("pope")
    labels = pope_files.published_labels()
    pope_files.write_labels(folder, labels)
    questions = pope_files.write_questions(folder, labels)
    return folder, labels, pope_files.reply(questions, pope_files.published_texts())


def test_the_files_are_the_official_ones(published):
    folder = published[0]
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHA256}
    assert found == SHA256


def test_published_answers_get_the_published_score(published):
    folder, _, answers = published
    score = BENCHMARK.score(folder, answers)
    assert counts(score) == PUBLISHED
    assert (score["samples"], score["missing"]) == (8910, 0)
    assert score["f1"] == pytest.approx(85.95, abs=0.005)
    entry = score["categories"]["random"]
    found = [entry[rate] for rate in ("accuracy", "precision", "recall", "yes_ratio")]
    assert found == pytest.approx([88.01, 97.44, 78.80, 41.68], abs=0.005)


def test_later_label_files_in_another_order_score_the_same(published, tmp_path):
    """As in later versions: 3,000 random rows, other order, other ids, "imange" corrected."""
    folder, labels, answers = published
    (tmp_path / "llava_pope_test.jsonl").write_bytes(
        (folder / "llava_pope_test.jsonl").read_bytes()
    )
    later = {
        category: [{**e, "text": e["text"].replace("imange", "image")} for e in entries]
        for category, entries in labels.items()
    }
    later["random"] += [label(i, "a zebra", "no") for i in range(90)]
    for entries in later.values():
        random.Random(1).shuffle(entries)
    pope_files.write_labels(tmp_path, later)
    score = BENCHMARK.score(tmp_path, answers)
    assert counts(score) == PUBLISHED
    assert [e["unasked"] for e in score["categories"].values()] == [90, 0, 0]


def test_label_files_of_other_questions_are_refused(published, tmp_path):
    """They have as many lines, so a join by line would score them."""
    folder, labels, answers = published
    (tmp_path / "llava_pope_test.jsonl").write_bytes(
        (folder / "llava_pope_test.jsonl").read_bytes()
    )
    pope_files.write_labels(tmp_path, {**labels, "random": labels["popular"][:2910]})
    with pytest.raises(ValueError, match=r"coco_pope_random.json has no label for \d+ of the 2910"):
        BENCHMARK.score(tmp_path, answers)
