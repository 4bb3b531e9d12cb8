"""`autoprune verify`: every format of checkpoint is right; what is broken is noticed and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from llava import pruning
from llava.analysis import checks, stock, verify
from llava.analysis.checks import OK, SKIPPED, WRONG, Checks
from llava.analysis.subject import Subject, difference
from llava.model.builder import load_pretrained_model
from llava.pruning import inputs
from llava.pruning.attention import causal_mask
from llava.pruning.cache import PrunedCache

from .. import checkpoints, checkpoints_next, senna_files
from ..virtual_device.device import FIRST, virtual_devices
from ..virtual_device.placement import move, split

FLASH = "flash_attention_2 = sdpa"


def on_first(model: Any) -> Any:
    return move(model, FIRST)


def run(folder: Path, tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """The status and the report of the program on a checkpoint, by float32 on the CPU."""
    out = tmp_path / "report" / "out.json"
    where = ["--model-path", str(folder), "--device", "cpu", "--json", str(out)]
    flags = flags if "--dtype" in flags else ("--dtype", "float32", *flags)
    status = verify.main([*where, *flags])
    return status, json.loads(out.read_text())


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {verdict["name"]: verdict for verdict in report["verdicts"]}


WRITERS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "1.5 original": (checkpoints.write_original, "LlavaForConditionalGeneration", "this package"),
    "1.5 llava-hf": (checkpoints.write_hf, "LlavaForConditionalGeneration", "transformers"),
    "1.6 original": (
        checkpoints_next.write_original,
        "LlavaNextForConditionalGeneration",
        "this package",
    ),
    "1.6 llava-hf": (
        checkpoints_next.write_hf,
        "LlavaNextForConditionalGeneration",
        "transformers",
    ),
    "Senna": (senna_files.write_senna, "LlamaForCausalLM", "this package"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_right(name: str, tmp_path: Path, capsys) -> None:
    write, model, reader = WRITERS[name]
    folder = write(tmp_path / "checkpoint")
    flags = ["--vision-tower", str(tmp_path / senna_files.TOWER)] if name == "Senna" else []
    status, report = run(folder, tmp_path, *flags)
    verdicts = by_name(report)
    flash = verdicts.pop(FLASH)
    assert status == report["status"] == 0
    assert {v["verdict"] for v in verdicts.values()} == {OK} and len(verdicts) == 9
    assert (flash["verdict"], flash["said"]) == (SKIPPED, "needs CUDA and 16-bit numbers")
    assert verdicts["unpruned logits = transformers'"]["difference"] == 0
    assert 0 < verdicts["pruned = masked, compact positions"]["difference"] < 7e-5
    about = report["model"]
    assert (about["stock"], about["weights_read_by"]) == (model, reader)
    assert report["seconds"].keys() == {"transformers", "unpruned", "pruned"}
    assert len(report["answers"]) == 3 and all(report["answers"])
    # Of paths only the one that was given for the model.
    assert str(tmp_path) not in json.dumps(report).replace(json.dumps(str(folder)), "")
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith("all right: ") and str(folder) in shown[0]


def test_half_numbers_and_shared_weights(tmp_path: Path, capsys) -> None:
    folder = checkpoints_next.write_original(tmp_path / "checkpoint")
    flags = ["--dtype", "bfloat16", "--share-weights", "--merge-type", "spatial"]
    status, report = run(folder, tmp_path, *flags, "--attn-implementation", "eager")
    verdicts = by_name(report)
    assert status == 0
    assert verdicts["weights"]["verdict"] == SKIPPED
    assert report["model"]["weights_read_by"] == "shared"
    assert report["model"]["stock_lacks"] == "the merge type spatial"
    assert 1e-4 < verdicts["sdpa = eager"]["difference"] < 0.4
    assert "--dtype float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("processing", "lacks"), [("112x168", ""), ("fill", "the canvas that a picture fills best")]
)
def test_another_canvas(processing: str, lacks: str, tmp_path: Path) -> None:
    """transformers' model has a list of one canvas, but not the other rule."""
    folder = checkpoints_next.write_original(tmp_path / "checkpoint")
    status, report = run(folder, tmp_path, "--processing", processing)
    assert (status, report["model"]["stock_lacks"]) == (0, lacks)
    assert report["model"]["processing"] == processing
    assert by_name(report)["unpruned logits = transformers'"]["difference"] == 0


