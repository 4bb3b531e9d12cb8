"""matplotlib, where it is installed: a figure that needs no screen, and how files are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.common import flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".jpg", ".pdf", ".svg")
DPI = 100
dpi = flags.number(1, 10_000)  # of --dpi; a figure of more is refused by matplotlib
_QUALITY = 90  # of jpg


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of that size in inches, laid out by matplotlib's constrained layout.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"figures need matplotlib ({error}): pip install -e '.[plot]', or pip install "
            f"matplotlib"
        ) from None
    return Figure(figsize=(width, height), layout="constrained", **options)


def demand_ending(path: Path, endings: Sequence[str]) -> None:
    """Raise a ValueError for a file whose ending is none of the formats that can be written."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"--out must end in {', '.join(endings)}, got {path}")


def save(figure: Figure, path: Path, dpi: float = DPI) -> None:
    """Write the figure in the format that the ending names, making its folder.

    Raises:
        ValueError: another ending than `FORMATS`.
        OSError: it cannot be written.
    """
    demand_ending(path, FORMATS)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"pil_kwargs": {"quality": _QUALITY}} if path.suffix.lower() == ".jpg" else {}
    figure.savefig(path, dpi=dpi, **options)
