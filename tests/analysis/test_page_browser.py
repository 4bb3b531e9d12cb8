"""The report page in a real headless browser: filters, sliders, keyboard, phone, light and dark."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava.analysis import page
from llava.model.builder import load_pretrained_model

from .. import browser, senna_files
from ..eval.benchmark_files import BENCHMARKS
from .conftest import DEMO
from .page_runs import write
from .test_page import several

#: A folder for the screenshots; looked at by people, compared with nothing.
SHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def shown(demo, tmp_path_factory):
    """The page of the hand-made runs with the embedded model's patches, opened from disk."""
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        folder = write(tmp_path_factory.mktemp("runs"))
        out = folder / "report.html"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "load_any", lambda settings: (*demo, 2048))
            command = [str(folder / "out"), "--data", str(folder / "data"), "--out", str(out)]
            assert page.main([*command, "--model-path", str(DEMO)], BENCHMARKS) == 0
        opened.resize(1200, 900)
        opened.open(out.as_uri())
        yield opened


@pytest.fixture
def opened(shown):
    """The page as it is at first."""
    shown.evaluate("document.getElementById('filters').reset()")
    shown.wait("document.getElementById('shown').textContent === '5 of 5 shown'")
    return shown


def visible(opened) -> list[str]:
    return opened.evaluate("[...document.querySelectorAll('article:not([hidden])')].map(c => c.id)")


