"""LoRA adapters: how their folders are recognised, and what merging makes of the base's weights.

An adapter (Hu et al., arXiv 2106.09685) holds two matrices for each layer that it changes, A
(r, in) and B (out, r). The merged weight is

    W + alpha / r * B A        with rank-stabilised LoRA (arXiv 2312.03732) alpha / sqrt(r)

and a few tensors may replace the base's. PEFT and what is built on it (LLaMA-Factory, ...) write
adapter_config.json and adapter_model.safetensors or .bin; LLaVA adds config.json and
non_lora_trainables.bin, the projector and whatever else was trained whole.

Deviation from PEFT's own merge: the sum is computed in float32 and rounded once, while PEFT rounds
alpha / r * B A to the adapter's dtype first. `fan_in_fan_out` is for layers that hold their weight
transposed; LLaVA has none, and PEFT reads it as false on its layers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import json_files
from .tensor_names import original_name, original_names
from .weights import load_shard, weight_files

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINABLES = "non_lora_trainables.bin"

_PREFIX = "base_model.model."
_MATRIX = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?"
)
#: What PEFT puts into the name of a tensor that is held whole.
_WRAPPERS = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(\.default)?(?=\.)")

#: Variants whose weights are not W + alpha / r * B A; each is off when false, empty or null.
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
#: Initialisations that leave the base's weights as they are; the others train on changed ones.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

#: What a weight that something is added to may be held in.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Pair:
    """What is added to one weight: scale * B A, transposed for an embedding table.

    a: (r, in), b: (out, r); of an embedding (r, rows) and (width, r).
    """

    a: Tensor
    b: Tensor
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, by the original format's names of the base's tensors they change.

    pairs: added to the base's weights. whole: take the place of the base's tensors.
    """

    pairs: dict[str, Pair]
    whole: dict[str, Tensor]


