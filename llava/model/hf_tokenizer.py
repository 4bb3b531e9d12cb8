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


class HfTokenizer:
    """transformers' tokenizer of a folder behind the interface of `LlavaTokenizer`.

    Raises FileNotFoundError for a folder without tokenizer files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not any((self.folder / f"tokenizer.{kind}").is_file() for kind in ("model", "json")):
            raise FileNotFoundError(
                f"{folder} holds neither tokenizer.model nor tokenizer.json: copy one of them from "
                "the checkpoint's repository"
            )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
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

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self._tokenizer.get_vocab()

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> BatchEncoding:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        return self._tokenizer.convert_tokens_to_ids(tokens)

    def save_pretrained(self, folder: str | Path) -> None:
        self._tokenizer.save_pretrained(folder)
