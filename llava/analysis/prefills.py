"""Prefills of a random decoder, dense and pruned, and their times in turns.

Dense is transformers' own LlamaModel on the same weights. Attention over random text is nearly
uniform, so the schedules are those of a sample with little mutual information; timing does not
depend on which tokens stay. The vision tower is not timed: a method that reduces tokens in or
behind it enters with what is left of them, and a small random tower stands in for CLIP's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaModel

from .. import pruning
from ..eval.run.environment import synchronize
from ..model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, LlavaLlamaModel
from ..pruning.cache import PrunedCache
from ..pruning.cost import Cost, DecoderShape, measure
from ..pruning.layout import Segment, TokenLayout
from ..pruning.trace import PruneTrace

#: hidden, intermediate, layers, heads
SHAPES = {
    "tiny": (64, 128, 4, 4),
    "cpu-1k": (1024, 2752, 16, 16),
    "llava-1.5-7b": (4096, 11008, 32, 32),
    "llava-1.5-13b": (5120, 13824, 40, 40),
}
VOCABULARY = 32_000  # rows of the output head


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A decoder's sizes, where and how it runs, and the text around the image."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    device: torch.device
    dtype: torch.dtype
    prefix_tokens: int = 0
    text_tokens: int = 60
    seed: int = 0


@dataclass
class Decoders:
    """Our decoder, transformers' own with the same layers and norm, and an output head."""

    ours: LlavaLlamaModel
    stock: LlamaModel
    head: nn.Linear
    shape: DecoderShape
    compiled: bool = False

    def set_attention(self, name: str) -> None:
        """Let both use another attention backend; ImportError or ValueError where it is absent."""
        for model in (self.ours, self.stock):
            model.set_attn_implementation(name)


def build(setup: Setup) -> Decoders:
    """Random decoders of the setup's shape, with SDPA."""
    config = LlavaConfig(
        vocab_size=64,  # prompts are embeddings
        hidden_size=setup.hidden,
        intermediate_size=setup.intermediate,
        num_hidden_layers=setup.layers,
        num_attention_heads=setup.heads,
        max_position_embeddings=8192,
    )
    config._attn_implementation = "sdpa"
    bare = copy.deepcopy(config)
    bare.num_hidden_layers = 0
    torch.manual_seed(setup.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(setup.dtype)
    try:
        with torch.device(setup.device):
            ours = LlavaLlamaModel(config).eval()
            stock = LlamaModel(bare).eval()
            head = nn.Linear(setup.hidden, VOCABULARY, bias=False)
    finally:
        torch.set_default_dtype(before)
    stock.config.num_hidden_layers = setup.layers
    shape = DecoderShape.from_config(config, kv_dtype_bytes=setup.dtype.itemsize)
    # Lent: a 7B shape would not fit twice.
    stock.layers, stock.norm = ours.layers, ours.norm
    return Decoders(ours, stock, head, shape)


def make_input(
    setup: Setup, visual_tokens: int, batch: int, pruner: pruning.Pruner | None = None
) -> tuple[Tensor, TokenLayout]:
    """Random embeddings (batch, n, hidden) and their layout: prefix, one image, text.

    The image has the tokens that the vision tower hands over for `pruner`; None: all of them.

    Raises ValueError when a method that acts in the tower meets patches that are no square.
    """
    generator = torch.Generator().manual_seed(setup.seed)
    n = visual_tokens
    if pruner is not None and acts_in_tower(pruner):
        images = _reduced_images(setup.seed, n, batch, pruner)
    else:
        images = [
            Segment(n, 0, torch.arange(n), torch.rand(n, generator=generator) / n)
            for _ in range(batch)
        ]
    samples = [
        [Segment(setup.prefix_tokens), image, Segment(setup.text_tokens)] for image in images
    ]
    layout = TokenLayout.from_segments(samples, setup.device)
    # Drawn where they are used: a large batch takes the host seconds.
    generator = torch.Generator(setup.device).manual_seed(setup.seed)
    size = (batch, layout.n, setup.hidden)
    embeds = torch.randn(size, generator=generator, device=setup.device, dtype=setup.dtype)
    return embeds, layout


def with_target(pruner: pruning.Pruner, target: float | None) -> pruning.Pruner:
    """The pruner at a budget of `target` tokens, as it is where it takes none."""
    return pruner if target is None else replace(pruner, target_token_num=target)


def acts_in_tower(pruner: pruning.Pruner) -> bool:
    """Whether the method hands the decoder something else than all patches."""
    return any(
        getattr(type(pruner), name) is not getattr(pruning.Pruner, name)
        for name in ("reduce", "tower_runs")
    )


def _reduced_images(
    seed: int, visual_tokens: int, batch: int, pruner: pruning.Pruner
) -> list[Segment]:
    """What `pruner` leaves of random images in a narrow tower of CLIP's depth."""
    side = isqrt(visual_tokens)
    if side * side != visual_tokens:
        raise ValueError(
            f"method {pruner.method} acts in the vision tower, whose patches are a square: "
            f"--visual-tokens must be a square number, got {visual_tokens}"
        )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=24,
        num_attention_heads=4,
        image_size=side * 2,
        patch_size=2,
    )
    config = LlavaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=0,
        num_attention_heads=1,
        mm_hidden_size=64,
        mm_vision_config=vision.to_dict(),
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = LlavaLlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, side * 2, side * 2, generator=generator)
    return [image.segment(0) for image in model.encode_images(pixels, pruner=pruner)]


