"""A conversation about some pictures whose cache stays pruned from turn to turn.

The first question decides: its prefill drops visual tokens as the method says, and what it dropped
is gone for the rest of the conversation, because no layer has keys of it any more. Later turns
add text to the same cache and attend to the picture tokens that are left; nothing is pruned again
and no picture is encoded again. `Chat.reset` begins anew, so that another question decides.

Turns are joined as token ids, never as text: what the model said is kept as it said it, so the
cache always holds exactly the front of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from llava.conversation import image_message, new_conversation, without_image_tokens
from llava.eval.run.answering import FirstTokenClock, Until, stop_ids
from llava.eval.run.environment import synchronize
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    demand_characters,
    process_images,
    tokenizer_image_token,
)
from llava.pruning.base import Pruner
from llava.pruning.cache import PrunedCache
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.trace import SampleTrace

from .streaming import Stream, Write, visible


class ContextFull(ValueError):
    """The conversation is as long as the checkpoint's context."""


@dataclass(frozen=True)
class ChatTurn:
    """One answer and what it took.

    text:     the answer
    ended:    why it ended: "end" (the model's own), "length" (max_new_tokens), "context" (the
              checkpoint's length), "stopped" (the caller's wish)
    first:    whether this turn saw the pictures, and pruned
    fed:      tokens put in before the answer, those of the pictures included, as without pruning
    new_tokens: tokens of the answer
    held:     by layer, tokens that its cache holds now; unpruned: what each would hold
    sample:   counts of the conversation's first prefill
    prefill_flops, dense_prefill_flops: of the tokens put in, by the published counting (see
              `llava.pruning.cost`)
    computed_flops: what really ran, choosing and merging included; None in a later turn, which
              chooses nothing
    seconds:  prefill (to the first token; with the vision tower in the first turn) and decode
    anew:     whether the next turn sees the pictures whole again
    """

    text: str
    ended: str
    first: bool
    fed: int
    new_tokens: int
    held: tuple[int, ...]
    unpruned: int
    sample: SampleTrace
    prefill_flops: int
    dense_prefill_flops: int
    computed_flops: int | None
    seconds: dict[str, float]
    anew: bool = False


