"""A question as lmms-eval asks it: its text, its pictures, and how the answer is generated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.common.images import to_rgb

#: Answers may be so long where a task does not say it, as in lmms-eval's class for LLaVA.
MAX_NEW_TOKENS = 1024

# lmms-eval gives it to tasks that name no end of an answer; it would cut one at a blank line.
_NO_END = "\n\n"


@dataclass(frozen=True)
class Request:
    """One question. `index` is its place among those of the call."""

    index: int
    text: str
    pictures: tuple[Image.Image, ...]


def pictures_of(visuals: Any) -> tuple[Image.Image, ...]:
    """The pictures that a task hands over: one, several, several lists, or none.

    Raises:
        ValueError: a video, a sound or anything else.
    """
    if visuals is None:
        return ()
    if isinstance(visuals, Image.Image):
        return (to_rgb(visuals),)
    if isinstance(visuals, (list, tuple)):
        return tuple(picture for visual in visuals for picture in pictures_of(visual))
    raise ValueError(f"only pictures can be asked about here, got {type(visuals).__name__}")


def generation_of(task: Mapping[str, Any]) -> dict[str, Any]:
    """Of a task's `generation_kwargs` what `RunSettings` calls max_new_tokens, temperature, top_p
    and num_beams; greedy unless the task samples."""
    temperature = float(task.get("temperature") or 0)
    sampled = temperature > 0 and task.get("do_sample", True)
    return {
        "max_new_tokens": int(task.get("max_new_tokens") or MAX_NEW_TOKENS),
        "num_beams": int(task.get("num_beams") or 1),
        "temperature": temperature if sampled else 0.0,
        "top_p": float(task["top_p"]) if sampled and task.get("top_p") else None,
    }


def cut(text: str, until: str | Iterable[str] | None) -> str:
    """The text up to the first of the strings that end an answer for a task."""
    for end in [until] if isinstance(until, str) else until or ():
        if end and end != _NO_END:
            text = text.split(end)[0]
    return text.strip()
