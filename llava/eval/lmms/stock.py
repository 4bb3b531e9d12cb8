"""Any checkpoint that `llava.hf` knows, as a stock transformers model."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava import hf
from llava.model.builder import default_device
from llava.model.reading import resolve
from llava.pruning.checks import BudgetError, PromptError
from llava.pruning.cost import DecoderShape, measure

from ..run.answering import Reply, stop_ids
from ..run.settings import RunSettings
from .request import Request


class StockModel:
    """A folder of `AutoModelForImageTextToText`, asked through its processor's chat template.

    Of the settings it takes the checkpoint, device, dtype, kernel and pruner. Raises what
    transformers does, and ValueError for a model that `llava.hf` does not know.
    """

    def __init__(self, settings: RunSettings) -> None:
        folder = resolve(settings.model_path, offline=settings.offline)
        self._processor = AutoProcessor.from_pretrained(folder)
        self._processor.tokenizer.padding_side = "left"
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=settings.dtype, attn_implementation=settings.attn_implementation
        )
        self.model.to(settings.device or default_device()).eval()
        self._pruner = settings.pruner
        hf.cache(self.model, self._pruner)  # says now what it would say at the first question
        config = self.model.get_decoder().config
        self._shape = DecoderShape.from_config(config, self.model.dtype.itemsize)

    def answers(self, requests: list[Request], generation: dict[str, Any]) -> list[Reply]:
        """What becomes of each request of a batch, in order."""
        try:
            return self._answers(requests, generation)
        except (PromptError, BudgetError) as error:
            if len(requests) == 1:
                return [error]
        return [self.answers([request], generation)[0] for request in requests]

    def _answers(self, requests: list[Request], generation: dict[str, Any]) -> list[Reply]:
        begin = perf_counter()
        inputs = self._processor.apply_chat_template(
            [_conversation(request) for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)
        sampled = generation["temperature"] > 0
        options = {key: generation[key] for key in ("max_new_tokens", "num_beams")}
        options |= {key: generation[key] if sampled else None for key in ("temperature", "top_p")}
        cache = hf.cache(self.model, self._pruner)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, **options, do_sample=sampled, past_key_values=cache
            )
        seconds = {"total": (perf_counter() - begin) / len(requests)}
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        beams = len(cache.trace.samples) // len(rows)
        samples = cache.trace.samples[::beams]
        return [self._reply(row, sample, seconds) for row, sample in zip(rows, samples)]

    def _reply(self, ids: list[int], sample: Any, seconds: dict[str, float]) -> dict[str, Any]:
        stop = stop_ids(self.model, self._processor.tokenizer)
        end = next((i for i, token in enumerate(ids) if token in stop), None)
        new_tokens = len(ids) if end is None else end + 1
        text = self._processor.tokenizer.decode(ids[:end], skip_special_tokens=True)
        metadata = {
            "n_visual": sample.n_visual,
            "n_text": sample.n_text,
            "new_tokens": new_tokens,
            "complexity": sample.complexity,
            "cost": measure(sample, self._shape, new_tokens=new_tokens).to_dict(),
            "seconds": seconds,
        }
        return {"text": text.strip(), "metadata": metadata}


def _conversation(request: Request) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": picture} for picture in request.pictures]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": request.text}]}]
