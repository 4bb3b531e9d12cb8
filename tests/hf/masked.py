"""The oracle: a stock model at full length, each layer of which does not see the dropped tokens.

It knows nothing of caches, selections or hooks of the package: the model runs as it is, on the
whole sequence so far, and a hook of its own takes columns out of each layer's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava import hf
from llava.pruning import Pruner
from tests.closeness import assert_close

from . import zoo


@torch.no_grad()
def full_length(model: Any, batch: dict[str, Any], alive: Sequence[Tensor]) -> Tensor:
    """Logits (batch, n, vocabulary); alive: of each layer (batch, n), False on dropped columns."""
    handles = []
    for layer, seen in zip(model.get_decoder().layers, alive):

        def hook(module: Any, args: Any, kwargs: dict[str, Any], seen: Tensor = seen) -> Any:
            n = seen.shape[1]
            mask = kwargs["attention_mask"]
            if mask is None:
                mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            visible = seen[:, None, None, :] | torch.eye(n, dtype=torch.bool)
            return args, kwargs | {"attention_mask": mask & visible}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        return model(**batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check(name: str, pruner: Pruner, samples: Sequence[str], steps: int = 5) -> list[list[int]]:
    """Compare the logits of a prefill and of `steps` of decoding with the oracle's; returns what
    entered each layer, by sample."""
    model, batch = zoo.shared(name), zoo.inputs(name, samples)
    cache = hf.cache(model, pruner)
    with recorded(model) as logits:
        tokens = model.generate(**batch, past_key_values=cache, max_new_tokens=steps + 1)
    ids = batch["input_ids"]
    n = ids.shape[1]
    visual = (ids == zoo.IMAGE) | (ids == zoo.VIDEO)
    alive = torch.stack([~visual] * zoo.LAYERS)
    for i, row in enumerate(visual):
        columns = row.nonzero()[:, 0]
        for layer, patches in enumerate(cache.trace.kept_patches(i)[:-1]):
            alive[layer, i, columns[patches]] = True
    alive = torch.cat([alive, torch.ones_like(alive[:, :, :steps])], 2)
    batch = zoo.longer(name, batch, tokens[:, n : n + steps])
    expected = full_length(model, batch, alive)
    assert len(logits) == steps + 1
    for step, found_logits in enumerate(logits):
        assert_close(found_logits, expected[:, n - 1 + step])
    return [sample.entering for sample in cache.trace.samples]


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """The last token's logits (batch, vocabulary) of each call of a model, in its own dtype."""
    logits: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: logits.append(output[:, -1])
    )
    yield logits
    handle.remove()
