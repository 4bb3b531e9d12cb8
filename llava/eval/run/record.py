"""The record of a run: a JSON file beside the answers that says how they came about.

`n_64.jsonl` has `n_64.run.json`. It holds every setting, the environment, counts and the totals of
`llava.eval.run.totals`, and it is what keeps answers of different settings apart.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llava.common import json_files

from .linefile import WriteError
from .settings import differences, recorded_types

logger = logging.getLogger(__name__)

RECORD = ".run.json"  # in place of the answers' .jsonl
FAILURES = ".errors.jsonl"  # likewise: the questions without an answer, and why

RUNNING, COMPLETE = "running", "complete"
INCOMPLETE, INTERRUPTED = "incomplete", "interrupted"
REFUSED = "refused"  # the method cannot do what is asked; `refusal` says why

# What a record holds besides its settings. Null is as if it were not there.
_TYPES: dict[str, json_files.Types] = {
    "status": str,
    "refusal": str,
    "peak_memory_bytes": int,
    **dict.fromkeys(("counts", "tokens", "flops", "kv_bytes", "seconds", "environment"), dict),
    "earlier_environments": list,
}
_NUMBERS = ("counts", "tokens", "flops", "kv_bytes", "seconds")

# A change of these between two sessions of one run may change an answer's last bit.
_NOTEWORTHY = ("torch", "transformers", "llava", "git_commit", "git_dirty", "device_name")
_FORMAT = 1


def sibling(answers_file: Path, suffix: str) -> Path:
    """The file beside `n_64.jsonl` called `n_64` + suffix."""
    return answers_file.with_name(answers_file.name.removesuffix(".jsonl") + suffix)


def read_record(answers_file: Path) -> dict[str, Any]:
    """The run record beside an answers file.

    Raises:
        ValueError: there is none, or it is not one; says which, and what is wrong in it.
    """
    path = sibling(answers_file, RECORD)
    if not path.is_file():
        raise ValueError(f"{answers_file} has no run record {path.name} beside it.")
    try:
        return _checked(json_files.read(path), path)
    except ValueError as error:
        raise ValueError(f"{error}. It is not a readable run record.") from None


def _checked(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record without what is null."""
    settings = json_files.check(record, path, {"settings": dict}, _TYPES)["settings"]
    json_files.check(settings, f"{path}, settings", {}, recorded_types())
    json_files.check_plain({**settings, "pruner": None}, f"{path}, settings")
    unknown = record.keys() - _TYPES.keys() - {"settings"}
    json_files.check_plain({name: record[name] for name in unknown}, path)
    pruner = settings.get("pruner") or {}
    where = f"{path}, settings, pruner"
    numbers = ("target_token_num", "target_fraction", "target_flops", "target_kv")
    json_files.check(
        pruner, where, {}, {"method": str, "seed": int, **dict.fromkeys(numbers, float)}
    )
    json_files.check_plain(pruner, where)
    for name in _NUMBERS:
        group = record.get(name) or {}
        number = int if name == "counts" else float
        json_files.check(group, f"{path}, {name}", {}, dict.fromkeys(group, number))
        json_files.check_plain(group, f"{path}, {name}")
    where = f"{path}, environment"
    for session in [*(record.get("earlier_environments") or []), record.get("environment") or {}]:
        json_files.check_plain(json_files.check(session, where, {}), where)
    return {name: value for name, value in record.items() if value is not None}


