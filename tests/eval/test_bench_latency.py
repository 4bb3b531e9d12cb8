"""The latency benchmark prints what it measured; its numbers are related as they say."""

from __future__ import annotations

import json

import pytest
import torch

from llava.eval import bench_latency
from llava.eval.bench_latency import main

SMALL = ("--shape", "tiny", "--visual-tokens", "48", "--text-tokens", "9", "--repeats", "2")


def run(capsys, *flags: str) -> tuple[list[str], dict]:
    assert main([*SMALL, *flags]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    return table, json.loads(last)


def test_a_row_for_every_budget_and_batch_size(capsys) -> None:
    table, result = run(
        capsys, "--target-token-nums", "12", "24", "--batch-sizes", "1", "3", "--x0", "2"
    )
    rows = result["rows"]
    assert [(r["batch"], r["target"]) for r in rows] == [(1, 12), (1, 24), (3, 12), (3, 24)]
    assert len(table) == 2 + 4
    for r in rows:
        assert r["share"] == pytest.approx(r["speedup"] / r["flops_speedup"], abs=2e-3)
        assert r["share_counting_scoring"] > r["share"]
        assert r["tokens_leaving"] == pytest.approx(r["target"], abs=3)
        assert r["tokens_entering"] > r["tokens_leaving"]
    assert rows[0]["flops_speedup"] > rows[1]["flops_speedup"] > 1
    assert result["text_tokens"] == 9 and result["torch"] == torch.__version__


def test_the_dense_side_is_transformers_own_model_on_the_same_weights() -> None:
    args = bench_latency.parse([*SMALL])
    ours, stock = bench_latency.build_models(args)
    embeds, _ = bench_latency.make_input(args, 2, 64)
    with torch.no_grad():
        a = ours(inputs_embeds=embeds, use_cache=True).last_hidden_state
        b = stock(inputs_embeds=embeds, use_cache=True).last_hidden_state
    assert torch.equal(a, b)


def test_an_impossible_budget_is_an_error_message(capsys) -> None:
    assert main([*SMALL, "--target-token-nums", "2", "--budget-mode", "strict"]) == 2
    assert "below the floor" in capsys.readouterr().err


def test_a_method_without_a_budget_is_an_error_message(capsys) -> None:
    assert main([*SMALL, "--method", "no-image"]) == 2
    assert "no-image has no budget" in capsys.readouterr().err
