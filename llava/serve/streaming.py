"""An answer while it grows, written piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer

Write = Callable[[str], None]


class Stream(BaseStreamer):
    """Writes an answer as it grows.

    What may still change is held back: bytes of a character that is not complete, and the start of
    the string `end`, which is no part of the answer; "" for none.

    prompt: how many ids come before the answer's; stock models repeat the prompt.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], end: str, write: Write, prompt: int = 0
    ) -> None:
        self._decode, self._end, self._write = decode, end, write
        self._prompt = prompt
        self._ids: list[int] = []
        self._written = 0

    def put(self, value: torch.Tensor) -> None:
        self._ids += value.flatten().tolist()
        text = visible(self._decode(self._ids[self._prompt :]), self._end).rstrip("\ufffd")
        for n in range(len(self._end) - 1, 0, -1):
            if text.endswith(self._end[:n]):
                text = text[:-n]
                break
        self._more(text)

    def end(self) -> None:
        self._more(visible(self._decode(self._ids[self._prompt :]), self._end))

    def _more(self, text: str) -> None:
        if len(text) > self._written:
            self._write(text[self._written :])
            self._written = len(text)


def visible(text: str, end: str) -> str:
    """`text` up to `end`, all of it where that is empty."""
    return text.partition(end)[0] if end else text
