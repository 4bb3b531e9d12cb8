"""How much faster pruning makes the prefill: measured, beside what its FLOPs would allow.

    python -m llava.analysis.latency --target-token-nums 192 128 64

Dense and pruned prefills of the same random decoder take turns in one process, so that a slow
moment of the machine hits both: the speed-up is the median over the turns of dense / pruned within
a turn. Dense is transformers' own LlamaModel on the same weights. "Share" is the speed-up divided
by the ratio of prefill FLOPs, scoring and merging not counted in its favour.

Attention over random text is nearly uniform, so the schedules are those of a sample with little
mutual information; timing does not depend on which tokens stay. Prefill of the decoder only: image
encoding is not timed. A method that reduces the tokens in or behind the vision tower therefore
enters with what is left of them, T tokens at a fixed budget, and what it spends there is not in the
times; a small random tower stands in for CLIP's, and --visual-tokens must be a square. A method
without a budget is measured once. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaModel
from transformers import __version__ as transformers_version

from .. import pruning
from ..common import flags, program
from ..eval.run.arguments import add_depth_argument
from ..eval.run.depths import pruner_in_decoder
from ..eval.run.environment import device_name, peak_memory_bytes, synchronize
from ..model.builder import DTYPES, default_device
from ..model.language_model.attention import BACKENDS
from ..model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, LlavaLlamaModel
from ..pruning.arguments import add_pruning_arguments
from ..pruning.cache import PrunedCache
from ..pruning.cost import DecoderShape, measure
from ..pruning.layout import Segment, TokenLayout

#: hidden, intermediate, layers, heads
SHAPES = {
    "tiny": (64, 128, 4, 4),
    "cpu-1k": (1024, 2752, 16, 16),
    "llava-1.5-7b": (4096, 11008, 32, 32),
    "llava-1.5-13b": (5120, 13824, 40, 40),
}


def build_models(args: argparse.Namespace) -> tuple[LlavaLlamaModel, LlamaModel]:
    """A random decoder of the shape, and transformers' own on the same weights."""
    hidden, intermediate, layers, heads = SHAPES[args.shape]
    config = LlavaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=8192,
    )
    config._attn_implementation = args.attn_implementation
    torch.manual_seed(args.seed)
    torch.set_default_dtype(DTYPES[args.dtype])
    with torch.device(args.device):
        ours = LlavaLlamaModel(config).eval()
        bare = copy.deepcopy(config)
        bare.num_hidden_layers = 0
        stock = LlamaModel(bare).eval()
    torch.set_default_dtype(torch.float32)
    # Lent the layers of the other model: a 7B shape would not fit twice.
    stock.layers, stock.norm = ours.layers, ours.norm
    stock.config.num_hidden_layers = layers
    return ours, stock


def make_input(
    args: argparse.Namespace, batch: int, hidden: int, pruner: pruning.Pruner | None = None
) -> tuple[Tensor, TokenLayout]:
    """Random embeddings (batch, n, hidden) and their layout: prefix, one image, text.

    The image has the tokens that the vision tower hands over for `pruner`; None: all of them.

    Raises ValueError when a method that acts in the tower meets patches that are no square.
    """
    generator = torch.Generator().manual_seed(args.seed)
    n = args.visual_tokens
    if pruner is not None and acts_in_tower(pruner):
        images = reduced_images(args, batch, pruner)
    else:
        images = [
            Segment(n, 0, torch.arange(n), torch.rand(n, generator=generator) / n)
            for _ in range(batch)
        ]
    runs = [[Segment(args.prefix_tokens), image, Segment(args.text_tokens)] for image in images]
    layout = TokenLayout.from_segments(runs, args.device)
    embeds = torch.randn(batch, layout.n, hidden, generator=generator)
    return embeds.to(args.device, DTYPES[args.dtype]), layout


def acts_in_tower(pruner: pruning.Pruner) -> bool:
    """Whether the method hands the decoder something else than all patches."""
    return any(
        getattr(type(pruner), name) is not getattr(pruning.Pruner, name)
        for name in ("reduce", "tower_runs")
    )


