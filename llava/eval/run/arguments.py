"""The flags of `RunSettings`, which declares them: programs name the settings they take.

Defaults are those of the settings. A few lines instead of a library's parser, because names and
spellings are LLaVA's (`--model-path`, but `--max_new_tokens`), and because what generates a parser
from a dataclass (transformers' HfArgumentParser) brings all of transformers and knows no groups.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llava.common import flags

from .settings import RunSettings, kinds

#: What names the checkpoint, and how it reads pictures.
CHECKPOINT = (
    "model_path",
    "model_base",
    "vision_tower",
    "offline",
    "merge_type",
    "processing",
)
#: The conversation, how an answer is decoded, and its seed.
DECODING = (
    "conv_mode",
    "temperature",
    "top_p",
    "num_beams",
    "max_new_tokens",
    "seed",
)
#: Device, number format, attention kernel, and whether layers are compiled.
HARDWARE = (
    "device",
    "dtype",
    "attn_implementation",
    "compile",
    "load_4bit",
    "load_8bit",
)
#: What decides the speed of many questions.
SPEED = ("batch_size", "num_workers")


class Help(argparse.HelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help and action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


def add_settings(
    container: argparse._ActionsContainer, names: Iterable[str], **defaults: Any
) -> None:
    """Add the flags of these settings to a parser or a group; `defaults` replace their own."""
    declared = {setting.name: setting for setting in fields(RunSettings)}
    for name in names:
        flag = dict(declared[name].metadata["flag"])
        default = defaults.get(name, declared[name].default)
        flag |= {"required": True} if default is MISSING else {"default": default}
        kind, bounds = kinds()[name], declared[name].metadata["bounds"]
        if kind is bool:
            flag["action"] = "store_true"
        elif kind is int:
            # What is out of a setting's own bounds, the setting says.
            flag["type"] = flags.whole(most=max(flags.MOST, bounds[1] if bounds else 0))
        elif kind is float:
            flag["type"] = flags.number()
        elif kind is Path:
            flag["type"] = Path
        container.add_argument(flag.pop("name", "--" + name.replace("_", "-")), **flag)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the checkpoint, how it is loaded and its conversation, as answering programs have them.

    `defaults` replace those of the settings.
    """
    group = parser.add_argument_group("checkpoint")
    add_settings(group, [*CHECKPOINT, "conv_mode"], **defaults)
    add_settings(parser.add_argument_group("device and speed"), HARDWARE, **defaults)


def add_depth_argument(parser: argparse._ActionsContainer) -> None:
    """Add --depth-layers."""
    parser.add_argument(
        "--depth-layers",
        type=flags.whole(),
        metavar="L",
        help="all depths (x0, the layers at which methods prune) are meant for a decoder of L "
        "layers: scale them to this one's. Default: those given are meant for this one, the others "
        "for 32, and are taken as they are by a decoder of 32 or 40",
    )


def setting_defaults() -> dict[str, Any]:
    """The default of every setting that has one."""
    defaults = {setting.name: setting.default for setting in fields(RunSettings)}
    return {name: value for name, value in defaults.items() if value is not MISSING}


def settings_given(args: argparse.Namespace) -> dict[str, Any]:
    """Of the parsed flags, those that are settings."""
    names = {setting.name for setting in fields(RunSettings)}
    return {name: value for name, value in vars(args).items() if name in names}
