"""Does a converted checkpoint answer in stock transformers as the original does here?

    python -m llava.analysis.converted --data playground/data/mini --questions 200 \
        --method none autoprune:64@preselect_ratio=none fastv:64

The checkpoint is converted to llava-hf and read by transformers alone: AutoProcessor makes the
inputs of each question, AutoModelForImageTextToText answers under `hf.pruning`. What is compared
with is this package's own model under `Answerer`, which all programs answer with. Questions are
spread over the benchmarks in --data. A line for each method says how many answers are the same,
how many first logits are so to the last bit, and how large the difference is; then come the
answers that differ. The status is 0 if all answers are the same, 1 if not, 2 on wrong input.

Methods that look at the tower's CLS attention are refused on stock models, or choose otherwise: see
`llava.hf`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava import hf
from llava.common import flags, program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.run.answering import Answerer
from llava.eval.run.loading import LoadedQuestion, QuestionImages
from llava.eval.run.models import load_model
from llava.eval.run.settings import RunSettings
from llava.eval.run.subset import spread, take
from llava.model.checkpoint import convert

from . import asking

METHODS = ["none", "autoprune:64@preselect_ratio=none", "fastv:64"]


@dataclass(frozen=True)
class Item:
    """A question as this package's programs get it, and as chat messages for stock ones."""

    benchmark: str
    loaded: LoadedQuestion
    messages: list[dict[str, Any]]


@dataclass
class Comparison:
    """Of one method over all questions; `difference` is the largest of any first logit."""

    questions: int = 0
    same_answers: int = 0
    bitwise: int = 0
    difference: float = 0.0
    differing: list[str] = field(default_factory=list)


class Stock:
    """A llava-hf folder as transformers reads it, beside a model of this package."""

    def __init__(self, folder: Path, ours: Any) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=ours.dtype, attn_implementation=ours.config._attn_implementation
        )
        self.model = model.to(ours.device).eval()
        self.model.generation_config.max_length = None  # so that max_new_tokens is the only one

    def answer(self, messages: list[dict[str, Any]], settings: RunSettings) -> str:
        """The text, decoded greedily."""
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        with hf.pruning(self.model, settings.pruner), torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
            )
        ids = output[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(ids, skip_special_tokens=True)).strip()


def questions_of(data: Path, count: int, image_processor: Any, config: Any) -> list[Item]:
    """`count` questions, as many from each benchmark of `data` (the first of each folder).

    Raises FileNotFoundError where there is none, ValueError where there are fewer.
    """
    by_folder = {b.folder: b for b in reversed(BENCHMARKS.values()) if b.views == 1}
    there = [b for b in reversed(by_folder.values()) if (data / b.folder).is_dir()]
    if not there:
        raise FileNotFoundError(f"{data} has none of the folders {', '.join(by_folder)}.")
    result = []
    for i, benchmark in enumerate(there):
        share = (i + 1) * count // len(there) - i * count // len(there)
        if not share:
            continue
        folder = data / benchmark.folder
        source = take(benchmark.load_questions(folder), share)
        positions = array("Q", spread(min(share, len(source)), len(source)))
        images = folder / benchmark.images
        for loaded in QuestionImages(source, positions, images, image_processor, config):
            if loaded.error is not None:
                raise ValueError(f"{benchmark.name}, {loaded.question}: {loaded.error}")
            question = loaded.question
            pictures = [
                {"type": "image", "image": source.open_image(replace(question, image=name), images)}
                for name in question.images
            ]
            content = [*pictures, {"type": "text", "text": question.model_text}]
            messages = [{"role": "user", "content": content}]
            result.append(Item(benchmark.name, loaded, messages))
    if len(result) < count:
        raise ValueError(f"{data} has {len(result)} questions spread like this, and not {count}")
    return result


def compare(
    questions: Sequence[Item], settings: RunSettings, tokenizer: Any, model: Any, stock: Stock
) -> Comparison:
    """Each question to both, pruned as the settings say."""
    result = Comparison()
    answerer = Answerer(model, tokenizer, settings)
    with first_logits(model) as ours, first_logits(stock.model) as theirs:
        for item in questions:
            ours.clear()
            theirs.clear()
            (reply,) = answerer([item.loaded], waited=0.0)
            where = f"{item.benchmark}, {item.loaded.question}"
            if not isinstance(reply, dict):
                raise ValueError(f"{where}: {reply}")
            text = stock.answer(item.messages, settings)
            expected = ours[0]
            logits = theirs[0][: len(expected)]  # without the rows that conversion adds
            result.questions += 1
            result.same_answers += text == reply["text"]
            result.bitwise += torch.equal(logits, expected)
            result.difference = max(result.difference, (logits - expected).abs().max().item())
            if text != reply["text"]:
                result.differing.append(f"{where}: here {reply['text']!r}, stock {text!r}")
    return result


@contextmanager
def first_logits(model: Any) -> Iterator[list[Tensor]]:
    """What the head gives (vocabulary,) of the last token, call by call, until it is cleared."""
    calls: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _, __, output: calls.append(output[0, -1]))
    try:
        yield calls
    finally:
        hook.remove()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.converted"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, default=Path("playground/data/mini"), metavar="DIR")
    parser.add_argument("--questions", type=flags.whole(1, 10**6), default=200, metavar="N")
    parser.add_argument(
        "--folder", type=Path, help="of the converted checkpoint; written if it is not there"
    )
    asking.add_method_arguments(parser)
    asking.add_model_arguments(parser)
    parser.set_defaults(method=METHODS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see the module for the status."""
    args = parse(argv)
    try:
        runs = asking.planned(args)
        tokenizer, model, image_processor = load_model(args)
        questions = questions_of(args.data, args.questions, image_processor, model.config)
        settings = RunSettings(
            args.model_path,
            args.data,
            Path("answers.jsonl"),
            conv_mode=args.conv_mode,
            max_new_tokens=args.max_new_tokens,
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary) / "llava-hf"
            if not (folder / "config.json").is_file():
                convert(
                    args.model_path, folder, "llava-hf", args.vision_tower, offline=args.offline
                )
            stock, differing = Stock(folder, model), 0
            for run in asking.scaled(runs, args, model.config.num_hidden_layers):
                pruned = replace(settings, pruner=run.pruner)
                result = compare(questions, pruned, tokenizer, model, stock)
                differing += len(result.differing)
                print(
                    f"{run.name}: {result.same_answers} of {result.questions} answers the same, "
                    f"{result.bitwise} first logits bitwise, largest difference "
                    f"{result.difference:.2g}",
                    *result.differing,
                    sep="\n  ",
                    flush=True,
                )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if differing else 0


if __name__ == "__main__":
    program.run(main)
