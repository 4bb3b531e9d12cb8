"""Training: first to see what the views show, then to answer, at first from a few tokens of each
view (which takes a third of the time), then from all. Stopped runs continue.

State is saved between steps, and a batch depends on its step alone, so that a run that was stopped
and continued equals one that was not.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava.model.tokenizer import LlavaTokenizer
from llava.train.drive.data import Batch, make_batch
from llava.train.drive.frames import TRAINING_SEEDS, VALIDATION_SEEDS
from llava.train.drive.model import DriveModel
from llava.train.rates import warm_cosine


@dataclass(frozen=True)
class Stage:
    """`answers`: train on the answers, with the vision tower held still; else on what views show.

    visual: tokens of a view that the decoder gets, None for all.
    rate: peak learning rate, after `warmup` steps a cosine to a twentieth.
    """

    name: str
    steps: int
    batch: int
    rate: float
    answers: bool
    visual: int | None = None
    warmup: int = 20

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        return warm_cosine(self.rate, step, self.steps, self.warmup)


RECIPE = (
    Stage("see", 250, 8, 3e-3, answers=False),
    Stage("answer from some tokens", 500, 8, 2e-3, answers=True, visual=24),
    Stage("answer from all tokens", 120, 8, 1e-3, answers=True),
)


class Trainer:
    """Trains a model through stages, keeping its state in a work folder.

    Raises:
        ValueError: the state in `work` belongs to another recipe or model.
    """

    def __init__(
        self,
        model: DriveModel,
        tokenizer: LlavaTokenizer,
        work: Path,
        *,
        stages: Sequence[Stage] = RECIPE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.tokenizer = tokenizer
        self.stages = list(stages)
        self.device = torch.device(device)
        self.stage = self.step = 0
        self.seconds = 0.0
        self.optimiser = self._new_optimiser()
        self._state = work / "checkpoint.pt"
        self._log = work / "log.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        if self._state.exists():
            self._load()

    @property
    def finished(self) -> bool:
        return self.stage == len(self.stages)

    def run(self, minutes: float = math.inf, every: int = 25) -> None:
        """Train to the end or for so many minutes; says how it goes every `every` steps."""
        began = saved = time.monotonic()
        before, recent = self.seconds, []
        while not self.finished:
            stage = self.stages[self.stage]
            while self.step < stage.steps:
                recent.append(self._train_step(stage))
                self.step += 1
                now = time.monotonic()
                self.seconds = before + now - began
                if self.step % every == 0:
                    names = recent[0]
                    self._say({k: sum(r[k] for r in recent) / len(recent) for k in names})
                    recent = []
                if now - began > 60 * minutes:
                    self.save()
                    return
                if now - saved > 60:
                    self.save()
                    saved = now
            if stage.answers:
                self._say({"validation": self.validate()})
            self.stage, self.step, recent = self.stage + 1, 0, []
            self.optimiser = self._new_optimiser()
            self.save()

    @torch.no_grad()
    def validate(self, frames: int = 96, batch: int = 8) -> float:
        """The share of validation frames whose plan is answered without a mistake."""
        right = 0.0
        for start in range(0, frames, batch):
            seeds = VALIDATION_SEEDS[start : min(start + batch, frames)]
            right += float(self._answer(self._batch(seeds))["exact"]) * len(seeds)
        return right / frames

    def save(self) -> None:
        """Write the state; an interrupted write leaves the old one."""
        state = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self._state.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._state)

    def _train_step(self, stage: Stage) -> dict[str, float]:
        first = sum(s.steps * s.batch for s in self.stages[: self.stage]) + self.step * stage.batch
        batch = self._batch(TRAINING_SEEDS[first : first + stage.batch])
        draw = torch.Generator().manual_seed(first)
        for group in self.optimiser.param_groups:
            group["lr"] = stage.learning_rate(self.step)
        if stage.answers:
            losses = self._answer(batch, stage.visual, draw)
        else:
            losses = self.model.see(batch.pixels, batch.shown)
        loss = sum(value for value in losses.values() if value.requires_grad)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(), 1.0)
        self.optimiser.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _answer(
        self, batch: Batch, visual: int | None = None, draw: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        return self.model.answer(
            batch.pixels, batch.ids, batch.mask, batch.labels, visual=visual, generator=draw
        )

    def _batch(self, seeds: Sequence[int]) -> Batch:
        return make_batch(seeds, self.tokenizer).to(self.device)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _new_optimiser(self) -> torch.optim.AdamW:
        """A fresh one, for what the current stage trains."""
        answers = not self.finished and self.stages[self.stage].answers
        for parameter in self.model.senna.get_vision_tower().parameters():
            parameter.requires_grad_(not answers)
        return torch.optim.AdamW(self._trained(), betas=(0.9, 0.98), weight_decay=0.01)

    def _identity(self) -> str:
        """What a state depends on: the sizes, and the stages begun by then."""
        begun = [asdict(stage) for stage in self.stages[: self.stage + (self.step > 0)]]
        return json.dumps({"shape": asdict(self.model.shape), "stages": begun})

    def _load(self) -> None:
        state = torch.load(self._state, map_location=self.device, weights_only=True)
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        if state["identity"] != self._identity():
            raise ValueError(
                f"{self._state} was written by another recipe or model: choose another work "
                "folder, or delete it"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser = self._new_optimiser()
        self.optimiser.load_state_dict(state["optimiser"])

    def _say(self, values: dict[str, float]) -> None:
        stage = self.stages[self.stage]
        entry = {"stage": stage.name, "step": self.step, "seconds": round(self.seconds, 1)}
        entry |= {name: round(value, 4) for name, value in values.items()}
        line = json.dumps(entry)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
