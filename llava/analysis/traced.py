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
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import without_image_tokens
from llava.eval.run.answering import FirstTokenClock, Until, stop_ids
from llava.eval.run.environment import synchronize
from llava.mm_utils import ask
from llava.pruning.base import Pruner
from llava.pruning.cost import Cost, DecoderShape, measure
from llava.pruning.layout import TokenLayout
from llava.pruning.methods.dense import Dense
from llava.pruning.trace import PruneTrace, SampleTrace

from .stock_answers import fitting, inputs_of, is_stock, stock_views
from .views import View, views


@dataclass(frozen=True)
class TracedAnswer:
    """An answer, and per layer what was there. Lists by layer have one entry more than the decoder
    has layers: what entered each layer, then what is left after the last.

    text, new_tokens: the answer, and how many tokens it took (the end token included)
    views:     what the model saw of the picture, and where its tokens are on that: a square, or an
               overview and tiles (`llava.analysis.views`); of several pictures one after the other;
               nothing where it is not known
    kept:      by layer, ids of the tokens that are there: of a square its patches row by row from
               0, else places in the picture's sequence. A merged token has its centre's id, and a
               CLS token that a method keeps has one behind all others. Pictures are counted on
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
    image: Image.Image | Mapping[str, Image.Image],
    question: str,
    pruner: Pruner | None = None,
    conv_mode: str = "vicuna_v1",
    max_new_tokens: int = 128,
    stop: Callable[[], bool] = lambda: False,
    **generation: Any,
) -> TracedAnswer:
    """Answer one question about one picture, greedily unless `generation` says otherwise.

    Several pictures are given by name, to a model of this package: each takes the place of an
    <image> in the question where that has as many, else all go in front of it.

    Of a stock model, as `llava.hf` knows them, `image_processor` is the processor of all inputs;
    its chat template takes the place of `conv_mode`, and positions are those of the unpruned
    sequence.

    `stop` is asked after every token; True ends the answer there. `generation` goes to
    `model.generate`: a streamer, a temperature, `visual_token_num`.

    Raises:
        ValueError: no such conversation template, several pictures for a stock model, or what the
            method raises.
    """
    stock = is_stock(model)
    images = {"": image} if isinstance(image, Image.Image) else image
    drawn: tuple[View, ...] = ()
    if stock:
        if len(images) > 1:
            raise ValueError("a stock model is asked about one picture")
        (image,) = images.values()
        inputs: dict[str, Any] = dict(inputs_of(question, image, image_processor, model))
        drawn = stock_views(image, image_processor, model, inputs)
        cache = hf.cache(model, Dense() if pruner is None else fitting(pruner.about([question])))
        inputs["past_key_values"] = cache
    else:
        pictures = list(images.values())
        placed = question.count(DEFAULT_IMAGE_TOKEN) == len(pictures) > 1
        inputs = ask(question, pictures, tokenizer, image_processor, model, conv_mode, placed)
        text = without_image_tokens(question)
        inputs["pruner"] = None if pruner is None else pruner.about([text])
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
    if not stock:
        assert trace.first is not None, "the prompt has been prefilled"
        drawn = tuple(
            view.of_picture(name, first)
            for (name, picture), first in zip(images.items(), first_ids(trace.first))
            for view in views(picture, image_processor, model)
        )
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


def first_ids(layout: TokenLayout) -> list[int]:
    """Of each image of the first sample, the id that its patches are counted on from."""
    result, start = [], 0
    for image, size in enumerate(layout.sizes[0]):
        result.append(start)
        ids = layout.patch[0][layout.image[0] == image]
        start = max([start + size, *(ids + 1).tolist()])  # with a CLS token it has one more
    return result


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