@dataclass
class PrefillRun:
    """A prefill that can be called, as `generate` runs it; dense without a pruner.

    trace: of the last call, if it was pruned
    """

    decoders: Decoders
    embeds: Tensor
    layout: TokenLayout
    pruner: pruning.Pruner | None = None
    trace: PruneTrace | None = field(default=None, init=False)

    def __call__(self) -> Tensor:
        """What the last layer returned, normed: the dense decoder's states (batch, n, hidden) of
        all tokens, a pruned one's of the last alone (batch, 1, hidden)."""
        if self.pruner is None:
            outputs = self.decoders.stock(inputs_embeds=self.embeds, use_cache=True)
            return outputs.last_hidden_state
        cache = PrunedCache(self.pruner, self.layout)
        outputs = self.decoders.ours(
            inputs_embeds=self.embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        self.trace = cache.trace
        return outputs.last_hidden_state

    def first_token(self) -> list[int]:
        """The first token of each sample, read back: prefill, norm, and the last token's logits."""
        return self.decoders.head(self()[:, -1]).argmax(-1).tolist()

    def cost(self) -> Cost:
        """What the last call cost its first sample. ValueError before a pruned call."""
        if self.trace is None:
            raise ValueError("the cost of a prefill is known when it has run with a pruner")
        return measure(self.trace.samples[0], self.decoders.shape)


class Timing(NamedTuple):
    """Seconds of one call; on CUDA the peak bytes it needed beyond what was there, else None."""

    seconds: float
    peak: int | None


def timed(run: Callable[[], object], device: torch.device) -> Timing:
    """Time one call, and on CUDA measure the memory of that device."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    seconds = time.perf_counter() - start
    return Timing(seconds, torch.cuda.max_memory_allocated(device) - before if cuda else None)


def take_turns(
    runs: Mapping[Hashable, Callable[[], object]],
    device: torch.device,
    turns: int,
    until: float = inf,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Hashable, list[Timing]]:
    """Time the runs one after the other, `turns` times, so that a slow moment hits all of them.

    until: no turn but the first begins when the `clock` is past it
    """
    timings: dict[Hashable, list[Timing]] = {name: [] for name in runs}
    for turn in range(turns):
        if turn and clock() > until:
            break
        for name, run in runs.items():
            timings[name].append(timed(run, device))
    return timings
