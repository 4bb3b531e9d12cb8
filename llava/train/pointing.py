"""Where a question's words should look: a loss on the attention of three decoder layers.

The answer to a yes/no question is one bit, from which the decoder learns only slowly to find what
is asked about. The scene graph knows where that is. So while training, the last token of each
mention ("the red circle") is asked to attend to the patches of what it names, in an early layer,
the token that begins the answer to the patches of what the answer depends on, in a middle layer,
and to the line of the right option, if there are options, in a late one; half of the heads of each,
on the attention that the layer computes anyway. What names nothing in the picture attends to BOS.
Nothing is added to the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava.train.items import Item, Sign, Thing
from llava.train.labels import patches_of
from llava.train.question import Question
from llava.train.scenes import Scene
from llava.train.vocabulary import COLOURS, PLACES, SHAPES


class Comparable(IntEnum):
    """What of two is compared."""

    PLACES = 0
    COLOURS = 1
    NUMBERS = 2


class Compared(NamedTuple):
    """What a question compares: two items' places or colours (`first` and `second` are indices
    into `Scene.items`), or two numbers."""

    quality: Comparable
    first: int
    second: int


#: Kinds of tokens that point to items; 0 is none.
MENTION, FOCUS = 1, 2
#: What a token has to do with the options of its question: part of the right one, or choosing.
RIGHT, CHOOSES = 1, 2
#: The decoder layer, as a share of its depth, whose attention is guided.
DEPTH = {"mention": 1 / 6, "focus": 5 / 12, "option": 3 / 4}

_BEHIND = ("beside", "twin shape", "twin pattern", "twin side")
_COMPARES = {
    **dict.fromkeys(("is side", "choose side", "twin side"), Comparable.PLACES),
    "same color": Comparable.COLOURS,
}
_PLURALS = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}
_PLACE = "|".join(sorted((p for row in PLACES for p in row), key=len, reverse=True))
_MENTION = re.compile(
    rf"\b(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<noun>{'|'.join((*_PLURALS, *SHAPES))}|object|sign)\b"
    rf"(?: at the (?P<place>{_PLACE})\b)?(?: that says (?P<text>\w+))?"
)


def mentions(text: str, scene: Scene) -> Iterator[tuple[int, tuple[int, ...]]]:
    """What the question's own words name: (place in the text after the mention, items).

    Items are indices into `scene.items`; none means that the picture has no such thing. "Object"
    alone, whose meaning the rest of the question gives, is no mention.
    """
    for mention in _MENTION.finditer(text.split("\n")[0]):
        if mention["noun"] == "object" and not mention["colour"]:
            continue
        yield mention.end(), _indices(scene, (i for i in scene.items if _is_named(i, mention)))


def _is_named(item: Item, mention: re.Match[str]) -> bool:
    noun = mention["noun"]
    if mention["colour"] and item.colour != mention["colour"]:
        return False
    if isinstance(item, Thing):
        return noun == "object" or item.shape == _PLURALS.get(noun, noun)
    return (
        isinstance(item, Sign)
        and noun == "sign"
        and (not mention["place"] or item.place == mention["place"])
        and (not mention["text"] or item.text == mention["text"].lower())
    )


def focus(question: Question, scene: Scene) -> tuple[int, ...]:
    """Indices of the items that the answer is read from, once those on the way are found."""
    if question.kind in ("exists", "exists colored"):  # any of several that fit
        return next(mentions(question.text, scene))[1]
    return _indices(scene, question.targets[question.kind in _BEHIND :])


def via(question: Question, scene: Scene) -> int | None:
    """Index of the item that is found first, where the answer is read from one behind it."""
    return scene.items.index(question.targets[0]) if question.kind in _BEHIND else None


def compared(question: Question, scene: Scene) -> Compared | None:
    """What the question compares, in its order, if it does."""
    if question.kind == "number":
        numbers = int(question.targets[0].text), int(re.search(r"than (\d+)", question.text)[1])
        return Compared(Comparable.NUMBERS, *numbers)
    if question.kind not in _COMPARES:
        return None
    ends = map(scene.items.index, question.targets[-2:])
    return Compared(_COMPARES[question.kind], *ends)


def right_option(text: str, answer: str) -> tuple[int, int] | None:
    """Start and end in the text of the line of the option that a letter chooses, if it is one."""
    line = re.search(rf"\n{answer}\. [^\n]*", text) if len(answer) == 1 else None
    return line.span() if line else None


def _indices(scene: Scene, items: Iterable[Item]) -> tuple[int, ...]:
    wanted = tuple(items)
    return tuple(index for index, item in enumerate(scene.items) if item in wanted)


class AttentionGuide:
    """The attention of the guided layers, from `outputs_of(projections)`."""

    def __init__(self, decoder: LlamaForCausalLM) -> None:
        self.rotary = decoder.model.rotary_emb
        layers = decoder.model.layers
        self.modules = {
            name: layers[int(depth * len(layers))].self_attn for name, depth in DEPTH.items()
        }
        self.projections = {
            (name, projection): getattr(module, projection)
            for name, module in self.modules.items()
            for projection in ("q_proj", "k_proj")
        }
        self.heads = decoder.config.num_attention_heads // 2

    def loss(
        self,
        projected: Mapping[tuple[str, str], torch.Tensor],
        pointing: torch.Tensor,
        items: torch.Tensor,
        options: torch.Tensor,
        owner: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Cost and success of each kind of pointing.

        The cost of a token is -log(attention on what it should look at), the mean over its items if
        there are several.

        Args:
            projected: what `projections` gave.
            pointing: (batch, n) long, kind of pointing of the last n tokens of the sequence.
            items: (batch, n, m) bool, which items each of them points to.
            options: (batch, n) long, RIGHT or CHOOSES or 0.
            owner: (batch, visual) long, the item that each visual token shows, -1 for none.
            mask: (batch, 1, length, length) bool, as the decoder gets it.
            positions: (batch, length), as the decoder gets them.

        Returns:
            Costs by the names of `DEPTH`, and `..._share`, how much of the attention lies where it
            should; without those that no token asks for.
        """
        text = pointing.shape[1]
        length = mask.shape[-1]
        before = length - text - owner.shape[1]
        # patches of each item, and BOS for what points nowhere, which is the last "item"
        places = torch.zeros(len(owner), items.shape[2] + 1, length, device=owner.device)
        places[:, :-1, before : length - text] = patches_of(owner, items.shape[2]).float()
        places[:, -1, 0] = 1
        items = torch.cat([items, ~items.any(-1, keepdim=True)], dim=-1)
        # an item too small to be any patch's own cannot be pointed to
        items = items & places.any(-1)[:, None]
        right = torch.zeros(len(owner), 1, length, device=owner.device)
        right[:, 0, length - text :] = (options == RIGHT).float()
        chooses = (options == CHOOSES)[:, :, None]
        targets = {
            "mention": (places, items & (pointing == MENTION)[:, :, None]),
            "focus": (places, items & (pointing == FOCUS)[:, :, None]),
            "option": (right, chooses),
        }
        losses = {}
        for name, (places, wanted) in targets.items():
            rows = wanted.any(-1)
            if not rows.any():
                continue
            # few tokens point: as many of each picture as the one with most has
            some = rows.int().topk(int(rows.sum(1).max())).indices
            rows = rows.take_along_dim(some, 1)
            query, key = (projected[name, projection] for projection in ("q_proj", "k_proj"))
            seen = mask[:, :, -text:].take_along_dim(some[:, None, :, None], 2)
            attention = self._attention(name, query, key, seen, positions, length - text + some)
            share = (attention @ places.mT[:, None]).transpose(1, 2)[rows]  # rows, heads, items
            weight = wanted.take_along_dim(some[:, :, None], 1)[rows].float()[:, None]
            cost = -(share.clamp(min=1e-6).log() * weight).sum(-1) / weight.sum(-1)
            losses[name] = cost.mean()
            losses[f"{name}_share"] = (share * weight).sum(-1).mean().detach()
        return losses

    def _attention(
        self,
        name: str,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Attention (batch, heads, n, length) of the guided heads from tokens `rows` (batch, n),
        which look where `mask` (batch, 1, n, length) is True."""
        module = self.modules[name]
        query, key = (
            states.float().unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
            for states in (query, key)
        )
        cos, sin = self.rotary(query, positions)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        query = query[:, : self.heads].take_along_dim(rows[:, None, :, None], 2)
        scores = query @ key[:, : self.heads].mT
        lowest = torch.finfo(scores.dtype).min
        return (scores * module.scaling).masked_fill(~mask, lowest).softmax(-1)
