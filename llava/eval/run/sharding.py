"""One run on several processes: who answers what, and how the parts become one answers file.

Each process answers a contiguous chunk of the questions into its own file, with its own record,
and continues by itself. `accelerate launch` and `torchrun` tell a process its number through the
environment; a script may start the processes itself with --num-chunks and --chunk-idx and call for
the merge afterwards. Merging refuses to leave a hole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from llava.common import json_files

from .answers import AnswerFile, QuestionSource, answered_position
from .interruption import ends_at_once
from .linefile import LostError, WriteError, read_lines
from .record import COMPLETE, FAILURES, RECORD, RunRecord, read_record, sibling
from .runner import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE, run
from .settings import RunSettings, differences
from .watched import ChangedError

_PATIENCE = timedelta(days=30)  # how long the first process waits for the slowest
_NAMED = 5  # how many questions a message names before it only counts

ReadQuestions = Callable[[argparse.Namespace], QuestionSource]


@dataclass(frozen=True)
class Launch:
    """This process among `size`: `rank` over all machines, `local_rank` on its own."""

    rank: int
    size: int
    local_rank: int


def launched() -> Launch | None:
    """What a launcher of several processes has put into the environment, None without one.

    Raises:
        ValueError: a number of processes without the number of this one.
    """
    size = _whole("WORLD_SIZE", 1)
    if size < 2:
        return None
    if "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {size} but RANK is not set: start the processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
    return Launch(_whole("RANK", 0), size, _whole("LOCAL_RANK", 0))


def _whole(name: str, default: int) -> int:
    """A number in the environment."""
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(
            f"{name} must be a whole number, got {text[:80]!r}: unset it, or start "
            "the processes with torchrun or accelerate launch"
        )
    return int(text)


def shard_file(answers_file: Path, num_chunks: int, chunk_idx: int) -> Path:
    """Where a process puts its answers: `n_64/4_0.jsonl` for `n_64.jsonl`, as LLaVA names them."""
    return sibling(answers_file, "") / f"{num_chunks}_{chunk_idx}.jsonl"


def shard_settings(settings: RunSettings, num_chunks: int, chunk_idx: int) -> RunSettings:
    """The settings of one process of a run."""
    file = shard_file(settings.answers_file, num_chunks, chunk_idx)
    return replace(settings, num_chunks=num_chunks, chunk_idx=chunk_idx, answers_file=file)


def process_device(launch: Launch, device: str | None) -> str | None:
    """The device of this process: of CUDA's, unless a number is given, the one of its rank.

    That one becomes CUDA's current device, or each process would also open the first.
    """
    if device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    index = launch.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def run_launched(
    launch: Launch, settings: RunSettings, args: argparse.Namespace, read: ReadQuestions
) -> int:
    """Answer this process's share, wait for the others, and merge in the first process.

    Raises:
        ValueError: --num-chunks was given too.
    """
    if settings.num_chunks != 1:
        raise ValueError("a launcher of several processes splits the questions: no --num-chunks")
    share = shard_settings(settings, launch.size, launch.rank)
    share = replace(share, device=process_device(launch, share.device))
    chunk = argparse.Namespace(**vars(args))
    chunk.num_chunks, chunk.chunk_idx = launch.size, launch.rank
    # gloo on any device: nothing but "I am done" is exchanged
    with ends_at_once():
        distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        code = run(share, lambda: read(chunk))
        if code == EXIT_INTERRUPTED:  # the others need not wait for this one
            return code
        codes = _codes_of_all(code, launch.size)
    finally:
        distributed.destroy_process_group()
    if launch.rank:
        return code
    if codes is None:
        print(
            "error: not merged, a process has ended; the same command continues.", file=sys.stderr
        )
        return code or EXIT_STOPPED
    if any(codes):
        print(f"error: not merged, the processes ended with {codes}.", file=sys.stderr)
        return next(code for code in codes if code)
    return merge_chunks(settings, read(args), launch.size)


def _codes_of_all(code: int, size: int) -> list[int] | None:
    """The exit statuses of all processes, None if one has ended without telling its own."""
    codes = [0] * size
    try:
        with ends_at_once():
            distributed.all_gather_object(codes, code)
    except RuntimeError:
        return None
    return codes


def merge_chunks(settings: RunSettings, questions: QuestionSource, num_chunks: int) -> int:
    """Merge the files of all processes into `settings.answers_file`; the exit status.

    The last line on stdout is the summary of the merged record.
    """
    try:
        summary = merge(settings, questions, num_chunks)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except WriteError as error:
        print(f"error: cannot write {error}.", file=sys.stderr)
        return EXIT_STOPPED
    except LostError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except ChangedError as error:
        print(f"error: not merged, {error}.", file=sys.stderr)
        return EXIT_STOPPED
    print(json.dumps(summary), flush=True)
    return 0


def merge(settings: RunSettings, questions: QuestionSource, num_chunks: int) -> dict[str, Any]:
    """Put the answers of all chunks into one file, in the order of the questions.

    Args:
        settings: of the whole run.
        questions: all of them.
        num_chunks: how many processes there were.

    Returns:
        The summary of the merged record.

    Raises:
        ValueError: a chunk is missing, was made with other settings or from other questions, or
            questions have no answer; names them. Nothing is written then.
        WriteError: no space for the merged file.
        LostError, ChangedError: something else has changed the answers or the questions meanwhile.
    """
    target = settings.answers_file
    record = RunRecord(target, settings.to_dict(questions.sha256))
    if num_chunks < 1:
        raise ValueError(f"--merge-chunks must be at least 1, got {num_chunks}.")
    shards, records = [], []
    for chunk_idx in range(num_chunks):
        shards.append(shard_settings(settings, num_chunks, chunk_idx))
        records.append(_checked_record(shards[-1], questions))
    partial = target.with_name(target.name + ".merging")
    partial.unlink(missing_ok=True)
    merged, seen = AnswerFile(partial, questions), set[int]()
    try:
        for shard in shards:
            for number, _, answer in read_lines(shard.answers_file):
                where = f"{shard.answers_file}, line {number}"
                position = answered_position(answer, questions, where)
                if position in seen:
                    raise ValueError(f"{where}: answers {questions[position]} again")
                seen.add(position)
                try:
                    merged.append(position, answer)
                except RecursionError:
                    raise ValueError(f"{where} is nested too deep to be written again") from None
        holes = [questions[position] for position in merged.pending()]
        if holes:
            shown = "; ".join(map(str, holes[:_NAMED]))
            rest = f" and {len(holes) - _NAMED} more" if len(holes) > _NAMED else ""
            listed = [sibling(shard.answers_file, FAILURES) for shard in shards]
            reasons = ", ".join(str(path) for path in listed if path.is_file())
            raise ValueError(
                f"not merged: {len(holes)} of {len(questions)} questions have no answer: {shown}"
                f"{rest}. Run the processes again, they continue."
                + (f" Reasons are in {reasons}." if reasons else "")
            )
        merged.sync()
        merged.verify()
        questions.require_same()
        _write_record(record, settings, questions, merged, records)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        merged.close()
    # after the record: answers without one would be refused
    os.replace(partial, target)
    if not merged.at(target):
        raise LostError(f"{target} was changed meanwhile: merge again.")
    return record.summary()


def _checked_record(shard: RunSettings, questions: QuestionSource) -> dict[str, Any]:
    if not shard.answers_file.is_file():
        raise ValueError(
            f"{shard.answers_file}, chunk {shard.chunk_idx} of {shard.num_chunks}, is not there: "
            "run its process (again)."
        )
    record = read_record(shard.answers_file)
    where = sibling(shard.answers_file, RECORD)
    json_files.check(record, where, {"counts": dict, "seconds": dict})
    json_files.check(record["counts"], f"{where}, counts", {"answered": int, "resumed": int})
    json_files.check(record["seconds"], f"{where}, seconds", {"total": float})
    if differing := differences(record["settings"], shard.to_dict(questions.sha256)):
        raise ValueError(
            f"{shard.answers_file} holds answers made with other settings:\n  "
            + "\n  ".join(differing)
            + "\nMerge with the settings that the processes had."
        )
    return record


def _write_record(
    record: RunRecord,
    settings: RunSettings,
    questions: QuestionSource,
    merged: AnswerFile,
    shards: list[dict[str, Any]],
) -> None:
    """Write the record that one process would have written."""
    answered = next((shard for shard in shards if shard["counts"]["answered"]), shards[0])
    totals = merged.totals.to_dict()
    # They ran side by side, so the slowest decides how fast all of them were together.
    slowest = max(shard["seconds"]["total"] for shard in shards)
    totals["questions_per_second"] = merged.answered / slowest if slowest else None
    resolved = replace(settings, dtype=answered["settings"].get("dtype") or settings.dtype)
    record.begin(resolved.to_dict(questions.sha256), answered.get("environment"))
    record.update(
        COMPLETE,
        counts={
            "questions": len(questions),
            "answered": merged.answered,
            "failed": 0,
            "resumed": sum(shard["counts"]["resumed"] for shard in shards),
        },
        **totals,
        peak_memory_bytes=max(shard.get("peak_memory_bytes") or 0 for shard in shards) or None,
        processes=len(shards),
    )
