"""MMBench and MMBench-CN (dev): questions and images from the TSV, score without any judge.

Every row of the official TSV is one question with its options in one order. The copies with rotated
options are rows too: their index is the base question's plus 1,000,000, 2,000,000 and so on. A
question counts in the *circular* accuracy, the published one, only if every one of its rows is
answered right; *vanilla* counts the base rows alone. For LLaVA-1.5 13B the same answers give 67.7
circular and 75.4 vanilla, so the two must not be mixed.

Reading a letter: an answer gives an option if it begins with a capital A to D, in brackets or not,
and then ends or goes on with a line break or one of . : , ) or their Chinese forms, and if no other
letter of A to D stands alone in it, but for the text of that option and the article of "B. A dog".
The official server asks a language model about anything else; here it is wrong, and counted as
`unparsed`.
Prompt and submission: haotian-liu/LLaVA, llava/eval/model_vqa_mmbench.py and
scripts/convert_mmbench_for_submission.py; circular evaluation: open-compass/MMBench.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..run.question_list import TableQuestions
from .base import Benchmark, File, Split, register, require_complete, require_fields
from .mmbench_rows import (
    INSTRUCTIONS,
    LETTERS,
    ROTATION,
    Row,
    load_rows,
    open_table,
    read_questions,
    read_rows,
)
from .scoring import percentage, texts_by_id

_LETTER = re.compile(r"[(（]?([A-D])(?:$|[.:,)\n。：，）、．])")
_ALONE = re.compile(r"(?<![0-9A-Za-z])[A-D](?![0-9A-Za-z])")
_ARTICLE = re.compile(r"(?<=[.:!?)]\s)A(?= [a-z])")
_NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")


@dataclass(frozen=True)
class Verdict:
    """A question by its base row: whether that row, and whether every row, was answered right.

    None where an answer is missing.
    """

    row: Row
    vanilla: bool | None
    circular: bool | None


def parse_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter of an answer by the rule at the top of this file, None if it gives none.

    options: those of its question, in the order of their letters.
    """
    text = text.strip()
    match = _LETTER.match(text)
    if match is None:
        return None
    letter, rest = match[1], text[match.end() :]
    if (place := LETTERS.index(letter)) < len(options):
        echo = rf"\A\s*{re.escape(options[place].strip())}"
        rest = re.sub(echo, "", rest, flags=re.IGNORECASE)
    letters = _ALONE.findall(_ARTICLE.sub("", match[0] + rest))
    return letter if set(letters) == {letter} else None


