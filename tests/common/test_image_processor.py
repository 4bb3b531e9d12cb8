"""Which file describes a folder's image processor, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from llava.common.image_processor import (
    NESTED_FILE,
    PLAIN_FILE,
    describe_processor,
    load_image_processor,
)
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main

from .. import checkpoints, checkpoints_next
from ..answers import refused

GREY = [0.5, 0.5, 0.5]
PLAIN = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
WRITERS = {"1.5": checkpoints.write_hf, "1.6": checkpoints_next.write_hf}


def mean(folder: Path) -> list[float]:
    return list(load_pretrained_model(folder, device="cpu")[2].image_mean)


def nest(folder: Path, **changes: Any) -> Path:
    """The folder as transformers 5 writes it: one processor_config.json."""
    values = {**json.loads((folder / PLAIN_FILE).read_text()), "image_mean": GREY, **changes}
    (folder / PLAIN_FILE).unlink()
    nested = {"image_processor": values, "processor_class": "LlavaProcessor", "patch_size": 14}
    checkpoints.write_json(folder / NESTED_FILE, nested)
    return folder


def test_what_transformers_5_saves_is_read(tmp_path):
    folder = checkpoints.write_hf(tmp_path / "hf")
    checkpoints.edit_json(folder / PLAIN_FILE, image_mean=GREY)
    parts = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    LlavaProcessor(*parts, patch_size=14).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / PLAIN_FILE).exists()
    processor = load_image_processor(tmp_path / "saved")
    assert list(processor.image_mean) == GREY and processor.crop_size["height"] == 56


@pytest.mark.parametrize("version", list(WRITERS))
def test_the_nested_one_of_a_checkpoint(tmp_path, version):
    assert mean(nest(WRITERS[version](tmp_path))) == GREY


def test_the_nested_one_of_a_tower(tmp_path):
    folder = checkpoints.write_original(tmp_path)
    nest(folder / checkpoints.CLIP)
    assert mean(folder) == GREY


def test_the_nested_one_comes_first_and_a_difference_is_said(tmp_path, caplog):
    """As in transformers' AutoImageProcessor."""
    checkpoints.write_json(tmp_path / PLAIN_FILE, PLAIN)
    nested = {"image_processor": {**PLAIN, "image_processor_type": "CLIPImageProcessor"}}
    checkpoints.write_json(tmp_path / NESTED_FILE, nested)
    load_image_processor(tmp_path)
    assert not caplog.records
    nested["image_processor"]["image_mean"] = GREY
    checkpoints.write_json(tmp_path / NESTED_FILE, nested)
    assert list(load_image_processor(tmp_path).image_mean) == GREY
    assert f"{tmp_path / NESTED_FILE} and {PLAIN_FILE} prepare pictures diff" in caplog.text
    assert list(CLIPImageProcessorPil.from_pretrained(tmp_path).image_mean) == GREY


@pytest.mark.parametrize("nested", [{"patch_size": 14}, {"image_processor": None}])
def test_an_older_processor_config_holds_none(tmp_path, nested):
    checkpoints.write_json(tmp_path / NESTED_FILE, nested)
    assert describe_processor(tmp_path) is None
    checkpoints.write_json(tmp_path / PLAIN_FILE, PLAIN)
    assert describe_processor(tmp_path) == (tmp_path / PLAIN_FILE, PLAIN)


@pytest.mark.parametrize("version", list(WRITERS))
def test_a_llava_hf_folder_has_to_say_it(tmp_path, version):
    folder = WRITERS[version](tmp_path)
    (folder / PLAIN_FILE).unlink()
    refused(folder, f"{folder} does not say how pictures are prepared", NESTED_FILE, PLAIN_FILE,
            error=FileNotFoundError)  # fmt: skip


