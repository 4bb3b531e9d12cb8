"""The training loop: stages, optimisers, checkpoints, validation.

State is saved between steps only, and data depend on nothing but stage and step, so that a run that
was stopped and continued equals one that was not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from llava.model.tokenizer import LlavaTokenizer
from llava.train import pointing, readouts
from llava.train.data import EOS, Batch, TurnEncoder, make_batch, to_device
from llava.train.model import DemoModel
from llava.train.muon import Muon
from llava.train.recipe import Stage
from llava.train.scenes import TRAINING_SEEDS, VALIDATION_SEEDS, Style, make_scene
from llava.train.turns import training_turns, validation_turns

# Weights of the losses of seeing, beside which answering has 1.
_SEEING = {
    "where": 1.0,
    "kind": 2.0,
    "colour": 1.0,
    "look": 1.0,
    "letter": 1.0,
    "text": 1.0,
    "centre": 1.0,
    "contrast": 0.2,
}

_GUIDED = (*pointing.DEPTH, *readouts.DEPTH)


class StageData(Dataset):
    """The batches of one stage: item i is the batch of step i."""

    def __init__(self, stage: Stage, first_seed: int, encoder: TurnEncoder) -> None:
        self.stage = stage
        self.first_seed = first_seed
        self.encoder = encoder

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self.stage
        start = self.first_seed + step * stage.batch
        scenes = [make_scene(seed, stage.style(step)) for seed in range(start, start + stage.batch)]
        if not stage.turns:
            return make_batch(scenes, None)
        turns = self.encoder.pack(
            [training_turns(scene, stage.turns, stage.lists) for scene in scenes], stage.length
        )
        return make_batch(scenes, turns, stage.visual)


class Trainer:
    """Trains a `DemoModel` through stages, keeping its state in a work folder.

    Args:
        model: the model, freshly initialised; overwritten if `work` holds a checkpoint.
        stages: the recipe. A checkpoint of another shape, or of other stages as far as it has
            begun them, is refused; later stages may change.
        tokenizer: LLaVA tokenizer of the demo.
        work: folder of the checkpoint and of the log, one JSON line an entry.
        device: where to train.
        bfloat16: run the model under bfloat16 autocast; weights stay float32.
        workers: processes that render; 0 renders in this one.

    Raises:
        ValueError: when the checkpoint in `work` belongs to another recipe or model shape.
    """

    def __init__(
        self,
        model: DemoModel,
        stages: Sequence[Stage],
        tokenizer: LlavaTokenizer,
        work: Path,
        *,
        device: torch.device,
        bfloat16: bool,
        workers: int,
    ) -> None:
        self.model = model.to(device)
        self.stages = list(stages)
        self.encoder = TurnEncoder(tokenizer)
        self.work = work
        self.device = device
        self.bfloat16 = bfloat16
        self.workers = workers
        self.optimisers = _optimisers(model)
        self.stage = 0
        self.step = 0
        self.seconds = 0.0
        work.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.work / "checkpoint.pt"

    @property
    def fresh(self) -> bool:
        """Whether nothing has been trained yet."""
        return self.stage == self.step == 0

    @property
    def finished(self) -> bool:
        return self.stage == len(self.stages)

    def skip_to(self, name: str) -> None:
        """Begin with a later stage, for a model that was not trained here.

        Raises:
            ValueError: no stage of that name, or something has been trained already.
        """
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ValueError(f"no stage {name!r}; there are {', '.join(map(repr, names))}")
        if not self.fresh:
            raise ValueError(f"{self._checkpoint} has begun already; choose another work folder")
        self.stage = names.index(name)

    def run(self, minutes: float = float("inf"), every: int = 50, save_minutes: float = 3) -> None:
        """Train until the recipe's end or the time limit, saving now and then and at the end.

        Args:
            minutes: time limit of this call.
            every: steps between two lines of progress.
            save_minutes: time between two checkpoints.
        """
        began = last_save = time.monotonic()
        before = self.seconds
        while not self.finished:
            stage, recent = self.stages[self.stage], {}
            for batch in self._batches():
                losses = self._train_step(batch, stage)
                self.step += 1
                now = time.monotonic()
                self.seconds = before + now - began
                for name, value in losses.items():
                    recent.setdefault(name, []).append(value)
                if self.step % every == 0:
                    means = {name: sum(v) / len(v) for name, v in recent.items()}
                    self._log({k: round(v, 4) for k, v in means.items()})
                    recent = {}
                if now - began > 60 * minutes:
                    self.save()
                    return
                if now - last_save > 60 * save_minutes:
                    self.save()
                    last_save = now
            if stage.turns:
                self._log(self.validate(stage.end))
            self.stage, self.step = self.stage + 1, 0
            self.optimisers = _optimisers(self.model)
            self.save()

    @torch.no_grad()
    def validate(self, style: Style, scenes: int = 128, batch: int = 8) -> dict[str, float]:
        """Shares of questions about validation scenes that are answered exactly: by kind, and
        `validation` over all.

        Every token of the answer and `</s>` must be the model's first choice given those before it,
        which is when greedy decoding gives the answer.
        """
        right_by_kind: dict[str, list[int]] = {}
        for start in range(0, scenes, batch):
            seeds = VALIDATION_SEEDS[start : min(start + batch, scenes)]
            chosen = [make_scene(seed, style) for seed in seeds]
            questions = [validation_turns(scene) for scene in chosen]
            turns = self.encoder.pack([[turn for _, turn in row] for row in questions])
            data = to_device(make_batch(chosen, turns), self.device)
            with self._autocast():
                selected, _ = self.model.see(data.normalised(), data.corners)
                logits, targets, _ = self.model.answer(selected, data)
            wrong = (logits.argmax(-1) != targets).long().cpu()
            ends = (targets == EOS).nonzero().flatten().tolist()
            mistakes = [0, *wrong.cumsum(0)[ends].tolist()]
            kinds = [kind for row in questions for kind, _ in row]
            for kind, (before, after) in zip(kinds, pairwise(mistakes), strict=True):
                right_by_kind.setdefault(kind, []).append(before == after)
        right = [value for values in right_by_kind.values() for value in values]
        shares = {
            "validation": right,
            **{kind: right_by_kind[kind] for kind in sorted(right_by_kind)},
        }
        return {name: round(sum(values) / len(values), 4) for name, values in shares.items()}

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the old one."""
        state = {
            "identity": self._identity(self.stage, self.step),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def _identity(self, stage: int, step: int) -> str:
        """What a checkpoint at a step depends on: the shape and the stages begun by then."""
        stages = [asdict(s) for s in self.stages[: stage + (step > 0)]]
        return json.dumps({"shape": asdict(self.model.shape), "stages": stages})

    def _load(self) -> None:
        state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity(state["stage"], state["step"]):
            raise ValueError(
                f"{self._checkpoint} was written by another recipe or model shape: "
                "choose another work folder, or delete it"
            )
        self.model.load_state_dict(state["model"])
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        if self.step:  # every stage starts with fresh ones
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)

    def _batches(self) -> DataLoader:
        """Batches of the current stage from the current step on."""
        done = sum(stage.steps * stage.batch for stage in self.stages[: self.stage])
        stage = self.stages[self.stage]
        data = StageData(stage, TRAINING_SEEDS.start + done, self.encoder)
        steps = range(self.step, stage.steps)
        # without a generator of its own the loader would draw from torch's, which it does not need
        return DataLoader(
            data,
            batch_size=None,
            sampler=steps,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _train_step(self, batch: Batch, stage: Stage) -> dict[str, float]:
        batch = to_device(batch, self.device)
        frozen = stage.tower == 0
        with self._autocast():
            with torch.set_grad_enabled(not frozen):
                selected, last = self.model.see(batch.normalised(), batch.corners)
            losses = {}
            loss = selected.new_zeros((), dtype=torch.float32)
            if not frozen:
                losses = self.model.patch_heads(selected[:, 1:], batch.labels)
                losses["contrast"] = self.model.contrastive_loss(selected, last, batch.captions)
                loss = sum(weight * losses[name] for name, weight in _SEEING.items())
            if batch.turns is not None:
                logits, targets, guided = self.model.answer(
                    selected, batch, guided=stage.pointing > 0
                )
                losses["answer"] = F.cross_entropy(logits, targets)
                losses["token_right"] = (logits.argmax(-1) == targets).float().mean()
                losses.update(guided)
                pointed = sum(guided[name] for name in _GUIDED if name in guided)
                loss = loss + losses["answer"] + stage.guidance(self.step) * pointed
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                factor = stage.tower if group["in_tower"] else 1.0
                group["lr"] = stage.learning_rate(self.step) * factor * group["scale"]
            with self._autocast():  # Muon's products are a sixth of a step in float32
                optimiser.step()
            optimiser.zero_grad()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _log(self, entry: dict[str, float]) -> None:
        stage = self.stages[self.stage]
        head = {"stage": stage.name, "step": self.step, "of": stage.steps}
        line = json.dumps({**head, "minutes": round(self.seconds / 60, 2), **entry})
        print(line, file=sys.stderr, flush=True)
        with open(self.work / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")


def _optimisers(model: DemoModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers, AdamW for everything else."""
    groups: dict[bool, list[dict]] = {}
    for inner in (True, False):
        for in_tower in (True, False):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if (".layers." in name and parameter.ndim == 2) == inner
                and name.startswith("tower.") == in_tower
            ]
            scale = 1.0 if inner else 0.5
            group = {"params": parameters, "in_tower": in_tower, "scale": scale}
            groups.setdefault(inner, []).append(group)
    return [
        Muon(groups[True]),
        torch.optim.AdamW(groups[False], betas=(0.9, 0.98), weight_decay=0.0),
    ]
