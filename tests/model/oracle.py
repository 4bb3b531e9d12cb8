"""The oracle: a full-length run in which dropped tokens are masked, and the comparison with it.

The oracle knows nothing of caches, selections or per-layer lengths. It keeps all tokens in all
layers and gives each layer a mask: the tokens dropped before it are invisible as keys. For the
compact position policy each layer gets the rotary positions that the tokens left have in it.
The model is in float64 (`tiny.double`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava import pruning
from llava.pruning.cache import PrunedCache
from llava.pruning.trace import SampleTrace
from tests import tiny
from tests.closeness import assert_close


def oracle(model, embeds: Tensor, kept: list[set[int]], positions: str) -> Tensor:
    """Hidden states (n, d) after the norm, with `kept[l]` the sequence indices seen in layer l."""
    n = embeds.shape[1]
    hidden = embeds
    for layer, alive in zip(model.model.layers, kept):
        here = torch.tensor([i in alive for i in range(n)])
        position = torch.arange(n) if positions == "original" else here.long().cumsum(0) - 1
        rope = model.model.rotary_emb(hidden, position.clamp(min=0)[None])
        visible = torch.ones(n, n).tril().bool() & (here[None] | torch.eye(n).bool())
        mask = torch.where(visible, 0.0, -torch.inf).to(hidden)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope)
    return model.model.norm(hidden)[0]


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

    # Which positions of the sequence each layer saw, from the patches in the trace.
    patch = whole.layout.patch[0].tolist()
    text = {i for i, p in enumerate(patch) if p == pruning.layout.TEXT}
    seen = [text | {patch.index(p) for p in patches} for patches in cache.trace.kept_patches(0)]

    full = oracle(model, whole.embeds, seen, positions)
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
        full = oracle(model, embeds, seen, positions)
        assert_close(step.logits[0, -1], model.lm_head(full[-1]))
        token = step.logits[0, -1].argmax()
    return cache.trace.samples[0]
