"""The budget of methods that count in whole tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import Pruner
from .checks import demand, demand_choices


@dataclass(frozen=True, kw_only=True)
class WholeTarget(Pruner):
    """Settings of every method with a whole number of tokens as its budget.

    target_token_num: T, visual tokens of a sample.
    budget_mode: how they are counted, where that makes a difference: "published" as the method's
        publications do, "strict" on tokens that enter a layer.

    Raises ValueError on values that make no sense.
    """

    target_token_num: float = 64
    budget_mode: Literal["published", "strict"] = "published"

    def __post_init__(self) -> None:
        target = self.target_token_num
        whole = target >= 1 and float(target).is_integer()
        demand(self, "target_token_num", whole, "a whole number, 1 or more")
        demand_choices(self)
