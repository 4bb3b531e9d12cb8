"""Equal work: the budget of each row at which its prefill costs a given share of the dense one.

Methods count their budgets differently and score at different cost, so equal numbers of tokens are
not equal work. Here a row's budget is bisected until its FLOPs, scoring and merging included, of a
few questions of each benchmark are the share that is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llava.eval.compare.sweep import Task
from llava.eval.run.answers import QuestionSource
from llava.eval.run.models import ModelOnce
from llava.pruning import Pruner

PUBLISHED, COMPUTED = "published", "computed"
_QUESTIONS = 2  # of each benchmark


class Meter:
    """Prefill FLOPs of a pruner, as a share of the unpruned ones, on the same few questions.

    counting: "published" charges a layer for all that enters it, and adds scoring and merging;
    "computed" is what really ran, see `llava.pruning.cost`.
    """

    def __init__(self, tasks: Sequence[Task], model: ModelOnce, counting: str) -> None:
        # Imported here because a complete study must not wait for transformers.
        from llava.eval.run.answering import Answerer
        from llava.eval.run.loading import QuestionImages

        self._settings = replace(tasks[0].settings, max_new_tokens=1, seed=0)
        self._loaded = model(self._settings)
        _, model_, processor = self._loaded
        self._answerer = Answerer
        self._counting = counting
        self._items = []
        for task in tasks:
            few = array("Q", measured(task.questions))
            folder = task.settings.image_folder
            images = QuestionImages(task.questions, few, folder, processor, model_.config)
            self._items += [images[i] for i in range(len(images))]

    def answers(self, pruner: Pruner) -> list[dict[str, Any]] | None:
        """The metadata of the few answers; None where a budget is below the floor of one."""
        tokenizer, model, _ = self._loaded
        answer = self._answerer(model, tokenizer, replace(self._settings, pruner=pruner))
        replies = answer(self._items, 0.0)
        known = [reply["metadata"] for reply in replies if isinstance(reply, dict)]
        return known if len(known) == len(replies) else None

    def share(self, pruner: Pruner) -> float | None:
        """The FLOPs of a pruner; None where its budget is below the floor."""
        answers = self.answers(pruner)
        if answers is None:
            return None
        costs = [metadata["cost"] for metadata in answers]
        if self._counting == COMPUTED:
            spent = sum(cost["computed_flops"] for cost in costs)
        else:
            names = ("prefill_flops", "scoring_flops", "merging_flops")
            spent = sum(cost[name] for cost in costs for name in names)
        return spent / sum(cost["dense_prefill_flops"] for cost in costs)

    @property
    def most(self) -> int:
        """The visual tokens of the largest of the questions."""
        from llava.pruning import build

        dense = self.answers(build("none"))
        assert dense is not None, "without a budget there is no floor"
        return max(metadata["n_visual"] for metadata in dense)


def measured(questions: QuestionSource) -> list[int]:
    """Positions of a few questions, spread over those with as few pictures as any, but none."""
    pictures = [len(questions[i].images) for i in range(len(questions))]
    fewest = min((count for count in pictures if count), default=None)
    shown = [i for i, count in enumerate(pictures) if count == fewest]
    return shown[:: max(len(shown) // _QUESTIONS, 1)][:_QUESTIONS]


def tokens_for(
    share: float, cost: Callable[[float], float | None], most: int, step: float = 1
) -> float | None:
    """The budget, a multiple of `step` up to `most`, whose cost is nearest to `share`.

    `cost` grows with the budget and is None below a floor. Returns None where the floor is above
    the share, by more than a fiftieth of it.
    """
    low, high = 0, round(most / step)
    known: dict[int, float | None] = {0: None, high: 1.0}
    halve = True  # costs are nearly linear above the floor: every other step aims at the share
    while high - low > 1:
        under, over = known[low], known[high]
        middle = (low + high) // 2
        if not halve and under is not None and over is not None and over > under:
            aimed = low + round((high - low) * (share - under) / (over - under))
            middle = min(max(aimed, low + 1), high - 1)
        halve = not halve
        value = known[middle] = cost(middle * step)
        low, high = (middle, high) if value is None or value <= share else (low, middle)
    # An end at which the bisection never looked is `most`, and costs all.
    near = {n: abs(v - share) for n in (low, high) if (v := known[n]) is not None}
    best = min(near, key=near.__getitem__)
    return best * step if near[best] <= share / 50 + 0.005 else None
