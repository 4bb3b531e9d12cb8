"""Reading a checkpoint folder: which format it holds, where its parts are, whether all is there.

The format is read from config.json, never from the folder's name. Whatever the config calls for
must be there in the right shape, and nothing else may be: no tensor is ever made up.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, snapshot_download, try_to_load_from_cache
from torch import Tensor

from ..common import json_files
from ..common.image_processor import NESTED_FILE, PLAIN_FILE, describe_processor
from .config_fields import check_config
from .config_json import check_images, detect_format, end_tokens, from_hf, from_original
from .lora import demand_no_adapter
from .senna import adapter_sizes
from .shapes import EMBEDDING, check_key_heads, describe_tensors, tie_head, verify
from .tensor_names import original_names
from .vision_tower import Find, choose_tower, differ, part
from .weights import read_projector, read_tensors, weight_files

_NEWLINE = "model.image_newline"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has every tensor its config calls for, and no other.

    config: values in the original format's terms, the tower's config as `mm_vision_config`.
    state: tensors under the original format's names, the vision tower's included.
    end_tokens: ids that end an answer beside the tokenizer's own.
    tokenizer_folder, processor_folder: where their files are, if anywhere.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    end_tokens: tuple[int, ...]
    tokenizer_folder: Path
    processor_folder: Path


def resolve(
    name: str | Path, beside: Path | None = None, *, offline: bool = False, only: str | None = None
) -> Path:
    """The folder a name means: one in `beside`, a path, or a hub repository.

    The hub is asked for OWNER/NAME, unless a folder OWNER is here: then a path was meant. Before
    anything is downloaded, a warning says what. Nothing is with `offline`, or where HF_HUB_OFFLINE
    is set; what lies in the hub's cache is found all the same.

    only: a pattern of the files that are needed; None for all.

    Raises FileNotFoundError when it is none of them.
    """
    places = [Path()] if beside is None else [beside, Path()]
    for place in places:
        if (place / name).is_dir():
            return place / name
    text = str(name)
    owner, _, repository = text.partition("/")
    if not repository or "/" in repository or text.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder {text}")
    if any((place / owner).is_dir() for place in places):
        raise FileNotFoundError(
            f"no folder {text}: {owner} is a folder here, so the Hugging Face hub is not asked. If "
            f"its {text} is meant: hf download {text} --local-dir {text}"
        )
    if offline or _hub_is_off():
        if cached := _in_cache(text):
            return cached
        raise FileNotFoundError(
            f"no folder {text}, nor is it in the Hugging Face hub's cache, and offline nothing is "
            "downloaded; download it elsewhere and give its folder"
        )
    logger.warning(
        "%s is no folder here: %s is downloaded from the Hugging Face hub, unless it is in its "
        "cache (--offline forbids it).",
        text,
        f"{text} ({only})" if only else text,
    )
    try:
        # Not the same weights again for other frameworks.
        wanted = {"allow_patterns": [only]} if only else {"ignore_patterns": ["*.h5", "*.msgpack"]}
        return Path(snapshot_download(text, **wanted))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"{text} is neither a folder nor to be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); download it and give its folder"
        ) from error


def _in_cache(name: str) -> Path | None:
    """The folder of a repository in the hub's cache."""
    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name of a repository
        return None
    return Path(config).parent if isinstance(config, str) else None


def _hub_is_off() -> bool:
    # huggingface_hub reads the variable once, when it is imported.
    value = os.environ.get("HF_HUB_OFFLINE", "")
    return is_offline_mode() or value.upper() in ("1", "ON", "YES", "TRUE")


