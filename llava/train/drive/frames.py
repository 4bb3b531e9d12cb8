"""Frames of a small driving world: what is seen, and the trajectory that follows from it.

The plan of a frame is not drawn but labelled: a situation moves the car, and the rules of
`senna.plan` read the plan off its trajectory. What decides it is to be seen, and some of
it in two views at once:
- The front view has the speed: a red light or a braking car ahead (stay standing, or slow down), a
  green light (speed up), or nothing of the kind (keep the speed).
- An arrow on a sign in the front view says turn. Cones in the lane say change it, to the side
  where the view ahead shows no vehicle: the front views to the left and to the right decide.
- Vehicles behind, cars that do not brake and vehicles beside a free lane mean nothing.
The text of the question gives part of it away: who stands cannot keep his speed, and upstream's
rule for the navigation command, which is kept, has a command of its own for turning right.
Positions are in metres, x to the right and y forward; times in seconds.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from llava.eval.benchmarks.senna.plan import STEP, STEPS, Plan, label

TRAINING_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 1_001_000)
TEST_SEEDS = range(2_000_000, 2_001_000)

_HORIZON = STEP * STEPS  # seconds of the trajectory, and of what follows until the target
_STANDING_SHARE = 0.3
_STRAIGHT_SHARE = 0.36  # of the frames that drive; the other four paths share the rest


@dataclass(frozen=True)
class Frame:
    """One moment.

    light: red, green or None. lead: a car ahead, "braking" or "rolling", or None. arrow: left,
    right or None. cones: in the own lane. vehicles: cameras that show one, the front's apart.
    speed: now, m/s. trajectory: positions after 0.5 .. 3 s. target: position after 6 s.
    """

    seed: int
    light: str | None
    lead: str | None
    arrow: str | None
    cones: bool
    vehicles: frozenset[str]
    speed: float
    trajectory: tuple[tuple[float, float], ...]
    target: tuple[float, float]

    @property
    def plan(self) -> Plan:
        return label(self.trajectory)

    @property
    def token(self) -> str:
        """32 hexadecimal digits, as nuScenes names its samples."""
        return hashlib.blake2b(f"drive {self.seed}".encode(), digest_size=16).hexdigest()


def make_frame(seed: int) -> Frame:
    """The frame of a seed; the same seed always gives the same frame."""
    rng = random.Random(f"drive {seed}")
    standing = rng.random() < _STANDING_SHARE
    wanted = _standing_plan(rng) if standing else _driving_plan(rng)
    while True:
        speed, trajectory, target = _drive(wanted, standing, rng)
        # Some draws miss a threshold of the rules, such as 5 degrees at a low speed.
        if label(trajectory) == wanted:
            break
    return Frame(seed, *_seen(wanted, standing, rng), speed, trajectory, target)


def _standing_plan(rng: random.Random) -> Plan:
    if rng.random() < 0.5:
        return Plan("STOP", "STRAIGHT")
    return Plan("ACCELERATE", rng.choice(("STRAIGHT", "RIGHT_TURN", "LEFT_TURN")))


def _driving_plan(rng: random.Random) -> Plan:
    speed = rng.choice(("KEEP", "ACCELERATE", "DECELERATE"))
    if rng.random() < _STRAIGHT_SHARE:
        return Plan(speed, "STRAIGHT")
    return Plan(speed, rng.choice(("RIGHT_TURN", "LEFT_TURN", "RIGHT_CHANGE", "LEFT_CHANGE")))


def _seen(
    plan: Plan, standing: bool, rng: random.Random
) -> tuple[str | None, str | None, str | None, bool, frozenset[str]]:
    """Light, lead, arrow, cones and vehicles that lead to this plan."""
    light = lead = None
    if plan.speed == "ACCELERATE":
        light = "green"
    elif plan.speed == "STOP" or (plan.speed == "DECELERATE" and rng.random() < 0.5):
        light = "red"
    elif plan.speed == "DECELERATE":
        lead = "braking"
    if lead is None and rng.random() < 0.4:
        lead = "rolling"
    arrow = {"RIGHT_TURN": "right", "LEFT_TURN": "left"}.get(plan.path)
    if plan.speed == "STOP":
        # Where to go from here does not matter yet.
        arrow = rng.choice((None, "left", "right"))
    sides = {"CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"}
    if plan.path == "RIGHT_CHANGE":
        ahead = {"CAM_FRONT_LEFT"}
    elif plan.path == "LEFT_CHANGE":
        ahead = {"CAM_FRONT_RIGHT"}
    else:
        ahead = {camera for camera in sorted(sides) if rng.random() < 0.5}
    back = ("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
    behind = {camera for camera in back if rng.random() < 0.4}
    return light, lead, arrow, plan.path.endswith("CHANGE"), frozenset(ahead | behind)


def _drive(
    plan: Plan, standing: bool, rng: random.Random
) -> tuple[float, tuple[tuple[float, float], ...], tuple[float, float]]:
    """Speed now, trajectory and target of a car that does what the plan says."""
    acceleration = {
        "KEEP": rng.uniform(-0.5, 0.5),
        "ACCELERATE": rng.uniform(1.9, 2.8),
        "DECELERATE": rng.uniform(-2.8, -1.9),
        "STOP": 0.0,
    }[plan.speed]
    speed = rng.uniform(0, 1) if standing else rng.uniform(20, 27)
    # Who stands at a red light starts when it changes, so that the target does not tell.
    later = rng.uniform(2.3, 3.0) if plan.speed == "STOP" else acceleration
    right = -1 if plan.path.startswith("LEFT") else 1
    turn = aside = 0.0
    if plan.path.endswith("TURN"):
        turn = right * (rng.uniform(1.1, 1.4) if standing else rng.uniform(0.3, 0.6))
    elif plan.path.endswith("CHANGE"):
        aside = right * rng.uniform(4.1, 4.6)
    whole = _distance(speed, acceleration, _HORIZON)

    def place(distance: float) -> tuple[float, float]:
        share = distance / whole
        shift = aside * share * share * (3 - 2 * share)
        if not turn:
            return shift, distance
        bend = turn / whole  # a circle
        return (1 - math.cos(bend * distance)) / bend, math.sin(bend * distance) / bend

    times = [STEP * (step + 1) for step in range(STEPS)]
    exact = (place(_distance(speed, acceleration, time)) for time in times)
    trajectory = tuple((round(x, 2), round(y, 2)) for x, y in exact)
    x, y = trajectory[-1]
    further = _distance(speed + acceleration * _HORIZON, later, _HORIZON)
    target = (x + further * math.sin(turn), y + further * math.cos(turn))
    return speed, trajectory, target


def _distance(speed: float, acceleration: float, time: float) -> float:
    """How far a car gets in `time`; one that brakes stops and stays."""
    if acceleration < 0:
        time = min(time, -speed / acceleration)
    return speed * time + acceleration * time * time / 2
