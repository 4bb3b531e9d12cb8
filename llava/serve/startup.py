"""What the interactive programs share: which checkpoint to load, how, and with what method."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging as transformers_logging

from llava.eval import arguments
from llava.eval.models import load_checkpoint
from llava.pruning.arguments import add_pruning_arguments


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
        return self.model.config.num_hidden_layers


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the device and the pruning flags of all programs."""
    arguments.add_checkpoint_arguments(parser)
    add_pruning_arguments(parser)
    arguments.add_depth_argument(parser)


def load(args: argparse.Namespace) -> Loaded:
    """The checkpoint of a parsed command line.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, device or kernel; says which.
    """
    if args.load_4bit and args.load_8bit:
        raise ValueError("--load-4bit and --load-8bit exclude each other; give one of them")
    return Loaded(*load_checkpoint(args))


def quiet() -> None:
    """Keep what libraries log out of a dialogue; warnings still come, on stderr."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    transformers_logging.disable_progress_bar()
