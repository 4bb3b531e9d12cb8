"""The sheet of kept patches: what is bright equals the trace, in every panel; formats; messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from llava import pruning
from llava.analysis import keep, traced
from llava.analysis.keep import frames, main, panel, sheet, some_layers, summary, title
from llava.analysis.overlay import strip

from .conftest import DEMO, QUESTION, SCENE


@pytest.fixture(scope="module")
def answers(demo, wide) -> dict[str, traced.TracedAnswer]:
    tokenizer, model, image_processor = demo
    pruners = {
        "autoprune-64": pruning.build("autoprune", target_token_num=64, x0=5.6),
        "fastv-64": pruning.build("fastv", target_token_num=64, depth=1),
    }
    return {
        name: traced.run(
            model, tokenizer, image_processor, wide, QUESTION, pruner, max_new_tokens=3
        )
        for name, pruner in pruners.items()
    }


def test_layers_are_denser_where_pruning_begins() -> None:
    assert some_layers(12) == [0, 1, 2, 3, 5, 7, 11]
    assert some_layers(32) == [0, 1, 2, 3, 6, 11, 19, 31]
    assert some_layers(1) == [0]


def bright(image: Image.Image, picture: Image.Image, grid: int, cell: int) -> set[int]:
    """Patches whose middle shows the picture's own colour."""
    whole = picture.resize((grid * cell, grid * cell), Image.Resampling.BICUBIC)
    same = (np.asarray(image) == np.asarray(whole)).all(-1)
    middles = same[cell // 2 :: cell, 1 + cell // 2 :: cell]  # beside the line of the padding
    return set(np.flatnonzero(middles).tolist())


@pytest.mark.parametrize("name", ["autoprune-64", "fastv-64"])
@pytest.mark.parametrize("layer", [0, 1, 2, 7, 12])
def test_the_bright_patches_are_those_of_the_trace(answers, name: str, layer: int) -> None:
    answer = answers[name]
    drawn = panel(answer, layer, cell=8)
    assert bright(drawn, answer.picture, 24, 8) == set(answer.kept[layer])
    assert len(answer.kept[layer]) == [*answer.sample.entering, answer.sample.leaving[-1]][layer]


def test_titles_name_layer_count_and_merged(answers) -> None:
    auto, fastv = answers.values()
    assert title(fastv, 0) == "layer 0: 576" and title(fastv, 12) == "at last: 64"
    merged = len(auto.merged[2])
    assert merged and title(auto, 2) == f"layer 2: {auto.sample.entering[2]} ({merged} merged)"
    told = summary("fastv-64", fastv)
    assert told.startswith(f'fastv-64: "{fastv.text}", 106.7 tokens enter a layer, ')
    # 1 x 576 and 11 x 64 tokens a layer, and the prompt's text.
    assert "% of the prefill FLOPs (published counting), " in told and "MI" not in told
    cost = fastv.cost
    assert f" {cost.computed_flops / cost.dense_prefill_flops:.1%} computed" in told
    assert f"MI {auto.mutual_information:.3f}" in summary("autoprune-64", auto)


def test_a_sheet_has_a_row_a_method_and_a_panel_a_layer(answers, monkeypatch) -> None:
    made = []

    def noted(panels, titles, heading):
        made.append((panels, titles, heading))
        return strip(panels, titles, heading=heading)

    monkeypatch.setattr(keep, "strip", noted)
    sheet(answers, QUESTION, [0, 3, 12])
    assert len(made) == 2
    for panels, titles, _ in made:
        assert len(panels) == len(titles) == 3
        assert [text.split(":")[0] for text in titles] == ["layer 0", "layer 3", "at last"]
        assert {image.size for image in panels} == {(192, 192)}
    assert made[0][2].startswith(QUESTION + "\nautoprune-64")
    assert made[1][2].startswith("fastv-64")
    with pytest.raises(ValueError, match="layer 13 of a decoder of 12: expected 0 to 11, or 12"):
        sheet(answers, QUESTION, [0, 13])


def test_moving_pictures_have_a_frame_a_layer(answers) -> None:
    made = frames(answers, QUESTION, cell=8)
    assert len(made) == 13 and {frame.width for frame in made} == {2 * 192 + 3 * 8}
    for layer in (2, 12):
        right = made[layer].crop((made[layer].width - 8 - 192, made[layer].height - 8 - 192 - 4,
                                  made[layer].width - 8, made[layer].height - 8 - 4))  # fmt: skip
        answer = answers["fastv-64"]
        assert bright(right, answer.picture, 24, 8) == set(answer.kept[layer])


def command(*more: str) -> list[str]:
    return ["--model-path", str(DEMO), "--dtype", "float32", "--device", "cpu",
            "--max-new-tokens", "2", *more]  # fmt: skip


@pytest.fixture
def use_demo(demo, monkeypatch):
    """Load the model that is there already."""
    monkeypatch.setattr("llava.analysis.keep.load_any", lambda args: (*demo, 2048))


def asked(*more: str) -> list[str]:
    return command("--image", str(SCENE), "--question", QUESTION, *more)


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("jpg", b"\xff\xd8"), ("pdf", b"%PDF")]
)
def test_the_command_draws_several_methods(use_demo, tmp_path, capsys, ending, start) -> None:
    out = tmp_path / "new" / f"kept.{ending}"
    methods = ["--method", "autoprune", "pdrop", "fastv:32", "--target-token-num", "64"]
    assert main(asked(*methods, "--out", str(out))) == 0
    assert out.read_bytes().startswith(start)
    printed = capsys.readouterr()
    told = json.loads(printed.out.splitlines()[-1])
    assert list(told["methods"]) == ["autoprune-64", "pdrop-64", "fastv-32"]
    assert told["methods"]["fastv-32"]["entering"] == [576] + [32] * 11
    assert sum(told["methods"]["autoprune-64"]["leaving"]) / 12 == pytest.approx(64, abs=1.5)
    assert "pdrop: stages 2, 8, 16 is for 32 layers; this decoder has 12: 1, 3, 6" in printed.err
    if ending == "png":
        with Image.open(out) as image:
            # Seven panels side by side; three rows of a heading, a title and a panel.
            assert image.width == 7 * 192 + 8 * 8 and image.height > 3 * 192


