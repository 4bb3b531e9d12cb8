"""Turns a batch of loaded questions into answers, with what each of them cost.

A question that cannot be answered (a prompt beyond the context, a budget below what its tokens
cost, text that is no text) gets the reason in place of an answer; the rest of its batch answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from string import ascii_uppercase
from time import perf_counter
from typing import Any

import numpy as np
import shortuuid
import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import image_prompt, without_image_tokens
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.context import context_length
from llava.pruning.checks import BudgetError, PromptError
from llava.pruning.cost import DecoderShape, measure

from .environment import synchronize
from .feature_cache import cache_of, pixel_key, probed, stand_in
from .loading import KnownImage, LoadedQuestion
from .questions import Question
from .settings import RunSettings

#: An answer in LLaVA's schema, or why there is none.
Reply = dict[str, Any] | PromptError | BudgetError


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


class Until(StoppingCriteria):
    """Stops the batch as soon as a function says so."""

    def __init__(self, reached: Callable[[], bool]) -> None:
        self._reached = reached

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """(batch,) of what the function says."""
        done = self._reached()
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


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
        self._context = context_length(model.config)
        self._features = cache_of(model, settings)
        set_seed(settings.seed)

    def __call__(self, batch: list[LoadedQuestion], waited: float) -> list[Reply]:
        """What becomes of each question, in order; `waited` is how many seconds loading kept them.

        Times in the metadata are the batch's, shared out evenly; see `totals`. An answer
        that ends because the context does has `context_full` there.
        """
        ids = [self._ids(item) for item in batch]
        rows = [(item, row) for item, row in zip(batch, ids) if not isinstance(row, PromptError)]
        results = iter(self._results(rows, waited))
        return [row if isinstance(row, PromptError) else next(results) for row in ids]

    def _ids(self, item: LoadedQuestion) -> list[int] | PromptError:
        """Token ids of a prompt, or what is wrong with it."""
        question = item.question
        prompt = image_prompt(
            question.model_text, question.in_front, self._settings.conv_mode, self._model.config
        )
        try:
            ids = tokenizer_image_token(prompt, self._tokenizer, IMAGE_TOKEN_INDEX)
        except PromptError as error:
            return error
        places, images = ids.count(IMAGE_TOKEN_INDEX), len(item.pixels)
        if places != images:
            return PromptError(f"its prompt has places for {places} images, and {images} came")
        return ids

    def _results(self, rows: list[tuple[LoadedQuestion, list[int]]], waited: float) -> list[Reply]:
        if not rows:
            return []
        try:
            return self._answers([item for item, _ in rows], [ids for _, ids in rows], waited)
        except (PromptError, BudgetError) as error:
            if len(rows) == 1:
                return [error]
        # Which of them it is comes out when each is asked by itself; a batch changes no answer.
        return [self._results([row], waited / len(rows))[0] for row in rows]

    def _answers(
        self, batch: list[LoadedQuestion], rows: list[list[int]], waited: float
    ) -> list[Reply]:
        begin = perf_counter()
        encoded = self._padded(rows)
        sizes = [size for item in batch for size in item.sizes]
        images = [self._tensor(pixels) for item in batch for pixels in item.pixels]
        if self._settings.sampling:
            # Each question has its own random numbers, wherever the run was interrupted.
            set_seed((self._settings.seed * 1_000_003 + batch[0].question.index) % 2**32)
        clock = FirstTokenClock(self._model.device)
        synchronize(self._model.device)
        tower = perf_counter()
        if self._features is not None:
            keys = [[_key(pixels) for pixels in item.pixels] for item in batch]
            probe = probed(self._settings, self._features.run_layers)
            self._features.prepare(images, list(chain(*keys)), probe)
            for item, its in zip(batch, keys):
                self._features.remember(item, its)
            synchronize(self._model.device)
        start = perf_counter()
        texts = [without_image_tokens(item.question.text) for item in batch]
        with torch.inference_mode():
            output = self._model.generate(
                encoded.input_ids.to(self._model.device),
                images=images or None,
                image_sizes=sizes or None,
                attention_mask=encoded.attention_mask.to(self._model.device),
                pruner=self._settings.pruner.about(texts),
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
        lengths = output.past_key_values.layout.lengths
        beams = len(traces) // len(batch)  # beam search prefills every sample once a beam
        return [
            self._answer(item.question, row, trace, length, share)
            for item, row, trace, length in zip(
                batch, output.sequences.tolist(), traces[::beams], lengths[::beams]
            )
        ]

    def lacks(self, item: LoadedQuestion) -> bool:
        """Whether the pixels of a question are needed after all."""
        return self._features is not None and self._features.lacks(item)

    def _tensor(self, pixels: np.ndarray | KnownImage) -> torch.Tensor:
        if isinstance(pixels, KnownImage):
            like = torch.empty(0, device=self._model.device, dtype=self._model.dtype)
            return stand_in(pixels, like)
        return torch.from_numpy(pixels).to(self._model.device, self._model.dtype)

    def _padded(self, rows: list[list[int]]) -> Encoded:
        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        return Encoded(
            torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        )

    def _answer(
        self,
        question: Question,
        ids: list[int],
        trace: Any,
        length: int,
        seconds: dict[str, float],
    ) -> Reply:
        # What stands behind the context is padding up to the longest answer of the batch.
        room = None if self._context is None else max(self._context - length, 1)
        ids = ids[:room]
        ends = [i for i, token in enumerate(ids) if token in self._stop_ids]
        full = not ends and len(ids) == room and room < self._settings.max_new_tokens
        ids = ids[: ends[0] + 1] if ends else ids
        said = ids[:-1] if ends else ids
        try:
            text = self._tokenizer.decode(said, skip_special_tokens=True).strip()
        except ValueError as error:
            return PromptError(f"its answer cannot be decoded: {error}")
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
        if full:
            metadata["context_full"] = True
        round_id, options = _of_options(question)
        return {
            "question_id": question.question_id,
            **round_id,
            "prompt": question.prompt,
            "text": text,
            **options,
            "answer_id": shortuuid.uuid(),
            "model_id": self._model_id,
            "metadata": metadata,
        }


def _key(pixels: np.ndarray | KnownImage) -> bytes:
    return pixels.key if isinstance(pixels, KnownImage) else pixel_key(pixels)


def _of_options(question: Question) -> tuple[dict[str, int], dict[str, list[str]]]:
    """What LLaVA logs of MMBench's options, before and behind prompt and text. Its rotations are
    rows of the question file, so there is one round."""
    if question.options is None:
        return {}, {}
    letters = list(ascii_uppercase[: len(question.options)])
    return {"round_id": 0}, {"options": list(question.options), "option_char": letters}


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer, of which they are no part."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
