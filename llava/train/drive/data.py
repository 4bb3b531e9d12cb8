"""Batches of frames: pixels as the image processor gives them, and questions with their answers.

A batch is a pure function of its seeds, so a run that was stopped goes on with what it had not
seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.eval.benchmarks.senna.benchmark import BENCHMARK
from llava.eval.benchmarks.senna.plan import CAMERAS, Plan, navigation_command, plan_question
from llava.mm_utils import expand2square, tokenizer_image_token
from llava.model.tokenizer import LlavaTokenizer
from llava.train.data import EOS, normalise, pixels_of
from llava.train.drive.frames import TRAINING_SEEDS, Frame, make_frame
from llava.train.drive.model import view_labels
from llava.train.drive.views import render

VOCAB_SIZE = 640
_BACKGROUND = tuple(int(mean * 255) for mean in OPENAI_CLIP_MEAN)


@dataclass(frozen=True)
class Batch:
    """pixels (views, 3, 336, 336), the views frame by frame; `shown`, labels of the views (views,)
    by head; ids, mask and labels (frames, n), left-padded."""

    pixels: Tensor
    shown: dict[str, Tensor]
    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        shown = {name: labels.to(device) for name, labels in self.shown.items()}
        rest = (tensor.to(device) for tensor in (self.ids, self.mask, self.labels))
        return Batch(self.pixels.to(device), shown, *rest)


def make_batch(seeds: Iterable[int], tokenizer: LlavaTokenizer) -> Batch:
    """The frames of these seeds."""
    frames = [make_frame(seed) for seed in seeds]
    pictures = [views[camera] for views in map(render, frames) for camera in CAMERAS]
    labels = [view_labels(frame) for frame in frames]
    shown = {name: torch.tensor([v for view in labels for v in view[name]]) for name in labels[0]}
    return Batch(normalised(pictures), shown, *encode(frames, tokenizer))


def normalised(pictures: Sequence[Image.Image]) -> Tensor:
    """Pixels (n, 3, 336, 336) of pictures 336 wide, as `process_images` makes them."""
    return normalise(torch.stack([pixels_of(expand2square(p, _BACKGROUND)) for p in pictures]))


def question(frame: Frame) -> str:
    """The question about a frame, views included."""
    return plan_question(frame.speed, navigation_command(frame.target))


def prompt(text: str, plan: Plan | None = None) -> str:
    """The conversation of the evaluation, open for the answer or with it, without </s>."""
    conversation = conv_templates[BENCHMARK.conv_mode].copy()
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None if plan is None else plan.answer)
    return conversation.get_prompt().removesuffix(conversation.sep2)


def encode(frames: Sequence[Frame], tokenizer: LlavaTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and labels (frames, n) of questions with answers; only the answers are labelled."""
    rows = []
    for frame in frames:
        prompt_ids = tokenizer_image_token(prompt(question(frame)), tokenizer, IMAGE_TOKEN_INDEX)
        whole = tokenizer_image_token(
            prompt(question(frame), frame.plan), tokenizer, IMAGE_TOKEN_INDEX
        )
        assert whole[: len(prompt_ids)] == prompt_ids, "the answer changes the tokens of its prompt"
        rows.append(([*whole, EOS], len(prompt_ids)))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for row, (row_ids, start) in enumerate(rows):
        first = width - len(row_ids)
        ids[row, first:] = torch.tensor(row_ids)
        mask[row, first:] = 1
        labels[row, first + start :] = torch.tensor(row_ids[start:])
    return ids, mask, labels


def corpus(frames: int = 200) -> list[str]:
    """Lines that the tokenizer is learned from: whole prompts with their answers."""
    lines: list[str] = []
    for seed in TRAINING_SEEDS[:frames]:
        frame = make_frame(seed)
        lines += prompt(question(frame), frame.plan).split("\n")
    return lines
