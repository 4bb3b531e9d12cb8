"""Tokens, FLOPs and KV bytes, computed from a trace and the decoder's shape.

Conventions, the same in every table:
- 1 multiply-accumulate = 2 FLOPs (papers of this field usually print multiply-accumulates).
- A decoder layer with n tokens: projections 2 n d (d_q + d_kv), attention 2 n^2 d_q, SwiGLU MLP
  3 n d m multiply-accumulates, i.e. 4 n d^2 + 2 n^2 d + 3 n d m without grouped keys. The causal
  half of the attention is not subtracted, as nobody in this field does.
- Text and visual tokens both count. Vision tower, projector, norms and the output head do not:
  they are the same for every method.
- Scoring (query projection and scores of the measured rows; for rows of the next layer its key
  projection too; similarities and the like as the method states them) and merging (pairwise
  distances and means) are lines of their own and not part of `prefill_flops`. The query projection
  is charged whether or not the layer's own queries served.
- `tokens_entering` is what enters the layers; `tokens_leaving` is what several papers print.

That is the published counting: every token that enters a layer runs through all of it. Beside it,
`computed_flops` is what really ran, scoring and merging included:
- A layer whose n tokens enter and which `ran` for q of them: projections 2 q d (d_q + d_kv),
  attention 2 q n d_q, MLP 3 q d m. Keys and values of p tokens `projected` before the layer runs:
  2 p d d_kv more; what the layer then projects of its q tokens again is counted again.
- r measured rows: r n d_q. Their queries are the layer's own, except in a layer with `projected`
  tokens, where they are r d d_q more. Rows of the next layer, what the method states, and merging
  count as in the published lines.
- If every layer ran for all that entered it and nothing was scored or merged, `computed_flops`
  equals `prefill_flops`: for an unpruned run of whole layers it is `dense_prefill_flops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .trace import SampleTrace


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower: layers that run, width, heads, patches of an image."""

    layers: int
    hidden: int
    heads: int
    patches: int


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama decoder.

    kv_dtype_bytes: size of one cached number
    rope_theta: base of the rotary frequencies
    tower: what the visual tokens came from, None where nobody said
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    kv_dtype_bytes: int = 2
    rope_theta: float = 10000.0
    tower: TowerShape | None = None

    @classmethod
    def from_config(
        cls, config: Any, kv_dtype_bytes: int | None = None, tower: TowerShape | None = None
    ) -> DecoderShape:
        """Read the sizes off a Llama-like config; the byte size from its dtype unless given."""
        if kv_dtype_bytes is None:
            name = str(getattr(config, "dtype", None) or "float32")
            kv_dtype_bytes = 2 if "16" in name else 4
        heads = config.num_attention_heads
        # transformers 5 keeps the base in `rope_parameters`; plain configs may have it themselves.
        rope = getattr(config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta") or getattr(config, "rope_theta", None)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            kv_dtype_bytes=kv_dtype_bytes,
            rope_theta=theta or cls.rope_theta,
            tower=tower,
        )

    def layer_flops(self, queries: int, keys: int) -> int:
        """FLOPs of one layer for `queries` new tokens that attend to `keys` tokens."""
        d_q, d_kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        project = 2 * queries * self.hidden * (d_q + d_kv)
        attend = 2 * queries * keys * d_q
        mlp = 3 * queries * self.hidden * self.intermediate
        return 2 * (project + attend + mlp)

    def projection_flops(self, tokens: int) -> int:
        """FLOPs of the keys and values of `tokens` tokens in one layer."""
        return 2 * tokens * self.hidden * 2 * self.kv_heads * self.head_dim

    def kv_bytes(self, tokens: int) -> int:
        """Bytes that `tokens` cached tokens (summed over layers) take."""
        return 2 * tokens * self.kv_heads * self.head_dim * self.kv_dtype_bytes


@dataclass(frozen=True)
class Cost:
    """One sample. Token averages are over layers; FLOPs as defined above; `dense_` is unpruned.

    decode_flops covers the forward passes of the generated tokens: the first token comes out of
    the prefill, and the last one is never fed back. computed_flops: what really ran of the prefill,
    scoring and merging included; all other FLOPs are by the published counting.
    """

    tokens_entering: float
    tokens_leaving: float
    prefill_flops: int
    scoring_flops: int
    merging_flops: int
    computed_flops: int
    dense_prefill_flops: int
    decode_flops: int
    dense_decode_flops: int
    kv_bytes: int
    dense_kv_bytes: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def prefill_flops(visual: Sequence[int], text: int, shape: DecoderShape) -> int:
    """Decoder FLOPs of a prefill with `visual[l]` visual tokens and `text` text tokens."""
    return sum(shape.layer_flops(n + text, n + text) for n in visual)


def computed_flops(sample: SampleTrace, shape: DecoderShape) -> int:
    """Decoder FLOPs that really ran in a prefill, its scoring included, its merging not.

    Raises:
        ValueError: a list of the trace has not one entry a layer.
    """
    entering = [n + sample.n_text for n in sample.entering]
    none = [0] * len(entering)
    d_q, d_kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = sample.scoring
    for n, ran, projected, rows, ahead in zip(
        entering,
        sample.ran or entering,
        sample.projected or none,
        sample.rows,
        sample.ahead or none,
        strict=True,
    ):
        total += shape.layer_flops(ran, n) + shape.projection_flops(projected)
        total += 2 * rows * n * d_q
        if projected:
            total += 2 * rows * shape.hidden * d_q
        if ahead:
            total += 2 * (n * shape.hidden * d_kv + ahead * d_q * (shape.hidden + n))
    return total


def measure(sample: SampleTrace, shape: DecoderShape, new_tokens: int = 0) -> Cost:
    """Account for one sample's prefill and `new_tokens` generated tokens."""
    entering, text = sample.entering, sample.n_text
    dense = [sample.n_visual] * shape.layers
    d_q = shape.heads * shape.head_dim
    scoring = sum(
        2 * rows * d_q * (shape.hidden + n + text) for rows, n in zip(sample.rows, entering) if rows
    )
    d_kv = shape.kv_heads * shape.head_dim
    scoring += sample.scoring + sum(
        2 * ((n + text) * shape.hidden * d_kv + rows * d_q * (shape.hidden + n + text))
        for rows, n in zip(sample.ahead, entering)
        if rows
    )
    merging = sum(2 * shape.hidden * (pool * pool + pool) for pool in sample.pools)

    # Every generated token but the last is fed back once, behind one more cached token each time.
    steps = max(new_tokens - 1, 0)
    fixed = shape.layer_flops(1, 0)
    per_key = shape.layer_flops(1, 1) - fixed

    def decode(visual: Sequence[int]) -> int:
        keys = steps * (sum(visual) + text * shape.layers) + shape.layers * steps * (steps + 1) // 2
        return shape.layers * steps * fixed + per_key * keys

    return Cost(
        tokens_entering=sum(entering) / shape.layers,
        tokens_leaving=sum(sample.leaving) / shape.layers,
        prefill_flops=prefill_flops(entering, text, shape),
        scoring_flops=scoring,
        merging_flops=merging,
        computed_flops=computed_flops(sample, shape) + merging,
        dense_prefill_flops=prefill_flops(dense, text, shape),
        decode_flops=decode(entering),
        dense_decode_flops=decode(dense),
        kv_bytes=shape.kv_bytes(sum(entering) + text * shape.layers),
        dense_kv_bytes=shape.kv_bytes((sample.n_visual + text) * shape.layers),
    )
