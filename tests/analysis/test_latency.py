"""The latency benchmark prints what it measured; its numbers are related as they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from llava import pruning
from llava.analysis import latency, prefills
from llava.analysis.latency import main
from llava.pruning.tower import TowerPruner, keep_patches

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
        # Each of the three is rounded to three decimals; a slow moment makes large speed-ups.
        assert r["share"] == pytest.approx(r["speedup"] / r["flops_speedup"], rel=1e-3, abs=2e-3)
        assert r["share_counting_scoring"] >= r["share"]
        assert r["tokens_leaving"] == pytest.approx(r["target"], abs=3)
        assert r["tokens_entering"] > r["tokens_leaving"]
    assert rows[0]["flops_speedup"] > rows[1]["flops_speedup"] > 1
    assert result["text_tokens"] == 9 and result["torch"] == torch.__version__


def test_operators_and_waits_stand_beside_the_times(capsys) -> None:
    table, result = run(capsys, "--target-token-nums", "12", "24", "--method", "fastv")
    for line, row in zip(table[2:], result["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[-2:] == [
            f"{row['dense_operators']} / {row['operators']}",
            f"{row['dense_waits']} / {row['waits']}",
        ]
        assert row["operators"] > row["dense_operators"] > 4 * 20  # layers
        assert row["dense_waits"] == 0
        assert row["time_ratio"] == pytest.approx(1 / row["speedup"], rel=2e-3, abs=2e-3)
    assert "published counting" in table[0]


def test_each_prompt_has_the_published_budgets(capsys) -> None:
    assert prefills.SHAPES["cpu-1k"] == (1024, 2752, 16, 16)
    _, result = run(capsys, "--visual-tokens", "36", "72", "--repeats", "1", "--warmup", "0")
    rows = [(r["visual_tokens"], r["target"]) for r in result["rows"]]
    assert rows == [(36, 12), (36, 8), (36, 4), (72, 24), (72, 16), (72, 8)]


def test_the_command_of_the_cpu_table_has_its_prompts_and_budgets() -> None:
    line = next(line for line in latency.__doc__.splitlines() if "python -m" in line)
    args = latency.parse(line.split()[3:])
    setup = latency.setup_from(args, "cpu-1k")
    assert (setup.hidden, setup.layers, args.threads, args.x0) == (1024, 16, 2, 7)
    pruner = pruning.build("autoprune")
    assert {n: latency.targets_of(args, pruner, n) for n in args.visual_tokens} == {
        576: (192, 128, 64),
        2880: (640, 320, 160),
    }


def test_tiny_layers_are_as_many_as_the_shape_has_and_narrow(capsys) -> None:
    threads = torch.get_num_threads()
    try:
        _, result = run(capsys, "--tiny", "--target-token-nums", "12", "--repeats", "1")
        assert (result["shape"], result["tiny"], result["threads"]) == ("tiny", True, 1)
    finally:
        torch.set_num_threads(threads)
    args = latency.parse(["--tiny", "--shape", "llava-1.5-13b"])
    setup = latency.setup_from(args, args.shape)
    assert (setup.layers, setup.hidden, setup.intermediate, setup.heads) == (40, 64, 64, 2)


def test_a_backend_that_is_not_installed_is_an_error_message(capsys) -> None:
    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    assert main([*SMALL, "--attn-implementation", "flash_attention_2"]) == 2
    assert "FlashAttention2" in capsys.readouterr().err


def test_an_impossible_budget_is_an_error_message(capsys) -> None:
    assert main([*SMALL, "--target-token-nums", "2", "--budget-mode", "strict"]) == 2
    assert "below the floor" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["none", "no-image"])
def test_a_method_without_a_budget_is_measured_once(capsys, method) -> None:
    table, result = run(capsys, "--method", method, "--target-token-nums", "12", "24")
    (row,) = result["rows"]
    kept = 48 if method == "none" else 0
    assert (row["target"], row["tokens_entering"]) == (None, kept)
    assert table[-1].startswith(f"| 48 | 1 | - | {kept}.0 |")


WITHOUT_TEXT = sorted(name for name, cls in pruning.METHODS.items() if not cls.reads_text)


@pytest.mark.parametrize("method", WITHOUT_TEXT)
def test_every_method_can_be_measured(capsys, monkeypatch, method) -> None:
    monkeypatch.setitem(prefills.SHAPES, "tiny", (16, 32, 8, 2))
    flags = (
        "--visual-tokens",
        "36",
        "--target-token-nums",
        "18",
        "--repeats",
        "1",
        "--warmup",
        "0",
    )
    _, result = run(capsys, *flags, "--method", method)
    (row,) = result["rows"]
    assert row["dense_seconds"] > 0 and row["seconds"] > 0
    assert row["tokens_entering"] < 36 or method == "none"


def test_a_method_that_reads_text_says_what_it_lacks(capsys) -> None:
    flags = ("--method", "cdpruner", "--visual-tokens", "36", "--target-token-nums", "18")
    assert main([*SMALL, *flags]) == 2
    assert "method cdpruner needs CLIP's text tower" in capsys.readouterr().err


def test_depths_are_scaled_to_the_shape(capsys) -> None:
    flags = ("--method", "topv", "--set", "layer=16", "--target-token-nums", "24")
    _, result = run(capsys, *flags, "--depth-layers", "32")
    # Layer 2 of 4: 48 tokens enter two layers, (4 * 24 - 48) / 3 = 16 the others.
    assert result["rows"][0]["tokens_entering"] == (48 + 48 + 16 + 16) / 4
    assert main([*SMALL, *flags]) == 2
    assert "method topv cuts after 16 layers, but this decoder has 4" in capsys.readouterr().err
    assert main([*SMALL, "--method", "fastv", "--target-token-nums", "24"]) == 0
    # Its default, which nobody gave, is for 32.
    assert "fastv: depth 2 is for 32 layers; this decoder has 4: 1" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class FirstPatches(TowerPruner):
    """The first T patches of the tower."""

    method: ClassVar[str] = "first-patches"

    def choose(self, features, image, count):
        return keep_patches(features, image, torch.arange(count))


@pytest.fixture
def in_the_tower():
    pruning.register(FirstPatches)
    yield ("--method", "first-patches")
    del pruning.METHODS["first-patches"]


def test_a_method_of_the_tower_enters_with_what_it_leaves(capsys, in_the_tower) -> None:
    flags = (*in_the_tower, "--visual-tokens", "49", "--target-token-nums", "12", "24")
    _, result = run(capsys, *flags, "--batch-sizes", "2")
    for row, target in zip(result["rows"], (12, 24), strict=True):
        assert row["tokens_entering"] == row["tokens_leaving"] == target
        # The unpruned side has all 49 of them, and 9 of text. A layer of the shape costs a token
        # 4 * 64^2 + 3 * 64 * 128 = 40960 and 2 * 64 more for each that it sees.
        n = target + 9
        expected = 58 * (40960 + 128 * 58) / (n * (40960 + 128 * n))
        assert row["flops_speedup"] == pytest.approx(expected, abs=1e-3)


def test_patches_that_are_no_square_are_an_error_message(capsys, in_the_tower) -> None:
    assert main([*SMALL, *in_the_tower, "--target-token-nums", "12"]) == 2
    assert "must be a square number, got 48" in capsys.readouterr().err
