"""Images for questions, decoded and preprocessed ahead of the model in worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_start_method
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.common.images import note
from llava.common.signals import ending_signals
from llava.mm_utils import process_images

from .answers import QuestionSource
from .questions import Question
from .watched import ChangedError, file_status

Source = tuple[Any, ...]  # what tells images apart before they are read, and changes with them


@dataclass(frozen=True)
class KnownImage:
    """Stands for the pixels of an image whose features are kept: it is not read again.

    key: of the features. shape: of the pixels. size: the original (width, height).
    """

    key: bytes
    shape: tuple[int, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class LoadedQuestion:
    """A question ready for the model.

    `pixels` are (3, height, width), one for each of its images, or (views, 3, height, width) of a
    model that tiles them; `sizes` the original (width, height) of each; `sources` what they were
    read from, None where that is not known. `notes` say how values were scaled, see
    `common/images.py`. `error` says why there are no pixels although there should be.
    """

    position: int
    question: Question
    pixels: tuple[np.ndarray | KnownImage, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    sources: tuple[Source | None, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None


class QuestionImages(Dataset[LoadedQuestion]):
    """The questions at `positions`, with their images from `folder` unless they are `known`.

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
        known: Mapping[Source, KnownImage] | None = None,
    ) -> None:
        self._questions = questions
        self._positions = positions
        self._folder = folder
        self._image_processor = image_processor
        self._model_config = model_config
        self._known = known or {}
        self._prepare(Image.new("RGB", (8, 8)))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> LoadedQuestion:
        return self.load(self._positions[i], self._known)

    @property
    def all_known(self) -> bool:
        """Whether no image has to be read."""
        return bool(self._known) and all(
            self._source(name) in self._known
            for position in self._positions
            for name in self._questions[position].images
        )

    def load(
        self, position: int, known: Mapping[Source | None, KnownImage] = MappingProxyType({})
    ) -> LoadedQuestion:
        """The question at `position` of the whole list."""
        question = self._questions[position]
        pixels: list[np.ndarray | KnownImage] = []
        sizes: list[tuple[int, int]] = []
        notes: list[str] = []
        sources = tuple(map(self._source, question.images))
        try:
            for name, source in zip(question.images, sources):
                if (kept := known.get(source)) is not None:
                    pixels.append(kept)
                    sizes.append(kept.size)
                    continue
                image = self._questions.open_image(replace(question, image=name), self._folder)
                pixels.append(self._prepare(image))
                sizes.append(image.size)
                notes += filter(None, [note(image)])
        except ChangedError:
            raise
        except Exception as error:
            return LoadedQuestion(position, question, error=f"{type(error).__name__}: {error}")
        return LoadedQuestion(
            position, question, tuple(pixels), tuple(sizes), sources, tuple(notes)
        )

    def _source(self, name: str) -> Source | None:
        if self._questions.images_inside:
            return self._questions.sha256, name
        path = self._folder / name
        try:
            return str(path), *file_status(path)
        except (OSError, ValueError):  # reading it says what is wrong
            return None

    def _prepare(self, image: Image.Image) -> np.ndarray:
        # Arrays travel through the workers' pipe. Tensors would go through shared memory, of
        # which containers often have less than a few batches need, and die with a bus error.
        return process_images([image], self._image_processor, self._model_config)[0].numpy()


def batches(
    dataset: QuestionImages, batch_size: int, num_workers: int
) -> Iterator[list[LoadedQuestion]]:
    """Lists of up to `batch_size` questions in order, prepared by `num_workers` processes, or by
    this one where no image has to be read."""
    # Its id as of now: a worker may come to look only when this process is gone already. A fork
    # server stands between the two, and ends with this process.
    parent = None if get_start_method() == "forkserver" else os.getpid()
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=0 if dataset.all_known else num_workers,
        collate_fn=_as_list,
        worker_init_fn=partial(_follow_the_parent, parent),
    )
    with _blocked_signals():
        return iter(loader)


def _as_list(questions: list[LoadedQuestion]) -> list[LoadedQuestion]:
    return questions


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Workers begin with the mask of their parent, so none is hit before it ignores the signals."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_the_parent(parent: int | None, worker: int) -> None:
    # They reach the whole process group; a worker that dies of them looks like a crash.
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending_signals())
    # A killed parent leaves workers that wait for ever: each keeps open the pipe that the other
    # would have to find broken.
    threading.Thread(target=_end_with, args=(parent or os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


_LOOK = 1.0  # seconds between two looks at whether the parent is there
