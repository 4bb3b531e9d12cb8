"""Writes Senna's question file from frames and their trajectories.

    python -m llava.eval.benchmarks.senna.build --frames FRAMES.jsonl --out eval_plan_qa.json

FRAMES has one JSON object a line: `token`; `images`, six paths by camera name or in the order of
`plan.CAMERAS`; `speed` in m/s; `trajectory`, the positions after 0.5 to 3.0 s; `target`, the
position after 6 s; and, if known, `scene_token`, `prev` and `next`. Positions are in metres in the
lidar's frame, x to the right and y forward, the car at (0, 0). A frame whose future is cut short
(a trajectory of fewer positions, or no target) is left out, as upstream does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common import json_files, program

from ...run.linefile import read_lines
from .plan import CAMERAS, STEPS, label, navigation_command, plan_question

_FASTEST = 1000  # m/s, no car's


def plan_entry(frame: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of a question file for a frame, with all of upstream's keys; None without a future.

    Raises:
        ValueError: a key is missing, or a value is not what the module describes.
    """
    names = dict.fromkeys(("scene_token", "prev", "next"), str)
    json_files.check(frame, "a frame", {"token": str, "speed": float}, optional=names)
    if not abs(frame["speed"]) <= _FASTEST:
        speed = json_files.shorten(frame["speed"])
        raise ValueError(f"speed must be a number of m/s, at most {_FASTEST}, got {speed}")
    images, trajectory = ordered(frame.get("images")), frame.get("trajectory")
    if not isinstance(trajectory, (list, tuple)):
        raise ValueError(
            f"trajectory must be a list of positions, got {json_files.shorten(trajectory)}"
        )
    trajectory = [_position(point) for point in trajectory]
    if frame.get("target") is None or len(trajectory) < STEPS:
        return None
    question = plan_question(frame["speed"], navigation_command(_position(frame["target"])))
    return {
        "token": frame["token"],
        "image": images[0],
        "images": images,
        "prev": frame.get("prev") or "",
        "next": frame.get("next") or "",
        "scene_token": frame.get("scene_token") or "",
        "fut_valid_flag": "True",
        "ego_fut_trajs": str([list(point) for point in trajectory]),
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": label(trajectory).answer},
        ],
    }


def ordered(images: Mapping[str, str] | Sequence[str]) -> list[str]:
    """Six image paths in the order of `plan.CAMERAS`.

    Raises:
        ValueError: other than six, or a camera is missing.
    """
    if isinstance(images, Mapping):
        if absent := [camera for camera in CAMERAS if camera not in images]:
            there = ", ".join(map(json_files.shorten, images))
            raise ValueError(f"images lack {', '.join(absent)}; there are {there}")
        images = [images[camera] for camera in CAMERAS]
    paths = isinstance(images, (list, tuple)) and all(isinstance(image, str) for image in images)
    if not paths or len(images) != len(CAMERAS):
        raise ValueError(
            f"expected {len(CAMERAS)} images ({', '.join(CAMERAS)}), each a path, got "
            f"{json_files.shorten(images)}"
        )
    return list(images)


def _position(point: Any) -> tuple[float, float]:
    """(x, y) in metres; two finite numbers, as `plan.label` demands of a trajectory."""
    numbers = isinstance(point, (list, tuple)) and len(point) == 2
    if not numbers or not all(json_files.is_number(value) for value in point):
        raise ValueError(f"a position is two numbers (x, y), got {json_files.shorten(point)}")
    return float(point[0]), float(point[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file is written, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.benchmarks.senna.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--frames", type=Path, required=True, metavar="FRAMES.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    entries: list[dict[str, Any]] = []
    skipped = 0
    try:
        if not args.frames.is_file():
            raise FileNotFoundError(f"no file {args.frames}")
        for number, _, frame in read_lines(args.frames):
            try:
                entry = plan_entry(frame)
            except ValueError as error:
                raise ValueError(f"{args.frames}, line {number}: {error}") from None
            if entry is None:
                skipped += 1
            else:
                entries.append(entry)
        if not entries and not skipped:
            raise ValueError(f"{args.frames} holds no frame")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {len(entries)} questions to {args.out}; {skipped} frames have no whole future")
    return 0


if __name__ == "__main__":
    program.run(main)
