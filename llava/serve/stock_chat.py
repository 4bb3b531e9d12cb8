"""A conversation with a model that transformers loads by itself, by its processor's chat template.

Each turn asks anew: the whole conversation is written with the template, the pictures are encoded
again, and the newest question decides which visual tokens stay. One cache cannot go on here, since
a template may write earlier turns differently once another follows. A processor without a template
(PaliGemma) knows no turns: each question then stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from llava import hf
from llava.analysis.stock_answers import fitting
from llava.analysis.stock_subject import prepared
from llava.eval.run.answering import FirstTokenClock, Until, stop_ids
from llava.eval.run.environment import synchronize
from llava.hf.families import demand_fitting
from llava.hf.prompts import placeholders
from llava.mm_utils import demand_characters
from llava.pruning.base import Pruner
from llava.pruning.checks import PromptError
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.methods.dense import Dense

from .chat import ChatTurn, ContextFull, decoding
from .streaming import Stream, Write


class StockChat:
    """As `llava.serve.chat.Chat`, with the processor of all inputs in place of that of images.

    context_len: most tokens of a conversation, 0 where the model states none

    Raises ValueError for a method that `llava.hf` does not run on the model, and wrong numbers.
    """

    roles = ("USER", "ASSISTANT")

    def __init__(
        self,
        model: Any,
        processor: Any,
        images: Sequence[Image.Image],
        pruner: Pruner | None = None,
        *,
        temperature: float = 0.2,
        max_new_tokens: int = 512,
        context_len: int = 0,
    ) -> None:
        self._model, self._processor, self._images = model, processor, list(images)
        self._pruner = Dense() if pruner is None else fitting(pruner)
        demand_fitting(model, self._pruner)
        self._decoding = decoding(temperature, max_new_tokens)
        self._most, self._context_len = max_new_tokens, context_len
        self._stop_ids = stop_ids(model, processor.tokenizer)
        ids = list(placeholders(model.config))
        self._marks = list(filter(None, processor.tokenizer.convert_ids_to_tokens(ids)))
        self._shape = DecoderShape.from_config(model.config.get_text_config(), model.dtype.itemsize)
        self.reset()

    def reset(self) -> None:
        """Forget every turn."""
        self._turns: list[tuple[str, str]] = []

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Questions and answers that the next prompt begins with."""
        return list(self._turns)

    def say(
        self,
        text: str,
        write: Write = lambda piece: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> ChatTurn:
        """As `Chat.say`; after an error nothing has changed."""
        demand_characters(text)
        while any(mark in text for mark in self._marks):  # pieces of one may join to another
            for mark in self._marks:
                text = text.replace(mark, "").strip()
        prompt = self.prompt(text)
        try:
            inputs = prepared([prompt], [self._images], self._processor, self._model)
        except ValueError as error:  # such as a mark of a picture, written as text
            raise PromptError(f"the processor refuses this text: {error}") from None
        fed = inputs["input_ids"].shape[1]
        room = self._context_len - fed if self._context_len else self._most
        if room < 1:
            kind = ContextFull if self._turns else PromptError
            raise kind(
                f"the conversation would have {fed} tokens, and this checkpoint's context holds "
                f"{self._context_len}"
            )
        cache = hf.cache(self._model, self._pruner.about([text]))
        new, seconds = self._generate(inputs, cache, min(room, self._most), write, stop)
        answer = self._decode(new).strip()
        if self._has_template:
            self._turns.append((text, answer))
        cost = measure(cache.trace.samples[0], self._shape)
        if new[-1] in self._stop_ids:
            ended = "end"
        elif stop():
            ended = "stopped"
        else:
            ended = "context" if room < self._most else "length"
        return ChatTurn(
            text=answer,
            ended=ended,
            first=True,
            anew=True,
            fed=fed,
            new_tokens=len(new),
            held=tuple(layer.keys.shape[-2] for layer in cache.layers),
            unpruned=cache.get_seq_length(),
            sample=cache.trace.samples[0],
            prefill_flops=cost.prefill_flops,
            dense_prefill_flops=cost.dense_prefill_flops,
            computed_flops=cost.computed_flops,
            seconds=seconds,
        )

    def prompt(self, text: str) -> str:
        """The conversation with one more question, open for its answer."""
        if not self._has_template:
            return getattr(self._processor, "image_token", "") * len(self._images) + text
        try:
            return self._written(text, lambda answer: [{"type": "text", "text": answer}])
        except TypeError:  # a template that takes no parts of an answer (Pixtral's)
            return self._written(text, lambda answer: answer)

    @property
    def _has_template(self) -> bool:
        return getattr(self._processor, "chat_template", None) is not None

    def _written(self, text: str, content: Callable[[str], Any]) -> str:
        """By the template; `content` is how it is given an answer."""
        messages: list[dict[str, Any]] = []
        for question, answer in [*self._turns, (text, None)]:
            pictures = [] if messages else [{"type": "image"}] * len(self._images)
            parts = [*pictures, {"type": "text", "text": question}]
            messages.append({"role": "user", "content": parts})
            if answer is not None:
                messages.append({"role": "assistant", "content": content(answer)})
        written: str = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        return written

    def _generate(
        self,
        inputs: dict[str, Tensor],
        cache: Any,
        most: int,
        write: Write,
        stop: Callable[[], bool],
    ) -> tuple[list[int], dict[str, float]]:
        """New ids, and the seconds of prefill and decode."""
        device, fed = self._model.device, inputs["input_ids"].shape[1]
        clock = FirstTokenClock(device)
        synchronize(device)
        start = perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                past_key_values=cache,
                streamer=Stream(self._decode, "", write, prompt=fed),
                stopping_criteria=StoppingCriteriaList([clock, Until(stop)]),
                **{**self._decoding, "max_new_tokens": most},
            )
        synchronize(device)
        end = perf_counter()
        assert clock.time is not None, "generate makes at least one token"
        seconds = {"prefill": clock.time - start, "decode": end - clock.time}
        return output[0, fed:].tolist(), seconds

    def _decode(self, ids: list[int]) -> str:
        said = [i for i in ids if i not in self._stop_ids]
        text: str = self._processor.tokenizer.decode(said, skip_special_tokens=True)
        return text
