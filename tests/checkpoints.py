"""Tiny random checkpoints, written file by file as the published ones are.

Config keys, file names, tensor names and dtypes are those of liuhaotian/llava-v1.5-7b,
openai/clip-vit-large-patch14-336 and llava-hf/llava-1.5-7b-hf (their config.json files are in
tests/data/configs); only the sizes are `tiny`'s. All weights are float16 numbers, so that every
format can hold the same model exactly.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import tiny
from .test_tokenizer import bpe_of

LAYERS = 3
VISION = "model.vision_tower.vision_tower.vision_model."
EXTRA_ROWS = 64
CLIP = "openai/clip-vit-tiny-patch14-56"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PROMPT = "A chat. USER: <image>\nWhat is on the sign? ASSISTANT:"
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 512}


@lru_cache(maxsize=1)
def weights() -> dict[str, Tensor]:
    """The random model's tensors in float16, under LLaVA's names. Not to be changed in place."""
    state = tiny.model(seed=3, layers=LAYERS).state_dict()
    nested = VISION.removesuffix("vision_model.")
    return {
        k if k.startswith(VISION) else k.replace(nested, VISION): v.half() for k, v in state.items()
    }


def language_model(projector: bool = True) -> dict[str, Tensor]:
    """The tensors that an original checkpoint holds, with or without the projector."""
    return {
        k: v
        for k, v in weights().items()
        if not k.startswith(VISION) and (projector or "mm_projector" not in k)
    }


def projector() -> dict[str, Tensor]:
    return {k: v for k, v in weights().items() if "mm_projector" in k}


@lru_cache(maxsize=1)
def tokenizer_model() -> bytes:
    """A sentencepiece model with a piece for each letter of the prompts and a few merges."""
    model = io.BytesIO()
    text = "A chat between a curious user and an assistant. The assistant gives helpful answers."
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text, PROMPT.replace("\n", " "), "0123456789 abcdefghijklmno"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=tiny.VOCAB,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None stays as null, Ellipsis takes the key out."""
    value = {**json.loads(path.read_text()), **changes}
    write_json(path, {k: v for k, v in value.items() if v is not ...})


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite a safetensors file after `change` has worked on the dict of its tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def write_weights(folder: Path, state: Mapping[str, Tensor], files: str) -> None:
    """`files`: "bin" or "safetensors", with "-shards" behind it for two files and an index."""
    state = {k: v.clone() for k, v in state.items()}
    stem, suffix = ("pytorch_model", ".bin") if "bin" in files else ("model", ".safetensors")
    folder.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Tensor], name: str) -> None:
        if suffix == ".bin":
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name, metadata={"format": "pt"})

    if not files.endswith("-shards"):
        save(state, stem + suffix)
        return
    late = ("layers.2.", "norm.weight", "lm_head", "projector")
    shards: list[dict[str, Tensor]] = [{}, {}]
    for name, tensor in state.items():
        shards[any(part in name for part in late)][name] = tensor
    weight_map = {}
    for i, tensors in enumerate(shards, start=1):
        name = f"{stem}-{i:05d}-of-00002{suffix}"
        save(tensors, name)
        weight_map.update(dict.fromkeys(tensors, name))
    total = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}{suffix}.index.json", index)


def published_config(name: str) -> dict[str, Any]:
    """config.json of a published checkpoint, real sizes and all."""
    return json.loads((Path(__file__).parent / "data" / "configs" / f"{name}.json").read_text())


def _sizes(*names: str) -> dict[str, Any]:
    made = tiny.config(layers=LAYERS)
    return {name: getattr(made, name) for name in names}


def _vision_sizes() -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "image_size", "patch_size")  # fmt: skip
    return {name: tiny.vision_config()[name] for name in names}


