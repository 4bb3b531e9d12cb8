"""flash-attn's functions written plainly, for any processor, and put where transformers finds them.

Everything between a layer and the kernel is transformers' own then: unpadding, cumulative lengths,
padding again, and the choice of kernel by the name in the config.
"""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, modeling_utils
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations import hub_kernels


class Kernels:
    """The functions, and how often each has run."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Tensor:
        """q: (batch, queries, heads, d), k and v: (batch, keys, kv heads, d); causal at the end."""
        self.runs["dense"] += 1
        return self._attend(q, k, v, softmax_scale, causal)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Tensor:
        """Sequences one behind the other: q (tokens of all, heads, d), borders (sequences + 1,)."""
        self.runs["ragged"] += 1
        queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert (max(queries), max(keys)) == (max_seqlen_q, max_seqlen_k)
        assert (sum(queries), sum(keys)) == (len(q), len(k))
        parts = zip(q.split(queries), k.split(keys), v.split(keys))
        out = [self._attend(*(x[None] for x in part), softmax_scale, causal)[0] for part in parts]
        return torch.cat(out)

    def flash_attn_with_kvcache(self, *args: Any, **options: Any) -> Tensor:
        raise AssertionError("nothing here has a paged cache")

    @staticmethod
    def _attend(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, causal: bool
    ) -> Tensor:
        heads = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(heads, 1) for x in (k, v))
        scores = q @ k.transpose(2, 3)
        scores = scores * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
        if causal:
            future = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(future.triu(k.shape[2] - q.shape[2] + 1), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)


def install(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """As if flash-attn were installed."""
    kernels = _forget_loaded(monkeypatch)
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
        setattr(package, name, getattr(kernels, name))
    padding.pad_input, padding.unpad_input = flash._pad_input, flash._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash, "is_flash_attn_2_available", lambda **_: True)
    return kernels


def install_from_hub(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """As if flash-attn were not, but `kernels`, which loads it from the hub."""
    kernels = _forget_loaded(monkeypatch)
    wanted = modeling_utils.FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"]

    def get_kernel(name: str, **options: Any) -> SimpleNamespace:
        assert name == wanted
        return SimpleNamespace(
            flash_attn_func=kernels.flash_attn_func,
            flash_attn_varlen_func=kernels.flash_attn_varlen_func,
            flash_attn_with_kvcache=kernels.flash_attn_with_kvcache,
        )

    for module in (modeling_utils, hub_kernels):
        monkeypatch.setattr(module, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    for interface in (AttentionInterface, AttentionMaskInterface):  # the kernel's name goes in
        monkeypatch.setattr(interface, "_global_mapping", dict(interface._global_mapping))
    return kernels


def _forget_loaded(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """New kernels, in place of those that transformers remembers, until the test ends."""
    for name in (
        "_loaded_implementation",
        "_flash_fn",
        "_flash_varlen_fn",
        "_flash_with_kvcache_fn",
        "_pad_fn",
        "_unpad_fn",
        "_process_flash_kwargs_fn",
        "_process_with_kvcache_kwargs_fn",
    ):
        monkeypatch.setattr(flash, name, None, raising=False)  # early transformers has fewer
    return Kernels()
