"""llava-hf's own token ids: transformers' tokenizer on the whole prompt, as its processor uses it.

Nearly every prompt differs from what LLaVA was trained with: releases 5 leave out the prefix space
behind an image, because llava-hf's folders say `legacy: false`. It is here to reproduce numbers
that were made that way; which ids come out is up to the release of transformers that is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BatchEncoding

from ..constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from .tokenizer_files import read_files


class HfTokenizer:
    """transformers' tokenizer of a folder behind the interface of `LlavaTokenizer`.

    Raises FileNotFoundError for a folder without tokenizer files, ValueError for damaged ones.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        read_files(self.folder)  # says what is wrong with a file by its name
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        except Exception as error:  # of whatever kind a file makes transformers raise
            fix = ""
            if not (self.folder / "tokenizer.json").is_file():
                fix = (
                    ". It reads tokenizer.model through protobuf, whose release must suit "
                    "sentencepiece's: pip install -U protobuf sentencepiece, or use processing "
                    "llava, which needs none"
                )
            raise ValueError(
                f"transformers cannot read the tokenizer of {folder}: {error}{fix}"
            ) from error
        # A folder of another format does not know the placeholder.
        self._tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
        self._image = self._tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
        for name in ("bos", "eos", "unk", "pad"):
            token = getattr(self._tokenizer, f"{name}_token") or self._tokenizer.unk_token
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", self._tokenizer.convert_tokens_to_ids(token))
        self.all_special_ids = set(self._tokenizer.all_special_ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a whole prompt, IMAGE_TOKEN_INDEX for each `<image>` in it."""
        ids = self._tokenizer(prompt).input_ids
        return [IMAGE_TOKEN_INDEX if i == self._image else i for i in ids]

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: str | Sequence[str], **options: Any) -> BatchEncoding:
        return self._tokenizer(text, **options)

    def decode(self, ids: Any, skip_special_tokens: bool = True, **options: Any) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **options)

    def batch_decode(
        self, sequences: Iterable[Any], skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens, **options) for ids in sequences]

    def __getattr__(self, name: str) -> Any:
        """What else transformers' tokenizer has: `get_vocab`, `pad`, `model_max_length`..."""
        if name == "_tokenizer":  # not there yet, in a copy
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    @property
    def padding_side(self) -> str:
        return self._tokenizer.padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._tokenizer.padding_side = side
