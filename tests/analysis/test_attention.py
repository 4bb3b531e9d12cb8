"""The attention maps equal transformers' own attention; the figure has their numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava import pruning
from llava.analysis import attention, traced
from llava.analysis.attention import (
    AttentionMap,
    AttentionProbe,
    figure,
    look,
    main,
    paper_layers,
    stacked,
)
from llava.analysis.stock_answers import inputs_of
from llava.analysis.views import View
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import load_image
from llava.model.builder import load_pretrained_model
from llava.pruning.methods.autoprune import AutoPrune
from tests import checkpoints_next, senna_files, tiny, tiny_next
from tests.closeness import FLOAT32, assert_close

from .conftest import DEMO, QUESTION, SCENE
from .test_verify_stock import paligemma_folder

SIMPLE, COMPLEX = "What color is the sign that says TEA?", "What word is left of the blue sign?"


@pytest.mark.parametrize(
    ("layers", "wanted"),
    # 2, 4, 8, 16 times layers / 32, halves to the even number.
    [(32, (2, 4, 8, 16)), (12, (1, 2, 3, 6)), (40, (2, 5, 10, 20)), (2, (1,))],
)
def test_the_papers_layers_move_to_the_same_depth(layers: int, wanted: tuple[int, ...]) -> None:
    assert paper_layers(layers) == wanted


def test_maps_are_the_attention_of_transformers() -> None:
    ours = tiny.model(0, attn="eager")
    stock = tiny.stock(ours, "eager")
    prompt, images = tiny.prompt(1, before=3, after=7), tiny.pixels(1)
    probe = AttentionProbe(layers=(1, 4))
    with torch.no_grad():
        ours(prompt[None], images=images, pruner=probe)
        ids = torch.cat(
            [
                torch.full((16,), tiny.STOCK_IMAGE_ID) if t == IMAGE_TOKEN_INDEX else t[None]
                for t in prompt
            ]
        )
        whole = stock(input_ids=ids[None], pixel_values=images, output_attentions=True).attentions
    for layer in (1, 4):
        # BOS and three of text, 16 patches, seven of text.
        wanted = whole[layer][0, :, -7:, 4:20].mean((0, 1))
        assert_close(torch.tensor(probe.maps[layer].weights), wanted, FLOAT32)
    assert sorted(probe.maps) == [1, 4]


def test_mutual_information_is_what_autoprune_measures(demo, wide) -> None:
    tokenizer, model, image_processor = demo
    (row,) = look(demo, wide, {"simple": QUESTION}, [1], AutoPrune(), max_new_tokens=1)
    # Without a pre-selection AutoPrune's layer 1 has all patches too.
    pruner = pruning.build("autoprune", target_token_num=64, preselect_ratio=None)
    pruned = traced.run(model, tokenizer, image_processor, wide, QUESTION, pruner, max_new_tokens=1)
    assert row.maps[0].mutual_information == pytest.approx(pruned.mutual_information, rel=1e-4)
    dense = traced.run(model, tokenizer, image_processor, wide, QUESTION, max_new_tokens=1)
    assert row.answer == dense.text


def test_share_and_half_by_hand() -> None:
    found = AttentionMap(3, (0.1, 0.05, 0.3, 0.15), 1.0)
    # 0.6 in all; 0.3 alone is half of it.
    assert found.share == pytest.approx(0.6) and found.half == 1
    assert AttentionMap(3, (0.1,) * 6, 1.0).half == 3


def test_a_layer_that_is_not_there_is_refused() -> None:
    ours = tiny.model(0)
    with pytest.raises(ValueError, match="layer 6 of a decoder of 6: expected 0 to 5"):
        ours(tiny.prompt(1)[None], images=tiny.pixels(1), pruner=AttentionProbe(layers=(6,)))


def test_the_figure_has_a_panel_a_layer_and_a_row_a_question(demo, wide) -> None:
    pytest.importorskip("matplotlib")
    questions = {"simple": SIMPLE, "complex": COMPLEX}
    rows = look(demo, wide, questions, (1, 2, 3, 6), AutoPrune(), max_new_tokens=2)
    drawn = figure(rows)
    assert len(drawn.axes) == 8 and len(drawn.subfigs) == 2
    for part, row in zip(drawn.subfigs, rows):
        assert part.get_suptitle() == f'{row.kind}: {row.question} "{row.answer}"'
        for axes, found in zip(part.axes, row.maps):
            picture, heat = axes.images
            assert heat.get_array().reshape(-1).tolist() == pytest.approx(list(found.weights))
            assert heat.get_clim() == (0, max(found.weights))
            assert picture.get_array().shape == (336, 336)
            assert picture.get_extent() == heat.get_extent() == [0, 1, 1, 0]
            assert axes.get_xlim() == (0, 1) and axes.get_ylim() == (1, 0)
            first, second = axes.get_title().split("\n")
            assert first == f"layer {found.layer}, MI {found.mutual_information:.3f}"
            assert second == f"{found.share:.0%} on picture, half on {found.half}"
    assert rows[0].maps[0].weights != rows[1].maps[0].weights


def test_heat_is_at_the_place_of_each_tile(tmp_path) -> None:
    """The overview above the tiles; a newline's attention counts, and is nowhere."""
    pytest.importorskip("matplotlib")
    folder = checkpoints_next.write_original(tmp_path / "next")
    loaded = load_pretrained_model(folder, dtype="float32", device="cpu")[:3]
    picture = tiny_next.picture((200, 100))
    rows = look(loaded, picture, {"simple": QUESTION}, [1, 2], AutoPrune(), max_new_tokens=1)
    (axes, _), found = figure(rows).axes, rows[0].maps[0]
    overview, heat, canvas, heat_of_canvas = axes.images
    # Tokens: 16 of the overview, then four rows of eight, each with a newline behind it.
    weights = np.array(found.weights)
    assert len(weights) == tiny_next.COUNTS[200, 100]
    np.testing.assert_allclose(heat.get_array(), weights[:16].reshape(4, 4))
    np.testing.assert_allclose(heat_of_canvas.get_array(), weights[16:].reshape(4, 9)[:, :8])
    assert overview.get_extent() == heat.get_extent() == [0, 1, 1, 0]
    assert canvas.get_extent() == heat_of_canvas.get_extent() == [0, 1, 1.53, 1.03]
    drawn = max(heat.get_array().max(), heat_of_canvas.get_array().max())
    assert heat.get_clim() == heat_of_canvas.get_clim() == (0, drawn)
    assert found.share == pytest.approx(weights.sum()) and weights[24] > 0


