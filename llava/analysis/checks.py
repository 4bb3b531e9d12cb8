"""What `verify` compares, and how large a difference is normal.

Each check gives a `Verdict`. A difference is that of a token's logits, relative to their length,
and the largest of all tokens. `ROOM` is ten times what the embedded model showed on CPU between
runs that are equal but for rounding (kernels, batches, masks: 7e-6, 0.045, 0.006); random models of
40 layers, where rounding grows most, stay below half of it. transformers' model and ours with the
same kernel differ by nothing there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median_high
from typing import Any

import torch

from ..eval.run.environment import synchronize
from ..model.language_model.backends import BACKENDS, backend_of
from ..pruning.base import Pruner
from . import stock
from .prefills import take_turns
from .subject import TOKENS, Prompt, Reply, Subject, difference

ROOM = {torch.float32: 7e-5, torch.bfloat16: 0.4, torch.float16: 0.06}
#: Share of kept tokens that a batch has to choose as its samples do; rounding swaps close ones.
SAME_CHOICE = {torch.float32: 0.99, torch.bfloat16: 0.8, torch.float16: 0.9}
FLASH = "flash_attention_2"
OK, WRONG, SKIPPED = "ok", "WRONG", "skipped"


@dataclass(frozen=True)
class Verdict:
    """What was compared, the verdict, the size of the difference, and what is to be said."""

    name: str
    verdict: str
    difference: float | None = None
    normal: str = ""
    said: str = ""


class TimeUpError(Exception):
    """Nothing more fits into the time."""


class Checks:
    """The checks of one subject, one after the other, until the time is up.

    until: seconds on the `clock` after which nothing begins
    """

    def __init__(
        self,
        subject: Subject,
        pruner: Pruner,
        until: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.subject, self.pruner = subject, pruner
        self._until, self._clock = until, clock
        self._seconds = [0.0]
        self.room = ROOM.get(subject.model.dtype, ROOM[torch.bfloat16])
        self.answers: list[str] = []
        self.times: dict[str, dict[str, float]] = {}
        self._alone: dict[int, Reply] = {}

    def run(self) -> Iterator[Verdict]:
        """A verdict for each check, as soon as there is one."""
        checks: list[tuple[str, Callable[[], Verdict]]] = [
            ("weights", self.weights),
            ("unpruned logits = transformers'", self.unpruned),
            (f"unpruned {TOKENS} tokens = transformers'", self.tokens),
        ]
        if hasattr(self.pruner, "positions"):
            for policy in ("compact", "original"):
                moved = replace(self.pruner, positions=policy)
                name = f"pruned = masked, {policy} positions"
                checks.append((name, partial(self.pruned, moved)))
        else:
            checks.append(("pruned = masked", partial(self.pruned, self.pruner)))
        checks += [
            ("batch unpruned = samples alone", partial(self.batch, None)),
            ("batch pruned = masked, same choice", partial(self.batch, self.pruner)),
        ]
        used = backend_of(self.subject.model.config)
        checks += [
            (f"{name} = {used}", partial(self.kernel, name, used))
            for name in BACKENDS
            if name != used
        ]
        checks.append(("times", self.measure))
        for name, check in checks:
            yield self._verdict(name, check)

    def _verdict(self, name: str, check: Callable[[], Verdict]) -> Verdict:
        try:
            return replace(check(), name=name)
        except TimeUpError:
            return Verdict(name, SKIPPED, said="no time left (--time-budget)")
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return Verdict(name, SKIPPED, said="not enough memory on the device")
        except Exception as error:  # what a bug report is about
            reason = str(error).partition("\n")[0]
            return Verdict(name, WRONG, said=f"raised {type(error).__name__}: {reason}")

    def weights(self) -> Verdict:
        """Whether both models hold the same tensors."""
        loaded = self.subject.stock
        assert loaded is not None
        if not loaded.reader:
            return Verdict("", SKIPPED, said="shared: no room to load them twice, or not wanted")
        names = stock.differing(self.subject.model, loaded)
        if not names:
            return Verdict("", OK, 0.0, "0", f"read again by {loaded.reader}")
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return Verdict("", WRONG, normal="0", said=f"not those that {loaded.reader} reads: {some}")

    def unpruned(self) -> Verdict:
        """All logits of each prompt."""
        subject = self.subject

        def compare(i: int, prompt: Prompt) -> tuple[float, str]:
            ours = subject.logits(prompt)
            if not ours.isfinite().all():
                return torch.inf, "logits that are no numbers: try --dtype bfloat16 or float32"
            gap = difference(ours, subject.stock_logits(prompt))
            return gap, self._place(
                gap, lambda: subject.logits(prompt), lambda: subject.stock_logits(prompt), True
            )

        return self._over_pictures(compare)

    def tokens(self) -> Verdict:
        """What `generate` answers, step by step; where tokens part, it has to be a near tie."""
        subject = self.subject
        parted = []

        def compare(i: int, prompt: Prompt) -> tuple[float, str]:
            ours, theirs = subject.reply([prompt], None), subject.stock_reply(prompt)
            self._alone[i] = ours
            self.answers.append(subject.text(ours))
            same = _agreeing(ours, theirs)
            if same < TOKENS:
                parted.append(f"a near tie at token {same + 1} of picture {i + 1}")
            steps = slice(0, same + 1)
            gap = difference(ours.logits[:, steps], theirs.logits[:, steps])
            step = "" if gap <= self.room else f"within the first {same + 1} tokens"
            return gap, step

        verdict = self._over_pictures(compare)
        if verdict.verdict == OK and parted:
            return replace(verdict, said=f"{verdict.said}; {'; '.join(parted)}")
        return verdict

    def pruned(self, pruner: Pruner) -> Verdict:
        """A pruned `generate` against a run of full length in which dropped tokens are masked."""
        subject, counts = self.subject, []

        def compare(i: int, prompt: Prompt) -> tuple[float, str]:
            reply = subject.reply([prompt], pruner)
            trace = reply.cache.trace
            if any(trace.merged_patches(0)) or pruner.merges_in_tower:
                raise _Merged
            counts.append(trace.samples[0].leaving[-1])
            masked = subject.masked_logits(prompt, reply, 0)
            gap = difference(reply.logits, masked)
            if gap > self.room >= difference(reply.logits[:, :1], masked[:, :1]):
                return gap, "in decoding; the prefill is right"
            return gap, self._place(
                gap,
                lambda: subject.reply([prompt], pruner, 1),
                lambda: subject.masked_logits(prompt, reply, 0, 1),
                False,
            )

        try:
            verdict = self._over_pictures(compare)
        except _Merged:
            return Verdict("", SKIPPED, said="merged tokens stand in no masked run")
        if verdict.verdict == OK:
            visual = subject.prompts[0].layout.n_visual[0]
            return replace(verdict, said=f"{verdict.said}; {visual} tokens to {counts[0]}")
        return verdict

    def batch(self, pruner: Pruner | None) -> Verdict:
        """The prompts as one padded batch against each alone; pruned against its masked run."""
        subject = self.subject
        self._demand_time(len(subject.prompts))
        together = subject.reply(subject.prompts, pruner)
        shares: list[float] = []

        def compare(i: int, prompt: Prompt) -> tuple[float, str]:
            row = Reply(together.tokens[i : i + 1], together.logits[i : i + 1], None)
            if pruner is None:
                alone = self._alone.get(i) or subject.reply([prompt], None)
                steps = slice(0, _agreeing(row, alone) + 1)
                gap = difference(row.logits[:, steps], alone.logits[:, steps])
                return gap, "" if gap <= self.room else "padding is seen, or positions are moved"
            if any(together.cache.trace.merged_patches(i)):
                raise _Merged
            shares.append(_same_choice(together, i, subject.reply([prompt], pruner, 1)))
            gap = difference(row.logits, subject.masked_logits(prompt, together, i))
            return gap, "" if gap <= self.room else "alone it may be right: padding is seen"

        try:
            verdict = self._over_pictures(compare)
        except _Merged:
            return Verdict("", SKIPPED, said="merged tokens stand in no masked run")
        if not shares or verdict.verdict != OK:
            return verdict
        least = SAME_CHOICE.get(subject.model.dtype, SAME_CHOICE[torch.bfloat16])
        said = f"{min(shares):.1%} of the tokens kept as alone, at least {least:.0%} is normal"
        wrong = min(shares) < least
        return replace(verdict, said=said, verdict=WRONG if wrong else OK)

    def kernel(self, name: str, used: str) -> Verdict:
        """Another attention kernel: unpruned against the one in use, pruned against its own masked
        run."""
        subject = self.subject
        model = subject.model
        if name == FLASH and (model.device.type != "cuda" or model.dtype == torch.float32):
            return Verdict("", SKIPPED, said="needs CUDA and 16-bit numbers")
        self._demand_time()
        expected = [subject.logits(prompt) for prompt in subject.prompts[:1]]
        try:
            subject.set_attention(name)
        except (ImportError, ValueError, OSError) as error:
            subject.set_attention(used)
            return Verdict("", SKIPPED, said=" ".join(str(error).split())[:200])

        def compare(i: int, prompt: Prompt) -> tuple[float, str]:
            gap = difference(subject.logits(prompt), expected[i])
            if gap > self.room:
                return gap, "unpruned"
            reply = subject.reply([prompt], self.pruner)
            if any(reply.cache.trace.merged_patches(0)) or self.pruner.merges_in_tower:
                return gap, ""
            masked = difference(reply.logits, subject.masked_logits(prompt, reply, 0))
            return max(gap, masked), "" if masked <= self.room else "pruned"

        try:
            return self._over_pictures(compare, 1)
        finally:
            subject.set_attention(used)

    def measure(self, turns: int = 3) -> Verdict:
        """Seconds to the first token (vision tower included) and to 20, medians over turns."""
        self._demand_time(2)
        subject = self.subject
        prompts = subject.prompts[:1]
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for new in (1, TOKENS):
            calls["transformers", new] = partial(subject.stock_reply, prompts[0], new)
            calls["unpruned", new] = partial(subject.reply, prompts, None, new)
            calls["pruned", new] = partial(subject.reply, prompts, self.pruner, new)
        timings = take_turns(calls, subject.model.device, turns, self._until, self._clock)
        for (who, new), turned in timings.items():
            seconds = sorted(timing.seconds for timing in turned)[len(turned) // 2]
            self.times.setdefault(who, {})["first" if new == 1 else "all"] = seconds
        dense, pruned = self.times["transformers"]["first"], self.times["pruned"]["first"]
        said = f"pruned, the first token comes {dense / pruned:.2f} times as soon"
        return Verdict("", OK, said=said)

    def _over_pictures(
        self, compare: Callable[[int, Prompt], tuple[float, str]], most: int = 3
    ) -> Verdict:
        """The largest difference over the pictures for which there is time, the first at least."""
        gaps, device = [], self.subject.model.device
        prompts = self.subject.prompts[:most]
        for i, prompt in enumerate(prompts):
            try:
                self._demand_time()
            except TimeUpError:
                if not gaps:
                    raise
                break
            since = self._clock()
            gap, said = compare(i, prompt)
            synchronize(device)
            self._seconds.append(self._clock() - since)
            gaps.append(gap)
            if gap > self.room:
                return Verdict("", WRONG, gap, f"{self.room:g}", f"picture {i + 1}: {said}")
        said = f"{len(gaps)} picture{'s' * (len(gaps) > 1)}"
        said += f" of {len(prompts)}, for want of time" if len(gaps) < len(prompts) else ""
        return Verdict("", OK, max(gaps), f"{self.room:g}", said)

    def _demand_time(self, times: int = 1) -> None:
        """Raise TimeUpError unless `times` of what a comparison usually takes fit."""
        if self._clock() + times * median_high(self._seconds) > self._until:
            raise TimeUpError

    def _place(
        self, gap: float, first: Callable[[], Any], second: Callable[[], Any], stock: bool
    ) -> str:
        if gap <= self.room:
            return ""
        return f"first differs {self.subject.place(first, second, self.room, stock)}"


class _Merged(Exception):
    """The oracle has no place for merged tokens."""


def _agreeing(first: Reply, second: Reply) -> int:
    """How many tokens two replies to one prompt have in common before they part."""
    pairs = zip(first.tokens[0].tolist(), second.tokens[0].tolist())
    return next((i for i, (a, b) in enumerate(pairs) if a != b), TOKENS)


def _same_choice(batch: Reply, row: int, alone: Reply) -> float:
    """The share of the tokens kept alone, all layers together, that a batch keeps as well."""
    mine, single = batch.cache.trace.kept_patches(row), alone.cache.trace.kept_patches(0)
    common = sum(len(set(a) & set(b)) for a, b in zip(mine, single))
    return common / max(sum(map(len, single)), 1)
