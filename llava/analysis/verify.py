"""Is this package right about a checkpoint of yours, on your device?

    autoprune verify --model-path models/llava-v1.5-7b --json report.json

Three pictures are drawn and asked about. Unpruned, all logits and 20 tokens have to be those of
transformers' own model with the same weights, read again where there is room. Pruned, they have to
be those of a run of full length in which the dropped tokens are masked. A batch has to answer as
its samples alone, and each attention kernel as the one in use. Each line says how large the
difference is, what would be normal in this number format, and where it first shows if it is too
large. Times are those to the first and to the 20th token. AutoPrune keeps a ninth of the visual
tokens and merges none, unless told otherwise.

A model that transformers loads by itself (Qwen2.5-VL, InternVL, ..., see `llava.hf`) is compared
with itself: with hooks that drop nothing, and pruned.

Ends after --time-budget seconds; what did not fit is skipped, and it says so. The status is 0 if
all is right, 1 if something is wrong, 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llava.common import flags, program
from llava.eval.compare.runs import BUDGETS
from llava.eval.run.arguments import add_checkpoint_arguments, add_depth_argument
from llava.eval.run.depths import pruner_in_decoder
from llava.eval.run.environment import environment
from llava.eval.run.models import load_model
from llava.model.reading import resolve
from llava.pruning.arguments import add_pruning_arguments
from llava.pruning.base import Pruner
from llava.pruning.checks import BudgetError

from . import stock
from .checks import OK, SKIPPED, WRONG, Checks, Verdict
from .stock_answers import is_stock_folder
from .stock_subject import StockSubject
from .subject import TOKENS, Subject

SECONDS = 120.0
FRACTIONS = (1 / 9, 1 / 4, 1 / 2)  # 64 of 576 tokens; small models need more


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.verify"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="a report for bug reports")
    parser.add_argument(
        "--share-weights",
        action="store_true",
        help="do not read the weights a second time for transformers' model",
    )
    parser.add_argument(
        "--time-budget",
        type=flags.number(0),
        default=SECONDS,
        metavar="SECONDS",
        help="after loading; what does not fit is skipped; default: %(default)g",
    )
    add_checkpoint_arguments(parser)
    add_pruning_arguments(parser)
    add_depth_argument(parser)
    return parser


def pruner_of(args: argparse.Namespace, subject: Subject) -> Pruner:
    """The method of the flags; unless they say so, a ninth of the tokens, or what more a small
    model needs, and none merged.

    Raises ValueError for a budget or a method that the model does not take.
    """
    if args.method == "autoprune" and not any("recycle_ratio" in item for item in args.set):
        args.set = [*args.set, "recycle_ratio=0"]
    chosen = any(getattr(args, name) is not None for name in BUDGETS)
    for fraction in (None,) if chosen else FRACTIONS:
        args.target_fraction = fraction or args.target_fraction
        pruner = pruner_in_decoder(args, subject.text_config.num_hidden_layers)
        if hasattr(pruner, "positions") and pruner.positions not in subject.policies:
            pruner = replace(pruner, positions=subject.policies[0])
        try:
            subject.reply(subject.prompts, pruner, 1)
        except BudgetError as error:
            refusal = error
        else:
            return pruner
    raise refusal


def line(verdict: Verdict) -> str:
    """A verdict in words."""
    size = "" if verdict.difference is None else f"{verdict.difference:.2g}"
    normal = f"at most {verdict.normal}" if verdict.normal not in ("", "0") else ""
    return f"{verdict.verdict:8}{verdict.name:40}{size:>9}  {normal:15}{verdict.said}".rstrip()


def load(args: argparse.Namespace) -> tuple[Subject, Pruner]:
    """The checkpoint under test, and the method.

    Raises what loading raises, and ValueError for settings that do not fit.
    """
    if is_stock_folder(args.model_path, args.offline):
        folder = resolve(args.model_path, offline=args.offline)
        subject: Subject = StockSubject.load(args, folder)
        return subject, pruner_of(args, subject)
    begin = time.monotonic()
    tokenizer, model, processor = load_model(args)
    slow = 3 * (time.monotonic() - begin) > args.time_budget
    subject = Subject(tokenizer, model, processor, args.conv_mode)
    pruner = pruner_of(args, subject)
    subject.stock = stock.load(
        model,
        args.model_path,
        subject.image_token,
        share=args.share_weights or slow,
        vision_tower=args.vision_tower,
        model_base=args.model_base,
        offline=args.offline,
    )
    return subject, pruner


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Load, compare and print; the report as it goes into the JSON."""
    with torch.inference_mode():
        subject, pruner = load(args)
        until = time.monotonic() + args.time_budget
        place = environment(subject.model.device)
        about = describe(args, subject)
        counts = " / ".join(map(str, about["visual_tokens"]))
        print(
            f"{args.model_path}: {about['layers']} layers of {about['hidden']}, "
            f"{counts} visual tokens, {about['dtype']}, {about['attention']}, on "
            f"{place['device_name']} ({place['device']}); against {about['stock']} of transformers "
            f"{place['transformers']}",
            flush=True,
        )
        checks, verdicts = Checks(subject, pruner, until), []
        for verdict in checks.run():
            print(line(verdict), flush=True)
            verdicts.append(verdict)
        times = checks.times
    for who, seconds in times.items():
        first, all_of_them = seconds["first"] * 1e3, seconds["all"] * 1e3
        print(f"{who:12} {first:8.1f} ms to the first token, {all_of_them:8.1f} ms to {TOKENS}")
    if subject.model.dtype != torch.float32:
        print(f"{about['dtype']} rounds: an error below {checks.room} shows with --dtype float32")
    if checks.answers:
        print("answers:", " | ".join(map(json.dumps, checks.answers)))
    return {
        "model": about,
        "pruner": pruner.to_dict(),
        "environment": place,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "seconds": times,
        "answers": checks.answers,
    }


