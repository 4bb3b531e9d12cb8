"""The small driving world: its plans, pictures, files, and training that can be interrupted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.eval.benchmarks.senna.benchmark import load_questions
from llava.eval.benchmarks.senna.plan import CAMERAS, label
from llava.mm_utils import load_image_processor, process_images
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer
from llava.pruning.layout import Segment, TokenLayout
from llava.train import drivebench
from llava.train.drive.data import (
    VOCAB_SIZE,
    corpus,
    encode,
    make_batch,
    normalised,
    prompt,
    question,
)
from llava.train.drive.frames import TEST_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, make_frame
from llava.train.drive.model import DriveModel, Shape, export, some_columns, view_labels
from llava.train.drive.trainer import Stage, Trainer
from llava.train.drive.views import SIZE, render
from llava.train.tokenizer import train_tokenizer, write_tokenizer
from tests.closeness import FLOAT32, assert_close

MINI = Path(__file__).parents[2] / "playground" / "data" / "drive" / "senna"
FRAMES = [make_frame(seed) for seed in TEST_SEEDS[:300]]


def test_seeds_are_apart() -> None:
    assert TRAINING_SEEDS.stop <= VALIDATION_SEEDS.start < VALIDATION_SEEDS.stop <= TEST_SEEDS.start


def test_what_is_seen_decides_the_plan() -> None:
    for frame in FRAMES:
        speed, path = frame.plan.speed, frame.plan.path
        standing = frame.speed < 2
        if frame.light == "green":
            assert speed == "ACCELERATE"
        elif frame.light == "red":
            assert speed == ("STOP" if standing else "DECELERATE")
        else:
            assert speed == ("DECELERATE" if frame.lead == "braking" else "KEEP")
        if speed == "STOP":
            assert path == "STRAIGHT"
        elif frame.arrow is not None:
            assert path == f"{frame.arrow.upper()}_TURN"
        elif frame.cones:
            free = frame.vehicles & {"CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"}
            assert len(free) == 1
            assert path == ("RIGHT_CHANGE" if "CAM_FRONT_LEFT" in free else "LEFT_CHANGE")
        else:
            assert path == "STRAIGHT"
        assert frame.plan == label(frame.trajectory)


def test_the_question_alone_does_not_answer() -> None:
    """The best plan for each speed and command is right about a third of the time."""
    plans: dict[tuple, Counter] = {}
    for frame in FRAMES:
        command = question(frame).split("'")[1]
        plans.setdefault((frame.speed < 2, command), Counter())[frame.plan] += 1
    assert sum(max(own.values()) for own in plans.values()) / len(FRAMES) < 0.42


def test_a_frame_always_looks_the_same_and_shows_what_it_has() -> None:
    frame = next(f for f in FRAMES if f.light == "red" and f.cones)
    views = render(frame)
    assert list(views) == list(CAMERAS)
    assert all(picture.size == SIZE for picture in views.values())
    again = render(frame)
    assert all(views[camera].tobytes() == again[camera].tobytes() for camera in CAMERAS)
    pixels = SIZE[0] * SIZE[1]
    colours = {c: {rgb for _, rgb in p.getcolors(pixels)} for c, p in views.items()}
    for lit in ((255, 30, 30), (255, 120, 10)):  # the lamp, the cones
        assert [camera for camera in CAMERAS if lit in colours[camera]] == ["CAM_FRONT"]
    wheels = [camera for camera in CAMERAS[1:] if (25, 25, 30) in colours[camera]]
    assert set(wheels) == frame.vehicles


def test_the_benchmark_is_written_as_it_is_in_the_repository(tmp_path) -> None:
    drivebench.write(tmp_path, count=2)
    new = json.loads((tmp_path / "eval_plan_qa.json").read_text())
    old = json.loads((MINI / "eval_plan_qa.json").read_text())
    assert new == old[:2] and len(old) == drivebench.COUNT
    for name in new[1]["images"]:
        with Image.open(tmp_path / name) as made, Image.open(MINI / name) as kept:
            assert made.size == kept.size == SIZE
            difference = [abs(a - b) for a, b in zip(made.tobytes(), kept.tobytes())]
        assert max(difference) <= 16  # encoders differ a little
    questions = load_questions(MINI)
    assert len(questions) == drivebench.COUNT
    assert all(
        (MINI / name).is_file() for i in range(len(questions)) for name in questions[i].images
    )


def test_heads_are_asked_what_their_view_can_show() -> None:
    frame = next(f for f in FRAMES if f.light == "red" and f.arrow == "left" and f.lead is None)
    labels = view_labels(frame)
    assert labels["camera"] == [0, 1, 2, 3, 4, 5]
    assert labels["light"] == [1, *[-100] * 5] and labels["arrow"] == [1, *[-100] * 5]
    assert labels["lead"] == labels["cones"] == [0, *[-100] * 5]
    assert labels["vehicle"][0] == -100
    assert {CAMERAS[i] for i in range(1, 6) if labels["vehicle"][i]} == frame.vehicles


def test_pixels_are_those_of_the_image_processor() -> None:
    pictures = list(render(FRAMES[0]).values())[:2]
    config = Shape(vocab_size=300).config()
    expected = process_images(pictures, load_image_processor("nowhere"), config)
    assert_close(normalised(pictures), expected, FLOAT32)


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    return train_tokenizer(corpus(40), VOCAB_SIZE)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, tokenizer_model)
    return load_tokenizer(folder)


def test_only_the_answers_are_learned(tokenizer) -> None:
    frame = FRAMES[0]
    ids, mask, labels = encode([frame, FRAMES[1]], tokenizer)
    assert ids.shape == mask.shape == labels.shape
    answer = tokenizer.decode(labels[0][labels[0] != -100].tolist(), skip_special_tokens=True)
    assert answer.strip() == str(frame.plan)
    assert labels[0, -1] == ids[0, -1] == tokenizer.eos_token_id
    assert (ids[0] == -200).sum() == 6
    assert "curious human" in prompt(question(frame))


def test_some_tokens_of_each_view_and_all_of_the_text() -> None:
    text, views = Segment(3), [Segment(8, view, torch.arange(8)) for view in range(2)]
    layout = TokenLayout.from_segments([[text, views[0], text, views[1], text], [text, *views]])
    columns = some_columns(layout, 2, torch.Generator().manual_seed(0))
    assert columns.shape == (2, 3 * 3 + 2 * 2)
    for row, image in zip(columns, layout.image):
        assert row.tolist() == sorted(set(row.tolist()))
        assert image[row].tolist().count(0) == image[row].tolist().count(1) == 2
    other = some_columns(layout, 2, torch.Generator().manual_seed(1))
    assert not torch.equal(columns, other)
    assert some_columns(layout, 8, None).tolist() == [list(range(25))] * 2


STAGES = (
    Stage("see", 2, 1, 1e-3, answers=False),
    Stage("answer", 2, 1, 1e-3, answers=True, visual=4),
)


def trainer(tokenizer, work: Path, stages=STAGES) -> Trainer:
    torch.manual_seed(1)
    shape = Shape(len(tokenizer), hidden_size=16, intermediate_size=16, layers=2, heads=2,
                  vision_hidden_size=12, vision_intermediate_size=12)  # fmt: skip
    return Trainer(DriveModel(shape), tokenizer, work, stages=stages)


def test_an_interrupted_training_equals_one_that_was_not(tokenizer, tmp_path) -> None:
    whole = trainer(tokenizer, tmp_path / "whole")
    whole.validate = lambda: 0.0
    whole.run()
    assert whole.finished
    for _ in range(6):  # a step at a time; a stage's end takes a start of its own
        part = trainer(tokenizer, tmp_path / "parts")
        part.validate = lambda: 0.0
        part.run(minutes=0)
    assert part.finished
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, part.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="another recipe or model"):
        trainer(tokenizer, tmp_path / "parts", (STAGES[1], *STAGES))


def test_stages_train_what_they_should(tokenizer, tmp_path) -> None:
    made = trainer(tokenizer, tmp_path)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    made.validate = lambda: 0.0
    made.stages = made.stages[1:]
    made.optimiser = made._new_optimiser()
    made.run()
    after = made.model.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert not any("vision_tower" in name or "heads" in name for name in moved)
    for part in ("img_adapter.adapter.0.weight", "mm_projector.0.weight", "lm_head.weight"):
        assert any(name.endswith(part) for name in moved)


def test_the_export_loads_as_a_senna_and_answers_alike(
    tokenizer, tokenizer_model, tmp_path
) -> None:
    made = trainer(tokenizer, tmp_path / "work").model.eval()
    export(made, tokenizer_model, tmp_path / "out")
    loaded_tokenizer, model, _, _ = load_pretrained_model(
        tmp_path / "out", device="cpu", dtype="float32"
    )
    assert model.config.mm_token_adapter == [576, 128]
    assert len(loaded_tokenizer) == len(tokenizer)
    batch = make_batch([TEST_SEEDS[0]], tokenizer)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(parameter.half())  # as the file has it
        ours = made.senna(batch.ids, images=batch.pixels, use_cache=False).logits
        theirs = model(batch.ids, images=batch.pixels, use_cache=False).logits
    assert_close(ours, theirs, FLOAT32)
