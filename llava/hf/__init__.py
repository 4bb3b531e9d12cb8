"""The same pruning for stock transformers models: `with hf.pruning(model, "autoprune", ...)`.

    with hf.pruning(model, "autoprune", target_token_num=64) as pruned:
        output = model.generate(**inputs)
    pruned.trace, pruned.cost

    output = model.generate(**inputs, past_key_values=hf.cache(model, "fastv"))  # without a block
    hf.cost(model, inputs, "autoprune", target_token_num=64)  # without running the model

No `forward` is replaced. transformers' own code makes masks and rotary tables of the unpruned
sequence, since the cache reports its length; hooks on the decoder's layers hand each layer the rows
and columns that are left, and call the `Prefill` that this package's own LLaVA calls. They act on
caches of this package alone and go when the last of these is gone.

Which models: `families`. Positions are those of the unpruned sequence unless a setting says
`positions="compact"`. No CLS attention is read and no place of a patch is known: methods that need
these are refused, and AutoPrune's pre-selection ranks by text attention, as it does wherever
`TokenLayout.mixed` says that tokens are no patches. With `tower_scores="received"` it, FasterVLM
and VisPruner rank by the mean attention that a token's patches receive in the tower, see `tower`.
"""

from .session import Pruned, cache, cost, pruning

__all__ = ["Pruned", "cache", "cost", "pruning"]
