"""A checkpoint under `verify`: asked about three pictures by this package and by transformers.

What `checks` needs of a model is here, so that another kind of model needs another subject, not
other checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..eval.run.answering import stop_ids
from ..mm_utils import ask
from ..pruning.base import Pruner
from ..pruning.cache import PrunedCache
from ..pruning.layout import TokenLayout
from .oracle import masked_states, seen_by_layer
from .stock import Stock

TOKENS = 20


@dataclass(frozen=True)
class Prompt:
    """One question about one picture.

    inputs: arguments of our `generate`; embeds (1, n, d), layout: what the decoder gets, unpruned
    """

    inputs: dict[str, Any]
    embeds: Tensor
    layout: TokenLayout


@dataclass(frozen=True)
class Reply:
    """Tokens (batch, new) that were generated, their logits (batch, new, vocabulary), and the cache
    with the trace."""

    tokens: Tensor
    logits: Tensor
    cache: Any


def pictures() -> list[tuple[Image.Image, str]]:
    """A wide, a tall and a square picture, drawn, each with a question."""
    wide = Image.new("RGB", (640, 400), (200, 220, 235))
    draw = ImageDraw.Draw(wide)
    draw.rectangle((0, 300, 640, 400), fill=(90, 140, 70))
    draw.ellipse((90, 120, 270, 300), fill=(200, 30, 30))
    draw.rectangle((380, 140, 540, 300), fill=(30, 60, 190))
    tall = Image.new("RGB", (400, 640), (245, 240, 225))
    draw = ImageDraw.Draw(tall)
    draw.polygon([(200, 60), (80, 280), (320, 280)], fill=(20, 130, 60))
    draw.ellipse((110, 360, 290, 540), fill=(235, 200, 20))
    square = Image.new("RGB", (480, 480), (120, 125, 130))
    draw = ImageDraw.Draw(square)
    for row in range(6):
        for column in range(6):
            if (row + column) % 2:
                box = (column * 80, row * 80, column * 80 + 79, row * 80 + 79)
                draw.rectangle(box, fill=(40 * row, 250 - 40 * column, 40 * column))
    return [
        (wide, "What shape is the red object?"),
        (tall, "What color is the triangle?"),
        (square, "Describe this picture in detail. What colors are there, and where are they?"),
    ]


class Subject:
    """A LLaVA checkpoint as this package loads it, and transformers' own model of it.

    prompts: one for each picture; their texts differ in length, so a batch of them is padded
    """

    def __init__(self, tokenizer: Any, model: Any, processor: Any, conv_mode: str) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.stock: Stock | None = None
        self.ends = stop_ids(model, tokenizer)
        # Every answer has its 20 tokens, so that there is something to compare.
        model.generation_config.eos_token_id = None
        self.prompts = [
            self._prompt(ask(question, [picture], tokenizer, processor, model, conv_mode))
            for picture, question in pictures()
        ]

    @property
    def image_token(self) -> int:
        """An id that stands in no prompt."""
        used = {i for prompt in self.prompts for i in prompt.inputs["inputs"][0].tolist()}
        return max(set(range(self.model.config.vocab_size)) - used)

    def logits(self, prompt: Prompt) -> Tensor:
        """Of all tokens (n, vocabulary), unpruned."""
        return self.model(
            prompt.inputs["inputs"],
            images=prompt.inputs["images"],
            image_sizes=prompt.inputs["image_sizes"],
        ).logits[0]

    def stock_logits(self, prompt: Prompt) -> Tensor:
        """The same by transformers."""
        return self._stock.model(**self._stock_inputs(prompt)).logits[0]

    def reply(self, prompts: Sequence[Prompt], pruner: Pruner | None, new: int = TOKENS) -> Reply:
        """What the prompts, as one batch, are answered."""
        ids = [prompt.inputs["inputs"][0] for prompt in prompts]
        width = max(map(len, ids))
        padded = [torch.cat([row.new_zeros(width - len(row)), row]) for row in ids]
        mask = [row.new_ones(width) for row in ids]
        for row, ones in zip(ids, mask):
            ones[: width - len(row)] = 0
        output = self.model.generate(
            torch.stack(padded),
            attention_mask=torch.stack(mask),
            images=[view for prompt in prompts for view in prompt.inputs["images"]],
            image_sizes=[size for prompt in prompts for size in prompt.inputs["image_sizes"]],
            pruner=pruner,
            **_greedy(new),
        )
        return Reply(output.sequences, torch.stack(output.logits, 1), output.past_key_values)

    def stock_reply(self, prompt: Prompt, new: int = TOKENS) -> Reply:
        """What transformers answers."""
        output = self._stock.model.generate(**self._stock_inputs(prompt), **_greedy(new))
        return Reply(output.sequences[:, -new:], torch.stack(output.logits, 1), None)

    def masked_logits(self, prompt: Prompt, reply: Reply, row: int, steps: int = TOKENS) -> Tensor:
        """Logits (1, steps, vocabulary) of a pruned reply's tokens by the oracle."""
        cache: PrunedCache = reply.cache
        assert cache.layout is not None, "a prefill has a layout"
        n, whole = prompt.layout.n, prompt.layout
        tokens = reply.tokens[row : row + 1, : steps - 1]
        embeds = torch.cat([prompt.embeds, self.model.model.embed_tokens(tokens)], 1)
        new = set(range(n, embeds.shape[1]))
        seen = [alive | new for alive in seen_by_layer(cache.trace, row, whole)]
        reduced = cache.layout.lengths[row] < n  # in the tower
        positions = "compact" if reduced else cache.positions
        states = masked_states(self.model.model, embeds, seen, positions)
        return self.model.lm_head(states[n - 1 :])[None]

    def text(self, reply: Reply, row: int = 0) -> str:
        """A reply up to its end."""
        tokens = reply.tokens[row].tolist()
        length = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return self.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()

    def set_attention(self, name: str) -> None:
        """Another attention kernel for both; ImportError or ValueError where it is absent."""
        self.model.set_attn_implementation(name)
        self._stock.model.set_attn_implementation(name)

    def place(
        self, first: Callable[[], Any], second: Callable[[], Any], room: float, stock: bool
    ) -> str:
        """Where the last token of two calls first differs by more than `room`.

        stock: whether `second` runs transformers' model
        """
        ours = self.model.model.layers
        with _states(ours) as left:
            first()
        with _states(self._stock.model.get_decoder().layers if stock else ours) as right:
            second()
        for index, (a, b) in enumerate(zip(left, right)):
            if not difference(a, b) <= room:
                if index == 0:
                    return "before layer 0: vision tower, projector or embeddings"
                return f"in layer {index - 1} of {len(ours)}"
        return "behind the layers: norm or output head"

    @property
    def _stock(self) -> Stock:
        assert self.stock is not None, "loaded before it is asked"
        return self.stock

    def _stock_inputs(self, prompt: Prompt) -> dict[str, Any]:
        images = list(prompt.layout.sizes[0])
        return self._stock.inputs(prompt.inputs, prompt.embeds, images)

    def _prompt(self, inputs: dict[str, Any]) -> Prompt:
        embedded = self.model.embed_prompt(
            inputs["inputs"], None, inputs["images"], inputs["image_sizes"]
        )
        return Prompt(inputs, embedded.embeds, embedded.layout)