def test_depths_stay_where_they_are_given(use_demo, tmp_path, capsys) -> None:
    out = ["--out", str(tmp_path / "a.png")]
    assert main(asked("--method", "autoprune", "fastv:64", "--x0", "5", *out)) == 0
    assert "autoprune" not in (err := capsys.readouterr().err)
    assert "fastv: depth 2 is for 32 layers; this decoder has 12: 1" in err  # nobody gave it
    assert main(asked("--method", "fastv:64@depth=4", "--depth-layers", "24", *out)) == 0
    printed = capsys.readouterr()
    assert "fastv: depth 4 is for 24 layers; this decoder has 12: 2" in printed.err
    told = json.loads(printed.out.splitlines()[-1])["methods"]["fastv-64@depth=4"]
    assert told["entering"][:3] == [576, 576, 64]


def test_a_gif_runs_through_the_layers(use_demo, tmp_path) -> None:
    out = tmp_path / "kept.gif"
    assert main(asked("--method", "fastv:64", "--out", str(out), "--cell", "4")) == 0
    with Image.open(out) as image:
        # Equal neighbours are one frame of a longer time: all of FastV's layers behind the first.
        assert image.is_animated
        total = 0
        for number in range(image.n_frames):
            image.seek(number)
            total += image.info["duration"]
        assert total == 13 * 700


def test_bad_inputs_get_their_message(use_demo, tmp_path, capsys) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    cases = {
        "cannot read image": command("--image", str(broken), "--question", "x"),
        "no image file at": command("--image", str(tmp_path / "none.png"), "--question", "x"),
        "--out must end in .png, .jpg, .pdf, .gif, .webp, .json": asked("--out", "kept.doc"),
        "unknown method 'fastw'; did you mean 'fastv'": asked("--method", "fastw"),
        "--cell must be at least 1": asked("--cell", "0"),
        "layer 20 of a decoder of 12": asked("--layers", "20", "--out", str(tmp_path / "x.png")),
    }
    for message, arguments in cases.items():
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, capsys) -> None:
    arguments = ["--image", str(SCENE), "--question", "x", "--model-path", str(tmp_path / "gone")]
    assert main(arguments) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
