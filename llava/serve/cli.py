"""Chat about a picture in the terminal.

    python -m llava.serve.cli --model-path models/llava-v1.5-7b --image-file view.jpg \
        --target-token-num 64

The flags are LLaVA's, with those of pruning that all programs share. An empty line ends the chat,
/reset begins a new one about the same pictures, Ctrl-C cuts an answer short. Dialogue is on stdout,
everything about it on stderr.

The first question decides which visual tokens stay; see `llava.serve.chat`. A line after the first
answer says how many did. With --debug, tokens, FLOPs and times follow every answer.

Deviations from haotian-liu/LLaVA 1.2.2: several pictures may be given; URLs need --allow-urls; the
conversation template is vicuna_v1, the one LLaVA-1.5 is evaluated with, unless --conv-mode says
otherwise, and is never guessed from the folder's name.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event

from llava import flags, program
from llava.eval.arguments import Help

from .chat import Chat, ContextFull, Turn
from .pictures import open_picture
from .startup import add_checkpoint_arguments, load, quiet, scaled_pruner

_RESET = "/reset"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.cli",
        description="Chat about a picture with a LLaVA checkpoint, with or without pruning.",
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
    """Run the command line; 2 on wrong input."""
    args = build_parser().parse_args(argv)
    quiet()
    try:
        images = [open_picture(source, args.allow_urls) for source in args.image_file]
        loaded = load(args)
        chat = Chat(
            *(loaded.tokenizer, loaded.model, loaded.image_processor, images),
            scaled_pruner(args, loaded.layers),
            conv_mode=args.conv_mode,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            context_len=loaded.context_len,
        )
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        _say(f"error: {error}")
        return 2
    with suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and remembers them
    _say(f"{_RESET} begins anew about the same pictures, an empty line ends.")
    return talk(chat, args.debug)


def talk(chat: Chat, debug: bool = False) -> int:
    """Questions from stdin, answers to stdout, until an empty line or the end; the exit status.

    2 when the method cannot do what it was asked to, 0 otherwise.
    """
    user, assistant = chat.roles
    while True:
        try:
            text = input(f"{user}: ").strip()
        except (EOFError, KeyboardInterrupt):
            text = ""
        if not text:
            _say("exit...")
            return 0
        if text == _RESET:
            chat.reset()
            _say("A new conversation; the next question sees the pictures whole.")
            continue
        print(f"{assistant}: ", end="", flush=True)
        try:
            with _interruptible() as stopped:
                turn = chat.say(text, _write, stopped.is_set)
        except ContextFull as error:
            print(flush=True)
            _say(f"{error}. {_RESET} begins anew.")
            continue
        except (ValueError, RuntimeError, MemoryError) as error:
            print(flush=True)
            _say(f"error: {error}")
            return 2
        print(flush=True)
        for line in [*notes(turn), *(details(turn) if debug else [])]:
            _say(line)


def notes(turn: Turn) -> list[str]:
    """What a user has to know about an answer without having asked."""
    lines = []
    sample = turn.sample
    if turn.first and sample.leaving[-1] < sample.n_visual:
        lines.append(
            f"[pruned] of {sample.n_visual} visual tokens "
            f"{sum(sample.entering) / len(sample.entering):.1f} entered a layer on average, "
            f"{sample.leaving[-1]} are left at last. What this question dropped stays dropped in "
            f"the turns to come; {_RESET} looks at the picture again."
        )
    reasons = {
        "length": "[cut] the answer reached --max-new-tokens.",
        "context": f"[cut] the checkpoint's context is full; {_RESET} begins anew.",
        "stopped": "[cut] stopped.",
    }
    return [*lines, *([reasons[turn.ended]] if turn.ended in reasons else [])]


def details(turn: Turn) -> list[str]:
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
    per_token = turn.seconds["decode"] / max(turn.new_tokens - 1, 1)
    return [
        *lines,
        f"[cache]  {sum(held) / len(held):.1f} tokens a layer ({min(held)} to {max(held)}), "
        f"unpruned {turn.unpruned}",
        f"[flops]  {turn.prefill_flops / 1e9:.3g} G put in, "
        f"{turn.prefill_flops / turn.dense_prefill_flops:.1%} of unpruned",
        f"[time]   first token {turn.seconds['prefill']:.3f} s, {turn.new_tokens} tokens in all, "
        f"{per_token * 1000:.1f} ms each after it",
    ]


@contextmanager
def _interruptible() -> Iterator[Event]:
    """Inside, the first Ctrl-C sets the event; a second one interrupts as usual."""
    asked = Event()

    def first(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
