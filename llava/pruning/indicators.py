"""How complex a sample is, and how relevant each visual token is, from a few attention rows.

Rows are the attention of text tokens over all keys, float32, (batch, heads, rows, n); `row_mask`
(batch, rows) is False where a sample has fewer rows than the batch. Columns that are not visual
contribute nothing. All functions are pure and stay on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_information(
    rows: Tensor,
    row_mask: Tensor,
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
    prior = 1.0 / row_mask.sum(-1).clamp(min=1)[:, None, None, None]
    counted = row_mask[:, None, :, None] & visual[:, None, None, :]
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


def text_relevance(rows: Tensor, row_mask: Tensor) -> Tensor:
    """Attention each key gets, averaged over heads and the valid rows: (batch, n)."""
    weight = row_mask.to(rows.dtype)
    weight = weight / (weight.sum(-1, keepdim=True).clamp(min=1) * rows.shape[1])
    return (weight[:, None, None, :] @ rows).sum((1, 2))
