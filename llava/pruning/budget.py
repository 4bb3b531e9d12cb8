"""Budgets of visual tokens: how they are given, and what they count.

Settings (`Budgeted`, `CostBudgeted`) give a number of tokens, a fraction, one for each image, FLOPs
or KV bytes, counted as `budget_mode` says. A `Target` is that as a number for one sample on one
decoder. `solver` meets it. Which layers tokens enter and leave is the method's part: `staged` has
it for cuts after a few layers, `schedules` for a curve along the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, TypeVar

from .base import Pruner
from .checks import BudgetError, demand
from .cost import DecoderShape, prefill_flops

B = TypeVar("B", bound="Budgeted")

Counted = Literal["entering", "leaving"]
_SLACK = 1e-5  # a message has six digits of the floor, and what it has must be enough


class Flow(NamedTuple):
    """Visual tokens of a sample that enter, and that leave, each layer."""

    entering: Sequence[int]
    leaving: Sequence[int]

    def total(self, counted: Counted) -> int:
        """Their sum over the layers."""
        return sum(self.entering if counted == "entering" else self.leaving)


@dataclass(frozen=True)
class Target:
    """What the visual tokens of one sample may cost.

    setting, value: the name of the user's budget, and the budget as it was given
    unit:   the cost that one unit of `value` is
    amount: the cost to meet
    cost:   cost of a flow, never decreasing in the counts
    words:  for messages: what `value` is a number of
    slack:  share of the amount by which the floor may exceed it, where `value` is no whole number
    """

    setting: str
    value: float
    unit: float
    amount: float
    cost: Callable[[Flow], float]
    words: str = ""
    slack: float = 0.0

    def demand_reachable(self, least: float, n_visual: int, kept: str) -> None:
        """Raise BudgetError when the least that `n_visual` tokens can cost is above the target.

        kept: where a single token is kept then.
        """
        if least > self.amount * (1 + self.slack):
            raise BudgetError(
                f"{self.setting} {self.value:.6g} is below the floor of {least / self.unit:.6g}"
                f"{self.words}: that much cost {n_visual} visual tokens with a single one kept "
                f"{kept}"
            )


def token_target(tokens: float, layers: int, counted: Counted, *, whole: bool = False) -> Target:
    """`tokens` visual tokens a layer on average; with `whole` their total is rounded down."""
    amount = int(tokens * layers) if whole else tokens * layers
    words = f" tokens {counted} a layer"
    return Target(
        "target_token_num", tokens, layers, amount, lambda flow: flow.total(counted), words
    )


@dataclass(frozen=True, kw_only=True)
class Budgeted(Pruner):
    """Settings of every method with a budget T of visual tokens.

    target_token_num: T, a number; a whole one unless the method is `fractional`. A sample with no
        more visual tokens keeps all.
    target_fraction: instead, T as a fraction of the visual tokens there are, in (0, 1], rounded to
        a whole number, at least 1. Pictures that a model tiles (LLaVA-1.6) differ in their tokens.
    budget_per: "sample": T is for all images of a prompt, which compete for it or share it as the
        method says; "image": T is for each image. Where a method ranks all tokens of a prompt, what
        it keeps in a layer is then divided over the images in proportion to their budgets, an image
        with fewer tokens leaving the rest to the others.
    budget_mode: how tokens are counted, where that makes a difference: "published" as the method's
        publications do, "strict" on tokens that enter a layer, layer 0 with all of them.

    Raises ValueError on values that make no sense.
    """

    fractional: ClassVar[bool] = False

    target_token_num: float = 64
    target_fraction: float | None = None
    budget_per: Literal["sample", "image"] = "sample"
    budget_mode: Literal["published", "strict"] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        share, tokens = self.target_fraction, self.target_token_num
        demand(self, "target_fraction", share is None or 0 < share <= 1, "a fraction in (0, 1]")
        ok = tokens >= 1 and (self.fractional or float(tokens).is_integer())
        expected = "at least 1" if self.fractional else "a whole number, 1 or more"
        demand(self, "target_token_num", ok, expected)

    @property
    def strict(self) -> bool:
        """Whether T is of tokens that enter a layer, whatever the method's publications count."""
        return self.budget_mode == "strict"

    @property
    def counted(self) -> Counted:
        """What T is of, for a method whose publications count what leaves a layer."""
        return "entering" if self.strict else "leaving"

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
        tokens = max(total, 1)
        return replace(self, target_token_num=tokens, target_fraction=None, budget_per="sample")

    def image_targets(self, sizes: Sequence[int]) -> list[float]:
        """T of each image of a sample when `budget_per` is "image", at most its tokens."""
        return [min(self._of(size), size) for size in sizes]

    def targets_in_images(self, sizes: Sequence[Sequence[int]]) -> Sequence[Sequence[float]] | None:
        """`image_targets` of each sample, None where the budget is the sample's."""
        if self.budget_per == "sample":
            return None
        return [self.image_targets(images) for images in sizes]

    def _of(self, size: int) -> float:
        if self.target_fraction is None:
            return self.target_token_num
        return max(round(self.target_fraction * size), 1)


