"""One file a method; `autoprune` is a folder, with its settings, run and budget."""

from importlib import import_module
from pkgutil import iter_modules


def load_all() -> None:
    """Import every file of this folder, which registers its method."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
