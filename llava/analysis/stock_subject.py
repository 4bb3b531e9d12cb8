"""A stock model under `verify`: the same model with the hooks of `llava.hf`, and without them.

What is pruned is compared with the stock model at full length, in each layer of which dropped
tokens are masked. Positions are those of the unpruned sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import hf
from ..common.images import to_rgb
from ..hf.families import family_of
from ..hf.prompts import layout_of
from ..model.builder import DTYPES, default_device
from ..pruning.base import Pruner
from .oracle import seen_by_layer
from .stock import Stock
from .subject import TOKENS, Prompt, Reply, Subject, greedy, pictures

#: Inputs for the prompts with these numbers, as one left-padded batch.
Inputs = Callable[[Sequence[int]], Mapping[str, Any]]


def load_stock(args: Any, folder: Any) -> tuple[Any, Any]:
    """Model and processor of a folder that transformers' Auto classes load.

    args: of a command line, see `add_checkpoint_arguments`.

    Raises ValueError for settings that only this package's own LLaVA has.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    without = ("model_base", "vision_tower", "merge_type", "load_4bit", "load_8bit", "compile")
    if named := [name for name in without if getattr(args, name, None)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in named)
        raise ValueError(f"{flags}: not for a model that transformers loads by itself")
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=DTYPES.get(args.dtype, "auto"),
        attn_implementation=args.attn_implementation,
    )
    model.eval().to(args.device or default_device())
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return model, processor


class StockSubject(Subject):
    """A model that `llava.hf` knows.

    inputs: of prompts by number, 0 .. `count` - 1; decode: token ids to text
    """

    two_models = False
    policies = ("original",)

    def __init__(self, model: Any, inputs: Inputs, decode: Callable[..., str], count: int) -> None:
        self.model, self._inputs, self._decode = model, inputs, decode
        self.stock = Stock(model, "", "")
        ends = model.generation_config.eos_token_id
        self.ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        model.generation_config.eos_token_id = None
        self.prompts = [self._numbered(number) for number in range(count)]

    @classmethod
    def load(cls, args: Any, folder: Any) -> StockSubject:
        """From a folder; takes and raises what `load_stock` does."""
        model, processor = load_stock(args, folder)
        drawn = pictures()
        texts = [prompt_text(processor, question) for _, question in drawn]

        def inputs(numbers: Sequence[int]) -> Mapping[str, Any]:
            shown = [[drawn[i][0]] for i in numbers]
            return prepared([texts[i] for i in numbers], shown, processor, model)

        return cls(model, inputs, processor.tokenizer.decode, len(drawn))

    @property
    def text_config(self) -> Any:
        return self.model.get_decoder().config

    def decode(self, tokens: Sequence[int]) -> str:
        return self._decode(tokens, skip_special_tokens=True)

    def logits(self, prompt: Prompt) -> Tensor:
        with hf.pruning(self.model, "none"):
            return self.model(**prompt.inputs).logits[0]

    def stock_logits(self, prompt: Prompt) -> Tensor:
        return self.model(**prompt.inputs).logits[0]

    def reply(self, prompts: Sequence[Prompt], pruner: Pruner | None, new: int = TOKENS) -> Reply:
        wanted = {id(prompt) for prompt in prompts}
        inputs = self._inputs([i for i, p in enumerate(self.prompts) if id(p) in wanted])
        cache = hf.cache(self.model, "none" if pruner is None else pruner)
        output = self.model.generate(**inputs, past_key_values=cache, **greedy(new))
        return Reply(output.sequences[:, -new:], torch.stack(output.logits, 1), cache)

    def stock_reply(self, prompt: Prompt, new: int = TOKENS) -> Reply:
        output = self.model.generate(**prompt.inputs, **greedy(new))
        return Reply(output.sequences[:, -new:], torch.stack(output.logits, 1), None)

    def masked_logits(self, prompt: Prompt, reply: Reply, row: int, steps: int = TOKENS) -> Tensor:
        tokens, n = reply.tokens[row : row + 1, : steps - 1], prompt.layout.n
        new = set(range(n, n + tokens.shape[1]))
        seen = [alive | new for alive in seen_by_layer(reply.cache.trace, row, prompt.layout)]
        inputs = _longer(prompt.inputs, tokens, self.model.config.model_type == "paligemma")
        used = self.text_config._attn_implementation
        if "flash" in used:  # it takes no such mask
            self.set_attention("sdpa")
        try:
            with _masked(self.layers, seen, n + tokens.shape[1]):
                return self.model(**inputs, use_cache=False).logits[:, n - 1 :]
        finally:
            if "flash" in used:
                self.set_attention(used)

    def set_attention(self, name: str) -> None:
        self.model.set_attn_implementation(name)

    @property
    def layers(self) -> Any:
        return self.model.get_decoder().layers

    def _numbered(self, number: int) -> Prompt:
        inputs = dict(self._inputs([number]))
        family, ids = family_of(self.model), inputs["input_ids"]
        layout = layout_of(self.model.config, family.pictures, ids, None, inputs)
        return Prompt(inputs, torch.empty(0), layout)


def prompt_text(processor: Any, question: str) -> str:
    """A prompt with one picture, by the model's own template where it has one."""
    if getattr(processor, "chat_template", None) is None:
        return f"{getattr(processor, 'image_token', '')}{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text


def prepared(
    prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], processor: Any, model: Any
) -> dict[str, Tensor]:
    """What `model.generate` takes for prompts with the marks of the pictures of each."""
    # A template may write the token of the beginning, which a tokenizer would add once more.
    bos = processor.tokenizer.bos_token
    written = bos and all(prompt.startswith(bos) for prompt in prompts)
    batch = processor(
        text=list(prompts),
        images=[[to_rgb(picture) for picture in of_prompt] for of_prompt in images],
        padding=len(prompts) > 1,
        return_tensors="pt",
        **({"add_special_tokens": False} if written else {}),
    )
    return {
        k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype)
        for k, v in batch.items()
        if isinstance(v, Tensor) and k != "labels"
    }


def _longer(inputs: Mapping[str, Any], tokens: Tensor, causal_types: bool) -> dict[str, Any]:
    """The prompt (1, n) with `tokens` (1, new) behind it. PaliGemma's types say what is causal."""
    ids = inputs["input_ids"]
    new = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": torch.zeros_like(tokens),
        "token_type_ids": torch.full_like(tokens, int(causal_types)),
    }
    more = {k: torch.cat([v.to(ids.device), new[k]], 1) for k, v in inputs.items() if k in new}
    return {**inputs, **more}


@contextmanager
def _masked(layers: Any, seen: Sequence[set[int]], n: int) -> Iterator[None]:
    """In layer l no token but itself sees one of the `n` columns that `seen[l]` lacks."""
    handles = []
    for layer, alive in zip(layers, seen):

        def hook(module: Any, args: Any, kwargs: dict[str, Any], alive: set[int] = alive) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask, device = kwargs["attention_mask"], hidden.device
            itself = torch.eye(n, dtype=torch.bool, device=device)
            if mask is None:
                mask = torch.ones(n, n, dtype=torch.bool, device=device)[None, None]
                mask = mask.tril() if module.self_attn.is_causal else mask
            visible = torch.tensor([i in alive for i in range(n)], device=device) | itself
            hidden_value = torch.finfo(mask.dtype).min if mask.is_floating_point() else False
            return args, {**kwargs, "attention_mask": mask.masked_fill(~visible, hidden_value)}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
