"""What the mini benchmarks share: their scenes, the balanced choice of questions, their folder."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.train.drawing import render
from llava.train.framing import aspect, frame
from llava.train.question import Question
from llava.train.questions import ask
from llava.train.scenes import TEST_SEEDS, Scene, make_scene

_BLOCK = 100_000  # test seeds that a benchmark has for itself
_QUALITY = 84  # of JPEG files


@dataclass(frozen=True)
class SceneQuestion:
    """A question chosen for a benchmark, and its scene."""

    scene: Scene
    question: Question

    def metadata(self, question_id: str | int) -> tuple[str | int, Question, Scene, str]:
        """What `Folder.write_metadata` takes."""
        return question_id, self.question, self.scene, self.question.answer

    @property
    def image(self) -> str:
        """Name of the picture's file."""
        return f"{_name(self.scene)}.jpg"


def scenes(block: int) -> Iterator[Scene]:
    """The scenes of one benchmark, which no other one has."""
    yield from map(make_scene, TEST_SEEDS[block * _BLOCK : (block + 1) * _BLOCK])


def collect(
    pictures: Iterable[Scene], quotas: Mapping[str, int], per_scene: int, seed: int
) -> list[SceneQuestion]:
    """Questions in balance: each kind as often as its quota says, its answers as equal as can be.

    Yes and no come in pairs, as `Pairs` chooses them.

    Args:
        pictures: scenes to ask about; as many are used as it takes.
        quotas: how many questions of each kind; even numbers for kinds of yes and no.
        per_scene: at most that many questions about a picture.
        seed: of the choice among equals.

    Returns:
        The questions, picture by picture.
    """
    rng = random.Random(seed)
    left = Counter(quotas)
    used: Counter[tuple[str, str]] = Counter()
    pairs: defaultdict[str, Pairs] = defaultdict(lambda: Pairs(rng))
    chosen: list[SceneQuestion] = []
    for scene in pictures:
        room = per_scene
        kinds = [kind for kind in left if left[kind] > 0]
        if not kinds:
            break
        # what is furthest from its quota comes first, as it may be what few scenes allow
        for kind in sorted(kinds, key=lambda k: (-left[k] / quotas[k], rng.random())):
            questions = ask(scene, (kind,))
            if not _yes_no(questions):
                drawn = _rarest(questions, used, rng) if room else []
            else:
                drawn = pairs[kind].take(questions) if room > 1 else []
            rng.shuffle(drawn)
            chosen += (SceneQuestion(scene, question) for question in drawn)
            used.update((kind, question.answer) for question in drawn)
            left[kind] -= len(drawn)
            room -= len(drawn)
    return chosen


class Pairs:
    """Pairs of a question with yes and one with no about a picture, one kind of questions.

    They are about the same items where the kind has such, and over all pairs every word is as often
    in questions with yes as in those with no, but for one: neither noun nor predicate tells the
    answer.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._surplus: Counter[str] = Counter()  # yes minus no, by word

    def take(self, questions: list[Question]) -> list[Question]:
        """A yes and a no out of these, which count from now on; none if no pair would be fair."""
        drawn = self._rng.sample(questions, len(questions))
        against = [question for question in drawn if question.answer == "no"]
        best: tuple[int, list[Question], Counter[str]] | None = None
        for yes in (question for question in drawn if question.answer == "yes"):
            same = [question for question in against if question.targets == yes.targets]
            for no in same or against:
                after = _words(yes)
                after.subtract(_words(no))
                for word in after:
                    after[word] += self._surplus[word]
                if max(map(abs, after.values())) <= 1:
                    worse = sum(abs(n) - abs(self._surplus[word]) for word, n in after.items())
                    if best is None or worse < best[0]:
                        best = worse, [yes, no], after
        if best is None:
            return []
        _, pair, after = best
        self._surplus = Counter({**self._surplus, **after})
        return pair


def _words(question: Question) -> Counter[str]:
    return Counter(re.findall(r"\w+", question.text))


def _yes_no(questions: list[Question]) -> bool:
    return bool({"yes", "no"} & {question.answer for question in questions})


def _rarest(
    questions: list[Question], used: Counter[tuple[str, str]], rng: random.Random
) -> list[Question]:
    """One of the questions whose answer was given least often so far."""
    if not questions:
        return []
    return [min(questions, key=lambda q: (used[q.kind, q.answer], rng.random()))]


class Folder:
    """A benchmark's folder under construction.

    Args:
        path: the folder; files of the same names are replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def save_picture(self, scene: Scene, name: str) -> None:
        """Write a scene's picture at a path inside the folder."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(jpeg(scene))

    def write_lines(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON lines."""
        self.write_text(name, "".join(json.dumps(entry) + "\n" for entry in entries))

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON document."""
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, making its folder."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def write_metadata(
        self, questions: Iterable[tuple[str | int, Question, Scene | None, str]]
    ) -> None:
        """Write `metadata.jsonl`, a line a question in the order of the question file: its scene,
        kind, answer, how hard it is, and whether the picture is square, wide or tall. Each comes
        as (id, question, scene if any, answer)."""
        self.write_lines(
            "metadata.jsonl",
            (
                {
                    "index": index,
                    "question_id": question_id,
                    "image": _name(scene) if scene else None,
                    "kind": question.kind,
                    "answer": answer,
                    **question.hardness(scene),
                    "aspect": aspect(scene) if scene else None,
                }
                for index, (question_id, question, scene, answer) in enumerate(questions)
            ),
        )


def _name(scene: Scene) -> str:
    return f"scene{scene.seed:06d}"


def jpeg(scene: Scene) -> bytes:
    """A scene's picture as a JPEG file."""
    file = io.BytesIO()
    render(scene).crop(frame(scene)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