def score(
    folder: Path,
    answers: Iterable[dict[str, Any]],
    *,
    file: str,
    name: str,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Circular and vanilla accuracy, in percent, of answers in LLaVA's schema to `folder` / `file`.

    Returns:
        benchmark, samples and missing (rows with and without answer), circular, vanilla, questions
        (those with an answer to every row, which alone count in `circular`), rotations (how many
        questions have 4, 3, ... rows), unparsed (how many answers) and unparsed_share (percent),
        categories and l2_categories: for each, its questions, circular and vanilla. An accuracy or
        a share of nothing is None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no answers or no rotations; an answer to no row or logged with
            another question than the row's, two answers to one, or, unless `allow_missing`, a row
            without an answer.
    """
    path = folder / file
    _, rows = load_rows(path)
    groups = _group(rows, path)
    texts = _join(rows, answers, path)
    missing = [row.index for row in rows if row.index not in texts]
    require_complete(missing, len(rows), allow_missing=allow_missing)
    options = {row.index: row.options for row in rows}
    letters = {index: parse_letter(text, options[index]) for index, text in texts.items()}
    unparsed = [letter is None for letter in letters.values()]
    verdicts = [_judge(group, letters) for group in groups]
    return {
        "benchmark": name,
        "samples": len(texts),
        "missing": len(missing),
        **_accuracies(verdicts),
        "rotations": {
            str(n): count for n, count in sorted(Counter(map(len, groups)).items(), reverse=True)
        },
        "unparsed": sum(unparsed),
        "unparsed_share": percentage(unparsed),
        "categories": _by("category", verdicts),
        "l2_categories": _by("l2_category", verdicts),
    }


def write_submission(path: Path, tsv: Path, answers: Iterable[dict[str, Any]]) -> int:
    """Write the Excel file that the MMBench server scores, needed for the test split; its rows.

    It has the columns of the TSV file that LLaVA submits, with the answers as they are in a column
    `prediction` behind the options.

    Raises:
        ImportError: openpyxl is not installed.
        FileNotFoundError, ValueError: see `score`; every row needs an answer.
    """
    try:
        from openpyxl import Workbook
    except ImportError:
        raise ImportError(
            "the MMBench submission is an Excel file, which needs openpyxl: pip install openpyxl"
        ) from None
    table = open_table(tsv)
    rows = read_rows(table)
    texts = _join(rows, answers, tsv)
    require_complete(
        [r.index for r in rows if r.index not in texts], len(rows), allow_missing=False
    )
    columns = [name for name in table.columns if name not in _NOT_SUBMITTED]
    last_option = max(i for i, name in enumerate(columns) if name in ("question", *LETTERS))
    columns.insert(last_option + 1, "prediction")
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)
    for row, (_, cells) in zip(rows, table):
        values = {**cells, "index": row.index, "prediction": texts[row.index]}
        sheet.append([_excel(sheet, values[name]) for name in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return len(rows)


def _benchmark(name: str, title: str, file: str, lang: str, *flags: str) -> Benchmark:
    def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> TableQuestions:
        return read_questions(folder / file, num_chunks, chunk_idx, instruction=INSTRUCTIONS[lang])

    source = "with images and annotations from open-compass/MMBench on GitHub"
    return Benchmark(
        name=name,
        title=title,
        folder=name,
        splits=(Split(File(file, source, "questions"), scored_as=name),),
        metric="circular",
        load_questions=load_questions,
        score=partial(score, file=file, name=name),
        max_new_tokens=1024,
        group=lambda question: question.question_id % ROTATION,
        program="llava.eval.model_vqa_mmbench",
        flags=("--single-pred-prompt", *flags),
        script=f"{name}.sh",
    )


MMBENCH = register(_benchmark("mmbench", "MMBench", "mmbench_dev_20230712.tsv", "en"))
MMBENCH_CN = register(
    _benchmark("mmbench_cn", "MMBench-CN", "mmbench_dev_cn_20231003.tsv", "cn", "--lang", "cn")
)


def _group(rows: list[Row], path: Path) -> list[list[Row]]:
    """The rows of each question, the base row first.

    Raises:
        ValueError: a row without a right answer, a question whose rotations have gaps, or no
            rotations at all, with which circular would be vanilla.
    """
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row.answer is None or row.answer not in LETTERS:
            raise ValueError(
                f"{path}: the answer of index {row.index} is {row.answer!r}, none of "
                f"{', '.join(LETTERS)}. The test split has no answers; only the server scores it."
            )
        groups.setdefault(row.base, []).append(row)
    for base, group in groups.items():
        group.sort(key=lambda row: row.index)
        present = [row.index // ROTATION for row in group]
        if present != list(range(len(group))):
            raise ValueError(
                f"{path}: question {base} has the rotations {present}, where they should count "
                f"from 0. The file is not complete: fetch it again."
            )
    if all(len(group) == 1 for group in groups.values()):
        raise ValueError(
            f"{path} has no rotated rows (index + {ROTATION}), without which there is no circular "
            f"accuracy. Expected a file like mmbench_dev_20230712.tsv."
        )
    return list(groups.values())


def _join(rows: list[Row], answers: Iterable[dict[str, Any]], path: Path) -> dict[int, str]:
    """The text of each answer by index."""
    # Both languages have the same indices, so only the text tells answers to the other one.
    prompts = {str(row.index): " ".join(row.text.split()) for row in rows}

    def check_prompt(key: str, answer: dict[str, Any]) -> None:
        require_fields(answer, "prompt")
        question = prompts[key]
        prompt = " ".join(str(answer["prompt"]).split())
        if not prompt.startswith(question):
            raise ValueError(
                f"question {answer['question_id']} was asked as {prompt[:120]!r}, but in {path} "
                f"it is {question[:120]!r}. Are the answers those of another language or version?"
            )

    texts = texts_by_id(answers, prompts, check_prompt)
    return {int(index): text for index, text in texts.items()}


def _judge(group: list[Row], letters: dict[int, str | None]) -> Verdict:
    right = [letters[row.index] == row.answer if row.index in letters else None for row in group]
    return Verdict(group[0], right[0], None if None in right else all(right))


def _accuracies(verdicts: list[Verdict]) -> dict[str, Any]:
    circular = [v.circular for v in verdicts if v.circular is not None]
    vanilla = [v.vanilla for v in verdicts if v.vanilla is not None]
    return {
        "questions": len(circular),
        "circular": percentage(circular),
        "vanilla": percentage(vanilla),
    }


def _by(field: str, verdicts: list[Verdict]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if (name := getattr(verdict.row, field)) is not None:
            groups.setdefault(name, []).append(verdict)
    return {name: _accuracies(groups[name]) for name in sorted(groups)}


def _excel(sheet: Any, value: str | int) -> Any:
    """A cell that stays text even if it looks like a formula."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if isinstance(value, int):
        return value
    if value == "":
        return None
    cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
    cell.data_type = "s"
    return cell