def environments(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of all sessions of a run, the last one's last."""
    return [*(record.get("earlier_environments") or []), record.get("environment") or {}]


def commit_label(environment: Mapping[str, Any]) -> str | None:
    """How tables name the code of a session: its commit, and whether that was all of the code."""
    commit = environment.get("git_commit")
    return f"{commit} (with uncommitted changes)" if environment.get("git_dirty") else commit


def commits(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The code that gave the answers, each once, as tables name it."""
    labels = (commit_label(where) for record in records for where in environments(record))
    return list(dict.fromkeys(label for label in labels if label is not None))


class RunRecord:
    """`ANSWERS.run.json` in memory.

    Raises:
        ValueError: there are answers without a record, or with one that cannot be read or that
            was made with settings under which other answers come out; names each.
    """

    def __init__(self, answers_file: Path, settings: dict[str, Any]) -> None:
        self.path = sibling(answers_file, RECORD)
        self._answers_file = answers_file
        self._data: dict[str, Any] = {"format": _FORMAT, "created": _now()}
        self._text = self._read()
        if answers_file.is_file() and answers_file.stat().st_size:
            self._data = self._load()
            self.require_same(settings)

    @property
    def peak_memory_bytes(self) -> int:
        """The most that an earlier session needed, 0 without one."""
        return self._data.get("peak_memory_bytes") or 0

    def require_same(self, settings: dict[str, Any]) -> None:
        """Raise a ValueError unless `settings` give the answers that are already there."""
        differing = differences(self._data.get("settings", settings), settings)
        if differing:
            raise ValueError(
                f"{self._answers_file} holds answers made with other settings:\n  "
                + "\n  ".join(differing)
                + "\nRepeat the settings of the record to continue, give another --answers-file, "
                f"or remove {self._answers_file} and {self.path} to start over."
            )

    @property
    def status(self) -> str | None:
        """How the last session ended, None without one."""
        return self._data.get("status")

    @property
    def answered(self) -> int:
        """How many answers there were when the record was last written."""
        return self._data.get("counts", {}).get("answered") or 0

    def begin(self, settings: dict[str, Any], environment: dict[str, Any] | None) -> None:
        """Note the resolved settings and this session's environment, None if it answers nothing.

        Raises:
            ValueError: as above, now that settings like `dtype` are resolved.
        """
        self.require_same(settings)
        if environment is None:
            self._data.setdefault("settings", settings)
            return
        earlier = self._data.get("environment")
        if earlier is not None and earlier != environment:
            changed = [key for key in _NOTEWORTHY if earlier.get(key) != environment.get(key)]
            for key in changed:
                logger.warning(
                    "Continuing a run whose %s was %r and now is %r.",
                    key,
                    earlier.get(key),
                    environment.get(key),
                )
            self._data.setdefault("earlier_environments", []).append(earlier)
        self._data |= {"settings": settings, "environment": environment}

    def update(self, status: str, **fields: Any) -> None:
        """Set the status and top-level fields, and write the file.

        Raises:
            WriteError: it cannot be written; an earlier one stays as it was. Likewise if something
                else has changed it: what is there may belong to other answers.
        """
        self._data |= {"status": status, "updated": _now(), **fields}
        text = json.dumps(self._data, indent=2) + "\n"
        new = self.path.with_name(self.path.name + ".tmp")
        try:
            if (there := self._read()) is not None and there != self._text:
                raise WriteError(f"{self.path}: something else has changed it meanwhile")
            new.write_text(text)
            os.replace(new, self.path)
            self._text = text
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise WriteError(f"{self.path}: {error.strerror or error}") from error

    def summary(self) -> dict[str, Any]:
        """The record without settings and environments, for one line of output."""
        left_out = ("settings", "environment", "earlier_environments", "format", "created")
        rest = {key: value for key, value in self._data.items() if key not in left_out}
        return {"answers_file": str(self._answers_file), **rest}

    def _read(self) -> str | None:
        """What is in the file now, None without one."""
        try:
            return self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return None

    def _load(self) -> dict[str, Any]:
        fix = (
            f"Answers of unknown settings cannot be continued: give another --answers-file, or "
            f"remove {self._answers_file} to start over."
        )
        if not self.path.is_file():
            raise ValueError(
                f"{self._answers_file} holds answers but {self.path}, the record of how they were "
                f"made, is missing. {fix}"
            )
        try:
            return read_record(self._answers_file)
        except ValueError as error:
            raise ValueError(f"{error} {fix}") from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
