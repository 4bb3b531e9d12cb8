"""What patches receive in a stock vision tower, for methods with `tower_scores` "received".

The layer is the last whose output the model uses; the rows are those of patches, mean over these
and over heads. Where a token is made of several patches (pixel shuffle, pooling: squares of them),
it has the mean of theirs. So it is in towers of one square view after the other, whose attention
sees all of a view: `Family.views`.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..pruning.layout import TokenLayout
from ..pruning.vision import received


class TowerScores:
    """The scores of this thread's last call of a model's tower."""

    def __init__(self, model: Any) -> None:
        self._of_thread = threading.local()
        attention = _attention(model)
        self.handle = attention.register_forward_pre_hook(self._look, with_kwargs=True)

    def take(self) -> Tensor | None:
        """(views, patches), once; None where the tower did not run."""
        scores, self._of_thread.scores = getattr(self._of_thread, "scores", None), None
        return scores

    @torch.no_grad()
    def _look(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        queries, keys = (
            getattr(attention, f"{name}_norm", nn.Identity())(
                getattr(attention, f"{name}_proj")(hidden)
            )
            .unflatten(-1, (attention.num_heads, -1))
            .transpose(1, 2)
            for name in "qk"
        )
        # A whole number of patches to a side, behind the CLS token if there is one.
        first = hidden.shape[1] - isqrt(hidden.shape[1]) ** 2
        # Head by head, since of a view of 4096 patches the matrices of all take a gigabyte.
        heads = [
            received(queries[:, head : head + 1, first:], keys[:, head : head + 1])
            for head in range(attention.num_heads)
        ]
        self._of_thread.scores = torch.cat(heads, 1).mean(1)[:, first:]


def scored(layout: TokenLayout, scores: Tensor | None) -> TokenLayout:
    """The layout with `scores` (views, patches) as its `cls`; they may be of each sample once where
    the batch has it several times in a row (beams).

    Raises ValueError for scores of other pictures.
    """
    total = sum(layout.n_visual)
    if not total:
        return layout
    if scores is None:
        raise ValueError('tower_scores "received": the vision tower has to run within the call')
    for times in range(1, layout.batch + 1):
        visual = layout.n_visual[::times]
        if layout.batch % times == 0 and sum(visual) * times == total and _fits(scores, visual):
            break
    else:
        raise ValueError(f"{total} visual tokens, and a tower of {tuple(scores.shape)} patches")
    of_tokens = _pooled(scores, sum(visual) // len(scores)).flatten().split(list(visual))
    cls = torch.zeros(layout.image.shape, dtype=scores.dtype, device=layout.device)
    joined = torch.cat([part for part in of_tokens for _ in range(times)])
    cls[layout.is_visual] = joined.to(layout.device)
    return replace(layout, tokens=replace(layout.tokens, cls=cls))


def _attention(model: Any) -> nn.Module:
    """The attention whose output's layer the model uses."""
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_model
    layers = next(module for module in tower.modules() if isinstance(module, nn.ModuleList))
    feature = getattr(model.config, "vision_feature_layer", None)
    feature = -1 if feature is None else feature
    # Of the states, the first of which enters layer 0.
    layer: Any = layers[feature - 1 if feature > 0 else len(layers) + feature]
    attention: nn.Module = getattr(layer, "self_attn", None) or layer.attention
    return attention


def _fits(scores: Tensor, visual: tuple[int, ...]) -> bool:
    views, patches = scores.shape
    tokens, rest = divmod(sum(visual), views)
    side = isqrt(patches // max(tokens, 1))
    return not rest and tokens * side**2 == patches and all(n % tokens == 0 for n in visual)


def _pooled(scores: Tensor, tokens: int) -> Tensor:
    """(views, patches) to (views, tokens): means over squares."""
    side = isqrt(scores.shape[1])
    square = isqrt(scores.shape[1] // tokens)
    blocks = scores.view(len(scores), side // square, square, side // square, square)
    return blocks.mean((2, 4)).flatten(1)
