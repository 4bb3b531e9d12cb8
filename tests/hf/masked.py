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
from llava.pruning import Pruner, PruneTrace
from tests.closeness import assert_close

from . import zoo


@torch.no_grad()
def full_length(
    model: Any, batch: dict[str, Any], alive: Sequence[Tensor], attentions: bool = False
) -> Any:
    """Logits (batch, n, vocabulary), or the attention matrices of the layers.

    alive: of each layer (batch, n), False on dropped columns.
    """
    handles = []
    for layer, seen in zip(model.get_decoder().layers, alive):

        def hook(module: Any, args: Any, kwargs: dict[str, Any], seen: Tensor = seen) -> Any:
            n = seen.shape[1]
            mask = kwargs["attention_mask"]
            if mask is None:
                mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            visible = seen[:, None, None, :] | torch.eye(n, dtype=torch.bool)
            lowest = torch.finfo(mask.dtype).min if mask.is_floating_point() else False
            return args, kwargs | {"attention_mask": mask.masked_fill(~visible, lowest)}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        output = model(**batch, use_cache=False, output_attentions=attentions)
        return output.attentions if attentions else output.logits
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
    n = batch["input_ids"].shape[1]
    alive = alive_columns(batch, cache.trace)
    alive = torch.cat([alive, torch.ones_like(alive[:, :, :steps])], 2)
    batch = zoo.longer(name, batch, tokens[:, n : n + steps])
    expected = full_length(model, batch, alive)
    assert len(logits) == steps + 1
    for step, found_logits in enumerate(logits):
        assert_close(found_logits, expected[:, n - 1 + step])
    return [sample.entering for sample in cache.trace.samples]


def alive_columns(batch: dict[str, Any], trace: PruneTrace) -> Tensor:
    """(layers, batch, n): False on the visual tokens that did not enter the layer."""
    visual = torch.isin(batch["input_ids"], torch.tensor([zoo.IMAGE, zoo.VIDEO]))
    alive = torch.stack([~visual] * zoo.LAYERS)
    for i, row in enumerate(visual):
        columns = row.nonzero()[:, 0]
        for layer, patches in enumerate(trace.kept_patches(i)[:-1]):
            alive[layer, i, columns[patches]] = True
    return alive


@contextmanager
def recorded(model: Any) -> Iterator[list[Tensor]]:
    """The last token's logits (batch, vocabulary) of each call of a model, in its own dtype."""
    logits: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: logits.append(output[:, -1])
    )
    yield logits
    handle.remove()
