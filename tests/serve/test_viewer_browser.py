"""The viewer's page in a headless browser: two methods, layers, keyboard, phone, colours."""

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
        opened.wait("at('method-1').options.length > 0")
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
    """Wait until the second side's caption begins so."""
    page.wait(
        f"document.querySelector('#side-1 .caption').textContent.startsWith({json.dumps(start)})"
    )


def choose(page, name: str, value: object) -> None:
    """Give a control a value as a person does, and wait for what comes of it."""
    page.evaluate(
        f"at('{name}').value = {json.dumps(value)}; at('{name}').dispatchEvent(new Event('change'))"
    )
    page.wait("!state.running")


def facts(page) -> dict[str, list[str]]:
    """The table: by the head of a row its two cells."""
    rows = page.evaluate("[...at('facts').rows].map((r) => [...r.cells].map((c) => c.textContent))")
    return {head: values for head, *values in rows}


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
    dense, pruned = page.evaluate("state.shown.map((one) => one.answer)")
    assert dense["entering"] == [576] * 12 and pruned["entering"][0] == 576
    assert text(page, "#side-0 .text") == dense["text"] != ""
    assert text(page, "#side-1 .text") == pruned["text"]
    assert facts(page)[""] == ["Unpruned", "autoprune, 64 tokens"]
    entering = sum(pruned["entering"]) / 12
    assert facts(page)["Visual tokens entering a layer"] == ["576.0", f"{entering:.1f}"]
    cost = pruned["cost"]
    share = 100 * cost["computed_flops"] / cost["dense_prefill_flops"]
    assert facts(page)["Prefill FLOPs (computed)"][1].endswith(f"\u00a0G, {share:.1f}\u00a0%")
    assert "Prefill FLOPs (published counting)" in facts(page)
    same = "yes" if dense["text"] == pruned["text"] else "no"
    assert facts(page)["Same answer"] == ["", same]

    # Layers of both sides at once, by keyboard.
    page.evaluate("at('layer').focus()")
    assert text(page, "#side-1 .caption") == "Layer 0: 576 of 576"
    page.press("ArrowRight")
    captioned(page, f"Layer 1: {pruned['entering'][1]} of 576")
    assert text(page, "#side-0 .caption") == "Layer 1: 576 of 576"
    images = "[...document.querySelectorAll('.views img')]"
    page.wait(f"{images}.every((i) => i.complete && i.naturalWidth === 336)")
    assert page.evaluate(f"{images}.map((i) => i.alt)")[0] == "Layer 1: 576 of 576"
    page.press("End")
    captioned(page, f"After the last layer: {pruned['leaving'][-1]} of")
    heights = page.evaluate(
        "[...at('bars').children].map((of) => [...of.children].map((bar) => bar.offsetHeight))"
    )
    assert len(heights) == 13 and heights[0][1] > 4 * heights[-1][1]
    assert len({height for height, _ in heights}) == 1

    # Outside of fields too; space plays, from the start if need be, to the end.
    page.evaluate("document.activeElement.blur()")
    page.press("ArrowLeft")
    captioned(page, "Layer 11: ")
    page.press("ArrowRight")
    captioned(page, "After the last layer: ")
    page.press(" ")
    captioned(page, "Layer 0: ")
    assert text(page, "#play") == "Pause"
    captioned(page, "Layer 2: ")
    page.press(" ")
    assert text(page, "#play") == "Play"
    page.evaluate("go(10); at('play').click()")
    captioned(page, "After the last layer: ")
    page.wait("at('play').textContent === 'Play'")
    page.evaluate("at('bars').children[3].firstChild.click()")
    captioned(page, "Layer 3: ")
    page.evaluate("at('question').value = 'a'; at('question').focus()")
    page.press(" ")
    page.press("ArrowRight")
    assert text(page, "#play") == "Play" and text(page, "#side-1 .caption").startswith("Layer 3: ")
    page.evaluate(f"at('question').value = {json.dumps(QUESTION)}")
    shot(page, "layers")

    # Another budget asks once more, and only on its side.
    choose(page, "tokens-1", 192)
    assert answers(page) == 3 and text(page, "#side-1 h2") == "autoprune, 192 tokens"
    assert page.evaluate("state.shown[1].answer.entering")[1] > pruned["entering"][1]

    # Two methods side by side, each with its settings.
    choose(page, "method-0", "fastv")
    assert answers(page) == 4 and text(page, "#side-0 h2") == "fastv, 64 tokens"
    choose(page, "settings-0", "depth=4")
    assert answers(page) == 5 and text(page, "#side-0 h2") == "fastv, 64 tokens, depth=4"
    assert page.evaluate("state.shown[0].answer.entering") == [576] * 4 + [64] * 8
    choose(page, "settings-0", "depth=x")
    assert text(page, "#error").endswith("depth must be int, got 'x'")
    choose(page, "settings-0", "depth=4")
    assert text(page, "#error") == "" and answers(page) == 6

    # A method without a budget says so.
    choose(page, "method-1", "no-image")
    assert answers(page) == 7 and text(page, "#side-1 h2") == "no-image"
    assert text(page, "#budget-1") == "no budget" and page.evaluate("at('tokens-1').disabled")
    choose(page, "method-1", "autoprune")

    # Light and dark, wide and narrow.
    page.evaluate("scrollTo(0, 0)")
    colours = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for name, size in (("wide", (1280, 900)), ("phone", (360, 740))):
            page.resize(*size, phone=name == "phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            shot(page, f"{scheme}-{name}")
            page.evaluate("at('answers').scrollIntoView()")
            shot(page, f"{scheme}-{name}-answers")
            page.evaluate("scrollTo(0, 0)")
    assert colours == ["rgb(246, 246, 244)", "rgb(22, 22, 23)"]
    page.prefer("light")
    page.resize(1200, 900)

    # All of it can be reached with the Tab key, in reading order.
    page.evaluate("at('file').focus()")
    reached = []
    for _ in range(11):
        reached.append(page.evaluate("document.activeElement.id"))
        page.press("Tab")
    sides = [f"{name}-{side}" for side in (0, 1) for name in ("method", "tokens", "settings")]
    assert reached == ["file", "question", *sides, "ask", "play", "layer"]

    # What the server refuses is said on the page, which goes on.
    choose(page, "method-1", "pdrop")
    choose(page, "tokens-1", 3)
    assert "below the floor" in text(page, "#error")
    give(page, png_of(60000, 60000))
    assert page.evaluate("at('answers').hidden && at('layers').hidden && at('facts').hidden")
    ask(page)
    assert "at most 40 megapixels" in text(page, "#error")
    page.evaluate("state.settings.most_bytes = 100")
    page.evaluate(_FILE % (json.dumps(base64.b64encode(png_of(8, 8) * 9).decode()), _PICK))
    page.wait("at('error').textContent.startsWith('That file is too large')")

    assert page.errors == []
    assert all(url.startswith((served.url, "blob:", "data:")) for url in page.requested)


def test_an_answer_stops_when_its_page_asks_anew_or_is_closed(page, served, picture, endless):
    page.open(served.url)
    page.wait("at('method-1').options.length > 0")
    give(page, encoded("PNG", picture))
    page.evaluate("at('question').value = '?'; void run()")
    assert endless.begun.wait(120)
    page.evaluate("void run()")
    assert endless.tokens.get(timeout=120) < endless.most
    endless.begun.clear()
    assert endless.begun.wait(120)
    page.close()
    assert endless.tokens.get(timeout=120) < endless.most
