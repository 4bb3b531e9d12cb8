"""The heads of the vision tower's objectives: what every patch shows, and captions for CLIP's loss.

They exist during training only.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from llava.train.labels import CHARACTERS, COLOUR, KIND, LOOK, SLOTS, PatchLabels


class PatchHeads(nn.Module):
    """Linear read-outs of `PatchLabels` from patch features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.characters = len(CHARACTERS) + 1
        self.norm = nn.LayerNorm(width)
        self.kind = nn.Linear(width, len(KIND) + 1)
        self.colour = nn.Linear(width, len(COLOUR) + 1)
        self.look = nn.Linear(width, len(LOOK) + 1)
        self.letter = nn.Linear(width, self.characters)
        self.text = nn.Linear(width, SLOTS * self.characters)
        self.centre = nn.Linear(width, 2)

    def forward(self, features: torch.Tensor, labels: PatchLabels) -> dict[str, torch.Tensor]:
        """Losses by name, and `..._right`: shares of items that their patches name rightly.

        Args:
            features: (batch, patches, width) of the selected layer, without CLS.
            labels: of the same (batch, patches).
        """
        features = self.norm(features)
        everywhere = self.kind(features).flatten(0, 1).float()
        losses = {"where": F.cross_entropy(everywhere, labels.kind.flatten())}
        on_item = labels.weight > 0
        weight = labels.weight[on_item]
        items = features[on_item]
        sign = weight * (labels.kind[on_item] == KIND["sign"])
        thing = weight - sign
        sign, thing, weight = (w / w.sum().clamp(min=1e-6) for w in (sign, thing, weight))
        for name, share in (
            ("kind", weight),
            ("colour", weight),
            ("look", thing),
            ("letter", sign),
        ):
            logits = getattr(self, name)(items).float()
            target = getattr(labels, name)[on_item]
            losses[name] = (F.cross_entropy(logits, target, reduction="none") * share).sum()
            losses[f"{name}_right"] = ((logits.argmax(-1) == target) * share).sum().detach()
        spelt = self.text(items).float().view(-1, SLOTS, self.characters)
        target = labels.text[on_item]
        text = F.cross_entropy(spelt.flatten(0, 1), target.flatten(), reduction="none")
        losses["text"] = (text.view(-1, SLOTS).mean(1) * sign).sum()
        losses["text_right"] = ((spelt.argmax(-1) == target).all(-1) * sign).sum().detach()
        distance = (self.centre(items).float() - labels.centre[on_item]).square().sum(-1)
        losses["centre"] = (distance * weight).sum() * 10
        return losses


class CaptionEncoder(nn.Module):
    """The text side of the contrastive objective: a bag of items, each a few classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(COLOUR) + 1, len(KIND) + 1, len(LOOK) + 1] + SLOTS * [len(CHARACTERS) + 1]
        self.register_buffer("starts", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.classes = nn.Embedding(sum(sizes), width)
        self.item = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.image = nn.Linear(width, width)

    def forward(self, captions: list[torch.Tensor]) -> torch.Tensor:
        """Unit vectors (batch, width) from one (items, classes) tensor per picture."""
        items = self.item(self.classes(torch.cat(captions) + self.starts).sum(1))
        counts = [len(caption) for caption in captions]
        bags = torch.stack([bag.sum(0) for bag in items.split(counts)])
        return F.normalize(bags.float(), dim=-1)
