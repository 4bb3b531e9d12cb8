"""AutoPrune's budget for one sample: its pre-selection, and the schedule that meets it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ...budget import largest
from ...cost import DecoderShape
from ...schedules import CURVES, Plan, Schedule, shares
from ...solver import Problem, fill, solve
from .settings import AutoPruneSettings


@dataclass(frozen=True)
class Budget:
    """A sample's budget: `tokens` per layer on average, and `start` after the pre-selection."""

    n_visual: int
    n_text: int
    tokens: float
    start: int


def budget(config: AutoPruneSettings, shape: DecoderShape, n_visual: int, n_text: int) -> Budget:
    """Translate the settings into tokens for one sample, see `CostBudgeted.tokens`.

    For a FLOPs fraction the tokens only size the pre-selection, the schedule is solved in FLOPs.

    Raises BudgetError when the budget is below what one token a layer costs.
    """
    tokens = config.tokens(shape, n_visual, n_text)
    start = _preselected(config, tokens, n_visual)
    if config.exact and config.preselect_ratio is not None:
        # Layer 0 runs all tokens and layer 1 the pre-selected ones: a pre-selection that alone
        # would overspend gives way until one token a layer is affordable again.
        def affordable(count: int) -> bool:
            trial = _problem(config, shape, Budget(n_visual, n_text, tokens, count))
            return trial.floor <= trial.target.amount

        start = largest(affordable, 1, start)
    sized = Budget(n_visual, n_text, tokens, start)
    if tokens < n_visual:
        problem = _problem(config, shape, sized)
        least = _least(config, shape, sized)
        problem.target.demand_reachable(least, n_visual, problem.where)
    return sized


def _preselected(config: AutoPruneSettings, tokens: float, n_visual: int) -> int:
    """Tokens left by the pre-selection, all without one."""
    if config.preselect_ratio is None:
        return n_visual
    return max(1, min(int(config.preselect_ratio * tokens), n_visual))


def _least(config: AutoPruneSettings, shape: DecoderShape, sized: Budget) -> float:
    """The lowest cost that can be asked for, `sized` being the budget of less or as much.

    An exact budget's pre-selection has given way already. That of a published one is a multiple of
    the budget: if the floor as a budget lets more tokens through, it is not yet the floor.
    """
    while True:
        least = _problem(config, shape, sized).floor
        if config.exact:
            return least
        start = _preselected(config, least / shape.layers, sized.n_visual)
        if start <= sized.start:
            return least
        sized = replace(sized, start=start)


@lru_cache(maxsize=8192)
def solve_plan(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget, k: float, x0: float
) -> Plan:
    """The schedule of one sample, its curve having slope `k` and inflection `x0` (layers).

    An exact budget is missed by less than one token in one layer, unless the curve is saturated; in
    a staircase by less than one in each of the layers, at most `prune_every`, that a step's count
    holds for. With recycling a token more in one layer can mean one more in all later ones (one
    dropped and merged is one again); a curve that rises then misses it by up to a token a layer.
    A published budget has the scale alone to be met with, which may move all layers at once: it is
    missed by at most half a token a layer, with steps or without; to the letter also by whatever
    the released limit on the scale, its early return and its single precision make of it.

    Raises BudgetError for a budget below the floor.
    """
    schedule = _schedule(config, shape, budget, k, x0)
    scale, keep = solve(_problem(config, shape, budget, schedule))
    if _to_the_letter(config):
        # There the solver counts in double precision, and the run again in single precision.
        keep = tuple(schedule.keep(scale, single=True))
    return schedule.plan(keep, scale)


def _to_the_letter(config: AutoPruneSettings) -> bool:
    """Whether the budget is solved as in the released code, being of a kind that this knows."""
    known = not config.exact and config.curve == "logistic" and config.rounding == "ceil"
    return config.to_the_letter and known


def _problem(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget, schedule: Schedule | None = None
) -> Problem:
    """What the solver has to meet; of no schedule the flat one, for its floor."""
    if schedule is None:
        schedule = _schedule(config, shape, budget, 0.0, 0.0)
    letter = _to_the_letter(config)
    return Problem(
        keep=schedule.keep,
        flow=schedule.flow,
        target=config.target(shape, budget.n_visual, budget.n_text),
        places=len(schedule.retention),
        n_visual=budget.n_visual,
        where="in every layer of the schedule",
        high=20.0,
        grows=(lambda scale: False) if letter else schedule.grows,
        choices=fill if config.exact else None,
        released=True,
        estimate=(lambda counts: budget.start + sum(counts)) if letter else None,
    )


def _schedule(
    config: AutoPruneSettings, shape: DecoderShape, budget: Budget, k: float, x0: float
) -> Schedule:
    layers = shape.layers
    pre_layer = 0 if config.cuts_layer_0 else None
    first = config.mi_layer if pre_layer is None else max(config.mi_layer, 1)
    steps = range(first, layers if config.prune_last_layer else layers - 1, config.prune_every)
    curve, amplitude = CURVES[config.curve], config.amplitude
    if config.analytic_area:
        area = curve.area(k, x0, layers)
        amplitude = layers * budget.tokens / (max(area, 1e-9) * budget.start)
    cap = budget.start
    if config.cap_ratio is not None:
        cap = min(int(config.cap_ratio * budget.tokens), cap)
    return Schedule(
        n_visual=budget.start if config.cuts_entry else budget.n_visual,
        start=budget.start,
        pre_layer=pre_layer,
        layers=layers,
        steps=steps,
        retention=tuple(amplitude * share for share in shares(curve, k, x0, layers, steps)),
        rounding=config.rounding,
        cap=cap,
        recycle=config.recycle_ratio,
    )
