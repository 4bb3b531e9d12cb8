"""What the scorers share: texts by question id, and accuracies.

Nothing of a benchmark is in here, so that benchmarks and their programs can both import it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.common import json_files

from ..run.linefile import read_lines


@contextmanager
def answers_in(path: Path, label: str = "{}") -> Iterator[Iterator[dict[str, Any]]]:
    """The answers in a file in LLaVA's schema, one JSON object a line, read as they are asked for.

    A ValueError within the context gets the file in front of it, with the line that was its turn,
    unless it names the file; `label` has {} where that stands.

    Raises:
        FileNotFoundError: no such file; says what writes it.
        ValueError: a line is not a JSON object; names it, when it is its turn.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Answer file {path} not found: llava.eval.model_vqa_loader --answers-file writes it."
        )
    place = str(path)

    def read() -> Iterator[dict[str, Any]]:
        nonlocal place
        for number, _, entry in read_lines(path):
            place = f"{path}, line {number}"
            yield entry
        place = str(path)

    try:
        yield read()
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{label.format(place)}: {text}") from None


def texts_by_id(
    answers: Iterable[dict[str, Any]],
    known: Container[str] | None = None,
    check: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, str]:
    """The text of each answer by its question id as a string, in the order of the answers.

    Everything else of an answer is only seen by `check`, which gets the id and the answer, so that
    long runs need no more memory than their texts.

    Raises:
        ValueError: an answer without id or text, to a question that is not in `known`, or the
            second to a question; or what `check` raises.
    """
    texts: dict[str, str] = {}
    for answer in answers:
        json_files.check(answer, "an answer", {"question_id": (str, int), "text": str})
        key, text = str(answer["question_id"]), answer["text"]
        if known is not None and key not in known:
            raise ValueError(
                f"answer to question {key}, which is not among those to score. Are the answers of "
                f"the same benchmark and split?"
            )
        if key in texts:
            raise ValueError(f"two answers to question {key}. Remove one of them.")
        if check is not None:
            check(key, answer)
        texts[key] = text
    return texts


def write_array(path: Path, entries: Iterable[Any]) -> int:
    """Write a JSON array entry by entry, in a new folder if need be; how many there are.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for entry in entries:
            file.write((", " if count else "") + json.dumps(entry))
            count += 1
        file.write("]")
    return count


def percentage(scores: Sequence[float]) -> float | None:
    """Mean of scores in [0, 1], in percent; None of nothing."""
    return 100 * fmean(scores) if scores else None


def percentages_by_group(scored: Iterable[tuple[Any, float]]) -> dict[str, dict[str, Any]]:
    """`accuracy` (percent) and `samples` of each group, given pairs (group, score in [0, 1]).

    Groups come in ascending order, numbers as numbers, and are strings, as in JSON.
    """
    groups: defaultdict[Any, list[float]] = defaultdict(list)
    for group, score in scored:
        groups[group].append(score)
    return {
        str(group): {"accuracy": percentage(scores), "samples": len(scores)}
        for group, scores in sorted(groups.items())
    }
