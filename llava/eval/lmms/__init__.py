"""A model for lmms-eval, and the mini benchmarks as its tasks.

    lmms-eval --model autoprune --batch_size 8 --tasks textvqa_val,pope,mme \\
        --model_args pretrained=CHECKPOINT,method=autoprune,target_token_num=64

Nothing else of the package needs lmms-eval, which finds this through the entry point
`lmms_eval.models` (interface: EvolvingLMMs-Lab/lmms-eval 0.7.3, lmms_eval/models/registry_v2.py).
What docs/lmms-eval.md says was run with that release.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry has to know of the model, a `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="autoprune", simple_class_path="llava.eval.lmms.model.AutoPruneModel"
    )
