"""Senna's question file: what is asked, in which order, and what is refused."""

from __future__ import annotations

import json

import pytest

from llava.eval.benchmarks.senna import build
from llava.eval.benchmarks.senna.benchmark import load_questions
from llava.eval.benchmarks.senna.plan import CAMERAS
from llava.eval.benchmarks.senna.questions import SennaQuestions
from llava.eval.run.subset import take
from tests import senna_files


@pytest.fixture
def path(tmp_path):
    return senna_files.write_questions(tmp_path)


def test_plan_questions_alone_are_asked_with_all_views(path) -> None:
    questions = load_questions(path.parent)
    assert [(q.index, q.question_id) for q in (questions[i] for i in range(3))] == [
        (1, "t0"), (2, "t1"), (3, "t2"),
    ]  # fmt: skip
    first = questions[0]
    assert first.images == tuple(f"samples/{camera}/t0.jpg" for camera in CAMERAS)
    assert first.image == first.images[0] and first.in_front == 0
    assert first.model_text == first.text and first.text.count("<image>") == 6
    assert "Your current speed is 10 m/s, the navigation command is 'turn left'" in first.text


def test_a_chunk_and_a_part_of_the_file(path) -> None:
    chunk = SennaQuestions(path, num_chunks=2, chunk_idx=1)
    assert [chunk[i].question_id for i in range(len(chunk))] == ["t1", "t2"]
    part = take(SennaQuestions(path), 1)
    assert len(part) == 1 and part[0].views


def rewrite(path, change) -> None:
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1]["images"].pop(), "entry 1: .*6 <image> in the text, 5 images"),
        (lambda e: e[2].pop("token"), "entry 2: token is missing"),
        (lambda e: e[3]["conversations"][1].update(value="GO"), "entry 3: .*expected a plan such"),
        (lambda e: e.append(e[1]), "entries 1 and 4 both ask for the plan of t0"),
        (lambda e: e.__delitem__(slice(1, None)), "no question with 'SPEED plan'"),
    ],
)
def test_a_malformed_file_is_refused(path, change, message) -> None:
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        SennaQuestions(path)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"not published theirs.*llava\.eval\.benchmarks\.senna\.build"
    ):
        load_questions(tmp_path)
    wrong = tmp_path / "eval_plan_qa.json"
    wrong.write_text("{}")
    with pytest.raises(ValueError, match=r"must hold a list, got \{\}"):
        load_questions(tmp_path)


def test_questions_are_built_from_trajectories(tmp_path, capsys) -> None:
    """Braking from 14 to 10 m/s, a change of lane to the left; the second frame's future ends."""
    ys = (7.5, 14.5, 21, 27.25, 33, 38)
    left = [
        (-0.2, ys[0]),
        (-0.6, ys[1]),
        (-1.3, ys[2]),
        (-2.2, ys[3]),
        (-3.0, ys[4]),
        (-3.3, ys[5]),
    ]
    frames = [
        senna_files.frame("a", trajectory=left, speed=15.8, target=(-3.3, 60.0), scene_token="s"),
        senna_files.frame("b", trajectory=left[:4]),
        senna_files.frame("c", target=None),
        senna_files.frame("d", images=[f"{i}.jpg" for i in range(6)]),
    ]
    source, out = tmp_path / "frames.jsonl", tmp_path / "new" / "eval_plan_qa.json"
    source.write_text("".join(json.dumps(frame) + "\n" for frame in frames))
    assert build.main(["--frames", str(source), "--out", str(out)]) == 0
    assert "wrote 2 questions" in (said := capsys.readouterr().out) and "2 frames have no" in said
    first, second = json.loads(out.read_text())
    assert set(first) == {
        *("token", "image", "images", "prev", "next", "scene_token", "fut_valid_flag"),
        *("ego_fut_trajs", "conversations"),
    }
    human, gpt = first["conversations"]
    assert (human["from"], gpt["from"]) == ("human", "gpt")
    assert gpt["value"] == "DECELERATE, STRAIGHT\n"  # 3.3 m are not 4
    assert "Your current speed is 15 m/s, the navigation command is 'turn left'" in human["value"]
    assert first["images"][2] == "samples/CAM_FRONT_LEFT/a.jpg" and first["scene_token"] == "s"
    assert second["images"] == [f"{i}.jpg" for i in range(6)]
    assert [q.question_id for q in map(SennaQuestions(out).__getitem__, (0, 1))] == ["a", "d"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"CAM_FRONT": "a.jpg"}}, "images lack CAM_FRONT_RIGHT"),
        ({"images": ["a.jpg"]}, "expected 6 images"),
        ({"trajectory": [[0, 1]] * 7}, "6 positions"),
        ({"speed": ...}, "a frame: speed is missing"),
    ],
)
def test_a_wrong_frame_is_named(tmp_path, capsys, changes, message) -> None:
    frame = {k: v for k, v in senna_files.frame("a", **changes).items() if v is not ...}
    (tmp_path / "f.jsonl").write_text(json.dumps(frame) + "\n")
    out = tmp_path / "out.json"
    assert build.main(["--frames", str(tmp_path / "f.jsonl"), "--out", str(out)]) == 2
    with pytest.raises(ValueError, match=message):
        build.plan_entry(frame)
    assert "f.jsonl, line 1: " in capsys.readouterr().err and not out.exists()