def decoding(temperature: float, max_new_tokens: int) -> dict[str, Any]:
    """What `generate` takes for them; a temperature of 0 is greedy.

    Raises ValueError for a number out of its range.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(
            "temperature must not be negative and max_new_tokens at least 1, got "
            f"{temperature} and {max_new_tokens}"
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    return {"num_beams": 1, "max_new_tokens": max_new_tokens, "do_sample": False, **sampling}


class Chat:
    """One conversation with one model.

    Args:
        images: the pictures it is about; they go with the first question. None is text only.
        pruner: what the first prefill prunes with; None for the unpruned model.
        temperature: 0 is greedy.
        context_len: most tokens of a conversation; what the decoder drops counts as well.

    Raises:
        ValueError: no such conversation template, a number out of its range, or pictures that the
            checkpoint cannot prepare.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        image_processor: Any,
        images: Sequence[Image.Image],
        pruner: Pruner | None = None,
        *,
        conv_mode: str = "vicuna_v1",
        temperature: float = 0.2,
        max_new_tokens: int = 512,
        context_len: int = 2048,
    ) -> None:
        self._tokenizer, self._model, self._pruner = tokenizer, model, pruner
        self._conv_mode, self._context_len = conv_mode, context_len
        self._stop_ids = stop_ids(model, tokenizer)
        self._decoding = decoding(temperature, max_new_tokens)
        self._images: dict[str, Any] = {}
        self._slots = len(images)
        if images:
            pixels = process_images(images, image_processor, model.config)
            self._images["images"] = [views.to(model.device, model.dtype) for views in pixels]
            self._images["image_sizes"] = [image.size for image in images]
        self._shape = DecoderShape.from_config(model.config, model.dtype.itemsize)
        self.reset()

    def reset(self) -> None:
        """Forget every turn; the next question sees the pictures whole and prunes anew."""
        self._conversation = new_conversation(self._conv_mode)
        self._cache = PrunedCache(self._pruner)
        self._ids: list[int] = []

    @property
    def roles(self) -> tuple[str, str]:
        """How the template calls the user and the model."""
        return self._conversation.roles

    @property
    def ids(self) -> list[int]:
        """The whole conversation so far, IMAGE_TOKEN_INDEX (-200) at a picture."""
        return list(self._ids)

    @property
    def cache(self) -> PrunedCache:
        """What the layers hold of it."""
        return self._cache

    def say(
        self,
        text: str,
        write: Write = lambda piece: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> ChatTurn:
        """Say something and return the answer; `write` gets it piece by piece as it comes.

        `stop` is asked after every token; True ends the answer there.

        Raises:
            ContextFull: no room is left for an answer; nothing has changed.
            PromptError: this text cannot be answered; another may be.
            ValueError: what the method raises, such as a budget that it cannot reach. After this
                or any other error the conversation begins anew.
        """
        demand_characters(text)
        conversation = self._conversation.copy()
        ids = [*self._ids, *self._next_ids(conversation, without_image_tokens(text))]
        first = self._cache.is_empty
        if not first:
            length = len(ids) - self._slots + self._cache.layout.n_visual[0]
            if length >= self._context_len:
                raise ContextFull(
                    f"the conversation would have {length} tokens, and this checkpoint's context "
                    f"holds {self._context_len}"
                )
        if first and self._pruner is not None:
            self._cache.pruner = self._pruner.about([without_image_tokens(text)])
        before = [layer.keys.shape[-2] for layer in self._cache.layers]
        unpruned_before = self._unpruned()
        try:
            new, full, seconds = self._generate(ids, first, write, stop)
        except BaseException:
            self.reset()
            raise
        end = self._end
        answer = visible(self._decode(new), end).strip()
        conversation.messages[-1][1] = answer
        self._conversation, self._ids = conversation, [*ids, *new]

        cache, sample = self._cache, self._cache.trace.samples[0]
        # All new tokens but the last are in the cache behind those that were put in.
        unpruned = self._unpruned()
        fed = unpruned - unpruned_before - (len(new) - 1)
        computed = None
        if first:
            cost = measure(sample, self._shape)
            flops, dense = cost.prefill_flops, cost.dense_prefill_flops
            computed = cost.computed_flops
        else:
            flops = sum(self._shape.layer_flops(fed, held + fed) for held in before)
            dense = len(before) * self._shape.layer_flops(fed, unpruned_before + fed)
        return ChatTurn(
            text=answer,
            ended=self._why(new, end, full, stop),
            first=first,
            fed=fed,
            new_tokens=len(new),
            held=tuple(layer.keys.shape[-2] for layer in cache.layers),
            unpruned=unpruned,
            sample=sample,
            prefill_flops=flops,
            dense_prefill_flops=dense,
            computed_flops=computed,
            seconds=seconds,
        )

    def _next_ids(self, conversation: Any, text: str) -> list[int]:
        """Append a user's turn to `conversation`; the ids that it adds, open for the answer."""
        if not self._ids:
            text = image_message(text, self._slots, self._model.config)
        closed = conversation.get_prompt()
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        if not self._ids:
            return tokenizer_image_token(prompt, self._tokenizer)
        end = self._end
        ids = self._following_ids(end + prompt[len(closed) :])
        # The answer may have brought its end itself, or a part of it.
        most = len(self._following_ids(end))
        there = next((n for n in range(most, 0, -1) if self._ids[-n:] == ids[:n]), 0)
        return ids[there:]

    def _following_ids(self, text: str) -> list[int]:
        """Ids of a text that stands behind another: without the space put in front of a first."""
        lead = self._tokenizer.encode("\n", add_special_tokens=False)
        return self._tokenizer.encode("\n" + text, add_special_tokens=False)[len(lead) :]

    def _generate(
        self, ids: list[int], first: bool, write: Write, stop: Callable[[], bool]
    ) -> tuple[list[int], bool, dict[str, float]]:
        """New ids, whether the context is full, and the seconds of prefill and decode."""
        model, device = self._model, self._model.device
        end = self._end
        inputs = torch.tensor([ids], device=device)
        clock = FirstTokenClock(device)
        criteria: list[StoppingCriteria] = [clock, Until(stop), Until(self._is_full)]
        if end != self._tokenizer.eos_token:
            criteria.append(KeywordsStoppingCriteria([end], self._tokenizer, inputs))
        synchronize(device)
        start = perf_counter()
        with torch.inference_mode():
            output = model.generate(
                inputs,
                **(self._images if first else {}),
                past_key_values=self._cache,
                streamer=Stream(self._decode, end, write),
                stopping_criteria=StoppingCriteriaList(criteria),
                **self._decoding,
            )
        synchronize(device)
        stopped = perf_counter()
        seconds = {"prefill": clock.time - start, "decode": stopped - clock.time}
        return output[0].tolist(), self._is_full(), seconds

    @property
    def _end(self) -> str:
        """What the template puts behind an answer."""
        conversation = self._conversation
        return conversation.sep if conversation.sep2 is None else conversation.sep2

    def _unpruned(self) -> int:
        """Tokens that a layer would hold, had nothing been dropped in the tower or after it."""
        if self._cache.is_empty:
            return 0
        layout = self._cache.layout
        return self._cache.get_seq_length() + layout.whole[0] - layout.n_visual[0]

    def _is_full(self) -> bool:
        return self._cache.get_seq_length() + 1 >= self._context_len

    def _decode(self, ids: list[int]) -> str:
        said = [i for i in ids if i not in self._stop_ids]
        return self._tokenizer.decode(said, skip_special_tokens=True)

    def _why(self, new: list[int], end: str, full: bool, stop: Callable[[], bool]) -> str:
        if new[-1] in self._stop_ids or end in self._decode(new):
            return "end"
        if stop():
            return "stopped"
        return "context" if full else "length"
