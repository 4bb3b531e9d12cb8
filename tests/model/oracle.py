"""A pruned run against the package's own oracle (`llava.analysis.oracle`), in float64.

The model is `tiny.double`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava import pruning
from llava.analysis.oracle import masked_states, seen_by_layer
from llava.pruning.cache import PrunedCache
from llava.pruning.trace import SampleTrace
from tests import tiny
from tests.closeness import assert_close


@torch.no_grad()
def check_against_the_oracle(
    model,
    chosen: pruning.Pruner,
    images: int,
    steps: int = 4,
    pixels: list[Tensor] | None = None,
    sizes: list[tuple[int, int]] | None = None,
) -> SampleTrace:
    """Compare a prefill and `steps` of decoding under `chosen`; returns the prefill's counts.

    Patches that the vision tower did not hand over are masked in every layer of the oracle, and
    those left have positions without gaps. `pixels` and `sizes` are of tiled pictures.
    """
    ids = tiny.prompt(2, images=images)
    pixels = tiny.pixels(2, images) if pixels is None else pixels
    prompt = model.embed_prompt(ids[None], None, pixels, sizes, pruner=chosen)
    whole = model.embed_prompt(ids[None], None, pixels, sizes)
    cache = PrunedCache(chosen, prompt.layout)
    out = model(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True)
    positions = "compact" if prompt.layout.n < whole.layout.n else cache.positions

    seen = seen_by_layer(cache.trace, 0, whole.layout)
    full = masked_states(model.model, whole.embeds, seen, positions)
    last = sorted(seen[-1])
    pruned = out.logits[0]
    assert_close(pruned, model.lm_head(full[last]))

    # Decode: every step against an oracle run over the whole sequence so far.
    embeds = whole.embeds
    token = pruned[-1].argmax()
    for _ in range(steps):
        step = model(token[None, None], past_key_values=cache)
        new = embeds.shape[1]
        embeds = torch.cat([embeds, model.model.embed_tokens(token[None, None])], 1)
        seen = [alive | {new} for alive in seen]
        full = masked_states(model.model, embeds, seen, positions)
        assert_close(step.logits[0, -1], model.lm_head(full[-1]))
        token = step.logits[0, -1].argmax()
    return cache.trace.samples[0]
