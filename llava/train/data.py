"""Batches of rendered scenes with patch labels and, on request, packed question turns.

A batch is a pure function of its stage and its step number, so that a resumed run sees exactly what
an uninterrupted one would have seen, and rendering can happen in other processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
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
from llava.train.items import GRID, PATCH_SIZE
from llava.train.labels import PatchLabels, caption, label_patches
from llava.train.pointing import CHOOSES, FOCUS, MENTION, RIGHT, right_option
from llava.train.scenes import Scene
from llava.train.turns import Turn, View

CONV_MODE = "vicuna_v1"
EOS = 2
# owners of a place in the packed sequence, beside the turns 0, 1, ...
_PADDING = -1
_SHARED = -2
_ITEMS = 16  # more than any scene has


@dataclass
class Turns:
    """Question turns of a batch, packed side by side behind one picture.

    Every turn sees itself and what its `View` says of the text before the picture and the picture,
    and its positions count on from there: to the model each turn is exactly the prompt of the
    evaluation, and no answer can be copied from another turn.

    `prefix` (p,) is the text before the picture, with BOS. The others are (batch, n) long: `ids`;
    `turn`, the number of the turn, -1 on padding; `view`; `offset`, the position after what the
    turn sees; `labels`, the answers and `</s>` at their own places, IGNORE_INDEX elsewhere;
    `pointing`, the kind of pointing token, and `items` (batch, n, m) bool, the items that it points
    to; `options`, the tokens of right options and those that choose (`llava.train.pointing`). For
    `llava.train.readouts`, at the token that begins an answer: `via`, the item on the way, else -1,
    `compared` (batch, n, 3), a `Compared`, else -1, and `spoken`, the first token in words (but for
    a bare space) of an answer that is a letter, else IGNORE_INDEX.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    turn: torch.Tensor
    view: torch.Tensor
    offset: torch.Tensor
    labels: torch.Tensor
    pointing: torch.Tensor
    items: torch.Tensor
    options: torch.Tensor
    via: torch.Tensor
    compared: torch.Tensor
    spoken: torch.Tensor

    def layout(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay out the whole sequence: prefix, visual tokens, turns.

        Args:
            patches: (batch, n_visual) long, which patch of the full grid each visual token is. The
                tokens of a window, and those left of a picture, keep their positions.

        Returns:
            Mask (batch, 1, n, n) bool, True where a query may look; positions (batch, n); labels
            (batch, n), at each place the token that follows, or IGNORE_INDEX.
        """
        batch, p, visual = len(self.ids), len(self.prefix), patches.shape[1]
        owner = torch.cat([self.turn.new_full((batch, p + visual), _SHARED), self.turn], dim=1)
        view = torch.cat([self.view.new_zeros(batch, p + visual), self.view], dim=1)
        n = owner.shape[1]
        place = torch.arange(n, device=owner.device)
        sees_prefix = (place < p) & (view < View.NOTHING)[:, :, None]
        sees_picture = (place >= p) & (place < p + visual) & (view == View.PICTURE)[:, :, None]
        mask = sees_prefix | sees_picture | (owner[:, None] == owner[:, :, None])
        causal = place[:, None] >= place
        before = torch.arange(p, device=owner.device).expand(batch, -1)
        seen = torch.tensor([p + GRID * GRID, p, 0], device=owner.device)  # by view
        after = seen[self.view] + self.offset
        positions = torch.cat([before, p + patches, after], dim=1)
        ignored = self.labels.new_full((batch, p + visual), IGNORE_INDEX)
        labels = torch.cat([ignored, self.labels], dim=1).roll(-1, dims=1)
        return (mask & causal)[:, None], positions, labels


@dataclass
class Batch:
    """Pictures (batch, 3, side, side) uint8, window corners in patches, labels, captions, turns.

    `kept` (batch, n) long, sorted, are the window's patches that the decoder gets.
    """

    pixels: torch.Tensor
    corners: torch.Tensor
    labels: PatchLabels
    captions: list[torch.Tensor]
    kept: torch.Tensor
    turns: Turns | None

    def normalised(self) -> torch.Tensor:
        """Pictures as CLIP's image processor gives them, float32."""
        return normalise(self.pixels)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (n, 3, height, width) from 0 to 255, as CLIP's image processor gives them, float32."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1)
        for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return (pixels / 255 - mean) / std


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as a (3, height, width) uint8 tensor."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def make_batch(scenes: Sequence[Scene], turns: Turns | None, visual: int | None = None) -> Batch:
    """Render and label the scenes; all must have the same window side.

    `visual` is how many patches of a picture the decoder gets, None for all.
    """
    labels = [label_patches(scene) for scene in scenes]
    return Batch(
        pixels=torch.stack([pixels_of(render(scene)) for scene in scenes]),
        corners=torch.tensor([[s.top // PATCH_SIZE, s.left // PATCH_SIZE] for s in scenes]),
        labels=PatchLabels.stack(labels),
        captions=[torch.tensor([caption(item) for item in scene.items]) for scene in scenes],
        kept=torch.stack(
            [
                choose_patches(label.weight, visual, scene.seed)
                for scene, label in zip(scenes, labels, strict=True)
            ]
        ),
        turns=turns,
    )


def choose_patches(weight: torch.Tensor, count: int | None, seed: int) -> torch.Tensor:
    """Sorted indices (n,) of `count` patches, about equally many from each item and the ground.

    Steps on an eighth of the patches take half the time. What a decoder learns from them carries
    over to all only after a stage that shows all (docs/demo-model.md has the numbers).
    """
    if count is None or count >= len(weight):
        return torch.arange(len(weight))
    # weighted sampling without replacement: the largest log(u) / w (Efraimidis and Spirakis, 2006)
    chance = torch.rand(len(weight), generator=torch.Generator().manual_seed(seed))
    share = weight.clamp(min=1 / len(weight))
    return (chance.log() / share).topk(count).indices.sort().values


class TurnEncoder:
    """Turns (question text, answer) into ids, exactly as the evaluation builds its prompts."""

    def __init__(self, tokenizer: LlavaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.space = tokenizer.convert_tokens_to_ids("▁")  # numbers begin with it
        self.prefix = self._split(self._prompt("", None, image=True))[0]

    def pack(self, conversations: Sequence[Sequence[Turn]], length: int | None = None) -> Turns:
        """Pack the turns of each picture of a batch, leaving out what makes a row too long.

        `length` is the most tokens that a row may have, None for any number.
        """
        rows = [
            _within([(turn, *self._encode(turn)) for turn in turns], length)
            for turns in conversations
        ]
        n = max(sum(len(ids) for _, ids, _ in row) for row in rows)
        shape = (len(rows), n)
        ids, view, offset = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        turn = torch.full(shape, _PADDING)
        pointing, options = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        items = torch.zeros(*shape, _ITEMS).bool()
        via, compared = torch.full(shape, -1), torch.full((*shape, 3), -1)
        labels, spoken = (torch.full(shape, IGNORE_INDEX) for _ in range(2))
        for index, row in enumerate(rows):
            at = 0
            for number, (packed, turn_ids, n_prompt) in enumerate(row):
                end = at + len(turn_ids)
                ids[index, at:end] = torch.tensor(turn_ids)
                turn[index, at:end] = number
                view[index, at:end] = int(packed.view)
                offset[index, at:end] = torch.arange(len(turn_ids))
                labels[index, at + n_prompt : end] = torch.tensor(turn_ids[n_prompt:])
                for place, kind, named in self._points(packed, turn_ids, n_prompt):
                    pointing[index, at + place] = kind
                    items[index, at + place, list(named)] = True
                asks = at + n_prompt - 1
                if packed.via is not None:
                    via[index, asks] = packed.via
                if packed.compared is not None:
                    compared[index, asks] = torch.tensor(packed.compared)
                if (option := self._option(packed, turn_ids, n_prompt)) is not None:
                    start, stop, spoken[index, asks] = option
                    options[index, at + start : at + stop] = RIGHT
                    options[index, asks] = CHOOSES
                at = end
        prefix = torch.tensor(self.prefix)
        marks = pointing, items, options, via, compared, spoken
        return Turns(prefix, ids, turn, view, offset, labels, *marks)

    def _encode(self, turn: Turn) -> tuple[list[int], int]:
        """Ids of a turn after what it sees, with `</s>`, and how many of them are the prompt."""
        image = turn.view != View.NOTHING
        prompt, whole = (
            self._prompt(turn.text, answer, image=image) for answer in (None, turn.answer)
        )
        if image:
            prompt, whole = self._split(prompt)[1], self._split(whole)[1]
        assert whole[: len(prompt)] == prompt, f"{turn.answer!r} changes the tokens of its prompt"
        return [*whole, EOS], len(prompt)

    def _points(
        self, turn: Turn, ids: list[int], n_prompt: int
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(place among the turn's tokens, kind, items) of the tokens that point."""
        for end, named in turn.mentions:
            yield self._tokens(turn, end, ids) - 1, MENTION, named
        if turn.focus is not None:
            yield n_prompt - 1, FOCUS, turn.focus

    def _option(self, turn: Turn, ids: list[int], n_prompt: int) -> tuple[int, int, int] | None:
        """Of the turn's right option, if it can be known: where among the turn's tokens its line
        begins and ends, and the first token of what it says."""
        line = right_option(turn.text, turn.answer) if turn.view != View.HIDDEN else None
        if line is None:
            return None
        start, stop = (self._tokens(turn, place, ids) for place in line)
        in_words = replace(turn, answer=turn.text[slice(*line)].removeprefix(f"\n{turn.answer}. "))
        said = self._encode(in_words)[0][n_prompt:]
        return start, stop, next(token for token in said if token != self.space)

    def _tokens(self, turn: Turn, place: int, ids: list[int]) -> int:
        """How many of the turn's tokens come before a place in its text."""
        image = turn.view != View.NOTHING
        part = self._prompt(turn.text[:place], None, image=image)
        part = self._split(part)[1] if image else part
        differ = (left != right for left, right in zip(part, ids, strict=False))
        return next((n for n, different in enumerate(differ) if different), len(part))

    def _prompt(self, text: str, answer: str | None, *, image: bool) -> list[int]:
        """Ids of the whole conversation without the closing `</s>`."""
        conversation = conv_templates[CONV_MODE].copy()
        message = f"{DEFAULT_IMAGE_TOKEN}\n{text}" if image else text
        conversation.append_message(conversation.roles[0], message)
        conversation.append_message(conversation.roles[1], answer)
        prompt = conversation.get_prompt().removesuffix(conversation.sep2)
        return list(tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX))

    @staticmethod
    def _split(ids: list[int]) -> tuple[list[int], list[int]]:
        """Ids before and after the picture."""
        at = ids.index(IMAGE_TOKEN_INDEX)
        return ids[:at], ids[at + 1 :]


def _within(
    turns: list[tuple[Turn, list[int], int]], length: int | None
) -> list[tuple[Turn, list[int], int]]:
    if length is None:
        return turns
    kept, total = [], 0
    for turn in turns:
        if total + len(turn[1]) <= length:
            kept.append(turn)
            total += len(turn[1])
    return kept


def to_device(value: Any, device: torch.device) -> Any:
    """Move all tensors of a batch (dataclasses and lists of tensors) to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if value is None:
        return None
    return type(value)(*(to_device(getattr(value, f.name), device) for f in fields(value)))
