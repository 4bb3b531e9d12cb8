"""The embedded checkpoint, loaded once, a picture of it, and a viewer that serves it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Queue

import pytest

from llava import pruning
from llava.analysis import traced
from llava.mm_utils import load_image
from llava.model.builder import load_pretrained_model
from llava.serve.handler import ViewerServer
from llava.serve.startup import Loaded
from llava.serve.viewing import Viewer

from .paths import DEMO, PICTURE
from .test_pictures import encoded

QUESTION = "What word is on the blue sign?"
PRUNER = pruning.build("autoprune", target_token_num=64, x0=5.6)


@pytest.fixture(scope="session")
def demo() -> Loaded:
    """In float32, so that a token fed alone and one fed with others give the same argmax."""
    return Loaded(*load_pretrained_model(DEMO, dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def picture():
    return load_image(PICTURE)


@pytest.fixture(scope="session")
def wide(picture):
    """A picture twice as wide as high, and its PNG."""
    image = picture.crop((0, 80, 336, 248))
    return image, encoded("PNG", image)


@pytest.fixture(scope="session")
def served(demo):
    """A viewer of the embedded checkpoint on a free port."""
    made = Viewer(demo, PRUNER, name=str(DEMO), max_new_tokens=8)
    with ViewerServer(made, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Endless:
    """Answers that do not end by themselves: has one begun, and how many tokens did each get?"""

    most: int = 1400
    begun: threading.Event = field(default_factory=threading.Event)
    tokens: Queue[int] = field(default_factory=Queue)


@pytest.fixture
def endless(demo, served, monkeypatch) -> Iterator[Endless]:
    made, run = Endless(), traced.run

    def observed(*arguments):
        *others, stop = arguments
        answer = run(*others, lambda: made.begun.set() or stop())
        made.tokens.put(answer.new_tokens)
        return answer

    monkeypatch.setattr(traced, "run", observed)
    monkeypatch.setattr(demo.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(served.viewer, "_max_new_tokens", made.most)
    yield made
    # A test that failed may have left an answer under way.
    with served.viewer._lock:
        pass
