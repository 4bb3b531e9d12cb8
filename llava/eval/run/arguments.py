"""The flags that answering programs share. Their defaults are those of `RunSettings`."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from typing import Any

from llava.anyres import MERGE_TYPES, READINGS
from llava.common import flags
from llava.conversation import conv_templates

from .settings import RunSettings

#: Help of --offline.
OFFLINE = "download nothing from the Hugging Face hub; its cache is read"

# A sweep sets these; for the pruner there are flags of other names.
_NO_FLAG = ("pruner", "limit", "feature_cache_gb")


class Help(argparse.HelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help and action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


def add_model_arguments(group: argparse._ArgumentGroup, default: str | None = None) -> None:
    """Add what names the checkpoint to a group; without a `default` it has to be named."""
    group.add_argument(
        "--model-path", required=default is None, default=default, help="checkpoint folder"
    )
    group.add_argument("--model-base", help="base checkpoint, for projector-only checkpoints")
    group.add_argument(
        "--vision-tower",
        help="CLIP folder instead of the one the config names; to a checkpoint with a tower inside "
        "it lends config and image processor",
    )
    group.add_argument("--offline", action="store_true", help=OFFLINE)
    group.add_argument(
        "--merge-type",
        choices=MERGE_TYPES,
        help="LLaVA-1.6: order of the tiles' tokens, in place of the checkpoint's own",
    )
    group.add_argument(
        "--processing",
        choices=READINGS,
        help="prepare pictures and prompts as LLaVA does, or as llava-hf's processors do",
    )


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Add conversation, decoding and its seed."""
    decoding = parser.add_argument_group("prompt and decoding")
    decoding.add_argument("--conv-mode", choices=sorted(conv_templates), metavar="TEMPLATE")
    decoding.add_argument("--temperature", type=flags.number(), help="0 is greedy")
    decoding.add_argument("--top_p", type=flags.number(), help="only with a temperature above 0")
    decoding.add_argument("--num_beams", type=flags.whole())
    decoding.add_argument("--max_new_tokens", type=flags.whole())
    decoding.add_argument(
        "--seed", type=flags.whole(most=2**32 - 1), help="only matters with a temperature above 0"
    )


def add_hardware_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add device, number format and attention kernel."""
    device = parser.add_argument_group("device and speed")
    device.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")
    device.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"))
    device.add_argument(
        "--attn-implementation", choices=("sdpa", "eager", "flash_attention_2"), metavar="KERNEL"
    )
    device.add_argument("--load-4bit", action="store_true", help="needs bitsandbytes")
    device.add_argument("--load-8bit", action="store_true", help="needs bitsandbytes")
    return device


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add device, number format and what decides the speed of many questions."""
    device = add_hardware_arguments(parser)
    device.add_argument("--batch-size", type=flags.whole(), help="questions answered at a time")
    device.add_argument(
        "--num-workers", type=flags.whole(), help="processes that prepare images ahead"
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the checkpoint, how it is loaded and its conversation, as answering programs have them.

    What the program gave a default before keeps it. `default`: see `add_model_arguments`.
    """
    group = parser.add_argument_group("checkpoint")
    add_model_arguments(group, default)
    group.add_argument("--conv-mode", choices=sorted(conv_templates), metavar="TEMPLATE")
    add_hardware_arguments(parser)
    unset = {k: v for k, v in setting_defaults().items() if parser.get_default(k) is None}
    parser.set_defaults(**unset)


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
    """The default of every setting that has a flag and a default."""
    return {
        field.name: field.default
        for field in fields(RunSettings)
        if field.name not in _NO_FLAG and field.default is not MISSING
    }


def settings_given(args: argparse.Namespace) -> dict[str, Any]:
    """Of the parsed flags, those that are settings."""
    names = {field.name for field in fields(RunSettings)} - set(_NO_FLAG)
    return {name: value for name, value in vars(args).items() if name in names}
