"""The report of a GPU, made on a CPU: the same code, with what only CUDA has left open."""

from __future__ import annotations

import json

import pytest
import torch

from llava.analysis import first_token, gpu_report
from llava.analysis.first_token import Report
from llava.analysis.latency import main, parse
from llava.common import program

SMALL = ("--device", "cpu", "--shape", "tiny", "--repeats", "1", "--batch-sizes", "1", "2")
ROW = {
    "shape": "tiny",
    "visual_tokens": 36,
    "attention": "sdpa",
    "compiled": False,
    "batch": 8,
    "target": 12,
    "tokens_entering": 19.75,
    "speedup": 2.5,
    "flops_speedup": 3.0,
    "turns": 4,
    "dense_ms": 20.0,
    "ms": 8.0,
    "dense_operators": 180,
    "operators": 500,
    "dense_waits": 1,
    "waits": 14,
    "dense_kernels": 170,
    "kernels": 450,
    "dense_copies": 1,
    "copies": 5,
    "dense_peak_gib": 1.5,
    "peak_gib": 0.75,
}


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch) -> None:
    def missing(device) -> None:
        raise ValueError("compiling for cpu needs a C++ compiler")

    monkeypatch.setattr(first_token, "check_compiler", missing)


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0] not in ("attention", "---")]


def test_the_report_of_the_tiny_shape(tmp_path, capsys) -> None:
    out = tmp_path / "OUT.md"
    assert main(["--gpu-report", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.strip().splitlines()[-1])
    text = out.read_text(encoding="utf-8")

    assert f"autoprune bench --gpu-report OUT.md {' '.join(SMALL)}\n" in text
    assert str(tmp_path) not in text
    assert f"torch {torch.__version__}" in text and "in float16" in text
    assert result["dtype"] == "float16" and result["device"] in text

    rows = rows_of(text)
    assert rows == rows_of(printed) and len(rows) == len(result["rows"]) == 2 * 2 * 3
    header = next(line for line in text.splitlines() if line.startswith("| attention"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        assert cells["kernels"] == cells["copies"] == cells["peak GiB"] == "-"
        assert cells["layers"] == "eager" and float(cells["speed-up"]) > 0
    for tokens, targets in ((36, ["12", "8", "4"]), (180, ["60", "40", "20"])):
        part = text.split(f"tiny, {tokens} visual tokens:")[1]
        assert [(row[2], row[3]) for row in rows_of(part)[:6]] == [
            (batch, target) for batch in "12" for target in targets
        ]
    assert "- compiled layers are absent: " in text
    assert ("- flash_attention_2 is absent: " in text) == any(
        "flash_attention_2 is absent" in note for note in result["notes"]
    )


def test_a_row_shows_dense_and_pruned() -> None:
    (row,) = rows_of(gpu_report.table([ROW]))
    assert row == [
        *["sdpa", "eager", "8", "12", "19.8", "20.00", "8.00", "2.50", "3.00"],
        *["180 / 500", "1 / 14", "170 / 450", "1 / 5", "1.50 / 0.75", "4"],
    ]
    crowded = {**ROW, "dense_ms": None, "speedup": None, "dense_kernels": None, "compiled": True}
    (row,) = rows_of(gpu_report.table([crowded]))
    assert row[1] == "compiled" and row[5:8] == ["-", "8.00", "-"] and row[11] == "- / 450"


def test_tables_come_by_shape_and_prompt() -> None:
    report = Report(
        [
            {**ROW, "shape": "llava-1.5-13b", "visual_tokens": 576},
            {**ROW, "shape": "llava-1.5-7b", "visual_tokens": 2880},
            {**ROW, "shape": "llava-1.5-7b", "visual_tokens": 576},
            {**ROW, "shape": "llava-1.5-7b", "visual_tokens": 2880, "compiled": True},
        ],
        ["something is absent"],
    )
    text = gpu_report.tables(report)
    titles = [line for line in text.splitlines() if line.endswith(":")]
    assert titles == [
        "llava-1.5-7b, 576 visual tokens:",
        "llava-1.5-7b, 2880 visual tokens:",
        "llava-1.5-13b, 576 visual tokens:",
    ]
    assert text.endswith("\n\n- something is absent")
    assert len(rows_of(text)) == 4


def test_what_was_measured_is_written_before_the_end(tmp_path) -> None:
    out = tmp_path / "OUT.md"

    def measure(save):
        assert "# Time to first token" in out.read_text(encoding="utf-8")
        save(Report([ROW]))
        raise RuntimeError("the device fell off the bus")

    with pytest.raises(RuntimeError, match="fell off"):
        gpu_report.write(out, "autoprune bench", "fastv", measure, torch.device("cpu"), "float16")
    text = out.read_text(encoding="utf-8")
    assert len(rows_of(text)) == 1 and "Method fastv" in text


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path, capsys) -> None:
    assert main(["--gpu-report", str(tmp_path / "none" / "OUT.md"), *SMALL]) == 2
    assert "error: cannot write" in capsys.readouterr().err


def test_a_report_of_large_shapes_needs_a_gpu(tmp_path, capsys) -> None:
    assert main(["--gpu-report", str(tmp_path / "OUT.md"), "--device", "cpu"]) == 2
    assert "--gpu-report needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "OUT.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error_message(capsys) -> None:
    assert main(["--device", "cuda:1", "--shape", "tiny"]) == 2
    assert "no CUDA device is here for --device cuda:1" in capsys.readouterr().err


def test_overhead_alone_is_no_report(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["--gpu-report", str(tmp_path / "OUT.md"), "--tiny"])
    assert "takes no --tiny" in capsys.readouterr().err


def test_the_benchmark_adds_the_time_to_first_token(capsys) -> None:
    flags = ("--visual-tokens", "36", "--target-token-nums", "12", "--first-token")
    with program.named("llava.analysis.latency", "autoprune bench"):
        assert main([*SMALL, *flags]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    text = "\n".join(lines)
    assert "read back" in text  # which time it is
    assert [row["batch"] for row in result["first_token"]["rows"]] == [1, 2]
    assert len(rows_of(text.split("read back")[1])) == 2
    assert result["first_token"]["notes"][0].startswith("compiled layers are absent: ")
