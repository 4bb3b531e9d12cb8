"""The memory that loading takes, and the random checkpoint that it is measured on."""

from __future__ import annotations

import re

import pytest
import torch

from llava.analysis import loading
from llava.model.builder import load_pretrained_model

SIZES = {
    **loading.CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 768,
    "mm_hidden_size": 32,
    "mm_vision_config": {
        **loading.CLIP_CONFIG,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
}


@pytest.mark.parametrize("files", loading.FORMATS)
def test_a_random_checkpoint_has_the_published_files_and_loads(tmp_path, files):
    folder = tmp_path / "random"
    loading.write_random(folder, files, layers=4, config=SIZES)
    stem = "pytorch_model" if files == "bin" else "model"
    assert sorted(path.name for path in folder.glob("*-of-*")) == [
        f"{stem}-0000{i}-of-00002.{files}" for i in (1, 2)
    ]
    model = load_pretrained_model(folder, device="cpu", dtype="bfloat16")[1]
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all() and tensor.count_nonzero() > 0.9 * tensor.numel(), name


def test_the_peak_is_said_as_a_multiple_of_the_weights(tmp_path, capsys):
    folder = tmp_path / "random"
    loading.write_random(folder, "bin", layers=2, config=SIZES)
    assert loading.main(["--model-path", str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    sizes = re.search(r"peak of the process ([\d.]+) GB, ([\d.]+) times the weights", said)
    assert sizes and float(sizes[1]) > 0.1 and float(sizes[2]) > 1, said


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    tmp_path.joinpath("mine").write_text("x")
    assert loading.main(["--model-path", str(tmp_path), "--random", "bin"]) == 1
    assert "name a new folder" in capsys.readouterr().err
    assert tmp_path.joinpath("mine").is_file()
