"""Writes the small driving benchmark, in the format of Senna's questions on nuScenes.

    python -m llava.train.drivebench --out playground/data/drive

OUT/senna then has eval_plan_qa.json and the pictures it names, samples/<camera>/<token>.jpg. The
same command always writes the same questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llava.common import flags, program
from llava.eval.benchmarks.senna.benchmark import QUESTIONS
from llava.eval.benchmarks.senna.build import plan_entry
from llava.eval.benchmarks.senna.plan import CAMERAS
from llava.train.drive.frames import TEST_SEEDS, Frame, make_frame
from llava.train.drive.views import render

COUNT = 200
_QUALITY = 50  # of the JPEG files


def image_path(frame: Frame, camera: str) -> str:
    """Where a picture lies under the benchmark's folder."""
    return f"samples/{camera}/{frame.token}.jpg"


def entry(frame: Frame) -> dict:
    """The frame's entry of the question file."""
    plan = plan_entry(
        {
            "token": frame.token,
            "images": {camera: image_path(frame, camera) for camera in CAMERAS},
            "speed": frame.speed,
            "trajectory": frame.trajectory,
            "target": frame.target,
        }
    )
    assert plan is not None, "every frame has its whole future"
    return plan


def write(folder: Path, count: int = COUNT) -> None:
    """Write `count` questions about test frames, and their pictures, into a folder."""
    frames = [make_frame(seed) for seed in TEST_SEEDS[:count]]
    for frame in frames:
        for camera, picture in render(frame).items():
            path = folder / image_path(frame, camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=_QUALITY, optimize=True)
    text = json.dumps([entry(frame) for frame in frames], indent=1)
    (folder / QUESTIONS).write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the folder `senna`")
    parser.add_argument("--count", type=flags.whole(1), default=COUNT, help="questions")
    args = parser.parse_args(arguments)
    write(args.out / "senna", args.count)


if __name__ == "__main__":
    program.run(main)
