"""A model that answers at once, so that tests of the runner test the runner.

Its answer depends on the prompt and on how many images came with it, and on nothing else, so a
batch, a resumed run and a chunk must all give what one uninterrupted run gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import load_image_processor
from llava.pruning.trace import SampleTrace

LAYERS, VISUAL = 4, 16


class StubTokenizer:
    """One id a character."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0
    _first = 10

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[self.bos_token_id, *self.encode(text)])

    def encode(self, text: str) -> list[int]:
        return [ord(letter) + self._first for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return "".join(chr(i - self._first) for i in ids if i >= self._first)


class StubModel:
    """Answers "<characters of the prompt>.<images>"; `on_generate(call number)` may raise."""

    def __init__(self, on_generate: Callable[[int], None] | None = None) -> None:
        self.tokenizer = StubTokenizer()
        self.config = SimpleNamespace(
            num_hidden_layers=LAYERS,
            hidden_size=8,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            intermediate_size=16,
            image_aspect_ratio="pad",
        )
        self.generation_config = SimpleNamespace(eos_token_id=2)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.calls: list[dict[str, Any]] = []
        self.prompts: list[str] = []
        self._on_generate = on_generate

    def generate(
        self,
        input_ids: torch.Tensor,
        *,
        images: list[torch.Tensor] | None,
        image_sizes: list[tuple[int, int]] | None,
        attention_mask: torch.Tensor,
        stopping_criteria: Any,
        **arguments: Any,
    ) -> SimpleNamespace:
        self.calls.append({"batch": len(input_ids), "image_sizes": image_sizes, **arguments})
        if self._on_generate is not None:
            self._on_generate(len(self.calls))
        assert all(image.shape == (3, 336, 336) for image in images or [])
        assert len(images or []) == int((input_ids == IMAGE_TOKEN_INDEX).sum())
        answers, traces = [], []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist()):
            assert mask == sorted(mask), "padding belongs on the left"
            ids = ids[mask.index(1) :]
            n_images = ids.count(IMAGE_TOKEN_INDEX)
            prompt = self.tokenizer.decode(ids, skip_special_tokens=True)
            self.prompts.append(prompt)
            answers.append([*self.tokenizer.encode(self.reply(prompt, n_images)), 2])
            visual = VISUAL * n_images
            entering = [visual] + [visual // 2] * (LAYERS - 1)
            traces.append(
                SampleTrace(
                    n_visual=visual,
                    n_text=len(ids) - n_images,
                    entering=entering,
                    leaving=[*entering[1:], visual // 2],
                    rows=[0] * LAYERS,
                    pools=[0] * LAYERS,
                )
            )
        width = max(map(len, answers)) + 1
        rows = torch.tensor([answer + [0] * (width - len(answer)) for answer in answers])
        for _ in range(2):
            assert not stopping_criteria(rows, None).any()
        lengths = tuple(trace.n_visual + trace.n_text for trace in traces)
        cache = SimpleNamespace(
            trace=SimpleNamespace(samples=traces), layout=SimpleNamespace(lengths=lengths)
        )
        return SimpleNamespace(sequences=rows, past_key_values=cache)

    def reply(self, prompt: str, images: int) -> str:
        """What the model says; a subclass may say something else."""
        return f" {len(prompt)}.{images}\n"

    def load(self, *_: Any, **__: Any) -> tuple[Any, ...]:
        """Stands in for `load_pretrained_model`."""
        return self.tokenizer, self, load_image_processor("no such folder"), 2048


def write_data(folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """`count` questions of growing length in folder/questions.jsonl, images in folder/images."""
    (folder / "images").mkdir()
    questions = []
    for i in range(count):
        Image.new("RGB", (40 + i, 30), (i * 20, 0, 0)).save(folder / "images" / f"{i}.png")
        questions.append(
            {"question_id": f"q{i}", "image": f"{i}.png", "text": f"What is {'this ' * i}?"}
        )
    write_questions(folder, questions)
    return questions


def write_questions(folder: Path, questions: list[dict[str, Any]]) -> None:
    lines = [json.dumps(question) + "\n" for question in questions]
    (folder / "questions.jsonl").write_text("".join(lines))


def command(folder: Path, *more: str) -> list[str]:
    """Arguments of model_vqa_loader for the data of `write_data`, without worker processes."""
    return [
        *("--model-path", "stub-7b", "--image-folder", str(folder / "images")),
        *("--question-file", str(folder / "questions.jsonl")),
        *("--answers-file", str(folder / "out" / "answers.jsonl")),
        *("--num-workers", "0", *more),
    ]


def read_answers(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "out" / "answers.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "answers.run.json").read_text())


def essence(answers: list[dict]) -> list[tuple]:
    """What must be the same however the answers came about."""
    return [(a["metadata"]["index"], a["question_id"], a["prompt"], a["text"]) for a in answers]


def expected(questions: list[dict]) -> list[tuple]:
    """What the stub answers: the length of LLaVA's prompt, one image each."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    lengths = [len(f"{system} USER: \n{q['text']} ASSISTANT:") for q in questions]
    return [
        (i, q["question_id"], q["text"], f"{length}.1")
        for i, (q, length) in enumerate(zip(questions, lengths))
    ]
