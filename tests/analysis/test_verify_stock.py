"""`verify` of models that transformers loads by itself: every known architecture is right, and a
hook that is wrong is seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from llava import pruning
from llava.analysis import checks, verify
from llava.analysis.checks import OK, SKIPPED, WRONG, Checks
from llava.analysis.stock_subject import StockSubject
from llava.analysis.subject import pictures
from llava.hf.inputs import StockDecoding, StockInputs
from llava.pruning.attention import causal_mask

from ..hf import zoo
from ..hf.conftest import first_for_few  # noqa: F401
from ..hf.test_batches import alone

SETTINGS = {"target_token_num": 8, "x0": 2.0, "recycle_ratio": 0.0, "positions": "original"}
PRUNER = pruning.build("autoprune", **SETTINGS)


def subject(name: str) -> StockSubject:
    model = zoo.model(name, torch.float32)
    prompts = ["iq", "itq", "iqq"] if name == "paligemma" else ["tiq", "titq", "tiqq"]

    batch = zoo.inputs(name, prompts, torch.float32)

    def inputs(numbers: Sequence[int]) -> Mapping[str, Any]:
        return batch if len(numbers) > 1 else alone(name, batch, numbers[0], [1, 1, 1])

    return StockSubject(model, inputs, lambda tokens, **_: f"{len(tokens)} tokens", 3)


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize("name", zoo.ZOO)
@torch.inference_mode()
def test_every_architecture_is_right(name: str, monkeypatch) -> None:
    monkeypatch.setattr(Checks, "measure", lambda self: checks.Verdict("", OK))
    shown = {v.name: v for v in Checks(subject(name), PRUNER, inf).run()}
    assert {k: v for k, v in shown.items() if v.verdict == WRONG} == {}
    assert [k for k, v in shown.items() if v.verdict == SKIPPED] == ["flash_attention_2 = sdpa"]
    assert len(shown) == 8
    assert shown["unpruned logits = transformers'"].difference == 0
    assert f"{zoo.ZOO[name].tokens} tokens to" in shown["pruned = masked, original positions"].said


def paligemma_folder(folder: Path, weights: float | None = None) -> Path:
    """A random PaliGemma with a tokenizer of whole words, as its own processor saves it.

    weights: their standard deviation; None for transformers', with which attention is even.
    """
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    for _, question in pictures():
        for word in question.replace("?", " ?").replace(",", " ,").split():
            words.setdefault(word, len(words))
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    processor.save_pretrained(folder)
    config = zoo.ZOO["paligemma"].config()
    config.image_token_id = processor.image_token_id
    config.text_config.vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config)
    if weights is not None:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, weights)
    model.save_pretrained(folder)
    return folder


def test_the_program_on_a_folder(tmp_path: Path, capsys) -> None:
    folder = paligemma_folder(tmp_path / "model")
    where = ["--model-path", str(folder), "--device", "cpu", "--dtype", "float32"]
    out = tmp_path / "out.json"
    assert verify.main([*where, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    about = report["model"]
    assert (about["stock"], about["visual_tokens"]) == (
        "PaliGemmaForConditionalGeneration",
        [16] * 3,
    )
    assert report["pruner"]["positions"] == "original" and len(report["answers"]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("all right: 7 checks, 1 skipped")
    assert verify.main([*where, "--merge-type", "spatial"]) == 2
    assert "--merge-type: not for a model" in capsys.readouterr().err
    assert verify.main([*where, "--method", "hired"]) == 2
    assert "needs the vision tower" in capsys.readouterr().err


@torch.inference_mode()
def test_broken_masks_are_seen(monkeypatch) -> None:
    """Of the tokens that are left all that stand before, whatever stock code says."""
    made = subject("gemma3")
    right = Checks(made, PRUNER, inf)
    assert right.unpruned().verdict == right.pruned(PRUNER).verdict == OK

    def causal(self: StockInputs, layout: Any, hidden: Any) -> Any:
        whole = self._whole
        return (
            whole if layout.columns is None else causal_mask("sdpa", None, *[layout.n] * 2, hidden)
        )

    monkeypatch.setattr(StockInputs, "_left", causal)
    broken = Checks(made, PRUNER, inf)
    assert broken.unpruned().verdict == OK
    wrong = broken.pruned(PRUNER)
    assert wrong.verdict == WRONG and "first differs in layer" in wrong.said


@torch.inference_mode()
def test_broken_decoding_is_seen(monkeypatch) -> None:
    made = subject("gemma3")

    def enter(self: StockDecoding, index: int, hidden: Any, given: dict[str, Any]) -> Any:
        held = self.cache.columns(index, self.tokens)
        return hidden, {} if held is None else {"attention_mask": None, "position_ids": None}

    monkeypatch.setattr(StockDecoding, "enter", enter)
    wrong = Checks(made, PRUNER, inf).pruned(PRUNER)
    assert wrong.verdict == WRONG and wrong.said.endswith("in decoding; the prefill is right")