def original_config(**changes: Any) -> dict[str, Any]:
    """config.json of LLaVA-1.5-7B with tiny sizes; Ellipsis takes a key out."""
    values = {
        **published_config("llava-v1.5-7b"),
        **_sizes("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "vocab_size", "mm_hidden_size"),
        "mm_vision_tower": CLIP,
        **changes,
    }  # fmt: skip
    return {k: v for k, v in values.items() if v is not ...}


def write_tokenizer(folder: Path) -> None:
    """Tokenizer files as in an original checkpoint: no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    config = {**SPECIAL, "add_bos_token": True, "add_eos_token": False, "legacy": False}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **config})
    write_json(folder / "special_tokens_map.json", {**SPECIAL, "pad_token": "<unk>"})


def write_clip(folder: Path, full: bool = True) -> None:
    """openai/clip-*: float32 `.bin`, text half and position buffers included.

    full=False writes the vision half alone (`clip_vision_model`), as safetensors.
    """
    config = published_config("clip-vit-large-patch14-336")
    config["vision_config"].update(_vision_sizes())
    config["vision_config_dict"].update(_vision_sizes())
    vision = {
        "vision_model." + k.removeprefix(VISION): v.float()
        for k, v in weights().items()
        if k.startswith(VISION)
    }
    if full:
        positions = torch.arange(17)[None]
        text = {
            "logit_scale": torch.tensor(4.6),
            "text_projection.weight": torch.ones(8, 8),
            "visual_projection.weight": torch.ones(8, 32),
            "text_model.embeddings.token_embedding.weight": torch.ones(10, 8),
            "text_model.embeddings.position_ids": positions,
            "vision_model.embeddings.position_ids": positions,
        }
        write_weights(folder, {**text, **vision}, "bin")
    else:
        config = {**config["vision_config"], "torch_dtype": "float32"}
        write_weights(folder, vision, "safetensors")
    write_json(folder / "config.json", config)
    processor = {
        "crop_size": 56,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 56,
    }
    write_json(folder / "preprocessor_config.json", processor)


def write_original(
    folder: Path,
    files: str = "bin-shards",
    projector_in: tuple[str, ...] = ("weights", "file"),
    tower: bool = True,
    **config: Any,
) -> Path:
    """An original checkpoint; its tower lies where config's `mm_vision_tower` says, beside it.

    Sharded `.bin` with the legacy rotary buffers and the projector in two places is what
    liuhaotian/llava-v1.5-7b has.
    """
    values = original_config(**config)
    write_json(folder / "config.json", values)
    write_json(folder / "generation_config.json", GENERATION)
    write_tokenizer(folder)
    state = language_model(projector="weights" in projector_in)
    for layer in range(LAYERS):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_weights(folder, state, files)
    if "file" in projector_in:
        torch.save({k: v.clone() for k, v in projector().items()}, folder / "mm_projector.bin")
    if tower:
        write_clip(folder / values["mm_vision_tower"])
    return folder


def write_projector_only(folder: Path, base: Path, **config: Any) -> None:
    """A projector trained in stage one, and in `base` the language model it belongs to."""
    write_json(folder / "config.json", original_config(**config))
    torch.save({k: v.clone() for k, v in projector().items()}, folder / "mm_projector.bin")
    llama = {k: v for k, v in original_config().items() if not k.startswith("mm_")}
    write_json(base / "config.json", {**llama, "model_type": "llama"})
    write_weights(base, language_model(projector=False), "bin")
    write_tokenizer(base)


def hf_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` (original names) under the names of llava-hf's files."""
    table = {
        VISION: "vision_tower.vision_model.",
        "model.mm_projector.0.": "multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "multi_modal_projector.linear_2.",
        "lm_head.": "language_model.lm_head.",
        "model.": "language_model.model.",
    }
    result = {}
    for name, tensor in state.items():
        old = next(prefix for prefix in table if name.startswith(prefix))
        result[table[old] + name.removeprefix(old)] = tensor
    return result


def write_hf(
    folder: Path, files: str = "safetensors-shards", tokenizer: str = "model", **config: Any
) -> Path:
    """llava-hf's checkpoint: 64 random rows more in the vocabulary, everything in one folder."""
    generator = torch.Generator().manual_seed(9)
    state = dict(weights())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(EXTRA_ROWS, state[name].shape[1], generator=generator) * 0.02
        state[name] = torch.cat([state[name], rows.half()])
    write_weights(folder, hf_names(state), files)
    values = published_config("llava-1.5-7b-hf")
    rows = {"vocab_size": tiny.VOCAB + EXTRA_ROWS}
    values.update(image_token_index=tiny.VOCAB, pad_token_id=tiny.VOCAB + 1, **rows)
    values["vision_config"].update(_vision_sizes())
    values["text_config"].update(
        _sizes("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "num_key_value_heads"), **rows
    )  # fmt: skip
    write_json(folder / "config.json", {**values, **config})
    write_json(folder / "generation_config.json", {**GENERATION, "pad_token_id": tiny.VOCAB + 1})
    processor = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56},
                 "image_processor_type": "CLIPImageProcessor", "resample": 3}  # fmt: skip
    write_json(folder / "preprocessor_config.json", processor)
    added = {
        str(tiny.VOCAB + i): {"content": text, "special": True, "normalized": False}
        for i, text in enumerate(("<image>", "<pad>"))
    }
    write_json(
        folder / "tokenizer_config.json",
        {**SPECIAL, "pad_token": "<pad>", "added_tokens_decoder": added, "legacy": False},
    )
    if tokenizer == "model":
        (folder / "tokenizer.model").write_bytes(tokenizer_model())
    else:
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
        write_json(folder / "tokenizer.json", bpe_of(processor))
    return folder
