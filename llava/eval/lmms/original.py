"""LLaVA checkpoints, answered as by this package's own programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.mm_utils import process_images

from ..run.answering import Answerer, Reply
from ..run.loading import LoadedQuestion
from ..run.models import load_model
from ..run.questions import Question
from ..run.settings import RunSettings
from .request import Request


class OriginalModel:
    """A checkpoint in LLaVA's or llava-hf's format, through this package's loader.

    Pictures go in front of the text, each on a line of its own, unless the text has as many
    <image> as there are pictures. Raises what `load_model` does.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._tokenizer, self.model, self._processor = load_model(settings)

    def answers(self, requests: list[Request], generation: dict[str, Any]) -> list[Reply]:
        """What becomes of each request of a batch, in order."""
        settings = replace(self._settings, **generation)
        answerer = Answerer(self.model, self._tokenizer, settings)
        return answerer([self._loaded(request) for request in requests], waited=0.0)

    def _loaded(self, request: Request) -> LoadedQuestion:
        names = tuple(f"picture {i}" for i, _ in enumerate(request.pictures, 1))
        placed = bool(names) and request.text.count(DEFAULT_IMAGE_TOKEN) == len(names)
        question = Question(
            request.index,
            request.index,
            request.text,
            names[0] if names else None,
            views=names if placed else (),
            more=names[1:],
        )
        pixels = tuple(
            process_images([picture], self._processor, self.model.config)[0].numpy()
            for picture in request.pictures
        )
        sizes = tuple(picture.size for picture in request.pictures)
        return LoadedQuestion(request.index, question, pixels, sizes)
