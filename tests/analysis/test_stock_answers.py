"""Stock models in figures and viewer: answers are theirs, and tokens are drawn where they are."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava import hf, pruning
from llava.analysis import keep, overlay, traced
from llava.analysis.stock_answers import fitting, inputs_of, load_any, stock_views
from llava.serve import viewer
from llava.serve.startup import load
from llava.serve.viewing import Viewer, ViewerQuestion

from .. import tiny_next
from ..hf import zoo
from .test_verify_stock import paligemma_folder

QUESTION = "What is on the sign ?"
HALVES = SimpleNamespace(image_processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3))
#: Columns and rows of each view of zoo's picture of an architecture.
GRIDS = {
    "llava": [(4, 4)],
    "llava_next": [(4, 4), (4, 4)],
    "llava_onevision": [(4, 4), (4, 4)],
    "idefics3": [(4, 4)] * 3,
    "smolvlm": [(4, 4)] * 3,
}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_each_token_of_an_architecture_has_a_place(name: str) -> None:
    model = zoo.shared(name)
    inputs = zoo.inputs(name, ["iq"])
    views = stock_views(tiny_next.picture((56, 56)), HALVES, model, inputs)
    assert [(view.columns, view.rows) for view in views] == GRIDS.get(name, [(4, 4)])
    tokens = [token for view in views for token in view.tokens]
    newlines = [19 + 5 * row + 1 for row in range(4)] if "_" in name and "llava" in name else []
    assert sorted([*tokens, *newlines]) == list(range(zoo.ZOO[name].tokens))
    if len(views) == 1:
        assert list(views[0].tokens) == list(range(16))


def test_a_grid_of_the_inputs_is_rows_of_columns() -> None:
    """Qwen's rotary positions say by themselves in which row and column a token is."""
    model = zoo.shared("qwen2_vl")
    inputs = zoo.inputs("qwen2_vl", ["iq"])
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 16]])
    (view,) = stock_views(tiny_next.picture((64, 16)), HALVES, model, inputs)
    assert (view.columns, view.rows) == (8, 2)
    more = {k: inputs[k] for k in ("input_ids", "mm_token_type_ids") if k in inputs}
    position, _ = model.model.get_rope_index(**more, image_grid_thw=inputs["image_grid_thw"])
    rows, columns = position[1:, 0, inputs["input_ids"][0] == zoo.IMAGE]
    places = [
        (row - rows[0]) * view.columns + (column - columns[0])
        for row, column in zip(rows.tolist(), columns.tolist())
    ]
    assert places == view.patches(range(16))


def test_numbers_that_do_not_fit_are_not_drawn() -> None:
    inputs = zoo.inputs("internvl", ["iq"])
    row = inputs["input_ids"][0]
    inputs["input_ids"] = torch.cat([row, row[row == zoo.IMAGE][:1]])[None]
    picture = tiny_next.picture((56, 56))
    assert stock_views(picture, HALVES, zoo.shared("internvl"), inputs) == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return paligemma_folder(tmp_path_factory.mktemp("stock") / "model")


def arguments(folder) -> list[str]:
    return ["--model-path", str(folder), "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def loaded(folder):
    return load(viewer.build_parser().parse_args(arguments(folder)))


def test_a_traced_answer_is_that_of_the_block(loaded) -> None:
    picture = tiny_next.picture((90, 40))
    pruner = pruning.build("autoprune", target_token_num=8, x0=2.0, recycle_ratio=0.5)
    answer = traced.run(
        *(loaded.model, loaded.tokenizer, loaded.image_processor, picture, QUESTION, pruner),
        max_new_tokens=3,
    )
    inputs = inputs_of(QUESTION, picture, loaded.image_processor, loaded.model)
    with hf.pruning(loaded.model, fitting(pruner)) as pruned:
        ids = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert answer.text == loaded.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert answer.new_tokens == len(new)
    assert [list(kept) for kept in answer.kept] == pruned.trace.kept_patches(0)
    assert answer.cost == pruned.cost[0]
    pixels = inputs["pixel_values"][0].permute(1, 2, 0).numpy()
    (view,) = answer.views
    assert np.abs(np.asarray(view.picture) - (pixels + 1) * 127.5).max() < 0.51
    (drawn,) = overlay.panels(answer, 5)
    assert drawn.size == (56, 56)


def test_keep_and_viewer_take_a_folder_of_transformers(folder, loaded, tmp_path, capsys) -> None:
    image = tmp_path / "picture.png"
    tiny_next.picture((60, 40)).save(image)
    asked = ["--image", str(image), "--question", QUESTION, "--out", str(tmp_path / "kept.png")]
    methods = ["--method", "fastv:8", "none", "--max-new-tokens", "1"]
    assert keep.main([*arguments(folder), *asked, *methods]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["methods"]["none"]["entering"] == [16] * zoo.LAYERS
    assert keep.main([*arguments(folder), *asked, "--method", "hired"]) == 2
    assert "needs the vision tower" in capsys.readouterr().err

    made = Viewer(loaded, pruning.build("autoprune", target_token_num=8, x0=2.0), name="pali")
    settings = made.settings()
    names = {method["name"] for method in settings["methods"]}
    assert {"autoprune", "none", "fastv"} <= names and "hired" not in names
    assert settings["about"] == "paligemma of transformers" and settings["layers"] == zoo.LAYERS
    with pytest.raises(ValueError, match="needs the vision tower"):
        Viewer(loaded, pruning.build("hired"), name="pali")
    found = made.answer(ViewerQuestion(tiny_next.picture((60, 40)), QUESTION, "autoprune", 8))
    by_tower = ViewerQuestion(
        tiny_next.picture((60, 40)), QUESTION, "fastervlm", 8, "tower_scores=received"
    )
    assert "fastervlm" in names and made.answer(by_tower)["leaving"] == [8] * zoo.LAYERS
    assert found["views"] == [{"title": "", "columns": 4, "rows": 4}]
    assert found["entering"][0] == 16 > found["leaving"][-1]


def test_settings_of_llava_are_refused(folder) -> None:
    args = viewer.build_parser().parse_args([*arguments(folder), "--merge-type", "flat"])
    with pytest.raises(ValueError, match="--merge-type: not for a model that transformers loads"):
        load_any(args)


@pytest.mark.parametrize("name", ["internvl", "idefics3", "smolvlm"])
def test_shuffled_pixels_stand_row_by_row(name: str) -> None:
    """Four patches become a token; the tokens of the first row come first."""
    numbers = torch.arange(64.0)[:, None].repeat(1, 4)
    model = zoo.shared(name).model
    if name == "internvl":
        tokens = model.pixel_shuffle(numbers.reshape(1, 8, 8, 4), scale_factor=0.5)
    else:
        tokens = model.connector.pixel_shuffle(numbers[None], 2)
    patches = [set(token.tolist()) for token in tokens.reshape(16, -1)]
    corners = [16 * row + 2 * column for row in range(4) for column in range(4)]
    assert patches == [{corner, corner + 1, corner + 8, corner + 9} for corner in corners]