def read_checkpoint(
    folder: Path,
    vision_tower: str | Path | None = None,
    model_base: str | Path | None = None,
    *,
    offline: bool = False,
) -> Checkpoint:
    """Read a checkpoint of either format, and check it tensor by tensor.

    The vision tower is the one inside the checkpoint, else that of `vision_tower`, else that of the
    config's `mm_vision_tower`; but a checkpoint that trained its tower, as LLaVA-1.6 did, must
    hold it. To a tower inside, `vision_tower` lends its config, if the checkpoint has none, and its
    image processor; one of another size replaces it, with a warning. With `model_base`, `folder`
    holds only `mm_projector.bin`. offline: see `resolve`.

    Raises ValueError or FileNotFoundError for whatever is not as config.json says.
    """
    find = partial(resolve, offline=offline)
    demand_no_adapter(folder, model_base)
    config, kind = read_config(folder)
    if model_base is not None and (kind == "llava-hf" or weight_files(folder)):
        raise ValueError(
            f"{folder} is complete, with a language model of its own: leave out the model base"
        )
    state, where, base = _read_language_model(folder, model_base, find)
    return assemble(folder, config, kind, state, where, base, vision_tower, find)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """What config.json of `folder` says, as original-format values, and the format it is in.

    Raises ValueError for what is not LLaVA's, or of another type than it must be.
    """
    values = json_files.read(folder / "config.json")
    check_config(values, folder / "config.json")
    kind = detect_format(values, str(folder))
    return (from_hf if kind == "llava-hf" else from_original)(values, folder), kind


def assemble(
    folder: Path,
    config: dict[str, Any],
    kind: str,
    state: dict[str, Tensor],
    where: str,
    base: Path,
    vision_tower: str | Path | None,
    find: Find,
) -> Checkpoint:
    """Add the vision tower to what was read of a checkpoint, and check it tensor by tensor.

    folder: where `config` is from. state: tensors under original names, which `where` describes in
    messages. base: the folder of the tokenizer.

    Raises ValueError or FileNotFoundError for whatever is not as config.json says.
    """
    tie_head(config, state, where)
    rows = len(state[EMBEDDING]) if EMBEDDING in state else inf
    ends = end_tokens(config, base, rows)
    if sizes := adapter_sizes(state):
        config["mm_token_adapter"] = list(sizes)

    if "unpad" not in (config.get("mm_patch_merge_type") or ""):
        # Left over where the merge type was changed after training.
        state.pop(_NEWLINE, None)

    state, tower_at, tower_names, lender = choose_tower(
        folder, kind, config, state, vision_tower, find
    )
    check_images(config, f"{folder}/config.json")
    check_key_heads(config, state, f"{folder}/config.json")
    expected = describe_tensors(config, f"{folder}/config.json")
    verify(part(state, vision=False), part(expected, vision=False), where, kind)
    verify(part(state, vision=True), part(expected, vision=True), str(tower_at), tower_names)
    processor = lender if describe_processor(lender) else folder
    if kind == "llava-hf" and describe_processor(processor) is None:
        raise FileNotFoundError(
            f"{folder} does not say how pictures are prepared: it has neither image_processor in a "
            f"{NESTED_FILE} nor a {PLAIN_FILE}; copy the file from the checkpoint's repository"
        )
    return Checkpoint(config, state, ends, base, processor)


def _read_language_model(
    folder: Path, model_base: str | Path | None, find: Find
) -> tuple[dict[str, Tensor], str, Path]:
    """Tensors under original names, their place in words, and the folder of the tokenizer."""
    if model_base is None:
        state, projector = original_names(read_tensors(folder), folder), read_projector(folder)
        both = projector.keys() & state.keys()
        if differ({k: projector[k] for k in both}, {k: state[k] for k in both}):
            logger.warning(
                "%s holds another projector in mm_projector.bin than in its weights, which answer.",
                folder,
            )
        return {**projector, **state}, str(folder), folder
    base, projector = find(model_base), read_projector(folder)
    demand_no_adapter(base)
    if not projector:
        raise FileNotFoundError(
            f"with a model base, {folder} must hold mm_projector.bin (LoRA weights have to be "
            "merged into a checkpoint of their own first)"
        )
    state = original_names(read_tensors(base), base)
    return {**state, **projector}, f"{folder} on {base}", base
