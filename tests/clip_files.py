"""A tiny random CLIP, in the files of openai/clip-vit-large-patch14-336: `tiny`'s vision tower, a
text tower, projections to 8 dimensions, and a tokenizer with a token for each byte."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from . import tiny

TEXT = {
    "vocab_size": 514,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


def model() -> CLIPModel:
    """Random, with weights large enough that texts and patches differ."""
    config = CLIPConfig(text_config=TEXT, vision_config=tiny.vision_config(), projection_dim=8)
    made = CLIPModel(config).float().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return made


@lru_cache(maxsize=1)
def folder() -> str:
    """A folder with all of it, there as long as the process runs."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    model().save_pretrained(path)
    save_tokenizer(path)
    return str(path)


def save_tokenizer(path: Path) -> None:
    """Bytes as GPT-2 writes them, inside and at the end of words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)
