"""What the viewer's page asks for: one question about one picture, answered and drawn as JSON.

Nothing is kept between two requests: each brings its picture and gets everything that is to be
shown of it, so users cannot mix. There is one model, and one request at a time has it.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Any

from PIL import Image

from llava.analysis import overlay, traced
from llava.analysis.stock_answers import can_run, is_stock
from llava.anyres import fixed_canvas, read_pinpoints
from llava.common.images import note
from llava.common.json_files import check, shorten
from llava.eval.compare.runs import BUDGETS, parse_runs
from llava.eval.run.depths import in_decoder
from llava.hf.families import demand_fitting
from llava.mm_utils import demand_characters, get_model_name_from_path
from llava.pruning import METHODS, build, find
from llava.pruning.base import Pruner
from llava.pruning.budget import Budgeted

from .pictures import MAX_BYTES, MAX_PIXELS, decode_picture
from .startup import Loaded

MOST_WAITING = 8
MOST_CHARACTERS = 2000
_MOST_TOKENS = 10**6  # more than any picture has
_MOST_SETTINGS = 200
_STOCK_TOKENS = 1024  # the slider's first range where no config says how many there may be
_LOOK = 0.2  # seconds between two looks at whether a waiting sender is still there


class Busy(RuntimeError):
    """Too many requests wait for the model."""


class Gone(RuntimeError):
    """Whoever asked is not there any more."""


@dataclass(frozen=True)
class ViewerQuestion:
    """What was asked: a picture, a text, a method, its budget (None: the method's own), and more
    of its settings as FIELD=VALUE with commas between (empty: those of the command line)."""

    image: Image.Image
    text: str
    method: str
    tokens: float | None = None
    settings: str = ""

    @classmethod
    def from_json(cls, body: Any) -> ViewerQuestion:
        """Read {"image": base64, "question": ..., "method": ..., "tokens": number or null,
        "settings": string}; the last two may be left out.

        Raises:
            ValueError: what is missing or wrong, in words for whoever asked.
        """
        text_fields = {"image": str, "question": str, "method": str}
        check(body, "the request", text_fields, {"tokens": float, "settings": str})
        text, tokens = body["question"].strip(), body.get("tokens")
        method = shorten(body["method"])  # a name that exists is short
        settings = (body.get("settings") or "").replace(" ", "")
        if len(settings) > _MOST_SETTINGS:
            raise ValueError(f"settings may have {_MOST_SETTINGS} characters, got {len(settings)}")
        if not text:
            raise ValueError("ask something about the picture: question is empty")
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"question may have {MOST_CHARACTERS} characters, got {len(text)}")
        try:
            demand_characters(text)
        except ValueError as error:
            raise ValueError(f"question: {error}") from None
        if tokens is not None and not 1 <= tokens <= _MOST_TOKENS:
            raise ValueError(f"tokens must be from 1 to {_MOST_TOKENS}, got {shorten(tokens)}")
        find(method)
        if not body["image"]:
            raise ValueError("choose a picture first: image is empty")
        try:
            data = base64.b64decode(body["image"], validate=True)
        except ValueError:  # characters that are not of base64, or not even ASCII
            raise ValueError("image must be base64") from None
        return cls(decode_picture(data), text, method, tokens, settings)


class Viewer:
    """Answers the page's requests with one model.

    Args:
        pruner: the method of the command line; its settings hold for that method.
        depth_layers: how many layers other methods' depths are for; see `llava.eval.run.depths`.

    Raises:
        ValueError: a stock model and a method that `llava.hf` does not run.
    """

    def __init__(
        self,
        loaded: Loaded,
        pruner: Pruner,
        *,
        name: str,
        conv_mode: str = "vicuna_v1",
        max_new_tokens: int = 128,
        depth_layers: int | None = None,
    ) -> None:
        self._loaded, self._pruner = loaded, pruner
        self._name, self._conv_mode = get_model_name_from_path(name), conv_mode
        self._max_new_tokens = max_new_tokens
        self._depth_layers = depth_layers
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + MOST_WAITING)
        if is_stock(loaded.model):
            demand_fitting(loaded.model, pruner)

    def settings(self) -> dict[str, Any]:
        """What the page has to know before anything is asked."""
        most, about = tokens_of(self._loaded)
        start = self._pruner
        if isinstance(start, Budgeted):
            start = start.resolved((most,))
        return {
            "model": self._name,
            "layers": self._loaded.layers,
            "about": about,
            "methods": [
                {"name": name, "budget": cls.takes_budget()}
                for name, cls in sorted(METHODS.items())
                if not is_stock(self._loaded.model) or can_run(self._loaded.model, cls)
            ],
            "method": self._pruner.method if self._pruner.method != "none" else "autoprune",
            "given": self._given(),
            "tokens": getattr(start, "target_token_num", 64),
            "most_tokens": most,
            "most_bytes": MAX_BYTES,
            "most_pixels": MAX_PIXELS,
            "most_characters": MOST_CHARACTERS,
        }

    def _given(self) -> str:
        """What the command line changed of its method's defaults, but for the budget."""
        default = build(self._pruner.method)
        default, _ = in_decoder(default, (), self._loaded.layers, self._depth_layers)
        values = {field.name: getattr(self._pruner, field.name) for field in fields(default)}
        return ", ".join(
            f"{name}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in values.items()
            if name not in BUDGETS and value != getattr(default, name)
        )

    def answer(
        self, question: ViewerQuestion, gone: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Answer a question; waits until the model is free, in a `place`.

        `gone` is asked while it waits and after every token, and ends either.

        Raises:
            Gone: nobody waits for this answer.
            ValueError: what the method cannot do, such as a budget below its floor.
        """
        pruner = self.pruner(question.method, question.tokens, question.settings)
        start = perf_counter()
        with self._turn(gone):
            waited = perf_counter() - start
            loaded = self._loaded
            answer = traced.run(
                loaded.model,
                loaded.tokenizer,
                loaded.image_processor,
                question.image,
                question.text,
                pruner,
                self._conv_mode,
                self._max_new_tokens,
                gone,
            )
        if gone():
            raise Gone
        return {
            "method": question.method,
            "tokens": getattr(pruner, "target_token_num", None),
            "text": answer.text,
            "new_tokens": answer.new_tokens,
            "n_visual": answer.sample.n_visual,
            "n_text": answer.sample.n_text,
            "entering": answer.sample.entering,
            "leaving": answer.sample.leaving,
            "complexity": dict(answer.complexity),
            "cost": answer.cost.to_dict(),
            "seconds": {**answer.seconds, "waited": waited},
            "note": note(question.image),
            **drawn(answer),
        }

    def pruner(self, method: str, tokens: float | None, settings: str = "") -> Pruner:
        """The method with that budget, its depths those of this decoder.

        settings: FIELD=VALUE or preset=NAME, commas between; if any, they alone count, and those of
        the command line do not.

        Raises:
            ValueError: no such method or setting, or a budget that it does not take.
        """
        if settings:
            names = {item.partition("=")[0] for item in settings.split(",")}
            if wrong := names & {"clip", *BUDGETS}:
                raise ValueError(
                    f"{min(wrong)} cannot be set here: the slider is the budget, and folders of "
                    "the server are for its command line"
                )
            (run,) = parse_runs([f"{method}@{settings}"])
            chosen, _ = in_decoder(run.pruner, run.given, self._loaded.layers, self._depth_layers)
        elif method == self._pruner.method:
            chosen = self._pruner
        else:
            chosen, _ = in_decoder(build(method), (), self._loaded.layers, self._depth_layers)
        if tokens is None or not chosen.takes_budget():
            return chosen
        # A budget of another kind on the command line gives way to the one that is asked for.
        other = {field.name for field in fields(chosen)} & {*BUDGETS} - {"target_token_num"}
        return replace(chosen, target_token_num=tokens, **dict.fromkeys(other))

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who wait, which also bounds how many pictures are held at once.

        Raises:
            Busy: there is none.
        """
        if not self._places.acquire(blocking=False):
            raise Busy(f"{MOST_WAITING} questions wait already; try again in a moment")
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _turn(self, gone: Callable[[], bool] = lambda: False) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOOK):
            if gone():
                raise Gone
        try:
            if gone():
                raise Gone
            yield
        finally:
            self._lock.release()


def tokens_of(loaded: Loaded) -> tuple[int, str]:
    """The most visual tokens that a picture has, newlines aside, and that in words."""
    config = loaded.model.config
    if is_stock(loaded.model):
        return _STOCK_TOKENS, f"{config.model_type} of transformers"
    side = loaded.model.get_vision_tower().grid
    if (adapter := getattr(config, "mm_token_adapter", None)) is not None:
        return adapter[1], f"{adapter[1]} tokens a picture, none of which has a place on it"
    if config.image_aspect_ratio != "anyres":
        return side * side, f"{side * side} patches"
    tile = loaded.image_processor.crop_size["height"]
    canvases = read_pinpoints(config.image_grid_pinpoints, tile, "config.json")
    if (canvas := fixed_canvas(config.anyres_reading)) is not None:
        canvases = [canvas]
    most = 1 + max(across * down // tile**2 for across, down in canvases)
    return most * side * side, f"up to {most} views of {side * side} patches"


def drawn(answer: traced.TracedAnswer) -> dict[str, Any]:
    """The kept patches by layer, and after the last one, as pictures.

    `pictures` are PNG data URLs, each once, `views` what they are of (title, columns, rows);
    `panels` has, a layer, `pictures` (one of them a view), `kept` (tokens), `nowhere` (how
    many of these are on no view, such as newlines) and `merged` (how many stand for several).
    """
    pictures: list[str] = []
    places: dict[Any, list[int]] = {}
    panels = []
    for layer, (kept, merged) in enumerate(zip(answer.kept, answer.merged)):
        key = (kept, tuple(sorted(merged.items())))
        if key not in places and answer.views:
            sheets = overlay.panels(answer, layer)
            places[key] = list(range(len(pictures), len(pictures) + len(sheets)))
            pictures += map(_data_url, sheets)
        on_views = sum(view.count(kept) for view in answer.views)
        counts = {"kept": len(kept), "nowhere": len(kept) - on_views, "merged": len(merged)}
        panels.append({"pictures": places.get(key, []), **counts})
    names = ("title", "columns", "rows")
    views = [{name: getattr(view, name) for name in names} for view in answer.views]
    return {"pictures": pictures, "views": views, "panels": panels}


def _data_url(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
