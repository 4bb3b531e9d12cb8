"""How budgets of visual tokens are given: as a number, as a fraction, for a prompt or an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from .base import Pruner
from .checks import demand

B = TypeVar("B", bound="Budgeted")


@dataclass(frozen=True, kw_only=True)
class Budgeted(Pruner):
    """Settings of every method with a budget T of visual tokens.

    target_token_num: T, a number. A sample with no more visual tokens keeps all.
    target_fraction: instead, T as a fraction of the visual tokens there are, in (0, 1], rounded to
        a whole number, at least 1. Pictures that a model tiles (LLaVA-1.6) differ in their tokens.
    budget_per: "sample": T is for all images of a prompt, which compete for it or share it as the
        method says; "image": T is for each image. Where a method ranks all tokens of a prompt, what
        it keeps in a layer is then divided over the images in proportion to their budgets, an image
        with fewer tokens leaving the rest to the others.

    Raises ValueError on values that make no sense.
    """

    target_token_num: float = 64
    target_fraction: float | None = None
    budget_per: Literal["sample", "image"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.target_fraction
        demand(self, "target_fraction", share is None or 0 < share <= 1, "a fraction in (0, 1]")

    def resolved(self: B, sizes: Sequence[int]) -> B:
        """The same with the budget of one sample as a number.

        sizes: visual tokens of each of its images, unpruned.
        """
        if self.target_fraction is None and self.budget_per == "sample":
            return self
        if self.budget_per == "image":
            total = sum(self.image_targets(sizes))
        else:
            total = self._of(sum(sizes))
        total = max(total, 1)
        return replace(self, target_token_num=total, target_fraction=None, budget_per="sample")

    def image_targets(self, sizes: Sequence[int]) -> list[float]:
        """T of each image of a sample when `budget_per` is "image", at most its tokens."""
        return [min(self._of(size), size) for size in sizes]

    def targets_in_images(self, sizes: Sequence[Sequence[int]]) -> Sequence[Sequence[float]] | None:
        """`image_targets` of each sample, None where the budget is the sample's."""
        return None if self.budget_per == "sample" else [self.image_targets(own) for own in sizes]

    def _of(self, size: int) -> float:
        if self.target_fraction is None:
            return self.target_token_num
        return max(round(self.target_fraction * size), 1)


@dataclass(frozen=True, kw_only=True)
class WholeTarget(Budgeted):
    """Settings of every method with a whole number of tokens as its budget.

    target_token_num: T, visual tokens of a sample.
    budget_mode: how they are counted, where that makes a difference: "published" as the method's
        publications do, "strict" on tokens that enter a layer.

    Raises ValueError on values that make no sense.
    """

    budget_mode: Literal["published", "strict"] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        target = self.target_token_num
        whole = target >= 1 and float(target).is_integer()
        demand(self, "target_token_num", whole, "a whole number, 1 or more")
