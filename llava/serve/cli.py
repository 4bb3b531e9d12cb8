"""Chat about a picture in the terminal.

    python -m llava.serve.cli --model-path models/llava-v1.5-7b --image-file view.jpg \
        --target-token-num 64

The flags are LLaVA's, with those of pruning that all programs share. An empty line ends the chat,
/reset begins a new one about the same pictures, Ctrl-C cuts an answer short. Dialogue is on stdout,
everything about it on stderr. Exit status: 0 ended by the user (Ctrl-C instead of a question is one
way), 1 stdin or stdout broke, 2 wrong input, 130 ended by SIGTERM, SIGHUP, a second Ctrl-C, or
before the first question.

The first question decides which visual tokens stay; see `llava.serve.chat`. A line after the first
answer says how many did. With --debug, tokens, FLOPs and times follow every answer.

A model that transformers loads by itself (see `llava.hf`) is asked by its own chat template, not
--conv-mode, and each turn asks anew with the whole conversation; see `llava.serve.stock_chat`.

Deviations from haotian-liu/LLaVA 1.2.2: several pictures may be given; URLs need --allow-urls; the
conversation template is vicuna_v1, the one LLaVA-1.5 is evaluated with, unless --conv-mode says
otherwise, and is never guessed from the folder's name.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from PIL import Image

from llava.analysis.stock_answers import is_stock
from llava.common import flags, program
from llava.common.signals import EXIT_INTERRUPTED
from llava.eval.run.arguments import Help
from llava.eval.run.depths import pruner_in_decoder
from llava.pruning.checks import PromptError

from .chat import Chat, ChatTurn, ContextFull
from .pictures import open_picture
from .startup import (
    add_checkpoint_arguments,
    drop_stdout,
    handling,
    install,
    leave_at_once,
    load,
    quiet,
)
from .stock_chat import StockChat

_RESET = "/reset"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.serve.cli"),
        description="Chat about a picture with LLaVA or a model of llava.hf, pruned or not.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--image-file", nargs="+", required=True, metavar="FILE", help="one picture or several"
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="download an --image-file that is a URL"
    )
    parser.add_argument("--temperature", type=flags.number(), default=0.2, help="0 is greedy")
    parser.add_argument(
        "--max-new-tokens", type=flags.whole(most=10**6), default=512, help="of one answer"
    )
    parser.add_argument("--debug", action="store_true", help="tokens and times after each answer")
    add_checkpoint_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    with handling(leave_at_once):
        args = build_parser().parse_args(argv)
        quiet()
        try:
            images = [open_picture(source, args.allow_urls) for source in args.image_file]
            chat = begin(args, images)
        except (ValueError, OSError, ImportError, NotImplementedError) as error:
            _say(f"error: {error}")
            return 2
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and remembers them
        _lenient(sys.stdin, "surrogateescape")
        _lenient(sys.stdout, "backslashreplace")
        _say(f"{_RESET} begins anew about the same pictures, an empty line ends.")
        try:
            with handling(_end):
                return talk(chat, args.debug)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except OSError as error:
            drop_stdout()
            _say(f"error: stdin cannot be read, or stdout not be written to: {error}")
            return 1


def begin(args: argparse.Namespace, images: Sequence[Image.Image]) -> Chat | StockChat:
    """The conversation of a parsed command line. Raises what loading and the chats raise."""
    loaded = load(args)
    pruner = pruner_in_decoder(args, loaded.layers)
    options = {
        "temperature": args.temperature,
        "max_new_tokens": args.max_new_tokens,
        "context_len": loaded.context_len,
    }
    model, processor = loaded.model, loaded.image_processor
    if is_stock(model):
        return StockChat(model, processor, images, pruner, **options)
    options["conv_mode"] = args.conv_mode
    return Chat(loaded.tokenizer, model, processor, images, pruner, **options)


def talk(chat: Chat | StockChat, debug: bool = False) -> int:
    """Questions from stdin, answers to stdout, until an empty line or the end; the exit status.

    2 when the method cannot do what it was asked to, 130 when an answer was cut for another signal
    than Ctrl-C, 0 otherwise.

    Raises:
        KeyboardInterrupt: one of these signals, outside an answer.
        OSError: stdin or stdout is broken.
    """
    user, assistant = chat.roles
    while True:
        text = _question(user)
        if not text:
            _say("exit...")
            return 0
        if text == _RESET:
            chat.reset()
            _say("A new conversation; the next question sees the pictures whole.")
            continue
        print(f"{assistant}: ", end="", flush=True)
        try:
            with _interruptible() as arrived:
                turn = chat.say(text, _write, lambda: bool(arrived))
        except ContextFull as error:
            print(flush=True)
            _say(f"{error}. {_RESET} begins anew.")
            continue
        except (ValueError, RuntimeError, MemoryError) as error:
            print(flush=True)
            _say(f"error: {str(error) or type(error).__name__}")
            if isinstance(error, PromptError):
                continue  # another question may be answered
            return 2
        print(flush=True)
        for line in [*notes(turn), *(details(turn) if debug else [])]:
            _say(line)
        if arrived and arrived[0] != signal.SIGINT:
            return EXIT_INTERRUPTED


def _question(user: str) -> str:
    """The next line of stdin; "" at its end and at Ctrl-C. Raises as `talk`."""
    if sys.stdin is None or sys.stdout is None:
        raise OSError("it is closed")
    try:
        return input(f"{user}: ").strip()
    except EOFError:
        return ""
    except KeyboardInterrupt as error:
        if error.args:
            raise
        return ""


def notes(turn: ChatTurn) -> list[str]:
    """What a user has to know about an answer without having asked."""
    lines = []
    sample = turn.sample
    if turn.first and sample.leaving[-1] < sample.n_visual:
        after = f"stays dropped in the turns to come; {_RESET} looks at the picture again."
        if turn.anew:
            after = "is there again for the next."
        lines.append(
            f"[pruned] of {sample.n_visual} visual tokens "
            f"{sum(sample.entering) / len(sample.entering):.1f} entered a layer on average, "
            f"{sample.leaving[-1]} are left at last. What this question dropped {after}"
        )
    reasons = {
        "length": "[cut] the answer reached --max-new-tokens.",
        "context": f"[cut] the checkpoint's context is full; {_RESET} begins anew.",
        "stopped": "[cut] stopped.",
    }
    return [*lines, *([reasons[turn.ended]] if turn.ended in reasons else [])]


def details(turn: ChatTurn) -> list[str]:
    """Tokens, FLOPs and times of a turn, for --debug."""
    sample, held = turn.sample, turn.held
    lines = []
    if turn.first:
        measured = "".join(f", {name} {value:.4g}" for name, value in sample.complexity.items())
        lines += [
            f"[tokens] {sample.n_text} text, {sample.n_visual} visual{measured}",
            f"[layers] visual tokens entering: {' '.join(map(str, sample.entering))}; "
            f"left at last: {sample.leaving[-1]}",
        ]
    else:
        lines.append(f"[tokens] {turn.fed} more put in, no picture encoded again, nothing pruned")
    computed = ""
    if turn.computed_flops is not None:
        computed = f"; {turn.computed_flops / turn.dense_prefill_flops:.1%} computed"
    per_token = turn.seconds["decode"] / max(turn.new_tokens - 1, 1)
    return [
        *lines,
        f"[cache]  {sum(held) / len(held):.1f} tokens a layer ({min(held)} to {max(held)}), "
        f"unpruned {turn.unpruned}",
        f"[flops]  {turn.prefill_flops / 1e9:.3g} G put in, "
        f"{turn.prefill_flops / turn.dense_prefill_flops:.1%} of unpruned "
        f"(published counting){computed}",
        f"[time]   first token {turn.seconds['prefill']:.3f} s, {turn.new_tokens} tokens in all, "
        f"{per_token * 1000:.1f} ms each after it",
    ]


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Inside, the first signal is put in the list, and a second one ends the process."""
    arrived: list[int] = []

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        install(leave_at_once)

    with handling(note):
        yield arrived


def _end(number: int, frame: object) -> None:
    """Handler: interrupt what is under way; a signal that is not Ctrl-C is named."""
    raise KeyboardInterrupt(*([] if number == signal.SIGINT else [number]))


def _lenient(stream: object, errors: str) -> None:
    """What cannot be decoded or encoded is no reason to end: represent it in that way."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _say(line: str) -> None:
    with suppress(OSError):  # a terminal that has been closed
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