@pytest.mark.parametrize("to", ["original", "llava-hf"])
def test_a_conversion_takes_it_along(tmp_path, to):
    folder = nest(checkpoints.write_hf(tmp_path / "hf"))
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", to]) == 0
    assert mean(tmp_path / "out") == GREY
    # Where programs older than transformers 5 find it.
    place = tmp_path / "out" / ("vision_tower" if to == "original" else "")
    assert json.loads((place / PLAIN_FILE).read_text())["image_mean"] == GREY


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": "big"}, "size must be an integer or an object"),
        ({"size": {"shortest_edge": "x"}}, "size must be in pixels"),
        ({"size": {"shortest_edge": 10**9}}, "size must be in pixels, from 1 to"),
        ({"crop_size": -3}, "crop_size must be in pixels"),
        ({"crop_size": {"w": 3}}, "describes no working image processor"),
        ({"image_mean": "grey"}, "image_mean must be a list"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
        ({"image_mean": [0.5, 0.5, "x"]}, "image_mean must be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std must be three numbers, for red, green and"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std must be three numbers"),
        ({"resample": "bicubic"}, "resample must be an integer"),
        ({"resample": 99}, "describes no working image processor"),
        ({"do_resize": "no"}, "do_resize must be true or false"),
        ({"image_processor_type": 7}, "image_processor_type must be a string"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ],
)
def test_what_describes_no_processor_is_refused(tmp_path, values, said):
    for name, content in ((NESTED_FILE, {"image_processor": values}), (PLAIN_FILE, values)):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"^{tmp_path / name}.*{said}"):
            load_image_processor(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"image_processor": 7}', '{"image_processor": []}']
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    """Also where preprocessor_config.json is whole, as transformers does."""
    checkpoints.write_json(tmp_path / PLAIN_FILE, PLAIN)
    (tmp_path / NESTED_FILE).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path / NESTED_FILE)):
        load_image_processor(tmp_path)


class TestSize:
    """What comes out has to be what the vision tower takes, here 56 x 56."""

    def test_of_another_tower(self, tmp_path):
        folder = checkpoints.write_hf(tmp_path)
        checkpoints.edit_json(folder / PLAIN_FILE, size=28, crop_size=28)
        refused(folder, f"{folder / PLAIN_FILE} prepares pictures of 28 x 28 pixels, but the",
                "takes 56 x 56", "correct its size and crop_size")  # fmt: skip
        nest(folder)
        refused(folder, f"{folder / NESTED_FILE} prepares pictures of 28 x 28 pixels")

    def test_the_default_for_a_tower_of_another_size(self, tmp_path):
        folder = checkpoints.write_original(tmp_path)
        (folder / checkpoints.CLIP / PLAIN_FILE).unlink()
        refused(folder, f"{folder} has no {PLAIN_FILE}, and CLIP's default prepares pictures of "
                "336 x 336 pixels, but the vision tower takes 56 x 56")  # fmt: skip
        checkpoints.write_json(folder / PLAIN_FILE, PLAIN)
        load_pretrained_model(folder, device="cpu")

    @pytest.mark.parametrize("version", list(WRITERS))
    def test_without_a_crop_only_squares_fit(self, tmp_path, version):
        folder = WRITERS[version](tmp_path)
        checkpoints.edit_json(folder / PLAIN_FILE, do_center_crop=False)
        load_pretrained_model(folder, device="cpu")
        if version == "1.5":
            refused(folder, "prepares pictures of 112 x 56 pixels", processing="llava-hf")

    def test_tiles_are_as_large_as_the_crop(self, tmp_path):
        """Also where nothing is cropped: LLaVA-1.6 cuts by that size."""
        folder = checkpoints_next.write_hf(tmp_path)
        checkpoints.edit_json(folder / PLAIN_FILE, do_center_crop=False, crop_size=...)
        refused(folder, "prepares pictures of 224 x 224 pixels, but the vision tower takes 56 x 56")

    def test_nothing_is_resized(self, tmp_path):
        folder = checkpoints.write_original(tmp_path)
        file = folder / checkpoints.CLIP / PLAIN_FILE
        checkpoints.edit_json(file, do_resize=False, do_center_crop=False)
        refused(folder, "prepares pictures of 256 x 256 pixels")


def test_the_default_is_that_of_the_published_tower(tmp_path):
    processor = load_image_processor(tmp_path)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 336
    mean = torch.tensor(processor.image_mean)
    assert torch.equal(mean, torch.tensor([0.48145466, 0.4578275, 0.40821073]))
