"""Reading a checkpoint folder: which format it holds, where its parts are, whether all is there.

The format is read from config.json, never from the folder's name. Whatever the config calls for
must be there in the right shape, and nothing else may be: no tensor is ever made up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from .. import json_files
from .config_fields import check_config
from .config_json import check_images, detect_format, from_hf, from_original
from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from .lora import demand_no_adapter
from .senna import adapter_sizes
from .weights import (
    VISION,
    original_names,
    read_projector,
    read_tensors,
    read_vision_config,
    read_vision_tower,
    rename,
    vision_config,
)

#: The CLIP config of every published LLaVA checkpoint, for those that hold their tower themselves.
_CLIP_NAME = "openai/clip-vit-large-patch14-336"
_CLIP_CONFIG = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
#: The two tables that `tie_word_embeddings` makes one.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_KEYS = "model.layers.0.self_attn.k_proj.weight"
_NEWLINE = "model.image_newline"
PROCESSOR_FILE = "preprocessor_config.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has every tensor its config calls for, and no other.

    config: values in the original format's terms, the tower's config as `mm_vision_config`.
    state: tensors under the original format's names, the vision tower's included.
    tokenizer_folder, processor_folder: where their files are, if anywhere.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer_folder: Path
    processor_folder: Path


def resolve(name: str | Path, beside: Path | None = None) -> Path:
    """The folder a name means: one in `beside`, a path, or a hub repository.

    Raises FileNotFoundError when it is none of them.
    """
    for candidate in (*([beside / name] if beside is not None else []), Path(name)):
        if candidate.is_dir():
            return candidate
    text = str(name)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        try:
            # Not the same weights again for other frameworks.
            return Path(snapshot_download(text, ignore_patterns=["*.h5", "*.msgpack"]))
        except Exception as error:
            raise FileNotFoundError(
                f"{text} is neither a folder nor to be had from the Hugging Face hub "
                f"({type(error).__name__}); download it and give its folder"
            ) from error
    raise FileNotFoundError(f"no folder {text}")


def read_checkpoint(
    folder: Path, vision_tower: str | Path | None = None, model_base: str | Path | None = None
) -> Checkpoint:
    """Read a checkpoint of either format, and check it tensor by tensor.

    The vision tower is that of `vision_tower`, else the one inside the checkpoint, else that of
    the config's `mm_vision_tower`; but a checkpoint that trained its tower, as LLaVA-1.6 did, must
    hold it. With `model_base`, `folder` holds only `mm_projector.bin`.

    Raises ValueError or FileNotFoundError for whatever is not as config.json says.
    """
    demand_no_adapter(folder, model_base)
    config, kind = read_config(folder)
    if kind == "llava-hf" and model_base is not None:
        raise ValueError(f"{folder} is complete (llava-hf's format): leave out the model base")
    state, where, base = _read_language_model(folder, model_base)
    return assemble(folder, config, kind, state, where, base, vision_tower)


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
) -> Checkpoint:
    """Add the vision tower to what was read of a checkpoint, and check it tensor by tensor.

    folder: where `config` is from. state: tensors under original names, which `where` describes in
    messages. base: the folder of the tokenizer.

    Raises ValueError or FileNotFoundError for whatever is not as config.json says.
    """
    _tie_head(config, state, where)
    if sizes := adapter_sizes(state):
        config["mm_token_adapter"] = list(sizes)

    if "unpad" not in (config.get("mm_patch_merge_type") or ""):
        # Left over where the merge type was changed after training.
        state.pop(_NEWLINE, None)

    state, tower_at, tower_names, processor = _vision(folder, kind, config, state, vision_tower)
    check_images(config, f"{folder}/config.json")
    _check_key_heads(config, state, f"{folder}/config.json")
    expected = _describe(config, f"{folder}/config.json")
    verify(_part(state, vision=False), _part(expected, vision=False), where, kind)
    verify(_part(state, vision=True), _part(expected, vision=True), str(tower_at), tower_names)
    if not (processor / PROCESSOR_FILE).is_file():
        processor = folder
    return Checkpoint(config, state, base, processor)


def _vision(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    state: dict[str, Tensor],
    given: str | Path | None,
) -> tuple[dict[str, Tensor], Path, str, Path]:
    """Find the vision tower and put its config into `config`.

    Returns all tensors, where the tower's are from, the format that names them there, and the
    folder of the image processor.
    """
    inside = any(name.startswith(VISION) for name in state)
    trained, named = config.get("unfreeze_mm_vision_tower"), config.get("mm_vision_tower")
    if given is None and (kind == "llava-hf" or (inside and config.get("mm_vision_config"))):
        return state, folder, kind, folder
    if given is None and inside:
        if named == _CLIP_NAME and not (folder / named).is_dir() and not Path(named).is_dir():
            config["mm_vision_config"] = vision_config(_CLIP_CONFIG)
            return state, folder, kind, folder
        processor = _find_tower(None, named, folder)
        config["mm_vision_config"] = read_vision_config(processor)
        return state, folder, kind, processor
    if given is None and trained:
        raise ValueError(
            f"{folder} lacks its vision tower ({VISION}...): this checkpoint trained the tower "
            "along (unfreeze_mm_vision_tower in config.json), so the stock CLIP is another one. "
            "Get the missing weight files; to use another tower all the same, name it with "
            "--vision-tower DIR"
        )
    if given is not None and inside and trained:
        logger.warning(
            "%s trained its vision tower along; %s replaces it, as you asked.", folder, given
        )
    processor = _find_tower(given, named, folder)
    config["mm_vision_config"], vision = read_vision_tower(processor)
    return {**_part(state, vision=False), **vision}, processor, "clip", processor


def _part(tensors: Mapping[str, Any], vision: bool) -> dict[str, Any]:
    return {k: v for k, v in tensors.items() if k.startswith(VISION) == vision}


def _read_language_model(
    folder: Path, model_base: str | Path | None
) -> tuple[dict[str, Tensor], str, Path]:
    """Tensors under original names, their place in words, and the folder of the tokenizer."""
    if model_base is None:
        state = original_names(read_tensors(folder), folder)
        return {**read_projector(folder), **state}, str(folder), folder
    base, projector = resolve(model_base), read_projector(folder)
    demand_no_adapter(base)
    if not projector:
        raise FileNotFoundError(
            f"with a model base, {folder} must hold mm_projector.bin (LoRA weights have to be "
            "merged into a checkpoint of their own first)"
        )
    state = original_names(read_tensors(base), base)
    return {**state, **projector}, f"{folder} on {base}", base


def _tie_head(config: dict[str, Any], state: dict[str, Tensor], where: str) -> None:
    """With `tie_word_embeddings`, the head is the embedding; of the two, one may be left out.

    Where both are there and differ, they stay two, as in transformers: the flag is then wrong, and
    becomes false.
    """
    if not config.get("tie_word_embeddings"):
        return
    head, table = state.get(HEAD), state.get(EMBEDDING)
    if head is not None and table is not None and not torch.equal(head, table):
        logger.warning(
            "%s: tie_word_embeddings is true, but lm_head.weight differs from the embeddings: both "
            "are used as they are, as in transformers. Set it to false.",
            where,
        )
        config["tie_word_embeddings"] = False
    elif head is None and table is not None:
        state[HEAD] = table
    elif table is None and head is not None:
        state[EMBEDDING] = head


def _find_tower(given: str | Path | None, named: str | None, folder: Path) -> Path:
    if given is None and named is None:
        raise ValueError(
            f"{folder}/config.json names no mm_vision_tower; give the folder of its CLIP "
            "checkpoint with --vision-tower DIR"
        )
    try:
        return resolve(given) if given is not None else resolve(named, beside=folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the vision tower cannot be found: {error}. The checkpoint names {named!r}; give the "
            "folder of that CLIP checkpoint (of LLaVA-1.5 and Senna, whose config may name a path "
            "of another machine: openai/clip-vit-large-patch14-336) with --vision-tower DIR"
        ) from None


def _check_key_heads(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> None:
    """Say which num_key_value_heads the weights have, where config.json leaves it out."""
    keys, heads = state.get(_KEYS), config["num_attention_heads"]
    if config.get("num_key_value_heads") is not None or keys is None:
        return
    groups, rest = divmod(keys.shape[0], config.get("head_dim") or config["hidden_size"] // heads)
    if rest == 0 and 0 < groups < heads:
        raise ValueError(
            f"{where} leaves num_key_value_heads out, which then is num_attention_heads, {heads}; "
            f'but the weights have {groups} key heads: put "num_key_value_heads": {groups} there'
        )


def _describe(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """The expected shapes; whatever is wrong with the config is said of the file `where`."""
    # Errors of transformers' many checks have many types, and some do not name the field.
    if reason := _refusal(config):
        wrong = [name for name, value in config.items() if _refusal({name: value})]
        shown = ", ".join(f"{name} {json_files.shorten(config[name])}" for name in wrong)
        raise ValueError(f"{where}: transformers does not take {shown or 'it'} ({reason})")
    try:
        return expected_shapes(config)
    except Exception as error:
        raise ValueError(f"{where}: {error}") from error


def _refusal(values: Mapping[str, Any]) -> str:
    """Why no LlavaConfig can be made of values; empty when one can."""
    try:
        make_config(values)
    except Exception as error:
        return json_files.shorten(str(error)) or type(error).__name__
    return ""


def make_config(values: Mapping[str, Any]) -> LlavaConfig:
    """A LlavaConfig from original-format values; the dtype is the loader's business."""
    # Tensors are checked to be whole, so that what says how training held them is left over.
    left_out = ("model_type", "torch_dtype", "dtype", "quantization_config")
    kept = {k: v for k, v in values.items() if k not in left_out and v is not None}
    config = LlavaConfig(**kept)
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        # A token that was added without a row; what pads, the tokenizer says.
        config.pad_token_id = None
    return config


def expected_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that original-format config values call for, by original names."""
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(make_config(values))
    return {
        rename(name, "module", "original"): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }


def verify(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    names: str = "original",
) -> None:
    """Raise ValueError unless `state` has exactly the expected tensors in the expected shapes.

    Both are under original names; messages spell them as the format `names` does.
    """

    def some(tensors: Mapping[str, Any]) -> str:
        few = [f"{rename(k, 'original', names)} {list(v)}" for k, v in sorted(tensors.items())[:4]]
        return ", ".join(few) + (f" and {len(tensors) - 4} more" if len(tensors) > 4 else "")

    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = {k: v for k, v in expected.items() if k not in found}
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors: expected {some(missing)}"
        )
    unknown = {k: v for k, v in found.items() if k not in expected}
    if unknown:
        raise ValueError(
            f"{where} has tensors that its config.json does not call for: {some(unknown)}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where}: {rename(name, 'original', names)} has shape {list(found[name])}, "
                f"expected {list(shape)} by config.json"
            )
