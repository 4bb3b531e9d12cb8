"""One question answered with a record of which patches were kept in each layer, and what it cost.

Everything comes from the trace of the prefill (`llava.pruning.trace`); pictures of it are made
elsewhere (`overlay`, `keep`).

    answer = traced.run(model, tokenizer, image_processor, image, "What is red?", pruner)
    overlay.panels(answer, 5)

A method that merges inside or behind the vision tower shows its merged tokens as their centre: the
trace begins before the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteriaList

from llava import hf
from llava.eval.run.answering import FirstTokenClock, Until, stop_ids
from llava.eval.run.environment import synchronize
from llava.mm_utils import ask
from llava.pruning.base import Pruner
from llava.pruning.cost import Cost, DecoderShape, measure
from llava.pruning.methods.dense import Dense
from llava.pruning.trace import PruneTrace, SampleTrace

from .stock_answers import fitting, inputs_of, is_stock, stock_views
from .views import View, views


@dataclass(frozen=True)
class TracedAnswer:
    """An answer, and per layer what was there. Lists by layer have one entry more than the decoder
    has layers: what entered each layer, then what is left after the last.

    text, new_tokens: the answer, and how many tokens it took (the end token included)
    views:     what the model saw of the picture, and where its tokens are on that: a square, an
               overview and tiles, or nothing where tokens are no patches (`llava.analysis.views`)
    kept:      by layer, ids of the tokens that are there: of a square its patches row by row from
               0, else places in the picture's sequence. A merged token has its centre's id, and a
               CLS token that a method keeps has one behind all others
    merged:    by layer, of these the merged ones: id -> the original tokens averaged in it
    complexity: what the method measured and what followed from it, such as mi, k, x0
    cost:      tokens, FLOPs and bytes (`llava.pruning.cost`)
    seconds:   prefill (vision tower included, to the first token) and decode, wall clock
    sample:    the counts that all of this comes from
    """

    text: str
    new_tokens: int
    views: tuple[View, ...]
    kept: tuple[tuple[int, ...], ...]
    merged: tuple[Mapping[int, tuple[int, ...]], ...]
    complexity: Mapping[str, float]
    cost: Cost
    seconds: Mapping[str, float]
    sample: SampleTrace

    @property
    def picture(self) -> Image.Image:
        """What the model saw where that is one square, RGB, at the size of the vision tower."""
        return self.views[0].picture

    @property
    def grid(self) -> int:
        """Patches a side of that square."""
        return self.views[0].columns

    @property
    def letterbox(self) -> tuple[int, ...]:
        """Ids of that square's patches that show only padding around the picture."""
        return self.views[0].padding

    @property
    def mutual_information(self) -> float | None:
        """Of text and picture, in the method's own convention; None where it measured none."""
        return self.complexity.get("mi")

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return len(self.kept) - 1


def run(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    image: Image.Image,
    question: str,
    pruner: Pruner | None = None,
    conv_mode: str = "vicuna_v1",
    max_new_tokens: int = 128,
    stop: Callable[[], bool] = lambda: False,
    **generation: Any,
) -> TracedAnswer:
    """Answer one question about one picture, greedily unless `generation` says otherwise.

    Of a stock model, as `llava.hf` knows them, `image_processor` is the processor of all inputs;
    its chat template takes the place of `conv_mode`, and positions are those of the unpruned
    sequence.

    `stop` is asked after every token; True ends the answer there. `generation` goes to
    `model.generate`: a streamer, a temperature, `visual_token_num`.

    Raises:
        ValueError: no such conversation template, or what the method raises.
    """
    stock = is_stock(model)
    if stock:
        inputs: dict[str, Any] = dict(inputs_of(question, image, image_processor, model))
        drawn = stock_views(image, image_processor, model, inputs)
        cache = hf.cache(model, Dense() if pruner is None else fitting(pruner.about([question])))
        inputs["past_key_values"] = cache
    else:
        inputs = ask(question, [image], tokenizer, image_processor, model, conv_mode)
        drawn = views(image, image_processor, model)
        inputs["pruner"] = None if pruner is None else pruner.about([question])
    clock = FirstTokenClock(model.device)
    synchronize(model.device)
    start = perf_counter()
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([clock, Until(stop)]),
            **{"do_sample": False, "num_beams": 1, **generation},
        )
    synchronize(model.device)
    end = perf_counter()
    assert clock.time is not None, "generate makes at least one token"
    # Stock models repeat the prompt.
    ids = output.sequences[0, inputs["input_ids"].shape[1] if stock else 0 :].tolist()
    said = ids[:-1] if ids[-1] in stop_ids(model, tokenizer) else ids
    trace: PruneTrace = output.past_key_values.trace
    sample, kept = trace.samples[0], trace.kept_patches(0)
    shape = DecoderShape.from_config(model.config.get_text_config(), model.dtype.itemsize)
    return TracedAnswer(
        text=tokenizer.decode(said, skip_special_tokens=True).strip(),
        new_tokens=len(ids),
        views=drawn,
        kept=tuple(map(tuple, kept)),
        merged=tuple(groups(kept, trace.merged_patches(0))),
        complexity=sample.complexity,
        cost=measure(sample, shape, new_tokens=len(ids)),
        seconds={"prefill": clock.time - start, "decode": end - clock.time},
        sample=sample,
    )


def groups(
    kept: Sequence[Sequence[int]], merged: Sequence[Mapping[int, Sequence[int]]]
) -> list[dict[int, tuple[int, ...]]]:
    """The merged tokens that enter each layer, and that are left after the last.

    Args:
        kept: by layer and after the last, ids of the tokens that are there.
        merged: by layer, what was merged after it: id of the centre -> ids of the tokens.

    Returns:
        By layer, id of each merged token -> ascending, all original patches that are averaged in
        it, also those of merged tokens that were merged again.
    """
    by_layer: list[dict[int, tuple[int, ...]]] = [{}]
    for there, new in zip(kept[1:], merged, strict=True):
        before = by_layer[-1]
        now = {patch: before[patch] for patch in there if patch in before and patch not in new}
        for centre, sources in new.items():
            original = {patch for source in sources for patch in before.get(source, (source,))}
            now[centre] = tuple(sorted(original))
        by_layer.append(now)
    return by_layer
