"""What the decoder should know at a token, and by which layer: losses on its states.

`llava.train.pointing` tells a token where to look; this tells what it should have found there. The
last token of a mention knows what it names: shape or sign, colour, look, text and place. The token
that begins the answer knows the same of what the answer is read from; between two things that a
question compares, which way leads from one to the other; and where a letter is asked for, the
answer in words. Linear heads on the states of four layers, during training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.train.data import Turns
from llava.train.heads import PatchHeads
from llava.train.labels import PatchLabels
from llava.train.pointing import FOCUS, MENTION

#: The decoder layer, as a share of its depth, whose output is read.
DEPTH = {"named": 1 / 4, "read": 1 / 2, "way": 7 / 12, "spoken": 2 / 3}
_KNOWN = ("kind", "colour", "look", "text", "centre")


class ReadOuts(nn.Module):
    """The heads, and the layers whose states they read."""

    def __init__(self, decoder: LlamaForCausalLM) -> None:
        super().__init__()
        width, layers = decoder.config.hidden_size, decoder.model.layers
        self.named = PatchHeads(width)
        self.read = PatchHeads(width)
        self.way = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self.spoken = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, decoder.config.vocab_size)
        )
        self.layers = {name: layers[int(depth * len(layers))] for name, depth in DEPTH.items()}

    def forward(
        self, states: Mapping[str, torch.Tensor], turns: Turns, labels: PatchLabels
    ) -> dict[str, torch.Tensor]:
        """Losses by the names of `DEPTH`, without those that no token asks for.

        `states` are what `layers` gave (`outputs_of(layers)`), `labels` of all patches.
        """
        text = turns.ids.shape[1]
        states = {name: states[name][:, -text:] for name in DEPTH}
        shown = labels.item[:, None] == torch.arange(turns.items.shape[2]).to(labels.item)[:, None]
        first = shown.int().argmax(-1)  # (batch, items), a patch of each item, where it has one
        seen = shown.any(-1)
        found = {}
        for name, kind in (("named", MENTION), ("read", FOCUS)):
            one = (turns.pointing == kind) & (turns.items.sum(-1) == 1)
            row, place = one.nonzero(as_tuple=True)
            item = turns.items[row, place].int().argmax(-1)
            there = seen[row, item]
            if not there.any():
                continue
            row, place, item = row[there], place[there], item[there]
            patch = first[row, item]
            known = PatchLabels(
                *(getattr(labels, f.name)[row, patch][None] for f in fields(labels))
            )
            known = replace(known, weight=torch.ones_like(known.weight))
            losses = getattr(self, name)(states[name][row, place][None], known)
            found[name] = sum(losses[part] for part in _KNOWN)
            found |= {f"{name}_{p}": losses[p].detach() for p in ("text_right", "centre")}
        row, place = (turns.compared >= 0).all(-1).nonzero(as_tuple=True)
        ends = turns.compared[row, place]
        there = seen[row[:, None], ends].all(-1)
        if there.any():
            row, place, ends = row[there], place[there], ends[there]
            one, other = (labels.centre[row, first[row, end]] for end in ends.T)
            way = self.way(states["way"][row, place]).float()
            found["way"] = (way - (one - other)).square().sum(-1).mean() * 10
        asked = turns.spoken != IGNORE_INDEX
        if asked.any():
            logits = self.spoken(states["spoken"][asked]).float()
            found["spoken"] = F.cross_entropy(logits, turns.spoken[asked])
            right = logits.argmax(-1) == turns.spoken[asked]
            found["spoken_right"] = right.float().mean()
        return found