def test_what_cannot_run(tmp_path: Path, capsys) -> None:
    assert verify.main(["--model-path", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
    folder = checkpoints.write_hf(tmp_path / "checkpoint")
    status, report = run(folder, tmp_path, "--time-budget", "0")
    assert status == 2 and {v["verdict"] for v in report["verdicts"]} == {SKIPPED}
    # A budget that was given is taken or refused, never another one.
    floor = ["--model-path", str(folder), "--device", "cpu", "--target-token-num", "1"]
    assert verify.main(floor) == 2
    assert "below the floor" in capsys.readouterr().err


def test_a_disturbed_layer_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    """Our copy differs from what transformers reads, in one layer."""

    def load(args: Any) -> tuple[Any, Any, Any]:
        tokenizer, model, processor, _ = load_pretrained_model(args.model_path, device="cpu")
        model.float().model.layers[1].mlp.down_proj.weight.data.mul_(1.01)
        return tokenizer, model, processor

    monkeypatch.setattr(verify, "load_model", load)
    status, report = run(checkpoints.write_hf(tmp_path / "checkpoint"), tmp_path)
    verdicts = by_name(report)
    assert status == 1
    weights = verdicts["weights"]
    assert weights["verdict"] == WRONG and weights["said"].endswith("layers.1.mlp.down_proj.weight")
    logits = verdicts["unpruned logits = transformers'"]
    assert (
        logits["verdict"] == WRONG and "picture 1: first differs in layer 1 of 3" in logits["said"]
    )
    # What does not look at transformers' copy is as it should be.
    assert verdicts["pruned = masked, original positions"]["verdict"] == OK
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("WRONG: weights; unpruned logits") and "pruned = masked" not in last


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Subject:
    folder = checkpoints_next.write_hf(tmp_path_factory.mktemp("1.6") / "checkpoint")
    tokenizer, model, processor, _ = load_pretrained_model(folder, device="cpu", dtype="float32")
    with torch.inference_mode():
        made = Subject(tokenizer, model, processor, "vicuna_v1")
        made.stock = stock.load(model, str(folder), made.image_token)
    return made


@pytest.fixture
def subject(loaded):
    with torch.inference_mode():
        yield loaded


#: So few that most leave at once: their choice comes before a layer runs.
PRUNER = pruning.build("autoprune", target_token_num=8, x0=1.4, recycle_ratio=0.0)


def verdict_of(subject: Subject, name: str) -> checks.Verdict:
    (found,) = (v for v in Checks(subject, PRUNER, inf).run() if v.name == name)
    return found


def test_what_is_not_there_is_seen(subject, monkeypatch) -> None:
    """A layer that runs on the survivors alone, with a mask that hides nothing from them."""
    right = Checks(subject, PRUNER, inf).pruned(PRUNER)
    assert right.verdict == OK and "70 tokens to" in right.said

    def seen(index: torch.Tensor, layout: Any) -> torch.Tensor:
        return torch.ones(len(index), 1, index.shape[1], layout.n, dtype=torch.bool)

    monkeypatch.setattr(inputs, "seen_by", seen)
    wrong = Checks(subject, PRUNER, inf).pruned(PRUNER)
    assert wrong.verdict == WRONG and "first differs in layer" in wrong.said
    assert Checks(subject, PRUNER, inf).unpruned().verdict == OK


def test_padding_that_is_seen(subject, monkeypatch) -> None:
    def unpadded(backend, valid, queries, keys, like):
        return causal_mask(backend, None, queries, keys, like)

    monkeypatch.setattr(inputs, "causal_mask", unpadded)
    broken = Checks(subject, PRUNER, inf)
    assert broken.unpruned().verdict == broken.pruned(PRUNER).verdict == OK
    for pruner in (None, PRUNER):
        verdict = broken.batch(pruner)
        assert verdict.verdict == WRONG and "padding is seen" in verdict.said


def test_positions_that_move_while_decoding(subject, monkeypatch) -> None:
    true = PrunedCache.next_positions
    monkeypatch.setattr(PrunedCache, "next_positions", lambda self, tokens: true(self, tokens) + 1)
    broken = Checks(subject, PRUNER, inf)
    assert broken.unpruned().verdict == OK
    assert broken.tokens().verdict == WRONG
    wrong = broken.pruned(PRUNER)
    assert wrong.verdict == WRONG and wrong.said.endswith("in decoding; the prefill is right")


def test_numbers_that_overflow_and_calls_that_break(subject, monkeypatch) -> None:
    norm = subject.model.model.norm.weight
    before = norm.clone()
    norm.data.fill_(inf)
    try:
        wrong = Checks(subject, PRUNER, inf).unpruned()
    finally:
        norm.data.copy_(before)
    assert (wrong.verdict, wrong.difference) == (WRONG, inf) and "no numbers" in wrong.said

    def broken(*args: Any) -> None:
        raise RuntimeError("of a kernel\nand more")

    monkeypatch.setattr(subject, "masked_logits", broken)
    verdict = verdict_of(subject, "pruned = masked, original positions")
    assert (verdict.verdict, verdict.said) == (WRONG, "raised RuntimeError: of a kernel")


def test_merged_tokens_are_skipped_and_time_runs_out(subject) -> None:
    merging = pruning.build("autoprune", target_token_num=12, x0=1.4, recycle_ratio=0.5)
    assert Checks(subject, merging, inf).pruned(merging).verdict == SKIPPED
    ticks = iter(range(100))
    # A comparison takes one tick: the second picture would end behind the time.
    one = Checks(subject, PRUNER, 2, lambda: next(ticks)).unpruned()
    assert one.verdict == OK and one.said == "1 picture of 3, for want of time"


def test_difference_is_that_of_the_worst_vector() -> None:
    right = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    wrong = torch.tensor([[3.0, 4.5], [1.3, 0.4]])
    assert difference(wrong, right) == pytest.approx(0.5)
    assert difference(right, wrong) == pytest.approx(0.5 / sqrt(1.85))
    assert difference(right[:1], right) == difference(right * torch.nan, right) == inf


@pytest.mark.parametrize("spread", [on_first, split], ids=["one device", "two devices"])
def test_virtual_devices(spread: Callable[[Any], Any], tmp_path: Path, monkeypatch) -> None:
    """Nothing is where the device is not, also where layers lie on two of them."""
    folder = checkpoints.write_hf(tmp_path / "checkpoint")
    tokenizer, model, processor, _ = load_pretrained_model(folder, device="cpu", dtype="float32")
    monkeypatch.setattr(checks, "synchronize", lambda device: None)
    with virtual_devices(), torch.no_grad():
        made = Subject(tokenizer, spread(model), processor, "vicuna_v1")
        made.stock = stock.load(model, str(folder), made.image_token, share=True)
        verdicts = [v for v in Checks(made, PRUNER, inf).run() if v.name != "times"]
    assert {v.verdict for v in verdicts if v.name not in ("weights", FLASH)} == {OK}
    assert len(verdicts) == 9
