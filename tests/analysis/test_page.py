"""The report page: what is on it, by its text, and that it stands alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava import pruning
from llava.analysis import page, traced
from llava.analysis.page_html import _bits, _json
from llava.analysis.stock_answers import load_any
from llava.mm_utils import load_image
from llava.model.builder import load_pretrained_model
from llava.serve import viewer

from .. import checkpoints_next, senna_files, tiny_next
from ..eval.benchmark_files import BENCHMARKS
from .conftest import DEMO
from .page_runs import write
from .test_verify_stock import paligemma_folder


class Elements(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_page(folder: Path, *more: str) -> int:
    command = [str(folder / "out"), "--data", str(folder / "data"), *more]
    return page.main([*command, "--out", str(folder / "new" / "report.html")], BENCHMARKS)


def traces(text: str) -> dict:
    return json.loads(re.search(r'id="traces">(.*?)</script>', text, re.DOTALL)[1])


def patches(digits: str) -> list[int]:
    """Of hexadecimal digits, four patches each."""
    bits = "".join(f"{int(digit, 16):04b}"[::-1] for digit in digits)
    return [i for i, bit in enumerate(bits) if bit == "1"]


def read_page(folder: Path) -> str:
    return (folder / "new" / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def runs(tmp_path) -> Path:
    return write(tmp_path)


def test_half_a_surrogate_pair_does_not_keep_the_page_from_being_written(runs) -> None:
    assert write_page(runs, "--no-model", "--title", "Half \ud800 of it") == 0
    assert "Half ? of it" in read_page(runs)


def test_what_is_on_the_page_without_a_model(runs, capsys, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("the model must not be loaded")

    monkeypatch.setattr(page, "load_any", refuse)
    assert write_page(runs, "--no-model") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["differences"], told["shown"], told["answered_as_recorded"]) == (5, 5, 0)
    text = read_page(runs)
    assert told["bytes"] == len(text.encode())
    found = Elements(text)
    cards = found.all("article")
    assert [(c["data-method"], c["data-budget"], c["data-change"]) for c in cards] == [
        ("autoprune x0=5.6", "64", "lost"),
        ("autoprune x0=5.6", "64", "lost"),
        ("autoprune x0=5.6", "64", "gained"),
        ("autoprune x0=5.6", "64", "other"),
        ("fastv depth=1", "32", "other"),
    ]
    assert [c["data-hardness"] for c in cards] == [
        "simple", "complex", "complex", "simple", "simple",
    ]  # fmt: skip
    names = [attributes["name"] for attributes in found.all("select")]
    assert names == ["benchmark", "hardness", "method", "budget", "change"]
    for wanted in ("green", "red", "110.0 tokens enter a layer, 25.0% of the prefill FLOPs",
                   "MI 0.500", "Beta"):  # fmt: skip
        assert any(wanted in piece for piece in found.texts), wanted
    facts = [piece for piece in found.texts if "tokens enter a layer, " in piece]
    published = "25.0% of the prefill FLOPs (published counting)"
    assert [fact.split("layer, ")[1] for fact in facts] == [
        *[f"{published}, 24.0% computed, MI 0.500"] * 4, published,
    ]  # fmt: skip
    assert "`" not in "".join(found.texts).split("const ")[0]  # no Markdown, before the script
    # Three panels, each with a line a run; unpruned and no image level, random dashed.
    charts = [attributes for attributes in found.all("svg") if attributes.get("class") == "chart"]
    assert len(charts) == 3
    lines = [attributes["class"] for attributes in found.all("polyline")]
    assert len(lines) == 3 * 3 and sum("floor" in name for name in lines) == 3
    assert not found.all("image") and "<b>" not in text.split("<main>")[1].split("</main>")[0]
    assert any("<b>&\"'</b>" in piece for piece in found.texts)


def test_a_page_without_answers_says_why(runs) -> None:
    assert write_page(runs, "--most", "0") == 0
    assert "5 answers differ from the unpruned model's; none is shown" in read_page(runs)
    for ending in (".jsonl", ".run.json"):
        (runs / "out" / "beta" / f"none{ending}").unlink()
    assert write_page(runs, "--no-model") == 0
    alone = "No benchmark has an unpruned run and a pruned one to compare with it."
    assert read_page(runs).count(alone) == 2 and not Elements(read_page(runs)).all("article")


def test_the_code_is_named_with_its_mark(runs) -> None:
    record = runs / "out" / "beta" / "none.run.json"
    code = {"environment": {"git_commit": "0123abc", "git_dirty": True}}
    record.write_text(json.dumps(json.loads(record.read_text()) | code))
    assert write_page(runs, "--no-model") == 0
    assert "0123abc (with uncommitted changes)" in Elements(read_page(runs)).texts


def several(runs: Path, monkeypatch, folder: str = "") -> list[str]:
    """The first difference is about two pictures, which are there."""
    names = [f"{folder}A/0.png", f"{folder}B/0.png"]
    most_different = page.most_different

    def about_two(found, most):
        question = replace(found[0].question, text="<image> or <image>?", views=tuple(names))
        return most_different([replace(found[0], question=question)], most)

    monkeypatch.setattr(page, "most_different", about_two)
    for seed, name in enumerate(names):
        path = runs / "data" / "beta" / "images" / name
        path.parent.mkdir(parents=True)
        tiny_next.picture((40, 20), seed).save(path)
    return names


def test_each_picture_of_a_question_is_drawn(with_model, monkeypatch) -> None:
    several(with_model, monkeypatch)
    assert write_page(with_model, "--most", "1") == 0
    text = read_page(with_model)
    labels = [a["aria-label"] for a in Elements(text).all("svg") if a.get("class") == "seen"]
    assert [label.split(",")[1] for label in labels] == [" A", " B"]
    data = traces(text)["card-0"]
    assert data["counts"][0] == 2 * 576
    assert [view["tokens"][0] for view in data["views"]] == [576, 576]
    for counts in zip(data["counts"], *(view["tokens"] for view in data["views"]), strict=True):
        assert counts[0] == counts[1] + counts[2]
    bits = [sum(int(d, 16).bit_count() for d in view["kept"][5]) for view in data["views"]]
    assert bits == [view["tokens"][5] for view in data["views"]]


def test_views_of_senna_say_how_many_tokens_are_left(runs, tmp_path, monkeypatch) -> None:
    folder = senna_files.write_senna(tmp_path / "senna")
    tower = tmp_path / senna_files.TOWER
    loaded = load_pretrained_model(folder, vision_tower=tower, dtype="float32", device="cpu")
    monkeypatch.setattr(page, "load_any", lambda settings: loaded)
    several(runs, monkeypatch)
    assert write_page(runs, "--most", "1", "--model-path", str(folder)) == 0
    data = traces(read_page(runs))["card-0"]
    assert [view["title"] for view in data["views"]] == ["A", "B"]
    assert all(view["mixed"] and view["of"] == 128 for view in data["views"])
    assert [sum(view["tokens"][-1] for view in data["views"])] == data["counts"][-1:]
    assert 0 < data["counts"][-1] < data["counts"][0] == 256


def test_a_model_of_transformers_is_asked_in_place_of_the_runs_own(runs, tmp_path) -> None:
    folder = paligemma_folder(tmp_path / "pali", weights=0.2)
    place = ["--model-path", str(folder), "--device", "cpu"]
    pruner = pruning.build("autoprune", target_token_num=8, x0=2.0)
    by_tower = pruning.build("fastervlm", target_token_num=8)  # which llava.hf does not run so
    for name, other in (("auto-64", pruner), ("fastv-32", by_tower)):
        record = runs / "out" / "beta" / f"{name}.run.json"
        values = json.loads(record.read_text())
        values["settings"]["pruner"] = other.to_dict()
        record.write_text(json.dumps(values))
    assert write_page(runs, *place) == 0
    text = read_page(runs)
    assert "Answers and costs are of tiny; pali was asked again, patches are of that" in text
    data = traces(text)
    assert list(data) == [f"card-{number}" for number in range(4)]
    assert Elements(text).all("article")[4]["data-method"].startswith("fastervlm")
    tokenizer, model, processor, _ = load_any(
        viewer.build_parser().parse_args([*place, "--dtype", "float32"])
    )
    image = load_image(runs / "data" / "beta" / "images" / "0.png")
    answer = traced.run(*(model, tokenizer, processor, image), "What is ?", pruner)
    (view,) = data["card-0"]["views"]
    assert (view["columns"], view["rows"], view["mixed"]) == (4, 4, False)
    assert data["card-0"]["counts"] == [len(kept) for kept in answer.kept]
    assert 16 == len(answer.kept[0]) > len(answer.kept[2]) > len(answer.kept[-1])
    for kept, shown in zip(answer.kept, view["kept"], strict=True):
        assert patches(shown) == sorted(kept)


def test_several_pictures_are_shown_as_text_for_a_model_of_transformers(
    runs, tmp_path, monkeypatch
) -> None:
    several(runs, monkeypatch, "<1>/")
    place = ["--model-path", str(paligemma_folder(tmp_path / "pali")), "--device", "cpu"]
    assert write_page(runs, "--most", "1", *place) == 0
    assert "Picture: <1>/A/0.png, <1>/B/0.png" in Elements(read_page(runs)).texts


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["s/CAM_FRONT/a.jpg", "s/CAM_BACK/a.jpg"], ["CAM FRONT", "CAM BACK"]),
        (["s/a.jpg", "s/b.jpg"], ["picture 1 of 2", "picture 2 of 2"]),
        (["a.jpg", "s/b.jpg"], ["picture 1 of 2", "picture 2 of 2"]),
    ],
)
def test_pictures_are_named_by_what_tells_them_apart(paths, names) -> None:
    assert page.picture_names(paths) == names


def test_nothing_comes_from_elsewhere_and_no_path_is_told(runs) -> None:
    assert write_page(runs, "--no-model") == 0
    text = read_page(runs)
    found = Elements(text)
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not found.all("link") and "@import" not in text and "url(" not in text
    assert "http" not in re.sub(r"<svg[^>]*>", "", text)
    assert str(runs) not in text


@pytest.fixture
def with_model(runs, demo, monkeypatch):
    """The page with the embedded model; its runs say that it was asked."""
    tokenizer, model, image_processor = demo
    asked = []

    def load(settings):
        asked.append(settings)
        return tokenizer, model, image_processor, 2048

    monkeypatch.setattr(page, "load_any", load)
    assert write_page(runs, "--most", "3", "--model-path", str(DEMO)) == 0
    assert [one.model_path for one in asked] == [str(DEMO)]
    return runs


def test_the_patches_on_the_page_are_those_of_the_trace(with_model, demo) -> None:
    tokenizer, model, image_processor = demo
    found = Elements(read_page(with_model))
    text = read_page(with_model)
    every = traces(text)
    assert list(every) == ["card-0", "card-1", "card-2"]
    pruner = pruning.build("autoprune", target_token_num=64, x0=5.6)
    for card, index in (("card-0", 0), ("card-1", 5)):
        image = load_image(with_model / "data" / "beta" / "images" / f"{index // 2}.png")
        question = f"What is {'it ' * index}?"
        answer = traced.run(
            model, tokenizer, image_processor, image, question, pruner, max_new_tokens=4
        )
        counts, (data,) = every[card]["counts"], every[card]["views"]
        assert (data["columns"], data["rows"]) == (24, 24)
        assert counts == [len(kept) for kept in answer.kept]
        for kept, shown in zip(answer.kept, data["kept"], strict=True):
            assert patches(shown) == sorted(kept)
        merged = [{centre: tuple(members) for centre, members in m} for m in data["merged"]]
        assert merged == [dict(groups) for groups in answer.merged]
        assert any(merged)
    # Two cards about two pictures and one about another: each picture once.
    assert len(found.all("image")) == 3
    assert all(a["href"].startswith("data:image/jpeg;base64,") for a in found.all("image"))
    uses = [attributes["href"] for attributes in found.all("use")]
    assert uses == ["#picture-0", "#picture-1", "#picture-2"]
    sliders = [a for a in found.all("input") if a["type"] == "range"]
    assert [(a["min"], a["max"]) for a in sliders] == [("0", "12")] * 3


def test_a_tiled_picture_is_an_overview_and_its_tiles(runs, tmp_path, monkeypatch) -> None:
    folder = checkpoints_next.write_original(tmp_path / "next")
    loaded = load_pretrained_model(folder, dtype="float32", device="cpu")
    monkeypatch.setattr(page, "load_any", lambda settings: loaded)
    for path in (runs / "data" / "beta" / "images").iterdir():
        tiny_next.picture((200, 100)).save(path)
    assert write_page(runs, "--most", "1", "--model-path", str(folder)) == 0
    text = read_page(runs)
    found = Elements(text)
    assert [(a["width"], a["height"]) for a in found.all("image")] == [("4", "4"), ("8", "4")]
    boxes = [a["viewbox"] for a in found.all("svg") if a.get("class") == "seen"]
    assert boxes == ["0 0 4 4", "0 0 8 4"]
    labels = [a["aria-label"] for a in found.all("svg") if a.get("class") == "seen"]
    assert labels[1].startswith("The picture, 2 x 1 tiles, with the patches kept")
    data = traces(text)["card-0"]
    bright = [sum(int(d, 16).bit_count() for d in view["kept"][0]) for view in data["views"]]
    assert bright == [16, 32] and data["counts"][0] == tiny_next.COUNTS[200, 100] == 52


def test_bits_by_hand() -> None:
    assert _bits([0, 5, 6, 9], 10) == "162"  # 1 + 0, 2 + 4, 2
    assert _bits([10], 10) == "000"  # a CLS token
    assert "</script>" not in _json({"a": "</script>"})


def test_bad_inputs_get_their_message(runs, capsys, monkeypatch) -> None:
    def fails(message: str, *more: str) -> None:
        assert write_page(runs, *more) == 2
        assert message in capsys.readouterr().err

    fails("--most must be 0 or more", "--most", "-1")
    fails("gone", "--model-path", str(runs / "gone"))
    monkeypatch.setattr(page, "load_any", lambda settings: (None,) * 4)
    file = runs / "out" / "beta" / "auto-64.run.json"
    record = json.loads(file.read_text())
    settings = record["settings"]
    newer = settings | {"pruner": settings["pruner"] | {"shape_of_old": 3}}
    file.write_text(json.dumps(record | {"settings": newer}))
    fails("settings are not those of this version (unknown setting of method autoprune")
    older = {k: v for k, v in record.items() if k != "kv_bytes"}
    older["flops"] = {k: v for k, v in record["flops"].items() if k != "scoring"}
    older["settings"] = {k: v for k, v in settings.items() if k != "pruner"}
    file.write_text(json.dumps(older))
    fails(f"the record of {file.with_name('auto-64.jsonl')} lacks pruner, flops.scoring, kv_bytes")
    fails("or an older version wrote it; run it again, into another file", "--no-model")
    file.write_text(json.dumps(record))
    (runs / "data" / "beta" / "images" / "0.png").write_text("no picture")
    fails("cannot read image")
    (runs / "data" / "beta" / "images" / "0.png").unlink()
    fails("no image file at")
