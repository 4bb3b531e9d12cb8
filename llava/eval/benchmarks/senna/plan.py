"""Senna's plan: two words, the rules that label a trajectory with them, and the question.

Source: hustvl/Senna at cddce26 (literal strings and rules of its nuScenes converter). Coordinates
are those of the lidar, in metres: x to the right, y forward, the car at (0, 0). A future trajectory
is its positions after 0.5, 1.0, ..., 3.0 s.

Two oddities are kept, because the released weights were trained with them:
- The list of images is CAMERAS, the labels in the question are VIEWS, and only the first of each
  belong together. Neither order may be changed to suit the other.
- The navigation command is read off the position after 6 s as if x pointed forward and y to the
  left: driving straight on for more than 10 m is "turn left".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SPEEDS = ("KEEP", "ACCELERATE", "DECELERATE", "STOP")
PATHS = ("RIGHT_TURN", "RIGHT_CHANGE", "LEFT_TURN", "LEFT_CHANGE", "STRAIGHT")

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
VIEWS = ("FRONT", "FRONT LEFT", "FRONT RIGHT", "BACK LEFT", "BACK RIGHT", "BACK")

#: What stands before every question: a label and a place for an image, six times.
VIEW_BLOCK = "".join(f"<{view} VIEW>:\n<image>\n" for view in VIEWS)

#: What tells a question about the plan from the others in a file.
MARK = "SPEED plan"

COMMANDS = (
    "go straight",
    "turn left",
    "turn right",
    "go straight and turn left",
    "go straight and turn right",
)

STEP = 0.5  # seconds between two positions
STEPS = 6

_STANDING = 2.0  # m/s
_SPEED_CHANGE = 3.0  # m/s
_SIDE = 4.0  # m
_ANGLE = 5.0  # degrees
_FAR, _ASIDE = 20.0, 10.0  # m
_EXACT = re.compile(rf"({'|'.join(SPEEDS)}), ?({'|'.join(PATHS)})\.?")

Trajectory = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """A word of SPEEDS and a word of PATHS."""

    speed: str
    path: str

    def __str__(self) -> str:
        return f"{self.speed}, {self.path}"

    @property
    def key(self) -> str:
        """Its name in tables by class, upstream's."""
        return f"{self.speed}_{self.path}"

    @property
    def answer(self) -> str:
        """The annotated answer; the newline is part of it."""
        return f"{self}\n"


def annotated_plan(answer: str) -> Plan:
    """The plan in an annotated answer: what is before ", ", and what is between it and a newline.

    Raises:
        ValueError: it is not two known words.
    """
    speed, _, path = answer.partition(", ")
    plan = Plan(speed, path.partition("\n")[0])
    if plan.speed not in SPEEDS or plan.path not in PATHS:
        raise ValueError(f"expected a plan such as 'KEEP, LEFT_CHANGE', got {answer[:80]!r}")
    return plan


def parse_plan(text: str) -> Plan | None:
    """The plan that a model's answer is, None if it is anything else.

    The answer must be the two words and nothing more; white space around them and a full stop
    at the end do not matter. (Upstream instead looks whether words occur somewhere in it.)
    """
    match = _EXACT.fullmatch(text.strip())
    return Plan(*match.groups()) if match else None


def label(trajectory: Trajectory) -> Plan:
    """The plan of a future trajectory.

    Raises:
        ValueError: it does not have six positions of two finite numbers.
    """
    _check(trajectory)
    return Plan(speed_label(trajectory), path_label(trajectory))


def speed_label(trajectory: Trajectory) -> str:
    """STOP if every speed is below 2 m/s; else by the change from the first to the last speed,
    3 m/s or more in either direction, KEEP in between.

    The speeds are those between the positions, so what happens in the first half second is not
    seen: six positions give five speeds.
    """
    speeds = [math.dist(a, b) / STEP for a, b in pairwise(trajectory)]
    if max(speeds) < _STANDING:
        return "STOP"
    change = speeds[-1] - speeds[0]
    if change >= _SPEED_CHANGE:
        return "ACCELERATE"
    return "DECELERATE" if change <= -_SPEED_CHANGE else "KEEP"


def path_label(trajectory: Trajectory) -> str:
    """By the last position: straight on unless it is beyond 4 m aside, and then a turn if it is
    5 degrees or more off the straight line as seen from the car, else a change of lane."""
    x, y = trajectory[-1]
    angle = math.degrees(math.atan2(y, x)) - 90  # to the left
    if x > _SIDE:
        if angle <= -_ANGLE:
            return "RIGHT_TURN"
        return "RIGHT_CHANGE" if abs(angle) < _ANGLE else "STRAIGHT"
    if x <= -_SIDE:
        if angle >= _ANGLE:
            return "LEFT_TURN"
        return "LEFT_CHANGE" if abs(angle) < _ANGLE else "STRAIGHT"
    return "STRAIGHT"


def navigation_command(target: tuple[float, float]) -> str:
    """The command for a position after 6 s, in metres; see the module on its axes."""
    x, y = target
    if abs(y) < _ASIDE:
        return "go straight"
    turn = "turn left" if y > 0 else "turn right"
    return f"go straight and {turn}" if x >= _FAR else turn


def plan_question(speed: float, command: str) -> str:
    """The whole question, views included; `speed` in m/s loses its fraction.

    Raises:
        ValueError: no such command.
    """
    if command not in COMMANDS:
        raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got {command!r}")
    return (
        f"{VIEW_BLOCK}Your current speed is {int(speed)} m/s, the navigation command is "
        f"'{command}', based on the understanding of the driving scene and the navigation "
        "information, what is your plan for the next three seconds? Please answer your SPEED plan "
        "and your PATH plan. SPEED includes KEEP, ACCELERATE and DECELERATE, and STOP, PATH "
        "includes STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN. For example, a "
        "correct answer format is like 'KEEP, LEFT_CHANGE'."
    )


def _check(trajectory: Trajectory) -> None:
    right = len(trajectory) == STEPS and all(
        len(point) == 2 and all(map(math.isfinite, point)) for point in trajectory
    )
    if not right:
        raise ValueError(
            f"a future trajectory has {STEPS} positions (x, y), {STEP} s apart, got "
            f"{str(list(trajectory))[:120]}"
        )
