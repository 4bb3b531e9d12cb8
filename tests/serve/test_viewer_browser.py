"""The viewer's page in a headless browser: asking, budget, layers, keyboard, phone, colours."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from .. import browser
from .conftest import QUESTION
from .test_pictures import encoded, png_of

#: A folder for the screenshots; looked at by people, compared with nothing.
SHOTS = os.environ.get("SCREENSHOTS")

_FILE = """(() => {
    const bytes = Uint8Array.from(atob(%s), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "a.png", {type: "image/png"}));
    %s
})()"""
_PICK = "at('file').files = transfer.files; at('file').dispatchEvent(new Event('change'));"
_DROP = (
    "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}))"
)


@pytest.fixture(scope="module")
def page(served, tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1200, 900)
        opened.open(served.url)
        opened.wait("at('method').options.length > 0")
        yield opened


def give(page, data: bytes, how: str = _PICK) -> None:
    """Choose or drop a file, and wait until the page has read it."""
    page.evaluate(_FILE % (json.dumps(base64.b64encode(data).decode()), how))
    page.wait(f"state.image === {json.dumps(base64.b64encode(data).decode())}")


def text(page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def ask(page) -> None:
    """Press Enter in the question, and wait for the answer or a message."""
    page.evaluate(f"at('question').value = {json.dumps(QUESTION)}; at('question').focus()")
    page.evaluate("at('status').textContent = at('error').textContent = ''")
    page.press("Enter")
    page.wait("!state.running && at('status').textContent + at('error').textContent !== ''")


def captioned(page, start: str) -> None:
    """Wait until the caption begins so."""
    page.wait(f"at('caption').textContent.startsWith({json.dumps(start)})")


def answers(page) -> int:
    return sum(address.endswith("/api/answer") for address in page.requested)


def shot(page, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(SHOTS) / f"viewer-{name}.png")


def test_a_person_asks_and_looks(page, served, picture) -> None:
    """In the order in which a person would; what is shown is what the server answered."""
    shot(page, "empty")
    ask(page)
    assert text(page, "#error") == "Choose a picture first." and answers(page) == 0

    give(page, encoded("PNG", picture), _DROP)
    page.wait("at('preview').naturalWidth === 336")
    assert page.evaluate("at('file').files[0].name") == "a.png"
    ask(page)
    assert text(page, "#status") == "Done." and page.evaluate("at('error').hidden")
    assert answers(page) == 2
    dense, pruned = page.evaluate("state.dense.answer"), page.evaluate("state.pruned")
    assert dense["entering"] == [576] * 12 and pruned["entering"][0] == 576
    assert text(page, "#dense .text") == dense["text"] != ""
    assert text(page, "#pruned h2") == "Pruned by autoprune, 64 tokens"
    entering = sum(pruned["entering"]) / 12
    assert text(page, "#pruned dd") == f"{entering:.1f}" and text(page, "#dense dd") == "576.0"
    cost = pruned["cost"]
    share = 100 * cost["computed_flops"] / cost["dense_prefill_flops"]
    rows = text(page, "#pruned dl")
    assert "Prefill FLOPs (published counting)" in rows
    assert f" G, {share:.1f} %" in rows.split("Prefill FLOPs (computed)")[1].split("Cache")[0]

    # Layers, by keyboard.
    page.evaluate("at('layer').focus()")
    assert text(page, "#caption") == "Layer 0: 576 of 576 patches"
    page.press("ArrowRight")
    captioned(page, f"Layer 1: {pruned['entering'][1]} of 576 patches")
    page.wait("at('picture').complete && at('picture').naturalWidth === 336")
    assert page.evaluate("at('picture').alt === at('caption').textContent")
    page.press("End")
    captioned(page, f"After the last layer: {pruned['leaving'][-1]} of")
    heights = page.evaluate("[...at('bars').children].map((bar) => bar.offsetHeight)")
    assert len(heights) == 13 and heights[0] > 4 * heights[-1]
    page.evaluate("at('layer').value = 3; at('layer').dispatchEvent(new Event('input'))")
    page.resize(1200, 1100)
    page.evaluate("at('answers').scrollIntoView()")
    shot(page, "layers")

    # Another budget asks once more, and only with pruning.
    page.evaluate("at('tokens').value = 192; at('tokens').dispatchEvent(new Event('change'))")
    page.wait("!state.running")
    assert answers(page) == 3 and text(page, "#pruned h2") == "Pruned by autoprune, 192 tokens"
    assert page.evaluate("state.pruned.entering")[1] > pruned["entering"][1]

    # So does another method; one without a budget says so.
    page.evaluate(
        "at('method').value = 'no-image'; at('method').dispatchEvent(new Event('change'))"
    )
    page.wait("!state.running")
    assert answers(page) == 4 and text(page, "#pruned h2") == "Pruned by no-image"
    assert text(page, "#budget") == "none to set" and page.evaluate("at('tokens').disabled")

    # Light and dark, wide and narrow.
    page.evaluate("scrollTo(0, 0)")
    colours = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for name, size in (("wide", (1200, 900)), ("phone", (360, 740))):
            page.resize(*size, phone=name == "phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            shot(page, f"{scheme}-{name}")
            page.evaluate("at('patches').scrollIntoView()")
            shot(page, f"{scheme}-{name}-patches")
            page.evaluate("scrollTo(0, 0)")
    assert colours == ["rgb(246, 246, 244)", "rgb(22, 22, 23)"]
    page.prefer("light")
    page.resize(1200, 900)

    # All of it can be reached with the Tab key, in reading order.
    page.evaluate("at('method').value = 'pdrop'; showBudget(); at('file').focus()")
    reached = []
    for _ in range(6):
        reached.append(page.evaluate("document.activeElement.id"))
        page.press("Tab")
    assert reached == ["file", "question", "method", "tokens", "ask", "layer"]

    # What the server refuses is said on the page, which goes on.
    page.evaluate("at('tokens').value = 3; at('tokens').dispatchEvent(new Event('change'))")
    page.wait("!state.running")
    assert "below the floor" in text(page, "#error")
    give(page, png_of(60000, 60000))
    assert page.evaluate("at('answers').hidden && at('patches').hidden")
    ask(page)
    assert "at most 40 megapixels" in text(page, "#error")
    page.evaluate("state.settings.most_bytes = 100")
    page.evaluate(_FILE % (json.dumps(base64.b64encode(png_of(8, 8) * 9).decode()), _PICK))
    page.wait("at('error').textContent.startsWith('That file is too large')")

    assert page.errors == []
    assert all(url.startswith((served.url, "blob:", "data:")) for url in page.requested)


def test_an_answer_stops_when_its_page_asks_anew_or_is_closed(page, served, picture, endless):
    page.open(served.url)
    page.wait("at('method').options.length > 0")
    give(page, encoded("PNG", picture))
    page.evaluate("at('question').value = '?'; void run()")
    assert endless.begun.wait(120)
    page.evaluate("void run()")
    assert endless.tokens.get(timeout=120) < endless.most
    endless.begun.clear()
    assert endless.begun.wait(120)
    page.close()
    assert endless.tokens.get(timeout=120) < endless.most
