"""What the interactive programs share: which checkpoint to load, how, and with what method."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from transformers.utils import logging as transformers_logging

from llava.analysis.stock_answers import load_any
from llava.common.signals import ending_signals, leave
from llava.eval.run import arguments
from llava.pruning.arguments import add_pruning_arguments

Handler = Callable[[int, FrameType | None], Any]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to answer; `context_len` is the most tokens of a conversation."""

    tokenizer: Any
    model: Any
    image_processor: Any
    context_len: int

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return self.model.config.get_text_config().num_hidden_layers


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the device and the pruning flags of all programs."""
    arguments.add_checkpoint_arguments(parser)
    add_pruning_arguments(parser)
    arguments.add_depth_argument(parser)


def load(args: argparse.Namespace) -> Loaded:
    """The checkpoint of a parsed command line; a model that transformers loads by itself (see
    `llava.hf`) has the processor of all its inputs in place of that of images.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, device or kernel; says which.
    """
    if args.load_4bit and args.load_8bit:
        raise ValueError("--load-4bit and --load-8bit exclude each other; give one of them")
    return Loaded(*load_any(args))


def quiet() -> None:
    """Keep what libraries log out of a dialogue; warnings still come, on stderr."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    transformers_logging.disable_progress_bar()


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """Handler of a signal, for times when nothing is half done, and for a second signal.

    An exception would meet libraries at any place, and Python's end aborts where a thread is still
    inside torch.
    """
    leave()


def install(handler: Handler) -> dict[int, Any]:
    """Have `handler` called for Ctrl-C, SIGTERM and SIGHUP; what was called before, by signal.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in ending_signals()}


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Inside, `handler` is called for the three signals; afterwards, what was before."""
    before = install(handler)
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)


def drop_stdout() -> None:
    """Send what is left for a stdout that is broken or full nowhere, as Python flushes it once more
    when it ends."""
    with suppress(OSError, ValueError, AttributeError):  # no file of the system's, or none at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
