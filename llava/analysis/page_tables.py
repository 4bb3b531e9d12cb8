"""Tables of the report page as HTML text, and the matrix of what pruning changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .differences import Changes

#: Said where there is nothing to compare.
ALONE = "No benchmark has an unpruned run and a pruned one to compare with it."


def html_table(name: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a frame that scrolls; `name` is read aloud, the first cell of a row heads it."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}, table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def changes_matrix(changes: Sequence[Changes]) -> str:
    """A row a run, a column a benchmark; folded, for the answers say more."""
    if not changes:
        return f"<p>{ALONE}</p>"
    benchmarks = list(dict.fromkeys(change.benchmark for change in changes))
    rows: dict[str, dict[str, list[Changes]]] = {}
    for change in changes:
        run = f"{change.method} {change.budget}".strip()
        rows.setdefault(run, {}).setdefault(change.benchmark, []).append(change)
    table = html_table(
        "What pruning changed",
        ["run", *benchmarks],
        ([run, *(_change(of.get(name, [])) for name in benchmarks)] for run, of in rows.items()),
    )
    return (
        f"<details><summary>Right answers lost and gained, by run and benchmark</summary>{table}"
        '<ul class="notes"><li>−3 +1 ~2 of 40: of 40 questions about a picture three right answers '
        "became wrong, one wrong one right, and two changed otherwise. Behind it the same of "
        "complex questions, which take more than one step. Right is what equals the reference of "
        "the benchmark's metadata; where there is none, every change is another.</li></ul>"
        "</details>"
    )


def _change(changes: Sequence[Changes]) -> str:
    """A cell of the matrix; empty where nothing was asked."""
    if not changes:
        return ""
    hard = [change for change in changes if change.hardness == "complex"]
    return _counts(changes) + (f" ({_counts(hard)} complex)" if hard else "")


def _counts(changes: Sequence[Changes]) -> str:
    lost, gained, other, questions = (
        sum(getattr(change, name) for change in changes)
        for name in ("lost", "gained", "other", "questions")
    )
    return f"−{lost} +{gained} ~{other} of {questions}"