def reduced_images(args: argparse.Namespace, batch: int, pruner: pruning.Pruner) -> list[Segment]:
    """What `pruner` leaves of random images in a narrow tower of CLIP's depth."""
    side = isqrt(args.visual_tokens)
    if side * side != args.visual_tokens:
        raise ValueError(
            f"method {pruner.method} acts in the vision tower, whose patches are a square: "
            f"--visual-tokens must be a square number, got {args.visual_tokens}"
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
    torch.manual_seed(args.seed)
    model = LlavaLlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(args.seed)
    pixels = torch.randn(batch, 3, side * 2, side * 2, generator=generator)
    return [image.segment(0) for image in model.encode_images(pixels, pruner=pruner)]


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Seconds of one call and, on CUDA, the peak bytes it needed beyond what was there."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() - before if cuda else None


@torch.inference_mode()
def bench(args: argparse.Namespace, pruner: pruning.Pruner) -> list[dict[str, Any]]:
    """Measure every budget at every batch size; one dict per row of the table.

    A method without a token budget has one row, whose target is None. Raises ValueError for a
    budget that cannot be met.
    """
    targets = args.target_token_nums if pruner.takes_budget() else [None]
    ours, stock = build_models(args)
    shape = DecoderShape.from_config(ours.config, kv_dtype_bytes=DTYPES[args.dtype].itemsize)
    rows = []
    for batch in args.batch_sizes:
        embeds, _ = make_input(args, batch, shape.hidden)
        traces: dict[float | None, Any] = {}

        def dense(embeds=embeds) -> None:
            stock(inputs_embeds=embeds, use_cache=True)

        runs: dict[Any, Callable[[], None]] = {"dense": dense}
        for target in targets:
            chosen = replace(pruner, target_token_num=target) if pruner.takes_budget() else pruner
            pruned, layout = make_input(args, batch, shape.hidden, chosen)

            def prefill(
                target=target, chosen=chosen, embeds=pruned, layout=layout, traces=traces
            ) -> None:
                cache = PrunedCache(chosen, layout)
                ours(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
                traces[target] = cache.trace.samples[0]

            runs[target] = prefill
        seconds: dict[Any, list[float]] = {name: [] for name in runs}
        memory: dict[Any, int | None] = {}
        for turn in range(args.warmup + args.repeats):
            for name, run in runs.items():
                spent, peak = timed(run, torch.device(args.device))
                if turn >= args.warmup:
                    seconds[name].append(spent)
                    memory[name] = peak
        base = statistics.median(seconds["dense"])
        for target in targets:
            cost = measure(traces[target], shape)
            median = statistics.median(seconds[target])
            speedup = statistics.median(
                d / p for d, p in zip(seconds["dense"], seconds[target], strict=True)
            )
            allowed = cost.dense_prefill_flops / cost.prefill_flops
            overhead = cost.scoring_flops + cost.merging_flops
            rows.append(
                {
                    "batch": batch,
                    "target": target,
                    "tokens_entering": round(cost.tokens_entering, 1),
                    "tokens_leaving": round(cost.tokens_leaving, 1),
                    "dense_seconds": round(base, 5),
                    "seconds": round(median, 5),
                    "speedup": round(speedup, 3),
                    "flops_speedup": round(allowed, 3),
                    "share": round(speedup / allowed, 3),
                    "share_counting_scoring": round(
                        speedup * (cost.prefill_flops + overhead) / cost.dense_prefill_flops, 3
                    ),
                    "best_share": round(min(seconds["dense"]) / min(seconds[target]) / allowed, 3),
                    "dense_peak_bytes": memory["dense"],
                    "peak_bytes": memory[target],
                    "dense_spread": round(max(seconds["dense"]) / min(seconds["dense"]), 2),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| batch | target | entering | dense s | pruned s | speed-up | FLOPs allow | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        target = "-" if r["target"] is None else f"{r['target']:g}"
        lines.append(
            f"| {r['batch']} | {target} | {r['tokens_entering']} | {r['dense_seconds']:.4f} "
            f"| {r['seconds']:.4f} | {r['speedup']:.2f} | {r['flops_speedup']:.2f} "
            f"| {100 * r['share']:.0f} % |"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.latency"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="cpu-1k")
    parser.add_argument(
        "--target-token-nums", type=flags.number(), nargs="+", default=[192, 128, 64]
    )
    parser.add_argument("--batch-sizes", type=flags.whole(1, 4096), nargs="+", default=[1])
    parser.add_argument("--visual-tokens", type=flags.whole(1, 100_000), default=576)
    parser.add_argument(
        "--prefix-tokens", type=flags.whole(0, 100_000), default=0, help="text before the image"
    )
    parser.add_argument(
        "--text-tokens", type=flags.whole(1, 100_000), default=60, help="text after the image"
    )
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--attn-implementation", choices=BACKENDS, default="sdpa")
    parser.add_argument(
        "--threads", type=flags.whole(1, 4096), help="CPU threads; default: torch's own"
    )
    parser.add_argument("--warmup", type=flags.whole(0), default=1)
    parser.add_argument("--repeats", type=flags.whole(1), default=5)
    parser.add_argument("--seed", type=flags.whole(0), default=0)
    add_pruning_arguments(parser)
    add_depth_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pruner = pruner_in_decoder(args, SHAPES[args.shape][2])
        rows = bench(args, pruner)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    result = {
        "shape": args.shape,
        "device": device_name(torch.device(args.device)),
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
        "threads": torch.get_num_threads(),
        "visual_tokens": args.visual_tokens,
        "text_tokens": args.prefix_tokens + args.text_tokens,
        "torch": torch.__version__,
        "transformers": transformers_version,
        "peak_memory_bytes": peak_memory_bytes(torch.device(args.device)),
        "rows": rows,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    program.run(main)
