"""Start training from the weights of an exported checkpoint, also one with another vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from llava.model.tokenizer import LlavaTokenizer, load_tokenizer
from llava.train.export import VISION_FOLDER
from llava.train.model import DemoModel

_BY_PIECE = ("model.embed_tokens.weight", "lm_head.weight")
_PROJECTOR = "model.mm_projector."


def start_from(model: DemoModel, tokenizer: LlavaTokenizer, folder: Path) -> int:
    """Load tower, projector and decoder from `folder`; the auxiliary heads stay as they are.

    Embeddings are carried over piece by piece; pieces that the checkpoint does not know keep their
    initial ones.

    Returns:
        How many pieces of `tokenizer` the checkpoint knows.

    Raises:
        RuntimeError: the checkpoint has other sizes than `model`.
    """
    weights = load_file(folder / "model.safetensors")
    old = load_tokenizer(folder)
    pieces = {
        piece: index for index, piece in enumerate(old.convert_ids_to_tokens(range(len(old))))
    }
    known = [
        (index, pieces[piece])
        for index, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        if piece in pieces
    ]
    new_ids, old_ids = (torch.tensor(ids) for ids in zip(*known, strict=True))
    decoder = model.decoder.state_dict()
    for name in _BY_PIECE:
        rows = decoder[name].clone()
        rows[new_ids] = weights.pop(name)[old_ids].float()
        decoder[name] = rows
    projector = {
        name.removeprefix(_PROJECTOR): weights.pop(name)
        for name in list(weights)
        if name.startswith(_PROJECTOR)
    }
    model.projector.load_state_dict(projector)
    model.decoder.load_state_dict(decoder | weights)
    vision = load_file(folder / VISION_FOLDER / "model.safetensors")
    model.tower.load_state_dict(
        {name.removeprefix("vision_model."): tensor for name, tensor in vision.items()}
    )
    return len(known)
