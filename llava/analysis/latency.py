"""How much faster pruning makes the prefill: measured, beside what its FLOPs would allow.

    python -m llava.analysis.latency --threads 2 --x0 7 --repeats 9 --visual-tokens 576 2880

Dense and pruned prefills of the same random decoder take turns in one process, so that a slow
moment of the machine hits both: the speed-up is the median over the turns of dense / pruned within
a turn. Dense is transformers' own LlamaModel on the same weights. "FLOPs allow" is the ratio of
prefill FLOPs by the published counting: tokens entering a layer, scoring and merging not counted.
"Share" is the speed-up divided by it. "Operators" do work for a device (views left out), each a
launch on a GPU; "waits" are where a GPU would stop for the host (see llava.analysis.launches). The
command above measures the CPU table of docs/results.md.

--tiny shrinks the layers to width 64 on one thread: what is left is overhead, as on a fast GPU at
batch 1, and "pruned / dense" says what of it pruning saves. --device cuda adds the time to first
token, eager and compiled, with launches from the profiler and peak memory; --first-token does so on
any device. --gpu-report OUT.md measures that for all shapes, prompts, batch sizes and attention
backends, or for those that are given, in under ten minutes on one GPU, and writes Markdown.

Attention over random text is nearly uniform, so the schedules are those of a sample with little
mutual information; timing does not depend on which tokens stay. Prefills are those of generation:
a pruned one runs its last layer for the last token alone. Image encoding is not timed. A method
that reduces the tokens in or behind the vision tower therefore enters with what is left of them, T
tokens at a fixed budget, and what it spends there is not in the times; a small random tower stands
in for CLIP's, and --visual-tokens must be a square. A method without a budget is measured once. The
last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version

from .. import pruning
from ..common import flags, program
from ..eval.run.arguments import add_depth_argument
from ..eval.run.depths import pruner_in_decoder
from ..eval.run.environment import device_name, peak_memory_bytes
from ..model.builder import DTYPES, default_device
from ..model.language_model.backends import BACKENDS
from ..pruning.arguments import add_pruning_arguments
from . import first_token, gpu_report, speedup
from .prefills import SHAPES, Setup

TINY_WIDTH, TINY_HEADS = 64, 2


def setup_from(args: argparse.Namespace, shape: str) -> Setup:
    """The decoder that the parsed flags describe, in the given shape."""
    hidden, intermediate, layers, heads = SHAPES[shape]
    if args.tiny:
        hidden, intermediate, heads = TINY_WIDTH, TINY_WIDTH, TINY_HEADS
    return Setup(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        device=torch.device(args.device),
        dtype=DTYPES[args.dtype],
        prefix_tokens=args.prefix_tokens,
        text_tokens=args.text_tokens,
        seed=args.seed,
    )


def targets_of(
    args: argparse.Namespace, pruner: pruning.Pruner, visual_tokens: int
) -> tuple[float | None, ...]:
    """The budgets to measure; one None for a method that takes none."""
    if not pruner.takes_budget():
        return (None,)
    return tuple(args.target_token_nums or first_token.budgets(visual_tokens))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags, with what depends on other flags filled in."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.latency"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape",
        choices=sorted(SHAPES),
        help="default: cpu-1k; with --tiny llava-1.5-7b, of which it has the 32 layers",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="layers of width 64, one thread: overhead alone"
    )
    parser.add_argument(
        "--target-token-nums",
        type=flags.number(),
        nargs="+",
        help="default: 192 128 64 of 576 visual tokens, 640 320 160 of 2880, else as of 576",
    )
    parser.add_argument("--batch-sizes", type=flags.whole(1, 4096), nargs="+", help="default: 1")
    parser.add_argument(
        "--visual-tokens", type=flags.whole(1, 100_000), nargs="+", help="default: 576"
    )
    parser.add_argument(
        "--prefix-tokens", type=flags.whole(0, 100_000), default=0, help="text before the image"
    )
    parser.add_argument(
        "--text-tokens", type=flags.whole(1, 100_000), default=60, help="text after the image"
    )
    parser.add_argument("--device", default=default_device())
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="default: float32; of --gpu-report float16"
    )
    parser.add_argument("--attn-implementation", choices=BACKENDS, help="default: sdpa")
    parser.add_argument(
        "--threads",
        type=flags.whole(1, 4096),
        help="CPU threads; default: torch's own, with --tiny 1",
    )
    parser.add_argument("--warmup", type=flags.whole(0), default=1)
    parser.add_argument("--repeats", type=flags.whole(1), default=5)
    parser.add_argument("--seed", type=flags.whole(0), default=0)
    report = parser.add_argument_group("time to first token")
    report.add_argument(
        "--first-token",
        action="store_true",
        help="measure it, too, eager and compiled, at batch sizes 1, 8, 32; always on CUDA",
    )
    report.add_argument(
        "--gpu-report", metavar="OUT.md", help="measure nothing else, and all of it"
    )
    report.add_argument(
        "--time-budget",
        type=flags.number(0),
        default=gpu_report.SECONDS,
        metavar="SECONDS",
        help="of --gpu-report, %(default)g: turns are dropped before rows",
    )
    add_pruning_arguments(parser)
    add_depth_argument(parser)
    args = parser.parse_args(argv)
    if args.tiny and args.gpu_report:
        parser.error("--gpu-report takes no --tiny")
    args.dtype = args.dtype or ("float16" if args.gpu_report else "float32")
    args.threads = args.threads or (1 if args.tiny else None)
    return args


def cells(
    args: argparse.Namespace, shape: str, pruner: pruning.Pruner, attentions: Sequence[str]
) -> list[first_token.Cell]:
    """What to measure of the time to first token of a shape: what the flags name, else all."""
    return first_token.plan(
        shape,
        [args.attn_implementation] if args.attn_implementation else attentions,
        args.visual_tokens or first_token.prompts(shape),
        args.batch_sizes or first_token.BATCH_SIZES,
        partial(targets_of, args, pruner),
    )


def report(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """`--gpu-report`: of all shapes, or of the one that is given."""
    if not args.shape and torch.device(args.device).type != "cuda":
        raise ValueError("--gpu-report needs a CUDA device; --shape tiny tries it on the CPU")
    shapes = [args.shape] if args.shape else ["llava-1.5-7b", "llava-1.5-13b"]
    pruners = {shape: pruner_in_decoder(args, SHAPES[shape][2]) for shape in shapes}
    plan = [
        cell
        for shape, pruner in pruners.items()
        for cell in cells(args, shape, pruner, gpu_report.ATTENTIONS)
    ]
    out = Path(args.gpu_report)
    # As one would type it; where it was is of no use to a reader.
    words = [word.replace(args.gpu_report, out.name) for word in argv]
    measured = gpu_report.write(
        out,
        shlex.join(["autoprune", "bench", *words]),
        pruning.label(args.method),
        lambda save: first_token.measure(
            plan,
            {shape: setup_from(args, shape) for shape in shapes},
            pruners,
            args.repeats,
            args.time_budget,
            save,
        ),
        torch.device(args.device),
        args.dtype,
    )
    print(gpu_report.tables(measured))
    return {"rows": measured.rows, "notes": measured.notes}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """The table of prefills, and of times to first token where they are wanted."""
    args.shape = args.shape or ("llava-1.5-7b" if args.tiny else "cpu-1k")
    pruner = pruner_in_decoder(args, SHAPES[args.shape][2])
    attention = args.attn_implementation or "sdpa"
    args.visual_tokens = args.visual_tokens or [576]
    rows = speedup.measure(
        setup_from(args, args.shape),
        attention,
        pruner,
        {n: targets_of(args, pruner, n) for n in args.visual_tokens},
        args.batch_sizes or [1],
        args.warmup,
        args.repeats,
    )
    print(speedup.table(rows))
    result = {"shape": args.shape, "tiny": args.tiny, "attn_implementation": attention}
    result["rows"] = rows
    if args.first_token or torch.device(args.device).type == "cuda":
        measured = first_token.measure(
            cells(args, args.shape, pruner, ["sdpa"]),
            {args.shape: setup_from(args, args.shape)},
            {args.shape: pruner},
            args.repeats,
        )
        print(f"\n{gpu_report.LEGEND}\n\n{gpu_report.tables(measured)}")
        result["first_token"] = {"rows": measured.rows, "notes": measured.notes}
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    try:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"no CUDA device is here for --device {args.device}")
        if args.gpu_report:
            result = report(args, sys.argv[1:] if argv is None else argv)
        else:
            result = compare(args)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {args.gpu_report}: {error.strerror}", file=sys.stderr)
        return 2
    surroundings = {
        "device": device_name(device),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "text_tokens": args.prefix_tokens + args.text_tokens,
        "torch": torch.__version__,
        "transformers": transformers_version,
        # On CUDA the rows have it, each of its own run.
        "peak_memory_bytes": None if device.type == "cuda" else peak_memory_bytes(device),
    }
    print(json.dumps({**surroundings, **result}))
    return 0


if __name__ == "__main__":
    program.run(main)