@dataclass(frozen=True, kw_only=True)
class CostBudgeted(Budgeted):
    """Settings of a method whose budget can also be a fraction of what the dense prefill costs.

    target_flops: instead of T, a fraction of the dense prefill's decoder FLOPs, in (0, 1].
    target_kv: instead of T, a fraction of its KV bytes (text included), in (0, 1].

    Raises ValueError on values that make no sense.
    """

    fractional: ClassVar[bool] = True

    target_flops: float | None = None
    target_kv: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("target_flops", "target_kv"):
            value = getattr(self, field)
            demand(self, field, value is None or 0 < value <= 1, "a fraction in (0, 1]")
        if self.target_flops is not None and self.target_kv is not None:
            raise ValueError("give target_flops or target_kv, not both")
        if self.of_prompt and (self.target_fraction is not None or self.budget_per == "image"):
            raise ValueError(
                "target_flops and target_kv are budgets of a whole prompt: leave target_fraction "
                "and budget_per='image' out"
            )

    @property
    def of_prompt(self) -> bool:
        """Whether the budget is a fraction of what the prompt costs, and not a number of tokens."""
        return self.target_flops is not None or self.target_kv is not None

    @property
    def exact(self) -> bool:
        """Whether the budget is met to the token: all but the published number of tokens."""
        return self.strict or self.of_prompt

    def tokens(self, shape: DecoderShape, n_visual: int, n_text: int) -> float:
        """Visual tokens a layer that the budget comes to, for one sample.

        A KV fraction f is an average of entering tokens: f (N + text) - text. Of a FLOPs fraction
        it is the constant count after layer 0 that costs no more, a whole number.
        """
        if self.target_kv is not None:
            return self.target_kv * (n_visual + n_text) - n_text
        if self.target_flops is None:
            return float(self.target_token_num)
        if self.target_flops == 1:
            return float(n_visual)
        amount = self.target(shape, n_visual, n_text).amount
        first = prefill_flops([n_visual], n_text, shape)

        def affordable(count: int) -> bool:
            return first + prefill_flops([count] * (shape.layers - 1), n_text, shape) <= amount

        return float(largest(affordable, 0, n_visual))

    def target(self, shape: DecoderShape, n_visual: int, n_text: int) -> Target:
        """The budget of a sample of so many visual and text tokens."""
        layers = shape.layers
        if not self.of_prompt:
            tokens = float(self.target_token_num)
            return replace(token_target(tokens, layers, self.counted), words="", slack=_SLACK)

        def cost(flow: Flow) -> float:
            if self.target_kv is not None:
                return sum(flow.entering) + layers * n_text
            return prefill_flops(flow.entering, n_text, shape)

        setting = "target_flops" if self.target_kv is None else "target_kv"
        value, dense = getattr(self, setting), cost(Flow([n_visual] * layers, ()))
        return Target(setting, value, dense, value * dense, cost, slack=_SLACK)


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest whole number above `low`, up to `high`, that fits; `low` where none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
