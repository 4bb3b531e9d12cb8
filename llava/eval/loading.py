"""Images for questions, decoded and preprocessed ahead of the model in worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.mm_utils import process_images

from .answers import QuestionSource
from .questions import Question


@dataclass(frozen=True)
class LoadedQuestion:
    """A question ready for the model.

    `pixels` is (3, height, width), or (views, 3, height, width) of a model that tiles; None for
    text-only questions; `size` the original (width, height). `error` says why there are no pixels
    although there should be.
    """

    position: int
    question: Question
    pixels: np.ndarray | None = None
    size: tuple[int, int] | None = None
    error: str | None = None


class QuestionImages(Dataset[LoadedQuestion]):
    """The questions at `positions`, with their images from `folder`.

    A question whose image cannot be loaded comes out with its `error`: one bad file among
    thousands must not end a run.

    Raises:
        ValueError: the checkpoint asks for a preparation of images that does not exist, which is no
            image's fault.
    """

    def __init__(
        self,
        questions: QuestionSource,
        positions: array,
        folder: Path,
        image_processor: Any,
        model_config: Any,
    ) -> None:
        self._questions = questions
        self._positions = positions
        self._folder = folder
        self._image_processor = image_processor
        self._model_config = model_config
        self._prepare(Image.new("RGB", (8, 8)))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> LoadedQuestion:
        position = self._positions[i]
        question = self._questions[position]
        if question.image is None:
            return LoadedQuestion(position, question)
        try:
            image = self._questions.open_image(question, self._folder)
            pixels = self._prepare(image)
        except Exception as error:
            return LoadedQuestion(position, question, error=f"{type(error).__name__}: {error}")
        return LoadedQuestion(position, question, pixels, image.size)

    def _prepare(self, image: Image.Image) -> np.ndarray:
        # Arrays travel through the workers' pipe. Tensors would go through shared memory, of
        # which containers often have less than a few batches need, and die with a bus error.
        return process_images([image], self._image_processor, self._model_config)[0].numpy()


def batches(
    dataset: QuestionImages, batch_size: int, num_workers: int
) -> Iterable[list[LoadedQuestion]]:
    """Lists of up to `batch_size` questions in order, prepared by `num_workers` processes."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_follow_the_parent,
    )


def _as_list(questions: list[LoadedQuestion]) -> list[LoadedQuestion]:
    return questions


def _follow_the_parent(worker: int) -> None:
    # Both reach the whole process group; a worker that dies of them looks like a crash.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A killed parent leaves workers that wait for ever: each keeps open the pipe that the other
    # would have to find broken.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


_LOOK = 1.0  # seconds between two looks at whether the parent is there
