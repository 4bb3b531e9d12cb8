"""Senna's token adapter: 128 visual tokens of the 576 that the projector gives of a camera view.

Senna (hustvl/Senna, arXiv 2410.22313) is LLaVA-1.5 with three linear layers on the token axis
behind the projector. Each of the 128 tokens is a learned mixture over all places of its view: what
comes out has no grid, no letterbox and no CLS attention, and `TokenLayout.mixed` says so. The six
views of a question are adapted one by one, which leaves 768 visual tokens in six runs.

Its checkpoints are in the original LLaVA format, with six more tensors,
`model.img_adapter.adapter.{0,2,4}.{weight,bias}`. Nothing in config.json announces them, and 576
and 128 stand in Senna's code only; here both are read off the tensors, and `mm_token_adapter` of
the config then holds them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..pruning.base import Pruner

#: What the adapter's tensors begin with, in checkpoints and in the module tree.
ADAPTER = "model.img_adapter.adapter."

#: Tokens of a view before and after the adapter, where the tensors do not say.
RELEASED = (576, 128)


class TokenAdapter(nn.Module):
    """Linear, GELU, linear, GELU, linear over the tokens of a view; channels stay apart."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.adapter = nn.Sequential(
            nn.Linear(before, after),
            nn.GELU(),
            nn.Linear(after, after),
            nn.GELU(),
            nn.Linear(after, after),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(views, before, d), projected features, to (views, after, d)."""
        return self.adapter(tokens.transpose(1, 2)).transpose(1, 2)


def adapter_sizes(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Tokens of a view before and after the adapter in a checkpoint, None if it has no adapter.

    An adapter without its first matrix gets the released sizes: the check of all tensors then
    names what is missing.
    """
    if not any(name.startswith(ADAPTER) for name in state):
        return None
    first = state.get(f"{ADAPTER}0.weight")
    return RELEASED if first is None else (first.shape[1], first.shape[0])


def demand_mixed_tokens(pruner: Pruner, adapter: TokenAdapter) -> None:
    """Raise ValueError for a method that needs patches, which the adapter leaves none of."""
    if pruner.needs_patches:
        raise ValueError(
            f"method {pruner.method} works on the vision tower's patches, their CLS attention or "
            f"their places; Senna's adapter mixes the {adapter.before} patches of a view into "
            f"{adapter.after} tokens, which have neither. Use a method that works in the language "
            "model or on embeddings: autoprune, fastv, sparsevlm, pdrop, dart, vtw, zipvl, "
            "divprune, dpp, random, no-image"
        )