def test_three_views_are_two_in_a_row() -> None:
    views = [View(tiny_next.picture((8, 8)), 4, 4, range(16)) for _ in range(3)]
    places, height = stacked(views)
    wide = 0.485
    assert places == [
        (0, wide, wide, 0),
        (pytest.approx(0.515), pytest.approx(1), wide, 0),
        (0, wide, pytest.approx(1), pytest.approx(0.515)),
    ]
    assert height == pytest.approx(1)


def test_a_model_of_transformers_is_looked_at(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    folder = paligemma_folder(tmp_path / "model", weights=0.2)
    command = asked("--model-path", str(folder), "--device", "cpu", "--dtype", "float32")
    out = ["--out", str(tmp_path / "attention.png"), "--dpi", "40", "--layers", "1", "3"]
    assert main([*command, *out]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")
    processor = AutoProcessor.from_pretrained(folder)
    inputs = inputs_of(SIMPLE, load_image(SCENE), processor, model)
    with torch.no_grad():
        every = model(**inputs, output_attentions=True).attentions
    visual = inputs["input_ids"][0] == model.config.image_token_id
    for layer, panel in zip((1, 3), told["rows"][0]["layers"], strict=True):
        behind = int(visual.nonzero()[-1]) + 1
        share = every[layer][0, :, behind:, visual].sum(-1).mean()
        assert panel["layer"] == layer
        assert_close(torch.tensor(panel["share"]), share, FLOAT32)


def test_tokens_without_a_place_are_refused(tmp_path) -> None:
    folder = senna_files.write_senna(tmp_path / "senna")
    tower = tmp_path / senna_files.TOWER
    loaded = load_pretrained_model(folder, vision_tower=tower, dtype="float32", device="cpu")[:3]
    with pytest.raises(ValueError, match="no visual token of this checkpoint has a place"):
        look(loaded, tiny_next.picture((40, 20)), {"simple": "Plan?"}, [1], AutoPrune())


def asked(*more: str) -> list[str]:
    return ["--image", str(SCENE), "--simple", SIMPLE, "--complex", COMPLEX, "--model-path",
            str(DEMO), "--max-new-tokens", "1", *more]  # fmt: skip


def test_the_command_writes_the_figure_and_its_numbers(demo, monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(attention, "load_any", lambda args: (*demo, 2048))
    out = tmp_path / "new" / "attention.png"
    assert main(asked("--out", str(out), "--dpi", "40")) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["kind"] for row in told["rows"]] == ["simple", "complex"]
    assert [found["layer"] for found in told["rows"][1]["layers"]] == [1, 2, 3, 6]
    assert all(0 < found["share"] < 1 for row in told["rows"] for found in row["layers"])


def test_bad_inputs_get_their_message(monkeypatch, tmp_path, capsys) -> None:
    def refuse(args):
        raise AssertionError("the model must not be loaded")

    monkeypatch.setattr(attention, "load_any", refuse)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    assert main([*asked(), "--image", str(broken)]) == 2
    assert f"cannot read image {broken}" in capsys.readouterr().err
    assert main(asked("--out", "attention.gif")) == 2
    assert "--out must end in .png, .jpg, .pdf, .svg" in capsys.readouterr().err

    def without(*size, **options):
        raise ImportError("figures need matplotlib")

    monkeypatch.setattr(attention.plotting, "new_figure", without)
    assert main(asked()) == 2
    assert "figures need matplotlib" in capsys.readouterr().err