def describe(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """What was verified; of paths only the one that names the model."""
    config, loaded = subject.text_config, subject.stock
    assert loaded is not None
    return {
        "model_path": args.model_path,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "key_heads": config.num_key_value_heads,
        "vocabulary": config.vocab_size,
        "visual_tokens": [prompt.layout.n_visual[0] for prompt in subject.prompts],
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "attention": config._attn_implementation,
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
        "merge_type": getattr(config, "mm_patch_merge_type", None),
        "processing": args.processing,
        "load_4bit": args.load_4bit,
        "load_8bit": args.load_8bit,
        "compile": args.compile,
        "devices": sorted({str(p.device) for p in subject.model.parameters()}),
        "stock": type(loaded.model).__name__,
        "stock_lacks": loaded.lacks,
        "weights_read_by": loaded.reader or "shared",
    }


def conclusion(verdicts: Sequence[Verdict]) -> tuple[int, str]:
    """The status, and the last line."""
    count = {kind: sum(v.verdict == kind for v in verdicts) for kind in (OK, WRONG, SKIPPED)}
    skipped = f", {count[SKIPPED]} skipped" if count[SKIPPED] else ""
    if count[WRONG]:
        names = "; ".join(v.name for v in verdicts if v.verdict == WRONG)
        return 1, f"WRONG: {names}{skipped}"
    if not count[OK]:
        return 2, "error: nothing could be compared; a larger --time-budget may help"
    return 0, f"all right: {count[OK]} check{'s' if count[OK] > 1 else ''}{skipped}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see the module for the status."""
    args = build_parser().parse_args(argv)
    try:
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        report = verify(args)
        status, said = conclusion([Verdict(**values) for values in report["verdicts"]])
        report = {"status": status, "conclusion": said, **report}
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(said, flush=True, file=sys.stderr if status == 2 else sys.stdout)
    return status


if __name__ == "__main__":
    program.run(main)
