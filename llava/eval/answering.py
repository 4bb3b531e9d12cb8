"""Turns a batch of loaded questions into answers, with what each of them cost."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import shortuuid
import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import image_prompt
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.pruning.cost import DecoderShape, measure

from .environment import synchronize
from .feature_cache import FeatureCache, pixel_key
from .loading import LoadedQuestion
from .questions import Question
from .settings import RunSettings


class FirstTokenClock(StoppingCriteria):
    """Never stops generation; notes when the first new token was there, which ends the prefill."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.time: float | None = None

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """(batch,) of False."""
        if self.time is None:
            synchronize(self._device)
            self.time = perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Encoded:
    """Left-padded ids (batch, n), -200 at an image, and their mask of 0 and 1."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class Answerer:
    """Answers batches with one model under one set of settings."""

    def __init__(self, model: Any, tokenizer: Any, settings: RunSettings) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._model_id = get_model_name_from_path(settings.model_path)
        self._shape = DecoderShape.from_config(model.config, model.dtype.itemsize)
        self._stop_ids = stop_ids(model, tokenizer)
        cached = settings.feature_cache_gb is not None
        self._features: FeatureCache | None = model.get_vision_tower() if cached else None
        if self._features is not None and settings.pruner.merges_in_tower:
            self._features = None  # nothing to keep: its prefill includes the tower
        set_seed(settings.seed)

    def __call__(self, batch: list[LoadedQuestion], waited: float) -> list[dict[str, Any]]:
        """Answers in LLaVA's schema, in order; `waited` is how many seconds loading kept them.

        Times in the metadata are the batch's, shared out evenly; see `llava.eval.totals`.
        """
        begin = perf_counter()
        encoded = self._encode([item.question for item in batch])
        pixels = [view for item in batch for view in item.pixels]
        sizes = [size for item in batch for size in item.sizes]
        images = [
            torch.from_numpy(view).to(self._model.device, self._model.dtype) for view in pixels
        ]
        if self._settings.sampling:
            # Each question has its own random numbers, wherever the run was interrupted.
            set_seed((self._settings.seed * 1_000_003 + batch[0].question.index) % 2**32)
        clock = FirstTokenClock(self._model.device)
        synchronize(self._model.device)
        tower = perf_counter()
        if self._features is not None:
            keys = [pixel_key(view) for view in pixels]
            probe = self._settings.pruner.tower_layers(self._features.run_layers)
            self._features.prepare(images, keys, probe)
            synchronize(self._model.device)
        start = perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                encoded.input_ids.to(self._model.device),
                images=images or None,
                image_sizes=sizes or None,
                attention_mask=encoded.attention_mask.to(self._model.device),
                pruner=self._settings.pruner,
                return_dict_in_generate=True,
                stopping_criteria=StoppingCriteriaList([clock]),
                **self._settings.generation(),
            )
        synchronize(self._model.device)
        end = perf_counter()
        assert clock.time is not None, "generate makes at least one token"
        seconds = {
            "prefill": clock.time - start,
            "decode": end - clock.time,
            "waiting": waited,
            "total": end - begin + waited,
        }
        if self._features is not None:
            seconds["vision"] = start - tower
        share = {name: round(value / len(batch), 6) for name, value in seconds.items()}
        traces = output.past_key_values.trace.samples
        beams = len(traces) // len(batch)  # beam search prefills every sample once a beam
        return [
            self._answer(item.question, row, trace, share)
            for item, row, trace in zip(batch, output.sequences.tolist(), traces[::beams])
        ]

    def _encode(self, questions: list[Question]) -> Encoded:
        rows = []
        for question in questions:
            prompt = image_prompt(
                question.model_text,
                question.in_front,
                self._settings.conv_mode,
                self._model.config,
            )
            rows.append(tokenizer_image_token(prompt, self._tokenizer, IMAGE_TOKEN_INDEX))
        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        return Encoded(
            torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        )

    def _answer(
        self, question: Question, ids: list[int], trace: Any, seconds: dict[str, float]
    ) -> dict[str, Any]:
        ends = [i for i, token in enumerate(ids) if token in self._stop_ids]
        ids = ids[: ends[0] + 1] if ends else ids
        said = ids[:-1] if ends else ids
        metadata = {
            "index": question.index,
            "n_visual": trace.n_visual,
            "n_text": trace.n_text,
            "new_tokens": len(ids),
            "complexity": trace.complexity,
            "cost": measure(trace, self._shape, new_tokens=len(ids)).to_dict(),
            "seconds": seconds,
        }
        if question.model_text != question.text:
            metadata["image_token_removed"] = True
        return {
            "question_id": question.question_id,
            "prompt": question.prompt,
            "text": self._tokenizer.decode(said, skip_special_tokens=True).strip(),
            "answer_id": shortuuid.uuid(),
            "model_id": self._model_id,
            "metadata": metadata,
        }


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer, of which they are no part."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
