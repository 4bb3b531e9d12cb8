"""Aggregates over the answers of a run, from the metadata that each answer carries.

Because nothing else goes in, they are right however often the run was killed and continued.
Conventions of tokens, FLOPs and bytes: `llava.pruning.cost`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from llava.common import json_files

_NUMBERS = ("n_visual", "n_text", "new_tokens")
_GROUPS = ("cost", "seconds")


def check_metadata(metadata: Any, where: str | Path) -> dict[str, Any]:
    """The metadata of an answer from a file, once `Totals.add` can count it.

    Raises:
        ValueError: something is missing, or not a number of usual size; begins with `where`.
    """
    groups = dict.fromkeys(_GROUPS, dict)
    json_files.check(metadata, where, {**dict.fromkeys(_NUMBERS, int), **groups})
    values = {name: metadata[name] for name in _NUMBERS}
    for group in _GROUPS:
        values |= {f"{group}.{name}": value for name, value in metadata[group].items()}
    for name, value in values.items():
        if not json_files.is_number(value):
            raise ValueError(f"{where}: {name} must be a number, got {json_files.shorten(value)}")
    return metadata


class Totals:
    """Running sums over answers; memory does not grow with their number."""

    def __init__(self) -> None:
        self._answers = 0
        self._with_image = 0
        self._computed = 0  # answers that say what really ran
        self._sums: Counter[str] = Counter()

    def add(self, metadata: dict[str, Any]) -> None:
        """Count one answer: its `n_visual`, `n_text`, `new_tokens`, `cost` and `seconds`."""
        self._answers += 1
        self._with_image += metadata["n_visual"] > 0
        self._computed += "computed_flops" in metadata["cost"]
        for name in _NUMBERS:
            self._sums[name] += metadata[name]
        for group in _GROUPS:
            for name, value in metadata[group].items():
                self._sums[f"{group}.{name}"] += value

    @property
    def entering(self) -> float | None:
        """Visual tokens that enter a layer, mean over layers and over questions with an image."""
        return _ratio(self._sums["cost.tokens_entering"], self._with_image)

    def to_dict(self) -> dict[str, Any]:
        """Totals and means, JSON-serialisable; a mean over nothing is None.

        tokens: means an answer; visual ones over questions with an image, `entering` and `leaving`
        averaged over layers too. flops, kv_bytes: totals, and their ratio to the dense model.
        FLOPs are by the published counting, but for `computed`, what really ran with scoring and
        merging: None where an answer of an older version does not say it.
        seconds, over all sessions: prefill (to the first token), decode, waiting (for images),
        total (all of these, tokenisation and bookkeeping), and vision. Where `vision` is None,
        prefill begins with the vision tower. Where it is a number, the run had a feature cache:
        vision is the time of the tower, next to nothing for images that the cache had already,
        and prefill begins behind the tower.
        """
        sums = self._sums
        prefill = sums["cost.prefill_flops"]
        overhead = sums["cost.scoring_flops"] + sums["cost.merging_flops"]
        known = self._computed == self._answers
        computed = sums["cost.computed_flops"] if known else None
        dense_prefill = sums["cost.dense_prefill_flops"]
        return {
            "tokens": {
                "visual": _ratio(sums["n_visual"], self._with_image),
                "entering": self.entering,
                "leaving": _ratio(sums["cost.tokens_leaving"], self._with_image),
                "text": _ratio(sums["n_text"], self._answers),
                "new": _ratio(sums["new_tokens"], self._answers),
            },
            "flops": {
                "prefill": prefill,
                "scoring": sums["cost.scoring_flops"],
                "merging": sums["cost.merging_flops"],
                "computed": computed,
                "dense_prefill": dense_prefill,
                "prefill_ratio": _ratio(prefill, dense_prefill),
                "prefill_ratio_with_scoring_and_merging": _ratio(prefill + overhead, dense_prefill),
                "computed_ratio": None if computed is None else _ratio(computed, dense_prefill),
                "decode": sums["cost.decode_flops"],
                "dense_decode": sums["cost.dense_decode_flops"],
                "decode_ratio": _ratio(sums["cost.decode_flops"], sums["cost.dense_decode_flops"]),
            },
            "kv_bytes": {
                "total": sums["cost.kv_bytes"],
                "dense": sums["cost.dense_kv_bytes"],
                "ratio": _ratio(sums["cost.kv_bytes"], sums["cost.dense_kv_bytes"]),
            },
            "seconds": {
                name: round(sums[f"seconds.{name}"], 3)
                for name in ("prefill", "decode", "waiting", "total")
            }
            | {"vision": round(sums["seconds.vision"], 3) if "seconds.vision" in sums else None},
            "questions_per_second": _ratio(self._answers, sums["seconds.total"]),
            "waiting_fraction": _ratio(sums["seconds.waiting"], sums["seconds.total"]),
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
