"""What the decoder should know at a token, and by which layer: losses on its states.

`llava.train.pointing` tells a token where to look; this tells what it should have found there. The
last token of a mention knows what it names: shape or sign, colour, look, text and place. The token
that begins the answer knows the same of an item on the way, and later of what the answer is read
from; of two that a question compares, which way leads from one to the other, both colours or both
numbers; and where a letter is asked for, the answer in words. Linear heads on the states of five
layers, during training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.train.data import Turns
from llava.train.heads import PatchHeads
from llava.train.labels import COLOUR, PatchLabels, patches_of
from llava.train.pointing import FOCUS, MENTION, Comparable

#: The decoder layer, as a share of its depth, whose output is read.
DEPTH = {
    "named": 1 / 4,
    "via": 1 / 3,
    "read": 1 / 2,
    "way": 7 / 12,
    "colours": 7 / 12,
    "numbers": 7 / 12,
    "spoken": 2 / 3,
}
_KNOWN = ("kind", "colour", "look", "text", "centre")


def _linear(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))


class _Ends(NamedTuple):
    """Tokens that compare two items: rows and places (k,), and for each a patch of either item
    (k, 2)."""

    row: torch.Tensor
    place: torch.Tensor
    patch: torch.Tensor


class ReadOuts(nn.Module):
    """The heads, and the layers whose states they read."""

    def __init__(self, decoder: LlamaForCausalLM) -> None:
        super().__init__()
        width, layers = decoder.config.hidden_size, decoder.model.layers
        self.named = PatchHeads(width)
        self.via = PatchHeads(width)
        self.read = PatchHeads(width)
        self.way = _linear(width, 2)
        self.colours = _linear(width, 2 * (len(COLOUR) + 1))
        self.numbers = _linear(width, 2)
        self.spoken = _linear(width, decoder.config.vocab_size)
        self.layers = {name: layers[int(depth * len(layers))] for name, depth in DEPTH.items()}

    def forward(
        self, states: Mapping[str, torch.Tensor], turns: Turns, labels: PatchLabels
    ) -> dict[str, torch.Tensor]:
        """Losses by the names of `DEPTH`, without those that no token asks for.

        `states` are what `layers` gave (`outputs_of(layers)`), `labels` of all patches.
        """
        text = turns.ids.shape[1]
        states = {name: states[name][:, -text:] for name in DEPTH}
        shown = patches_of(labels.item, turns.items.shape[2])
        # the item that a token points to, where it is a single one
        single = torch.where(turns.items.sum(-1) == 1, turns.items.int().argmax(-1), -1)
        named = single.where(turns.pointing == MENTION, -1)
        read = single.where(turns.pointing == FOCUS, -1)
        losses = {}
        for name, item in (("named", named), ("via", turns.via), ("read", read)):
            losses |= self._known(name, states[name], item, shown, labels)
        places, colours = (
            _ends(quality, turns.compared, shown)
            for quality in (Comparable.PLACES, Comparable.COLOURS)
        )
        losses |= self._way(states["way"], places, labels)
        losses |= self._colours(states["colours"], colours, labels)
        losses |= self._numbers(states["numbers"], turns.compared)
        losses |= self._spoken(states["spoken"], turns.spoken)
        return losses

    def _known(
        self,
        name: str,
        states: torch.Tensor,
        item: torch.Tensor,
        shown: torch.Tensor,
        labels: PatchLabels,
    ) -> dict[str, torch.Tensor]:
        """What tokens know of their `item` (batch, n), -1 for none: the labels of its patch."""
        row, place = (item >= 0).nonzero(as_tuple=True)
        patches = shown[row, item[row, place]]
        there = patches.any(-1)  # some items are too small to be any patch's own
        if not there.any():
            return {}
        row, place, patch = row[there], place[there], patches[there].int().argmax(-1)
        known = labels.at(row[None], patch[None])
        known = replace(known, weight=torch.ones_like(known.weight))
        losses = getattr(self, name)(states[row[None], place[None]], known)
        aside = {f"{name}_{part}": losses[part].detach() for part in ("text_right", "centre")}
        return {name: sum(losses[part] for part in _KNOWN), **aside}

    def _way(
        self, states: torch.Tensor, ends: _Ends, labels: PatchLabels
    ) -> dict[str, torch.Tensor]:
        """The way from the second to the first of two compared items, as `PatchLabels.centre`."""
        row, place, patch = ends
        if not len(row):
            return {}
        first, second = (labels.centre[row, end] for end in patch.T)
        way = self.way(states[row, place]).float()
        return {"way": (way - (first - second)).square().sum(-1).mean() * 10}

    def _colours(
        self, states: torch.Tensor, ends: _Ends, labels: PatchLabels
    ) -> dict[str, torch.Tensor]:
        """Both colours of two compared items."""
        row, place, patch = ends
        if not len(row):
            return {}
        logits = self.colours(states[row, place]).float().view(2 * len(row), -1)
        target = labels.colour[row[:, None], patch].flatten()
        right = (logits.argmax(-1) == target).float().mean()
        return {"colours": F.cross_entropy(logits, target), "colours_right": right}

    def _numbers(self, states: torch.Tensor, compared: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both of two compared numbers, as shares of 100."""
        pairs = compared[..., 0] == Comparable.NUMBERS
        if not pairs.any():
            return {}
        numbers = self.numbers(states[pairs]).float()
        return {"numbers": (numbers - compared[pairs][:, 1:] / 100).square().sum(-1).mean() * 10}

    def _spoken(self, states: torch.Tensor, spoken: torch.Tensor) -> dict[str, torch.Tensor]:
        """The answer in words where a letter is asked for."""
        labelled = spoken != IGNORE_INDEX
        if not labelled.any():
            return {}
        logits, words = self.spoken(states[labelled]).float(), spoken[labelled]
        right = (logits.argmax(-1) == words).float().mean()
        return {"spoken": F.cross_entropy(logits, words), "spoken_right": right}


def _ends(quality: Comparable, compared: torch.Tensor, shown: torch.Tensor) -> _Ends:
    """Where two items are compared in this, as far as both have a patch of their own."""
    row, place = (compared[..., 0] == quality).nonzero(as_tuple=True)
    patches = shown[row[:, None], compared[row, place, 1:]]
    there = patches.any(-1).all(-1)
    return _Ends(row[there], place[there], patches[there].int().argmax(-1))
