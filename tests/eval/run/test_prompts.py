"""What the model is asked, benchmark by benchmark: the exact prompt and its exact ids.

Expected values are in tests/data/question_samples.json, made from LLaVA's rules with sentencepiece
alone. Here the answering programs make them, with the flags of the scripts.
"""

from __future__ import annotations

import base64
import csv
import importlib.resources
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.mmbench_rows import INSTRUCTIONS
from llava.model.tokenizer import load_tokenizer

from ..programs import write_lines
from ..stub import StubModel, StubTokenizer

SAMPLES = json.loads(
    (Path(__file__).parents[2] / "data" / "question_samples.json").read_text(encoding="utf-8")
)["benchmarks"]
PROGRAMS = {
    "scienceqa": (model_vqa_science, ["--single-pred-prompt"]),
    "mmbench": (model_vqa_mmbench, ["--single-pred-prompt"]),
    "mmbench_cn": (model_vqa_mmbench, ["--single-pred-prompt", "--lang", "cn"]),
    "mmvet": (model_vqa, []),
}


class Listener(StubModel):
    """A stub that notes the ids it gets, without padding; `reader` makes them."""

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self.reader = reader
        self.heard: list[list[int]] = []

    def generate(self, input_ids: torch.Tensor, *, attention_mask: torch.Tensor, **more: Any):
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist()):
            self.heard.append(ids[mask.index(1) :])
        return super().generate(input_ids, attention_mask=attention_mask, **more)

    def load(self, *arguments: Any, **more: Any) -> tuple[Any, ...]:
        return self.reader, *super().load(*arguments, **more)[1:]


@pytest.fixture(scope="module")
def real_tokenizer(tmp_path_factory) -> Any:
    """A real vocabulary of 32,000 pieces in the files of an original checkpoint."""
    folder = tmp_path_factory.mktemp("tokenizer")
    data = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    shutil.copy(str(data), folder / "tokenizer.model")
    return load_tokenizer(folder)


def write(folder: Path, name: str) -> Path:
    """The benchmark's two questions as a file of its format, with pictures."""
    questions = SAMPLES[name]["questions"]
    picture = io.BytesIO()
    Image.new("RGB", (20, 10)).save(picture, "PNG")
    for image in filter(None, (question.get("image") for question in questions)):
        (folder / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / image).write_bytes(picture.getvalue())
    if name == "scienceqa":
        (folder / "q.json").write_text(json.dumps(questions))
        return folder / "q.json"
    if not name.startswith("mmbench"):
        return write_lines(folder / "q.jsonl", questions)
    cell = base64.b64encode(picture.getvalue()).decode()
    with (folder / "q.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*questions[0], "image"], delimiter="\t")
        writer.writeheader()
        writer.writerows({**question, "image": cell} for question in questions)
    return folder / "q.tsv"


def ask(folder: Path, name: str, model: Listener) -> list[dict[str, Any]]:
    program, flags = PROGRAMS.get(name, (model_vqa_loader, []))
    answers = folder / "answers.jsonl"
    arguments = [
        *("--model-path", "stub", "--question-file", str(write(folder, name))),
        *("--image-folder", str(folder / "images"), "--answers-file", str(answers)),
        *("--conv-mode", "vicuna_v1", "--num-workers", "0", "--batch-size", "2", *flags),
    ]
    assert program.main(arguments) == 0
    return [json.loads(line) for line in answers.read_text().splitlines()]


def spell(ids: list[int]) -> str:
    """The text behind the ids of `StubTokenizer`, one a character, with the image in its place."""
    tokenizer = StubTokenizer()
    assert ids[0] == tokenizer.bos_token_id
    return "".join(
        DEFAULT_IMAGE_TOKEN if i == IMAGE_TOKEN_INDEX else tokenizer.decode([i], True)
        for i in ids[1:]
    )


def test_every_benchmark_has_its_prompts():
    # Senna's, with six images between the text, has its own test.
    of_scripts = [b for b in BENCHMARKS.values() if b.script and b.views == 1]
    assert SAMPLES.keys() == {split.scored_as or b.name for b in of_scripts for split in b.splits}


@pytest.mark.parametrize("name", SAMPLES)
def test_prompts(name, tmp_path, use):
    model = use(Listener(StubTokenizer()))
    answers = ask(tmp_path, name, model)
    assert [spell(ids) for ids in model.heard] == SAMPLES[name]["prompts"]
    # What is logged is the question alone, and with it the scorers find it again. LLaVA's scorer
    # of ScienceQA also reads off it whether there was an image, and LLaVA logs MMBench's without
    # the instruction behind it.
    for answer, prompt in zip(answers, SAMPLES[name]["prompts"]):
        asked = prompt.split(" USER: ")[1].removesuffix(" ASSISTANT:")
        token = f"{DEFAULT_IMAGE_TOKEN}\n"
        asked = asked if name == "scienceqa" else asked.removeprefix(token)
        if name.startswith("mmbench"):
            asked, _, instruction = asked.rpartition("\n")
            assert instruction in INSTRUCTIONS.values()
        assert answer["prompt"] == asked


@pytest.mark.parametrize("name", SAMPLES)
def test_ids(name, tmp_path, use, real_tokenizer):
    model = use(Listener(real_tokenizer))
    ask(tmp_path, name, model)
    assert model.heard == SAMPLES[name]["ids"]
