"""The attention maps equal transformers' own attention; the figure has their numbers."""

from __future__ import annotations

import json

import pytest
import torch

from llava import pruning
from llava.analysis import attention, traced
from llava.analysis.attention import AttentionMap, AttentionProbe, figure, look, main, paper_layers
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.methods.autoprune import AutoPrune
from tests import tiny
from tests.closeness import FLOAT32, assert_close

from .conftest import DEMO, QUESTION, SCENE

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
            assert picture.get_extent() == heat.get_extent() == [0, 24, 24, 0]
            first, second = axes.get_title().split("\n")
            assert first == f"layer {found.layer}, MI {found.mutual_information:.3f}"
            assert second == f"{found.share:.0%} on picture, half on {found.half}"
    assert rows[0].maps[0].weights != rows[1].maps[0].weights


def asked(*more: str) -> list[str]:
    return ["--image", str(SCENE), "--simple", SIMPLE, "--complex", COMPLEX, "--model-path",
            str(DEMO), "--max-new-tokens", "1", *more]  # fmt: skip


def test_the_command_writes_the_figure_and_its_numbers(demo, monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("llava.analysis.attention.load_model", lambda args: demo)
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

    monkeypatch.setattr("llava.analysis.attention.load_model", refuse)
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