def choose(opened, name: str, value: str) -> None:
    opened.evaluate(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = "
        f"{json.dumps(value)}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    )


def shot(opened, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        opened.screenshot(Path(SHOTS) / f"{name}.png")


def test_it_loads_nothing_and_no_script_fails(opened) -> None:
    requested = [one for one in opened.requested if not one.startswith(("data:", "about:"))]
    assert len(requested) == 1 and requested[0].startswith("file:") and not opened.errors
    shot(opened, "page")


def test_filters_by_hardness_budget_and_benchmark(opened) -> None:
    assert visible(opened) == [f"card-{i}" for i in range(5)]
    choose(opened, "hardness", "complex")
    assert visible(opened) == ["card-1", "card-2"]
    choose(opened, "change", "gained")
    assert visible(opened) == ["card-2"]
    assert opened.evaluate("document.getElementById('shown').textContent") == "1 of 5 shown"
    choose(opened, "hardness", "")
    choose(opened, "change", "")
    choose(opened, "budget", "32")
    assert visible(opened) == ["card-4"]
    choose(opened, "budget", "")
    choose(opened, "benchmark", "beta")
    assert len(visible(opened)) == 5
    choose(opened, "hardness", "simple")
    choose(opened, "change", "gained")
    assert visible(opened) == []


def area(opened, card: str, name: str) -> int:
    """How many patches a path of a card covers: the sum of its horizontal strokes."""
    path = opened.evaluate(f"document.querySelector('#{card} .{name}').getAttribute('d')")
    return sum(int(piece.split("v")[0]) for piece in path.split("h")[1:])


def test_the_slider_shows_the_patches_of_its_layer_by_keyboard(opened) -> None:
    data = opened.evaluate("JSON.parse(document.getElementById('traces').textContent)['card-0']")
    (view,) = data["views"]
    opened.evaluate("document.querySelector('#card-0 input').focus()")
    at = int(opened.evaluate("document.querySelector('#card-0 input').value"))
    assert at == 4 and area(opened, "card-0", "dropped") == 576 - data["counts"][4]
    opened.press("ArrowRight")
    assert opened.evaluate("document.querySelector('#card-0 input').value") == "5"
    assert area(opened, "card-0", "dropped") == 576 - data["counts"][5]
    told = opened.evaluate("document.querySelector('#card-0 output').textContent")
    assert told.startswith(f"layer 5: {data['counts'][5]}")
    opened.press("End")
    assert opened.evaluate("document.querySelector('#card-0 input').value") == "12"
    assert area(opened, "card-0", "dropped") == 576 - data["counts"][12]
    told = opened.evaluate("document.querySelector('#card-0 output').textContent")
    assert told.startswith(f"at last: {data['counts'][12]}")
    frames = opened.evaluate("document.querySelector('#card-0 .frame').getAttribute('d')")
    assert frames.count("M") == len(view["merged"][12])
    # Another card's slider is where it was.
    assert opened.evaluate("document.querySelector('#card-1 input').value") == "4"
    shot(opened, "slider")


def test_the_picture_below_the_patches_is_there(opened) -> None:
    width = opened.evaluate("document.querySelector('#card-0 svg').getBoundingClientRect().width")
    assert width > 200
    box = opened.evaluate(
        "(() => { const b = document.querySelector('#card-0 use').getBBox(); "
        "return [b.width, b.height]; })()"
    )
    assert box == [24, 24]


def test_the_keyboard_reaches_everything(opened) -> None:
    opened.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    opened.evaluate(
        "(() => { document.body.tabIndex = -1; document.body.focus(); "
        "document.body.removeAttribute('tabindex'); })()"
    )
    reached = []
    for _ in range(24):
        opened.press("Tab")
        reached.append(
            opened.evaluate(
                "(() => { const e = document.activeElement; return e.className || e.name || e.id "
                "|| e.textContent || e.tagName; })()"
            )
        )
    assert reached[0] == "skip"
    for wanted in ("scroll", "benchmark", "hardness", "budget", "layer-0", "layer-4"):
        assert wanted in reached, (wanted, reached)
    assert opened.evaluate("document.querySelector('.skip').getBoundingClientRect().right") < 0


def luminance(opened, expression: str) -> float:
    colour = opened.evaluate(f"getComputedStyle({expression}).{'backgroundColor'}")
    red, green, blue = (int(part) for part in colour.strip("rgb()").split(",")[:3])
    return (299 * red + 587 * green + 114 * blue) / 255000


@pytest.mark.parametrize(("scheme", "low", "high"), [("light", 0.9, 1.0), ("dark", 0.0, 0.2)])
def test_it_follows_the_readers_colours(opened, scheme: str, low: float, high: float) -> None:
    opened.prefer(scheme)
    try:
        assert low <= luminance(opened, "document.body") <= high
        text = opened.evaluate("getComputedStyle(document.body).color")
        bright = sum(int(part) for part in text.strip("rgb()").split(",")[:3]) / 765
        assert abs(bright - luminance(opened, "document.body")) > 0.6
        shot(opened, scheme)
        opened.evaluate("document.getElementById('answers').scrollIntoView()")
        shot(opened, f"{scheme}-answers")
        opened.evaluate("document.getElementById('plots').scrollIntoView()")
        shot(opened, f"{scheme}-plots")
    finally:
        opened.prefer("light")
        opened.evaluate("window.scrollTo(0, 0)")


def test_a_phone_scrolls_tables_and_nothing_else_sideways(opened) -> None:
    opened.resize(360, 740, phone=True)
    try:
        assert opened.evaluate("window.innerWidth") == 360
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        table = "document.querySelector('.scroll')"
        assert opened.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
        wide = opened.evaluate(
            "[...document.querySelectorAll('article')]"
            ".map(c => c.getBoundingClientRect()).every(b => b.left >= 0 && b.right <= 360)"
        )
        assert wide
        size = opened.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
        assert size >= 16
        shot(opened, "phone")
        opened.evaluate("document.getElementById('card-0').scrollIntoView()")
        shot(opened, "phone-card")
    finally:
        opened.resize(1200, 900)
        opened.evaluate("window.scrollTo(0, 0)")


def test_a_picture_is_the_darker_the_fewer_of_its_tokens_are_left(
    opened, tmp_path, monkeypatch
) -> None:
    """Senna's: each shows all of it."""
    before = opened.evaluate("location.href")
    folder = write(tmp_path)
    checkpoint = senna_files.write_senna(tmp_path / "senna")
    tower = tmp_path / senna_files.TOWER
    loaded = load_pretrained_model(checkpoint, vision_tower=tower, dtype="float32", device="cpu")
    monkeypatch.setattr(page, "load_any", lambda settings: loaded)
    several(folder, monkeypatch)
    out = folder / "senna.html"
    command = [str(folder / "out"), "--data", str(folder / "data"), "--out", str(out)]
    assert page.main([*command, "--most", "1"], BENCHMARKS) == 0
    try:
        opened.open(out.as_uri())
        views = opened.evaluate(
            "JSON.parse(document.getElementById('traces').textContent)['card-0'].views"
        )
        opened.evaluate("document.querySelector('#card-0 input').focus()")
        opened.press("End")
        for number, view in enumerate(views):
            figure = f"document.querySelectorAll('#card-0 figure')[{number}]"
            left = view["tokens"][-1]
            told = opened.evaluate(f"{figure}.textContent")
            assert told == f"{'AB'[number]}: {left} of 128"
            opacity = opened.evaluate(
                f"parseFloat(getComputedStyle({figure}.querySelector('.dropped')).fillOpacity)"
            )
            assert opacity == pytest.approx(0.78 * (1 - left / 128), abs=1e-3)
            width = opened.evaluate(f"{figure}.querySelector('use').getBoundingClientRect().width")
            assert width > 100
        assert not opened.errors
        shot(opened, "several")
    finally:
        opened.open(before)
