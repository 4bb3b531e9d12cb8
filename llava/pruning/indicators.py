"""How complex a sample is, and how relevant each visual token is, from a few attention rows.

Rows are the attention of text tokens over all keys, float32, (batch, heads, rows, n); `row_mask`
(batch, rows) is False where a sample has fewer rows than the batch, None where none has. Columns
that are not visual contribute nothing. All functions are pure and stay on the device.

The paper's Table 4a compares its mutual information with "the average cross-attention magnitude"
and "the cosine similarity between visual and text embeddings". It says neither in which layer, nor
how heads and pairs are reduced, nor how the values are scaled; the released code has neither. What
was chosen here stands in each docstring. All three grow with the bond between text and image, so
k = k0 - gamma * indicator has the same direction for each. Their units differ: `gamma` and `beta`
are per unit of the chosen one and have to be tuned for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import precise


def mutual_information(
    rows: Tensor,
    row_mask: Tensor | None,
    visual: Tensor,
    *,
    normalise: bool = False,
    eps: float = 0.0,
    base: float = 2.0,
) -> Tensor:
    """Mutual information between text and visual tokens, one number per head: (batch, heads).

    Paper (arXiv 2509.23931, eq. 3 and 4): with a uniform prior over the N_t text rows,
    p(v,t) = a_tv / N_t, p(t) = 1 / N_t, p(v) = sum_t p(v,t), and
    I = sum p(v,t) log(p(v,t) / (p(v) p(t))). A term with p(v,t) = 0 is 0.

    normalise: make each row a distribution over the visual columns first. The paper calls the
        rows "a valid distribution"; the released code leaves them as slices of a softmax over all
        keys, so they sum to the attention mass on the image.
    eps: released code, 1e-6: the ratio is p(v,t) / (p(v) p(t) + eps), clamped below at eps.
    base: of the logarithm. The released code uses 2 (bits); the paper does not say.

    visual: (batch, n), True on the columns that count.
    """
    # Few passes over (heads, rows, n) and few temporaries: with thousands of visual tokens this
    # is the dearest step of the scoring.
    counted: Tensor = visual[:, None, None, :]
    prior: Tensor | float = 1.0 / rows.shape[2]
    if row_mask is not None:
        prior = 1.0 / row_mask.sum(-1, dtype=rows.dtype).clamp(min=1)[:, None, None, None]
        counted = row_mask[:, None, :, None] & counted
    counted = counted.to(rows.dtype)
    if normalise:
        mass = (rows * counted).sum(-1, keepdim=True)
        joint = rows * (counted * prior / mass.clamp(min=torch.finfo(rows.dtype).tiny))
    else:
        joint = rows * (counted * prior)
    independent = joint.sum(2, keepdim=True) * prior
    if eps > 0:
        ratio = joint.div(independent.add_(eps)).clamp_(min=eps)
    else:
        ratio = torch.where(joint > 0, joint / independent, 1.0)
    terms = ratio.log2_().mul_(joint)
    bits = terms.sum((2, 3))
    return bits if base == 2.0 else bits / torch.log2(torch.tensor(base))


def mean_attention(rows: Tensor, row_mask: Tensor | None, visual: Tensor) -> Tensor:
    """Attention that a text row gives to all visual tokens together, (batch,), between 0 and 1.

    Averaged over the N_t text rows and the heads: 0 when text ignores the image, 1 when it looks
    at nothing else. It is the mass on the image and not the mean weight of a visual token, which
    would fall as 1 / N_v and so measure the number of tokens. It is a mean over heads, so that k
    stays within [k0 - gamma, k0]: a sum over 32 heads would leave no slope at the usual gamma.
    Rows must not be made distributions over the visual columns first, or each would sum to 1.

    visual: (batch, n), True on the columns that count.
    """
    mass = (rows * visual[:, None, None, :]).sum(-1).mean(1)
    if row_mask is None:
        return mass.mean(-1)
    return (mass * row_mask).sum(-1) / row_mask.sum(-1).clamp(min=1)


def cosine_similarity(hidden: Tensor, row_mask: Tensor, visual: Tensor) -> Tensor:
    """Mean cosine over all pairs of a text token and a visual token, (batch,), between -1 and 1.

    Which states to compare is the caller's choice; AutoPrune takes what the layer that measures
    the mutual information returns, so that only the measure differs. The mean over all pairs takes
    every visual token alike, as the mean attention does. The cosine is neither clipped nor centred:
    unrelated states give 0 and k = k0, opposed ones a larger k; a direction that all states of a
    model share adds the same to every sample, which k0 can make up for. k stays within k0 +- gamma.
    A state of zeros has cosine 0 with everything.

    hidden: (batch, n, d); row_mask: (batch, r), of the last r tokens; visual: (batch, n).
    """
    # The mean over pairs is the product of the two means of unit vectors.
    states = torch.nn.functional.normalize(precise(hidden), dim=-1)
    text = _mean_state(states[:, -row_mask.shape[1] :], row_mask)
    return (text * _mean_state(states, visual)).sum(-1)


def _mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (batch, d) of the states (batch, m, d) that `mask` (batch, m) counts; 0 for none."""
    weight = mask.to(states) / mask.sum(-1, keepdim=True).clamp(min=1)
    return (weight[:, None, :] @ states)[:, 0]


def text_relevance(rows: Tensor, row_mask: Tensor | None) -> Tensor:
    """Attention each key gets, averaged over heads and the valid rows: (batch, n)."""
    if row_mask is None:
        return rows.mean((1, 2))
    weight = row_mask.to(rows.dtype) / row_mask.sum(-1, keepdim=True).clamp(min=1)
    return (weight[:, None, None] @ rows).mean((1, 2))
