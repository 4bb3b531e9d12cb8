"""AutoPrune's complexity of the samples: the measures of `indicators`, as its settings ask.

All of them look at what one layer shows, and take the same rows of text.
"""

from __future__ import annotations

from torch import Tensor

from ...base import Observation
from ...indicators import cosine_similarity, mean_attention, mutual_information
from .settings import AutoPruneSettings


def indicator(config: AutoPruneSettings, observation: Observation) -> Tensor:
    """What `config.indicator` names, of each sample: (batch,). Static runs measure nothing."""
    rows, mask = text_rows(observation, config.mi_rows)
    visual = observation.layout.is_patch
    if config.indicator == "mean_attention":
        return mean_attention(rows, mask, visual)
    if config.indicator == "cosine_similarity":
        return cosine_similarity(observation.hidden, mask, visual)
    return information(config, observation)


def information(config: AutoPruneSettings, observation: Observation) -> Tensor:
    """Mutual information of each sample, summed or averaged over heads: (batch,)."""
    rows, mask = text_rows(observation, config.mi_rows)
    heads = mutual_information(
        rows,
        mask,
        observation.layout.is_patch,
        normalise=config.normalise_rows,
        eps=config.mi_eps,
        base=config.log_base,
    )
    return heads.sum(-1) if config.mi_heads == "sum" else heads.mean(-1)


def text_rows(observation: Observation, which: str) -> tuple[Tensor, Tensor]:
    """The measured rows and their mask ("text"), or only those of the last token ("last")."""
    rows, mask = observation.measured()
    return (rows[:, :, -1:], mask[:, -1:]) if which == "last" else (rows, mask)