def demand_no_adapter(folder: Path, model_base: str | Path | None = None) -> None:
    """Raise ValueError, with the command that merges it, when `folder` is a LoRA adapter's.

    model_base: the base that the user has named; else the one that the adapter names.
    """
    names = (CONFIG, *WEIGHTS, TRAINABLES)
    signs = [name for name in names if (folder / name).is_file()]
    if not signs or (weight_files(folder) and signs == [CONFIG]):
        return
    settings = json_files.read(folder / CONFIG) if CONFIG in signs else {}
    kind, base = settings.get("peft_type", "LORA"), settings.get("base_model_name_or_path")
    of = base if isinstance(base, str) and base else "a base that it does not name"
    base = model_base or (base if of == base else None)
    place = "BASE" if base is None else shlex.quote(str(base))
    command = f"python -m llava.model.checkpoint merge {shlex.quote(str(folder))} {place} DST"
    if kind != "LORA":
        raise ValueError(
            f"{folder} is an adapter of another kind than LoRA ({json_files.shorten(kind)} in "
            f"{CONFIG}) of {of}, not a complete checkpoint. Merge it with PEFT where that can"
        )
    adapter = f"{folder} is a LoRA adapter ({', '.join(signs)}) of {of}"
    if weight_files(folder):
        raise ValueError(
            f"{adapter}, and holds a model's weights besides. If the adapter is merged into them "
            f"already, move {', '.join(signs)} elsewhere; if not, merge it with {command}"
        )
    raise ValueError(f"{adapter}, not a complete checkpoint. Merge it, then load DST: {command}")


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder of PEFT's or LLaVA's.

    Raises FileNotFoundError when a file is missing, ValueError for another kind of adapter than
    LoRA, a variant of LoRA that the formula does not hold for, and tensors without their partner.
    """
    settings = _read_settings(folder / CONFIG)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no {' or '.join(WEIGHTS)} in {folder}")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_shard(file).items()}
    matrices: dict[tuple[str, bool], dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is not None:
            sides = matrices.setdefault((match["module"], match["embedding"] is not None), {})
            sides[match["side"]] = tensor
        elif "lora_" in name or "trainable_tokens" in name:
            raise ValueError(
                f"{file}: {name} belongs to a variant of LoRA that cannot be merged here; merge "
                "with PEFT's merge_and_unload"
            )
        else:
            whole[_WRAPPERS.sub("", name)] = tensor
    if (folder / TRAINABLES).is_file():
        for name, tensor in load_shard(folder / TRAINABLES).items():
            whole[_WRAPPERS.sub("", name.removeprefix(_PREFIX))] = tensor
    for module in settings.get("modules_to_save") or []:
        if not any(f".{module}." in f".{name}" for name in whole):
            raise ValueError(f"{file} lacks the tensors of {module}, which modules_to_save names")
    if not matrices and not whole:
        raise ValueError(f"{file} holds no tensors")
    pairs = {
        original_name(f"{module}.weight"): _pair(sides, module, embedding, settings, file)
        for (module, embedding), sides in matrices.items()
    }
    return Adapter(pairs, original_names(whole, folder))


def _pair(
    sides: Mapping[str, Tensor],
    module: str,
    embedding: bool,
    settings: Mapping[str, Any],
    file: Path,
) -> Pair:
    if len(sides) != 2:
        raise ValueError(f"{file}: {module} has lora_{'/'.join(sides)} without its partner")
    rank, scale = _rank_and_scale(settings, module)
    a, b = sides["A"], sides["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ValueError(
            f"{file}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, expected "
            f"[{rank}, in] and [out, {rank}] by r and rank_pattern in {CONFIG}"
        )
    return Pair(a, b, scale, embedding)


def _read_settings(file: Path) -> dict[str, Any]:
    settings = json_files.check(
        json_files.read(file),
        file,
        {"peft_type": str, "r": int, "lora_alpha": float},
        {"use_rslora": bool, "rank_pattern": dict, "alpha_pattern": dict, "modules_to_save": list},
    )
    if settings["peft_type"] != "LORA":
        raise ValueError(f"{file}: peft_type must be LORA, got {settings['peft_type']!r}")
    for name in _VARIANTS:
        if settings.get(name):
            raise ValueError(
                f"{file}: {name} is a variant of LoRA that cannot be merged here; merge with "
                "PEFT's merge_and_unload"
            )
    initialisation = settings.get("init_lora_weights")
    if initialisation not in _INITIALISATIONS:
        raise ValueError(
            f"{file}: with init_lora_weights {json_files.shorten(initialisation)} the adapter was "
            "trained on other weights than the base's; convert it to plain LoRA first (PEFT's "
            "save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for field, types in (("rank_pattern", int), ("alpha_pattern", float)):
        patterns = settings.get(field) or {}
        json_files.check(patterns, f"{file}: {field}", dict.fromkeys(patterns, types))
    ranks = [settings["r"], *(settings.get("rank_pattern") or {}).values()]
    if min(ranks) < 1:
        raise ValueError(f"{file}: a rank (r, rank_pattern) must be at least 1, got {min(ranks)}")
    return settings


def _rank_and_scale(settings: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Of one layer: r and alpha, which patterns of its name may set, and the factor of B A."""
    rank = _by_pattern(settings.get("rank_pattern") or {}, module, settings["r"])
    alpha = _by_pattern(settings.get("alpha_pattern") or {}, module, settings["lora_alpha"])
    return rank, alpha / (sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that the end of a layer's name matches, as in PEFT."""
    for pattern, value in values.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ValueError(f"{CONFIG}: {pattern!r} is no pattern ({error})") from None
    return default


def demand_tensors(names: Iterable[str], state: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError, naming `where`, unless `state` has a tensor for each of `names`."""
    lost = sorted(set(names) - state.keys())
    if lost:
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        raise ValueError(
            f"{where}: the base has no {', '.join(lost[:4])}{more}, which the adapter changes: it "
            "was trained on another base"
        )


def put_whole(whole: Mapping[str, Tensor], state: dict[str, Tensor], where: str) -> None:
    """Put tensors that were trained whole into `state`, in the dtypes that are there.

    Raises ValueError, naming `where`, for one whose shape is not that of the base's.
    """
    dtype = next(iter(state.values())).dtype
    for name, tensor in whole.items():
        old = state.get(name)
        if old is not None and old.shape != tensor.shape:
            raise ValueError(
                f"{where}: the adapter holds {name} as {list(tensor.shape)}, the base as "
                f"{list(old.shape)}: it was trained on another base"
            )
        state[name] = _finite(tensor.to(dtype if old is None else old.dtype), name, where)


def add_pairs(pairs: Mapping[str, Pair], state: dict[str, Tensor], where: str) -> None:
    """Add an adapter's products to the weights in `state`, which has them all; dtypes stay.

    Raises ValueError, naming `where`, when a weight has another shape or is quantised.
    """
    for name, pair in pairs.items():
        weight = state[name]
        if weight.dtype not in _DTYPES:
            raise ValueError(
                f"{where}: {name} is {weight.dtype}: give the base that is not quantised"
            )
        wide = torch.promote_types(weight.dtype, torch.float32)
        shape = [pair.b.shape[0], pair.a.shape[1]]
        if list(weight.shape) != (shape[::-1] if pair.embedding else shape):
            raise ValueError(
                f"{where}: {name} has shape {list(weight.shape)}, the adapter's product "
                f"{shape[::-1] if pair.embedding else shape}: it was trained on another base"
            )
        product = pair.b.to(wide) @ pair.a.to(wide)
        product = product.T if pair.embedding else product
        merged = (weight.to(wide) + pair.scale * product).to(weight.dtype)
        state[name] = _finite(merged, name, where)


def _finite(tensor: Tensor, name: str, where: str) -> Tensor:
    if not tensor.isfinite().all():
        raise ValueError(
            f"{where}: {name} would hold infinity or not-a-number in {tensor.dtype}, the base's "
            "dtype: the adapter is damaged, or its training diverged"
        )
    return tensor
