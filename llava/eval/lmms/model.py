"""The model class that lmms-eval makes of `--model autoprune --model_args ...`.

`--model_args` takes, with commas between them:

    pretrained=FOLDER or OWNER/NAME    the checkpoint
    method=autoprune                   any method; `none` runs unpruned, counted the same way
    preset=..., target_token_num=64    and any field of the method's settings (stages=2+8+16)
    engine=auto                        llava: this package's loader; hf: stock transformers through
                                       `llava.hf`; auto: llava where that can load the checkpoint
    depth_layers=32                    as --depth-layers of the programs
    dtype, attn_implementation, conv_mode, merge_type, processing, vision_tower, model_base,
    visual_token_num, load_4bit, load_8bit, offline, seed
                                       as the flags of these names of the programs

A sample of `--log_samples` has in `token_counts` what was spent on it: visual tokens of the
prompt, tokens that entered and left a layer on average, FLOPs and KV bytes (`llava.pruning.cost`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from llava.common import json_files
from llava.model.config_json import detect_format
from llava.model.reading import resolve
from llava.pruning import Pruner, build, find
from llava.pruning.arguments import read_setting

from ..run.answering import Reply
from ..run.depths import in_decoder, tell
from ..run.settings import RunSettings, kinds
from ..run.totals import Totals
from .request import Request, cut, generation_of, pictures_of

_ENGINES = ("auto", "llava", "hf")
# What the programs have and lmms-eval decides.
_NOT_HERE = {
    "model_path",
    "pruner",
    "question_file",
    "answers_file",
    "image_folder",
    "num_chunks",
    "chunk_idx",
    "num_workers",
    "limit",
    "feature_cache_gb",
    "max_new_tokens",
    "temperature",
    "top_p",
    "num_beams",
}


@dataclass
class SampleCounts(TokenCounts):
    """What lmms-eval logs of a sample, and what was spent on it."""

    spent: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.spent}


class AutoPruneModel(lmms):
    """A checkpoint with a pruning method, as lmms-eval asks it; see the module.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, method, setting or device; says which.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "autoprune",
        preset: str | None = None,
        engine: str = "auto",
        batch_size: int | str = 1,
        device: str | None = None,
        depth_layers: int | None = None,
        max_batch_size: int | None = None,  # of lmms-eval, for batch_size=auto
        **settings: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number from 1 on, got {batch_size!r}")
        self.batch_size = int(batch_size)
        accelerator = Accelerator()
        if accelerator.num_processes > 1:  # each answers its part, and lmms-eval gathers
            self.accelerator, device = accelerator, str(accelerator.device)
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        known = kinds().keys() - _NOT_HERE
        of_run = {name: value for name, value in settings.items() if name in known}
        of_method = {name: value for name, value in settings.items() if name not in known}
        config = _config(pretrained, bool(of_run.get("offline")))
        engine = _engine(engine, config, pretrained)
        pruner = _pruner(method, preset, of_method, engine)
        layers = config.get("text_config", config).get("num_hidden_layers")
        pruner, changes = in_decoder(pruner, of_method.keys(), layers, depth_layers)
        tell(changes)
        nowhere = Path()  # lmms-eval reads the questions and writes the answers
        run = RunSettings(pretrained, nowhere, nowhere, device=device, pruner=pruner, **of_run)
        self._answerer = _load(engine, run)
        self.device = self._answerer.model.device
        self.totals = Totals()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers, in order.

        A question that cannot be answered gets an empty text, and the reason among its counts.

        Raises:
            ValueError: none of them could be answered; says why the first was not.
        """
        # In the order of the task, as a program asks its file: the last bits of an answer's numbers
        # depend on what shares its batch.
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, instance in enumerate(requests):
            _, options, _, _, task, _ = instance.args
            groups[task, json.dumps(options, sort_keys=True, default=str)].append(i)
        results: dict[int, GenerationResult] = {}
        failures: list[str] = []
        with tqdm(total=len(requests), disable=self.rank != 0, unit="question") as progress:
            for members in groups.values():
                for start in range(0, len(members), self.batch_size):
                    part = members[start : start + self.batch_size]
                    options = requests[part[0]].args[1] or {}
                    batch = [self._request(i, requests[i]) for i in part]
                    replies = self._answerer.answers(batch, generation_of(options))
                    for i, reply in zip(part, replies):
                        results[i] = self._result(reply, options, failures)
                        self.cache_hook.add_partial(
                            "generate_until", (requests[i].args[0], options), results[i].text
                        )
                    progress.update(len(part))
        if failures and len(failures) == len(requests):
            raise ValueError(failures[0])
        self._report(len(failures))
        return [results[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks that compare likelihoods are not supported, only answers")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported")

    def _request(self, i: int, instance: Instance) -> Request:
        text, _, visuals_of, doc_id, task, split = instance.args
        visuals = visuals_of(self.task_dict[task][split][doc_id])
        return Request(i, text, pictures_of(visuals))

    def _result(
        self, reply: Reply, options: Mapping[str, Any], failures: list[str]
    ) -> GenerationResult:
        if not isinstance(reply, dict):
            failures.append(str(reply))
            return GenerationResult("", SampleCounts(spent={"error": str(reply)}))
        metadata = reply["metadata"]
        self.totals.add(metadata)
        spent = {"n_visual": metadata["n_visual"], **metadata["cost"]}
        tokens = metadata["n_text"] + metadata["n_visual"]
        counts = SampleCounts(tokens, metadata["new_tokens"], spent=spent)
        return GenerationResult(cut(reply["text"], options.get("until")), counts)

    def _report(self, failures: int) -> None:
        """Say what all answers so far cost."""
        totals = self.totals.to_dict()
        tokens, flops = totals["tokens"], totals["flops"]
        sentences = []
        if tokens["entering"] is not None:
            sentences.append(
                f"visual tokens a layer: {tokens['entering']:.1f} entering, "
                f"{tokens['leaving']:.1f} leaving, of {tokens['visual']:.1f}; prefill FLOPs "
                f"{100 * flops['prefill_ratio']:.1f} % of unpruned (published counting), "
                f"{100 * flops['computed_ratio']:.1f} % computed"
            )
        if failures:
            sentences.append(f"{failures} questions could not be answered: see token_counts")
        tell(sentences)


def _config(pretrained: str, offline: bool) -> dict[str, Any]:
    folder = resolve(pretrained, offline=offline, only="*.json")
    return json_files.read(folder / "config.json")


def _engine(engine: str, config: dict[str, Any], pretrained: str) -> str:
    if engine not in _ENGINES:
        raise ValueError(f"engine must be one of {', '.join(_ENGINES)}, got {engine!r}")
    if engine != "auto":
        return engine
    try:
        detect_format(config, pretrained)
    except ValueError:
        return "hf"
    return "llava"


def _pruner(method: str, preset: str | None, given: Mapping[str, Any], engine: str) -> Pruner:
    cls = find(method)
    names = {setting.name for setting in fields(cls)}
    # A stock model's positions need not be numbers that can be counted anew, see `llava.hf`.
    default = {"positions": "original"} if engine == "hf" and "positions" in names else {}
    typed = {
        name: read_setting(cls, name, str(value)) if name in names else value
        for name, value in given.items()
    }
    return build(method, preset=preset, **{**default, **typed})


def _load(engine: str, settings: RunSettings) -> Any:
    """`OriginalModel` or `StockModel`; each brings libraries that the other does not need."""
    if engine == "hf":
        from .stock import StockModel

        return StockModel(settings)
    from .original import OriginalModel

    return OriginalModel(settings)
