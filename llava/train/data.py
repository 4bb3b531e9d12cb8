"""Batches of rendered scenes with patch labels and, on request, packed question turns.

A batch is a pure function of its stage and its step number, so that a resumed run sees exactly what
an uninterrupted one would have seen, and rendering can happen in other processes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import LlavaTokenizer
from llava.train.drawing import render
from llava.train.labels import PatchLabels, colour_index, label_patches, spell
from llava.train.questions import LIST_PROMPT, TEXTVQA_PROMPT, ask, describe
from llava.train.scenes import GRID, PATCH_SIZE, Scene
from llava.train.tokenizer import CONV_MODE

EOS = 2
# owners of a place in the packed sequence, beside the turns 0, 1, ...
_PADDING = -1
_SHARED = -2


@dataclass
class Turns:
    """Question turns of a batch, packed side by side behind one picture.

    Every turn sees the text before the picture, the picture and itself, and its positions count on
    from the picture: to the model each turn is exactly the prompt of the evaluation, and no answer
    can be copied from another turn.

    `prefix` (p,) is the text before the picture, with BOS. The others are (batch, n) long: `ids`;
    `turn`, the number of the turn, -1 on padding; `offset`, the position after the full picture;
    `labels`, the answers and `</s>` at their own places, IGNORE_INDEX elsewhere.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    turn: torch.Tensor
    offset: torch.Tensor
    labels: torch.Tensor

    def layout(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay out the whole sequence: prefix, visual tokens, turns.

        Args:
            patches: (batch, n_visual) long, which patch of the full grid each visual token is. A
                window's tokens keep the positions that they have in the full picture.

        Returns:
            Mask (batch, 1, n, n) bool, True where a query may look; positions (batch, n); labels
            (batch, n), at each place the token that follows, or IGNORE_INDEX.
        """
        batch, p = len(self.ids), len(self.prefix)
        start = p + patches.shape[1]
        shared = self.turn.new_full((batch, start), _SHARED)
        owner = torch.cat([shared, self.turn], dim=1)
        n = owner.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=owner.device).tril()
        mask = (owner[:, None] == _SHARED) | (owner[:, None] == owner[:, :, None])
        before = torch.arange(p, device=owner.device).expand(batch, -1)
        after = p + GRID * GRID + self.offset
        positions = torch.cat([before, p + patches, after], dim=1)
        ignored = self.labels.new_full((batch, start), IGNORE_INDEX)
        labels = torch.cat([ignored, self.labels], dim=1).roll(-1, dims=1)
        return (mask & causal)[:, None], positions, labels


@dataclass
class Batch:
    """Pictures (batch, 3, side, side) uint8, window corners in patches, labels, captions, turns."""

    pixels: torch.Tensor
    corners: torch.Tensor
    labels: PatchLabels
    captions: list[torch.Tensor]
    turns: Turns | None

    def normalised(self) -> torch.Tensor:
        """Pictures as CLIP's image processor gives them, float32."""
        mean, std = (
            torch.tensor(values, device=self.pixels.device).view(3, 1, 1)
            for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        return (self.pixels / 255 - mean) / std


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as a (3, height, width) uint8 tensor."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def make_batch(scenes: Sequence[Scene], turns: Turns | None) -> Batch:
    """Render and label the scenes; all must have the same window side."""
    return Batch(
        pixels=torch.stack([pixels_of(render(scene)) for scene in scenes]),
        corners=torch.tensor([[s.top // PATCH_SIZE, s.left // PATCH_SIZE] for s in scenes]),
        labels=PatchLabels.stack([label_patches(scene) for scene in scenes]),
        captions=[
            torch.tensor([[colour_index(sign.colour), *spell(sign.text)] for sign in scene.signs])
            for scene in scenes
        ],
        turns=turns,
    )


class TurnEncoder:
    """Turns (question text, answer) into ids, exactly as the evaluation builds its prompts."""

    def __init__(self, tokenizer: LlavaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.prefix = self._encode("", None)[0]

    def pack(self, conversations: Sequence[Sequence[tuple[str, str]]]) -> Turns:
        """Pack the (question text, answer) turns of each picture of a batch."""
        rows = [[self._turn(text, answer) for text, answer in turns] for turns in conversations]
        n = max(sum(len(ids) for ids, _ in row) for row in rows)
        shape = (len(rows), n)
        ids, offset = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        turn = torch.full(shape, _PADDING)
        labels = torch.full(shape, IGNORE_INDEX)
        for index, row in enumerate(rows):
            at = 0
            for number, (turn_ids, n_prompt) in enumerate(row):
                end = at + len(turn_ids)
                ids[index, at:end] = torch.tensor(turn_ids)
                turn[index, at:end] = number
                offset[index, at:end] = torch.arange(len(turn_ids))
                labels[index, at + n_prompt : end] = torch.tensor(turn_ids[n_prompt:])
                at = end
        return Turns(torch.tensor(self.prefix), ids, turn, offset, labels)

    def _turn(self, text: str, answer: str) -> tuple[list[int], int]:
        """Ids after the picture with `</s>`, and how many of them are the prompt."""
        prompt = self._encode(text, None)[1]
        whole = self._encode(text, answer)[1]
        assert whole[: len(prompt)] == prompt, f"{answer!r} changes the tokens of its prompt"
        return [*whole, EOS], len(prompt)

    def _encode(self, text: str, answer: str | None) -> tuple[list[int], list[int]]:
        """Ids before and after the picture, without the closing `</s>`."""
        conversation = conv_templates[CONV_MODE].copy()
        conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{text}")
        conversation.append_message(conversation.roles[1], answer)
        prompt = conversation.get_prompt().removesuffix(conversation.sep2)
        ids = list(tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX))
        split = ids.index(IMAGE_TOKEN_INDEX)
        return ids[:split], ids[split + 1 :]


def training_turns(scene: Scene, count: int) -> list[tuple[str, str]]:
    """`count` questions of a scene at most, drawn by its seed, and the list of all its signs.

    Half of the questions come in the evaluation's three lines, the others bare, which is shorter.
    """
    rng = random.Random(f"turns {scene.seed}")
    questions = ask(scene, ("read", "colour"))
    questions += rng.sample(ask(scene, ("place",)), 1)
    rng.shuffle(questions)
    templates = (TEXTVQA_PROMPT, "{question}")
    turns = [
        (rng.choice(templates).format(question=question.text), question.answer)
        for question in questions[:count]
    ]
    return [*turns, (LIST_PROMPT, describe(scene))]


def benchmark_turns(scene: Scene) -> list[tuple[str, str]]:
    """Every question of the benchmark's kinds about a scene."""
    questions = ask(scene, ("read", "colour"))
    return [(TEXTVQA_PROMPT.format(question=q.text), q.answer) for q in questions]


def to_device(value: Any, device: torch.device) -> Any:
    """Move all tensors of a batch (dataclasses and lists of tensors) to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if value is None:
        return None
    return type(value)(*(to_device(getattr(value, f.name), device) for f in fields(value)))
