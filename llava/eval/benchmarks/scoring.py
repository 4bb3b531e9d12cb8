"""What the scorers share: texts by question id, accuracies, and the command line.

Nothing of a benchmark is in here, so that benchmarks and their programs can both import it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from llava.common import json_files

from ..run.linefile import read_lines

Annotations = TypeVar("Annotations")


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


def run_scorer(
    argv: Sequence[str] | None,
    *,
    program: str,
    description: str | None,
    load: Callable[[Path], Annotations],
    score: Callable[..., dict[str, Any]],
    metrics: Mapping[str, str],
    variant: str | None = None,
) -> int:
    """A scorer's command line; 0 if everything was scored, 2 on wrong input.

    `score(load(annotation_file), answers, allow_missing=...)` is the result. Of it, `samples` and
    `metrics` (label to key, percentages) are printed, and `variant` (a key) in the title. The last
    line on stdout is the result as JSON, or `{"results": [...]}` for a folder.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, allow_abbrev=False
    )
    parser.add_argument("--annotation-file", type=Path, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--result-file", type=Path, help="answers to score")
    which.add_argument("--result-dir", type=Path, help="score every *.jsonl in this folder")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    args = parser.parse_args(argv)

    def score_file(path: Path) -> dict[str, Any]:
        with answers_in(path) as answers:
            result = score(annotations, answers, allow_missing=args.allow_missing)
        return {"result_file": str(path), **result}

    try:
        annotations = load(args.annotation_file)
        files = [args.result_file] if args.result_file else _answer_files(args.result_dir)
        results = [score_file(path) for path in files]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for result in results:
        title = Path(result["result_file"]).stem
        print(f"{title} ({result[variant]})" if variant else title)
        print(f"Samples: {result['samples']}")
        for label, key in metrics.items():
            value = result[key]
            print(f"{label}: none" if value is None else f"{label}: {value:.2f}%")
    print(json.dumps(results[0] if args.result_file else {"results": results}))
    return 0


def _answer_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.glob("*.jsonl") if not p.name.endswith(".errors.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no answers: expected files *.jsonl in it.")
    return files
