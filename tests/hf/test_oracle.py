"""Stock models under pruning against full-length runs with masks, float64."""

from __future__ import annotations

import pytest

from llava import pruning
from llava.pruning import prefill

from . import methods, zoo
from .masked import check


def samples(name: str) -> list[str]:
    """A ragged batch: a picture, and two pictures with text between (or a video, too)."""
    if name == "paligemma":
        return ["iq", "iiqt"]
    return ["tiq", "tivtq" if zoo.ZOO[name].video else "titiqt"]


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize("method", methods.SETTINGS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_prefill_and_decoding_equal_the_oracle(name: str, method: str) -> None:
    entering = check(name, methods.pruner(method), samples(name))
    dropped = [counts[-1] < counts[0] for counts in entering]
    before = [counts[0] < zoo.ZOO[name].tokens for counts in entering]
    if method != "none":
        assert all(a or b for a, b in zip(dropped, before))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_without_padding_equals_the_oracle(name: str, monkeypatch) -> None:
    """transformers gives such a prompt no mask, where the architecture has none; here some layers
    choose first and some do not."""
    for method, least in (("autoprune", 10), ("pdrop", 0), ("fastv", 0)):
        monkeypatch.setattr(prefill, "LEAST", least)
        check(name, methods.pruner(method), ["iq" if name == "paligemma" else "titq"], steps=2)


def test_every_method_is_run_or_refused() -> None:
    applying = {name for name, kind in pruning.METHODS.items() if not kind().needs_patches}
    assert applying == methods.SETTINGS.keys()
