"""AutoPrune's budgets as numbers for one sample, and the schedule that meets them.

A budget is tokens per layer in one of two ways of counting, a fraction of the dense prefill's
FLOPs, or of its KV bytes; all of them become a target and a cost for `schedules.solve`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ... import schedules
from ...cost import DecoderShape, prefill_flops
from .settings import AutoPruneSettings

#: (tokens entering each layer, tokens leaving each layer) -> what the schedule costs.
Cost = Callable[[Sequence[int], Sequence[int]], float]


@dataclass(frozen=True)
class Budget:
    """A sample's budget: `tokens` per layer on average, and `start` after the pre-selection."""

    n_visual: int
    n_text: int
    tokens: float
    start: int


def budget(config: AutoPruneSettings, shape: DecoderShape, n_visual: int, n_text: int) -> Budget:
    """Translate the settings into tokens for one sample.

    A KV fraction f is an average of entering tokens: f (N + text) - text. For a FLOPs fraction,
    `tokens` is the constant count after layer 0 that costs as much, found by bisection; it only
    sizes the pre-selection, the schedule itself is solved in FLOPs.

    Raises ValueError when the budget is below what one token a layer costs.
    """
    tokens = float(config.target_token_num)
    if config.target_kv is not None:
        tokens = config.target_kv * (n_visual + n_text) - n_text
    elif config.target_flops is not None:
        tokens = _flops_tokens(config.target_flops, shape, n_visual, n_text)
    start = n_visual
    if config.preselect_ratio is not None:
        start = _preselected(config.preselect_ratio, tokens, n_visual)
        if _exact(config):
            # Layer 0 runs all tokens and layer 1 the pre-selected ones: a pre-selection that alone
            # would overspend gives way until one token a layer is affordable again.
            low, high = 1, start
            while low < high:
                middle = (low + high + 1) // 2
                trial = _problem(config, shape, Budget(n_visual, n_text, tokens, middle), 0.0, 0.0)
                fits = schedules.floor(trial) <= trial.target
                low, high = (middle, high) if fits else (low, middle - 1)
            start = low
    made = Budget(n_visual, n_text, tokens, start)
    if tokens < n_visual:
        problem = _problem(config, shape, made, 0.0, 0.0)
        schedules.demand_reachable(problem, _least(config, shape, made))
    return made


def _preselected(ratio: float, tokens: float, n_visual: int) -> int:
    return max(1, min(int(ratio * tokens), n_visual))


def _least(config: AutoPruneSettings, shape: DecoderShape, made: Budget) -> float:
    """The lowest cost that can be asked for, `made` being the budget of less or as much.

    An exact budget's pre-selection has given way already. That of a published one is a multiple of
    the budget: if the floor as a budget lets more tokens through, it is not yet the floor.
    """
    while True:
        least = schedules.floor(_problem(config, shape, made, 0.0, 0.0))
        if config.preselect_ratio is None or _exact(config):
            return least
        start = _preselected(config.preselect_ratio, least / shape.layers, made.n_visual)
        if start <= made.start:
            return least
        made = replace(made, start=start)


def _flops_tokens(fraction: float, shape: DecoderShape, n_visual: int, n_text: int) -> float:
    target = fraction * prefill_flops([n_visual] * shape.layers, n_text, shape)
    first = prefill_flops([n_visual], n_text, shape)
    low, high = 0, n_visual
    while low < high:
        middle = (low + high + 1) // 2
        rest = prefill_flops([middle] * (shape.layers - 1), n_text, shape)
        low, high = (middle, high) if first + rest <= target else (low, middle - 1)
    return float(low) if fraction < 1 else float(n_visual)


def _exact(config: AutoPruneSettings) -> bool:
    budgets = (config.target_flops, config.target_kv)
    return config.budget_mode == "strict" or any(b is not None for b in budgets)


def _target(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget
) -> tuple[str, float, float, Cost]:
    """The budget of one sample: the setting, its value, what a unit of it costs, and the cost."""
    layers, text = shape.layers, budget.n_text
    if config.target_flops is not None:
        dense = prefill_flops([budget.n_visual] * layers, text, shape)
        return (
            "target_flops",
            config.target_flops,
            dense,
            lambda entering, _: prefill_flops(entering, text, shape),
        )
    if config.target_kv is not None:
        dense = layers * (budget.n_visual + text)
        return (
            "target_kv",
            config.target_kv,
            dense,
            lambda entering, _: sum(entering) + layers * text,
        )
    if config.budget_mode == "strict":
        return "target_token_num", budget.tokens, layers, lambda entering, _: sum(entering)
    return "target_token_num", budget.tokens, layers, lambda _, leaving: sum(leaving)


@lru_cache(maxsize=8192)
def solve_plan(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget, k: float, x0: float
) -> schedules.Plan:
    """The schedule of one sample, its curve having slope `k` and inflection `x0` (layers)."""
    return schedules.solve(_problem(config, shape, budget, k, x0))


def _problem(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget, k: float, x0: float
) -> schedules.Problem:
    layers = shape.layers
    pre_layer = 0 if config.needs_cls else None
    first = config.mi_layer if pre_layer is None else max(config.mi_layer, 1)
    last = layers - 1 if config.prune_last_layer else layers - 2
    setting, value, per, cost = _target(config, shape, budget)
    curve, amplitude = schedules.CURVES[config.curve], config.amplitude
    if config.analytic_area:
        area = curve.area(k, x0, layers)
        amplitude = layers * budget.tokens / (max(area, 1e-9) * budget.start)
    cap = budget.start
    if config.cap_ratio is not None:
        cap = min(int(config.cap_ratio * budget.tokens), cap)
    return schedules.Problem(
        n_visual=budget.n_visual,
        start=budget.start,
        pre_layer=pre_layer,
        layers=layers,
        first=first,
        last=last,
        retention=tuple(
            amplitude * share for share in schedules.shares(curve, k, x0, layers, first, last)
        ),
        rounding=config.rounding,
        cap=cap,
        recycle=config.recycle_ratio,
        cost=cost,
        target=value * per,
        setting=setting,
        per=per,
        exact=_exact(config),
    )
