"""One evaluation run: questions in, answers and a run record out, whatever happens in between.

A question that cannot be answered is recorded with the reason and the run goes on; a run that was
killed is continued by the same command; answers of different settings are never mixed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llava.common.signals import EXIT_INTERRUPTED

from .answers import AnswerFile, FailureFile, QuestionSource
from .environment import devices_of, environment, peak_memory_bytes, reset_peak_memory, shortage_in
from .interruption import Interruption
from .linefile import LostError, WriteError
from .models import LoadModel, load_model
from .record import (
    COMPLETE,
    FAILURES,
    INCOMPLETE,
    INTERRUPTED,
    REFUSED,
    RUNNING,
    RunRecord,
    sibling,
)
from .settings import RunSettings
from .watched import ChangedError

if TYPE_CHECKING:
    from .loading import LoadedQuestion, QuestionImages

EXIT_COMPLETE = 0
EXIT_STOPPED = 1  # no space, no memory
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3


def run(
    settings: RunSettings,
    read_questions: Callable[[], QuestionSource],
    *,
    load: LoadModel = load_model,
    report: Callable[[dict[str, Any]], None] | None = None,
    bar: tqdm | None = None,
) -> int:
    """Answer what has no answer yet and return the exit status.

    `load` gives the model, if one is needed. Messages and a progress bar go to stderr. `report`
    gets the record's summary; without it, the summary is the last line on stdout. `bar` is shared
    with other runs: it moves on with this one's questions, and nothing is said of what went well.
    """
    with Interruption() as stop:
        try:
            session = Session(settings, read_questions(), load, bar)
            session.prepare()
        except BaseException as error:
            # Libraries that a signal hits on their way in may make something else of it.
            if isinstance(error, KeyboardInterrupt) or stop.seen:
                _say("Interrupted before the first question; nothing was changed.")
                return EXIT_INTERRUPTED
            if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)):
                _say(f"error: {error}")
                return EXIT_USAGE
            if (shortage := shortage_in(error)) is None:
                raise
            _say(f"error: {shortage} while the model was loaded. {_LOAD_SMALLER}")
            return EXIT_STOPPED
        code = session.answer(stop)
        (report or _print)(session.summary())
        return code


class Session:
    """One start of a run.

    Raises:
        ValueError, OSError: the answers file or its record do not fit these settings or questions.
    """

    def __init__(
        self,
        settings: RunSettings,
        questions: QuestionSource,
        load: LoadModel = load_model,
        bar: tqdm | None = None,
    ) -> None:
        self._settings = settings
        self._bar = bar
        self._questions = questions
        self._load = load
        self._requested = settings.to_dict(questions.sha256)
        self._record = RunRecord(settings.answers_file, self._requested)
        self._answers = AnswerFile(settings.answers_file, questions)
        self._pending = self._answers.pending()
        self._resumed = self._answers.answered
        self._failures: FailureFile | None = None
        self._model: tuple[Any, Any] | None = None
        self._dataset: QuestionImages | None = None
        self._refusal: str | None = None
        self._notes: set[str] = set()

    def prepare(self) -> None:
        """Load the model, unless every question has its answer.

        Raises:
            ValueError, OSError, ImportError, NotImplementedError: the model cannot be loaded as
                asked, or turns out not to be what gave the earlier answers.
        """
        try:
            if not self._pending:
                self._record.begin(self._requested, None)
                return
            folder = self._settings.image_folder
            if not self._questions.images_inside and not folder.is_dir():
                raise FileNotFoundError(
                    f"Image folder {folder} not found: give --image-folder the folder of the "
                    f"images that {self._questions.path.name} names; EVAL.md says where they are "
                    f"from."
                )
            # Imported here because a run with nothing left to do must not wait for transformers.
            from .feature_cache import known_images
            from .loading import QuestionImages

            if self._settings.sampling and self._settings.batch_size > 1:
                _say(
                    "warning: sampled answers depend on what shares their batch, so an interrupted "
                    "run gives others; --batch-size 1 avoids that."
                )
            tokenizer, model, image_processor = self._load(self._settings)
            self._questions.check_model(model)
            self._model = tokenizer, model
            reset_peak_memory(*devices_of(model))  # a sweep has several runs in one process
            self._dataset = QuestionImages(
                self._questions,
                self._pending,
                self._settings.image_folder,
                image_processor,
                model.config,
                known_images(model, self._settings),
            )
            merged = getattr(model.config, "mm_patch_merge_type", None) or "flat"
            named = str(model.dtype).removeprefix("torch.")
            resolved = replace(self._settings, dtype=named, merge_type=merged)
            self._record.begin(resolved.to_dict(self._questions.sha256), environment(model.device))
        except BaseException:
            self._answers.close()
            self._answers.discard_if_new()
            raise

    def answer(self, stop: Interruption) -> int:
        """Answer the pending questions and write the record; the exit status."""
        status, code, message = INCOMPLETE, EXIT_STOPPED, "Stopped by an unexpected error."
        then = "the same command continues from there."
        try:
            self._answer_pending(stop)
            status, code, message = self._verdict()
        except KeyboardInterrupt:
            status, code, message = INTERRUPTED, EXIT_INTERRUPTED, "Interrupted."
        except WriteError as error:
            message = f"error: cannot write {error}."
        except LostError as error:
            message = f"error: {error}."
        except ChangedError:
            message = f"error: {self._questions.path} was changed while the run read it."
            then = (
                "they answer the file as it was. Put that back, and the same command continues; "
                "for other questions give another --answers-file."
            )
        except (MemoryError, RuntimeError) as error:
            if stop.seen:  # a worker that ends with the others is no shortage
                status, code, message = INTERRUPTED, EXIT_INTERRUPTED, "Interrupted."
            elif (shortage := shortage_in(error)) is None:
                raise
            else:
                message = f"error: {shortage}. {_RUN_SMALLER}"
        except ValueError as error:
            # What the method cannot do with this model is found out at the first prefill.
            self._refusal = str(error)
            status, message = REFUSED, f"error: {error}."
        finally:
            stop.ignore()
            if code in (EXIT_STOPPED, EXIT_INTERRUPTED) and status != REFUSED:
                message += (
                    f" {self._answers.answered} of {len(self._questions)} answers are safe in "
                    f"{self._answers.path}; {then}"
                )
            if (loss := self._close()) is not None:
                status, message = INCOMPLETE, f"error: {loss}"
                code = EXIT_INTERRUPTED if code == EXIT_INTERRUPTED else EXIT_STOPPED
            if code != EXIT_COMPLETE or self._bar is None:
                _say(message)
            saved = self._save_finally(status)
        return code if saved else code or EXIT_STOPPED

    def summary(self) -> dict[str, Any]:
        """The record without settings and environments."""
        return self._record.summary()

    def _close(self) -> str | None:
        """Look at every answer and failure that was written; what is lost, None if nothing is."""
        losses = []
        for file in (self._answers, self._failures):
            if file is not None:
                try:
                    file.verify()
                except LostError as error:
                    losses.append(str(error))
                file.close()
        return " ".join(losses) or None

    def _answer_pending(self, stop: Interruption) -> None:
        if self._model is not None:
            self._save(RUNNING)
            if self._resumed and self._bar is None:
                _say(f"Continuing: {self._resumed} of {len(self._questions)} are answered.")
            self._answer_with(*self._model, stop)
        with stop.hold():
            self._answers.put_in_order()
        self._questions.require_same()

    def _answer_with(self, tokenizer: Any, model: Any, stop: Interruption) -> None:
        from llava.pruning.checks import BudgetError

        from .answering import Answerer
        from .loading import batches

        settings, answers = self._settings, self._answers
        dataset = self._dataset
        assert dataset is not None, "prepared"
        self._failures = failures = FailureFile(sibling(answers.path, FAILURES))
        answerer = Answerer(model, tokenizer, settings)
        refusal: BudgetError | None = None
        # Pictures that a model tiles differ in their tokens, so the next may fit the budget.
        tiled = getattr(model.config, "image_aspect_ratio", None) == "anyres"
        tries = len(self._questions) if tiled else _TRIES
        with self._progress() as progress:
            idle_since = perf_counter()
            with stop.hold():  # half an iterator cannot shut its workers down
                loading = batches(dataset, settings.batch_size, settings.num_workers)
            for batch in loading:
                self._questions.require_same()
                batch = [dataset.load(i.position) if answerer.lacks(i) else i for i in batch]
                loaded = [item for item in batch if item.error is None]
                with stop.hold():
                    for item in batch:
                        if item.error is not None:
                            failures.append(item.question, item.error)
                            progress.write(f"{item.question}: {item.error}", file=sys.stderr)
                if loaded:
                    results = answerer(loaded, waited=perf_counter() - idle_since)
                    with stop.hold():
                        for item, result in zip(loaded, results):
                            if isinstance(result, dict):
                                answers.append(item.position, result)
                                self._note_once(item, result, progress)
                                continue
                            if isinstance(result, BudgetError):
                                refusal = refusal or result
                            failures.append(item.question, str(result))
                            progress.write(f"{item.question}: {result}", file=sys.stderr)
                        answers.sync()
                    if refusal and not answers.answered and failures.count >= tries:
                        raise refusal
                    idle_since = perf_counter()
                if answers.totals.entering is not None and self._bar is None:
                    progress.set_postfix_str(f"{answers.totals.entering:.1f} visual tokens a layer")
                progress.update(len(batch))
        if refusal and not answers.answered:
            raise refusal

    def _progress(self) -> AbstractContextManager[tqdm]:
        if self._bar is not None:
            return nullcontext(self._bar)
        total, done = len(self._questions), self._resumed
        return tqdm(total=total, initial=done, unit="question", smoothing=0.1)

    def _note_once(self, item: LoadedQuestion, answer: dict[str, Any], progress: tqdm) -> None:
        """Say once a run that pictures were scaled, or that an answer met the context's end."""
        notes = list(item.notes)
        if answer["metadata"].get("context_full"):
            notes.append("the context is full before --max_new_tokens, and the answer ends there")
        for note in notes:
            if note not in self._notes:
                self._notes.add(note)
                progress.write(f"warning: {item.question}: {note}.", file=sys.stderr)

    def _verdict(self) -> tuple[str, int, str]:
        total, path = len(self._questions), self._answers.path
        if self._failures is not None and self._failures.count:
            listed = self._failures.path
            return (
                INCOMPLETE,
                EXIT_SOME_FAILED,
                f"{self._failures.count} of {total} questions have no answer, see {listed} for the "
                f"reasons. The same command tries these again.",
            )
        already = "already " if self._model is None else ""
        return COMPLETE, EXIT_COMPLETE, f"Complete: {total} of {total} are {already}in {path}."

    def _save(self, status: str) -> None:
        if self._model is None and self._record.status == COMPLETE:
            return  # asking again changes nothing about a finished run
        peak = self._record.peak_memory_bytes
        if self._model is not None:
            peak = max(peak, peak_memory_bytes(*devices_of(self._model[1])) or 0)
        self._record.update(
            status,
            counts={
                "questions": len(self._questions),
                "answered": self._answers.answered,
                "failed": self._failures.count if self._failures is not None else 0,
                "resumed": self._resumed,
            },
            **self._answers.totals.to_dict(),
            peak_memory_bytes=peak or None,
            refusal=self._refusal,
        )

    def _save_finally(self, status: str) -> bool:
        try:
            self._save(status)
        except WriteError as error:
            _say(f"error: cannot write the run record {error}.")
            return False
        return True


#: A method that refuses so many questions, and answers none, is not asked about the others.
_TRIES = 8
_LOAD_SMALLER = "Try --dtype float16, --load-4bit or another --device."
_RUN_SMALLER = "Try a smaller --batch-size (or --num-beams), or fewer --num-workers."


def _print(summary: dict[str, Any]) -> None:
    print(json.dumps(summary), flush=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