def difference(actual: Tensor, expected: Tensor) -> float:
    """Of vectors (..., d): the largest Euclidean distance, relative to the length of the expected
    one; infinite for another shape or what is no number."""
    if actual.shape != expected.shape:
        return torch.inf
    actual, expected = actual.float(), expected.to(actual.device).float()
    if not (actual.isfinite().all() and expected.isfinite().all()):
        return torch.inf
    length = expected.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((actual - expected).norm(dim=-1) / length).max())


def _greedy(new: int) -> dict[str, Any]:
    return {
        "max_new_tokens": new,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }


@contextmanager
def _states(layers: Any) -> Iterator[list[Tensor]]:
    """The last token's states, in the first sample, before each layer and after the last, of the
    first call inside."""
    states: list[Tensor] = []
    last = len(layers) - 1

    def entering(_: Any, args: tuple[Any, ...]) -> None:
        if len(states) <= last:
            states.append(args[0][0, -1].float().cpu())

    def leaving(_: Any, __: Any, output: Any) -> None:
        if len(states) == last + 1:
            states.append(
                (output if isinstance(output, Tensor) else output[0])[0, -1].float().cpu()
            )

    hooks = [layer.register_forward_pre_hook(entering) for layer in layers]
    hooks.append(layers[last].register_forward_hook(leaving))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
