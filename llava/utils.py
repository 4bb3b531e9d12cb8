"""A name of LLaVA's `llava.utils` that its programs, and those built on them, import."""

from __future__ import annotations


def disable_torch_init() -> None:
    """Do nothing: LLaVA's programs call it before loading.

    LLaVA's switches off torch's initialisation of layers for the whole process, to load faster.
    Loading here initialises nothing, and layers made afterwards must not hold what memory held.
    """
