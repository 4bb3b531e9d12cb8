"""Plans of trajectories by Senna's rules, worked out by hand, and the question about them."""

from __future__ import annotations

import pytest

from llava.eval.benchmarks.senna.plan import (
    CAMERAS,
    PATHS,
    SPEEDS,
    VIEWS,
    Plan,
    annotated_plan,
    label,
    navigation_command,
    parse_plan,
    path_label,
    plan_question,
    speed_label,
)


def along(*steps: float) -> list[tuple[float, float]]:
    """Positions straight ahead after steps of so many metres, half a second each."""
    return [(0.0, sum(steps[: i + 1])) for i in range(len(steps))]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((5, 5, 5, 5, 5, 5), "KEEP"),
        ((0.9,) * 6, "STOP"),  # 1.8 m/s
        ((1.0,) * 6, "KEEP"),  # 2 m/s is not below 2
        ((0, 0, 0, 0, 0, 1.0), "KEEP"),  # from 0 to 2 m/s
        # Speeds between positions from 4 to 7 m/s, from 4 to 6.9, and back.
        ((2, 2, 2.5, 3, 3, 3.5), "ACCELERATE"),
        ((2, 2, 2.5, 3, 3, 3.45), "KEEP"),
        ((4, 3.5, 3, 3, 2.5, 2), "DECELERATE"),
        # 20 m/s to the first position, then 4: nobody sees it.
        ((10, 2, 2, 2, 2, 2), "KEEP"),
        # Only the first and the last speed count.
        ((5, 5, 1, 1, 1, 5), "KEEP"),
    ],
)
def test_speed(steps, expected) -> None:
    assert speed_label(along(*steps)) == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ((0.0, 30.0), "STRAIGHT"),
        ((4.0, 10.0), "STRAIGHT"),  # not beyond 4 m
        ((4.1, 40.0), "RIGHT_TURN"),  # 5.9 degrees
        ((4.1, 50.0), "RIGHT_CHANGE"),  # 4.7 degrees
        ((12.0, 5.0), "RIGHT_TURN"),
        ((-4.0, 40.0), "LEFT_TURN"),  # 4 m to the left are enough; 5.7 degrees
        ((-4.0, 50.0), "LEFT_CHANGE"),  # 4.6 degrees
        ((-3.9, 1.0), "STRAIGHT"),
        # Backwards: upstream's angle does not wrap, so only one side is a turn.
        ((5.0, -10.0), "RIGHT_TURN"),
        ((-5.0, -10.0), "STRAIGHT"),
    ],
)
def test_path(end, expected) -> None:
    assert path_label([(0.0, 0.0)] * 5 + [end]) == expected


def test_a_plan_is_speed_and_path() -> None:
    bend = [(0.1, 5), (0.5, 10), (1.2, 15), (2.3, 20), (3.6, 25), (5.2, 30)]
    assert label(bend) == Plan("KEEP", "RIGHT_TURN")
    assert label(bend).answer == "KEEP, RIGHT_TURN\n"
    assert label(bend).key == "KEEP_RIGHT_TURN"


@pytest.mark.parametrize("trajectory", [along(1, 2, 3), [(0.0, float("nan"))] * 6, [(1.0,)] * 6])
def test_a_trajectory_of_another_shape_is_refused(trajectory) -> None:
    with pytest.raises(ValueError, match="6 positions"):
        label(trajectory)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ((0.0, 9.9), "go straight"),
        ((30.0, -9.9), "go straight"),
        # Straight on for a minute's walk is "turn left": upstream's axes, kept.
        ((0.0, 60.0), "turn left"),
        ((19.9, 10.0), "turn left"),
        ((20.0, 10.0), "go straight and turn left"),
        ((-5.0, -10.0), "turn right"),
        ((20.0, -10.0), "go straight and turn right"),
    ],
)
def test_navigation_command(target, expected) -> None:
    assert navigation_command(target) == expected


def test_the_question_is_upstreams_word_for_word() -> None:
    text = plan_question(7.9, "turn left")
    views = (
        "<FRONT VIEW>:\n<image>\n<FRONT LEFT VIEW>:\n<image>\n<FRONT RIGHT VIEW>:\n<image>\n"
        "<BACK LEFT VIEW>:\n<image>\n<BACK RIGHT VIEW>:\n<image>\n<BACK VIEW>:\n<image>\n"
    )
    assert text == views + (
        "Your current speed is 7 m/s, the navigation command is 'turn left', based on the "
        "understanding of the driving scene and the navigation information, what is your plan for "
        "the next three seconds? Please answer your SPEED plan and your PATH plan. SPEED includes "
        "KEEP, ACCELERATE and DECELERATE, and STOP, PATH includes STRAIGHT, RIGHT_CHANGE, "
        "LEFT_CHANGE, RIGHT_TURN, LEFT_TURN. For example, a correct answer format is like 'KEEP, "
        "LEFT_CHANGE'."
    )
    with pytest.raises(ValueError, match="one of go straight, turn left"):
        plan_question(7, "fly")


def test_labels_and_images_have_orders_of_their_own() -> None:
    """Only the first view is what its label says; upstream trained like that."""
    named = ["CAM_" + view.replace(" ", "_") for view in VIEWS]
    assert [a == b for a, b in zip(named, CAMERAS)] == [True] + [False] * 5
    assert set(named) == set(CAMERAS)


def test_an_annotated_answer() -> None:
    assert annotated_plan("KEEP, STRAIGHT\n") == Plan("KEEP", "STRAIGHT")
    assert annotated_plan("STOP, LEFT_CHANGE\nand why") == Plan("STOP", "LEFT_CHANGE")
    for wrong in ("KEEP", "STRAIGHT, KEEP\n", "keep, straight", "KEEP,STRAIGHT"):
        with pytest.raises(ValueError, match="expected a plan such as"):
            annotated_plan(wrong)


def test_only_a_plan_and_nothing_more_is_read_exactly() -> None:
    for speed in SPEEDS:
        for path in PATHS:
            assert parse_plan(f"{speed}, {path}") == Plan(speed, path)
    assert parse_plan(" KEEP,STRAIGHT.\n") == Plan("KEEP", "STRAIGHT")
    for other in ("", "KEEP", "KEEP STRAIGHT", "KEEP, STRAIGHT, STOP", "My plan: KEEP, STRAIGHT",
                  "keep, straight", "STRAIGHT, KEEP", "KEEP, STRAIGHT.."):  # fmt: skip
        assert parse_plan(other) is None
