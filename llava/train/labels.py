"""What every patch of a scene shows, as class labels: the dense supervision of the vision tower.

The graph of a scene says which sign covers a patch, its colour, the letter under the patch and the
whole text of the sign. Predicting these from the patch features teaches a small tower to read from
thousands of pictures, where the answers to questions alone would need far more.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import torch

from llava.train.scenes import COLOURS, PATCH_SIZE, WORDS, Scene

CHARACTERS = string.ascii_lowercase + string.digits
SLOTS = max(len(word) for word in WORDS)

_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS, start=1)}
_CHARACTER_INDEX = {character: index for index, character in enumerate(CHARACTERS, start=1)}


@dataclass
class PatchLabels:
    """Labels of the n patches of a window in row order; class 0 is "none" everywhere.

    `colour` (..., n) is the sign's colour, `letter` (..., n) the letter at the patch, `text`
    (..., n, SLOTS) the sign's text letter by letter, all long. `weight` (..., n) float gives every
    sign the same total weight 1, whatever its size, and is 0 off the signs.
    """

    colour: torch.Tensor
    letter: torch.Tensor
    text: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def stack(cls, samples: list[PatchLabels]) -> PatchLabels:
        names = ("colour", "letter", "text", "weight")
        return cls(*(torch.stack([getattr(sample, name) for sample in samples]) for name in names))


def spell(text: str) -> list[int]:
    """The character classes of a sign's text, padded with 0 to `SLOTS`."""
    return [_CHARACTER_INDEX[c] for c in text] + [0] * (SLOTS - len(text))


def colour_index(name: str) -> int:
    """The class of a sign's colour, from 1."""
    return _COLOUR_INDEX[name]


def label_patches(scene: Scene) -> PatchLabels:
    """Label the patches of a scene's window by what lies at their centres."""
    side = scene.window // PATCH_SIZE
    steps = torch.arange(side) * PATCH_SIZE + PATCH_SIZE / 2
    y, x = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    x, y = x + scene.left, y + scene.top
    colour, letter = (torch.zeros(side * side, dtype=torch.long) for _ in range(2))
    text = torch.zeros(side * side, SLOTS, dtype=torch.long)
    weight = torch.zeros(side * side)
    for sign in scene.signs:
        across, down = sign.to_plate(x, y)
        on_plate = (across.abs() < sign.width / 2) & (down.abs() < sign.height / 2)
        colour[on_plate] = _COLOUR_INDEX[sign.colour]
        text[on_plate] = torch.tensor(spell(sign.text))
        weight[on_plate] = 1 / max(1, int(on_plate.sum()))
        # a letter is seen by a patch that contains a part of its middle
        on_line = on_plate & (down.abs() < (sign.letter_height + PATCH_SIZE) / 2)
        position = torch.searchsorted(torch.tensor(sign.letter_edges()), across) - 1
        inside = on_line & (position >= 0) & (position < len(sign.text))
        classes = torch.tensor(spell(sign.text))
        letter[inside] = classes[position[inside]]
    return PatchLabels(colour, letter, text, weight)
