"""What every patch of a scene shows, as class labels: the dense supervision of the vision tower.

The graph of a scene says which item covers a patch, its colour, shape, pattern and size, the letter
under the patch and the whole text of a sign, and where the item's centre lies. Predicting these
from the patch features teaches a small tower to see from thousands of pictures, where the answers
to questions alone would need far more.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, fields

import torch

from llava.train.items import IMAGE_SIZE, PATCH_SIZE, Item, Sign
from llava.train.scenes import Scene
from llava.train.vocabulary import COLOURS, PATTERNS, SHAPES, SIZES, UNSEEN_WORDS, WORDS

CHARACTERS = string.ascii_lowercase + string.digits
SLOTS = max(map(len, (*WORDS, *UNSEEN_WORDS)))

#: Classes of the attributes that every item has, or only things have; 0 is "none" everywhere.
COLOUR = {name: index for index, name in enumerate(COLOURS, start=1)}
KIND = {name: index for index, name in enumerate(("sign", *SHAPES), start=1)}
LOOK = {
    (pattern, size): index
    for index, (pattern, size) in enumerate(((p, s) for p in PATTERNS for s in SIZES), start=1)
}
_CHARACTER = {character: index for index, character in enumerate(CHARACTERS, start=1)}


@dataclass
class PatchLabels:
    """Labels of the n patches of a window in row order.

    Long: `item` (its index in `Scene.items`, -1 for none), `colour`, `kind` (sign or shape), `look`
    (pattern and size of a thing), `letter` (the letter at the patch), each (..., n), and `text`
    (..., n, SLOTS), the sign's text letter by letter. Float: `centre` (..., n, 2), x and y of the
    item's centre from 0 to 1 over the full picture, and `weight` (..., n), which gives every item
    the same total weight 1, whatever its size, and is 0 off the items.
    """

    item: torch.Tensor
    colour: torch.Tensor
    kind: torch.Tensor
    look: torch.Tensor
    letter: torch.Tensor
    text: torch.Tensor
    centre: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def stack(cls, samples: list[PatchLabels]) -> PatchLabels:
        names = [field.name for field in fields(cls)]
        return cls(*(torch.stack([getattr(sample, name) for sample in samples]) for name in names))

    def at(self, row: torch.Tensor, place: torch.Tensor) -> PatchLabels:
        """Labels at patches `place` of pictures `row` of a batch, of their shape."""
        return PatchLabels(*(getattr(self, field.name)[row, place] for field in fields(self)))


def patches_of(item: torch.Tensor, count: int) -> torch.Tensor:
    """Which patches show each of `count` items, (batch, count, n) bool; `item` is (batch, n)."""
    return item[:, None] == torch.arange(count, device=item.device)[:, None]


def spell(text: str) -> list[int]:
    """The character classes of a sign's text, padded with 0 to `SLOTS`."""
    return [_CHARACTER[c] for c in text] + [0] * (SLOTS - len(text))


def caption(item: Item) -> list[int]:
    """An item as classes: colour, kind, look, and the letters of its text."""
    if isinstance(item, Sign):
        return [COLOUR[item.colour], KIND["sign"], 0, *spell(item.text)]
    return [COLOUR[item.colour], KIND[item.shape], LOOK[item.pattern, item.size], *spell("")]


def label_patches(scene: Scene) -> PatchLabels:
    """Label the patches of a scene's window by what lies at their centres."""
    side = scene.window // PATCH_SIZE
    steps = torch.arange(side) * PATCH_SIZE + PATCH_SIZE / 2
    y, x = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    x, y = x + scene.left, y + scene.top
    colour, kind, look, letter = (torch.zeros(side * side, dtype=torch.long) for _ in range(4))
    text = torch.zeros(side * side, SLOTS, dtype=torch.long)
    index = torch.full((side * side,), -1)
    centre, weight = torch.zeros(side * side, 2), torch.zeros(side * side)
    for number, item in enumerate(scene.items):
        across, down = item.to_plate(x, y)
        on_plate = (across.abs() < item.width / 2) & (down.abs() < item.height / 2)
        index[on_plate] = number
        classes = caption(item)
        colour[on_plate], kind[on_plate], look[on_plate] = classes[:3]
        text[on_plate] = torch.tensor(classes[3:])
        centre[on_plate] = torch.tensor([item.x, item.y]) / IMAGE_SIZE
        weight[on_plate] = 1 / max(1, int(on_plate.sum()))
        if isinstance(item, Sign):
            # a letter is seen by a patch that contains a part of its middle
            on_line = on_plate & (down.abs() < (item.letter_height + PATCH_SIZE) / 2)
            position = torch.searchsorted(torch.tensor(item.letter_edges()), across) - 1
            inside = on_line & (position >= 0) & (position < len(item.text))
            letter[inside] = torch.tensor(spell(item.text))[position[inside]]
    return PatchLabels(index, colour, kind, look, letter, text, centre, weight)
