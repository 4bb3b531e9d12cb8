"""The tokens around and for pictures that a config.json may call for, in the tokenizer.

LLaVA adds them to the tokenizer whenever it loads such a checkpoint, and so gives them the rows
that training appended to the embeddings.

Source: haotian-liu/LLaVA 1.2.2, `load_pretrained_model` (behaviour). Deviation: it appends random
rows to embeddings that have none for them, here such a checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from ..pruning.checks import PromptError
from .tokenizer import LlavaTokenizer


def add_image_tokens(tokenizer: Any, config: Mapping[str, Any], rows: int, where: str) -> None:
    """Add the tokens that `config` calls for and the tokenizer lacks, as LLaVA does.

    tokenizer: of transformers (`HfTokenizer`) it is taken as it is.
    rows: of the embeddings; `where`: the config's file, for messages.

    Raises ValueError when a token that goes into prompts would have no row.
    """
    around = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if not config.get("mm_use_im_start_end"):
        around = []
    ours = isinstance(tokenizer, LlavaTokenizer)
    if ours:
        # No prompt holds <im_patch>; but where it was added, it came first.
        patch = config.get("mm_use_im_patch_token", bool(around))
        tokens = [DEFAULT_IMAGE_PATCH_TOKEN, *around] if patch else around
        missing = [token for token in tokens if token not in tokenizer.get_vocab()]
        if len(tokenizer) + len(missing) <= rows:
            tokenizer.add_tokens(missing, special_tokens=True)
    ids = tokenizer.get_vocab()
    for token in around:
        if ids.get(token, rows) >= rows:
            fix = (
                "get the tokenizer and the weights that were saved together after training, or set "
                "mm_use_im_start_end to false if the model was trained without them"
                if ours
                else "use processing llava, which adds it where the embeddings have its row"
            )
            raise ValueError(
                f"{where}: mm_use_im_start_end puts pictures between {' and '.join(around)}, but "
                f"{token} has no row among the {rows} of the embeddings (the tokenizer has "
                f"{len(tokenizer)} tokens): {fix}"
            )


def check_ids(rows: Sequence[Tensor], size: int) -> None:
    """Raise PromptError for an id of some prompts that has no row in embeddings of that size."""
    ids = torch.cat(list(rows))
    wrong = ids[((ids < 0) & (ids != IMAGE_TOKEN_INDEX)) | (ids >= size)]
    if len(wrong):
        raise PromptError(
            f"id {wrong[0]} has no row among the {size} of the embeddings: the text spells a token "
            "that the tokenizer has and the model has not"
        )
