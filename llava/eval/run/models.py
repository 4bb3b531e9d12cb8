"""The model that answers, as the settings of a run name it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from llava.common import json_files
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.cost import DecoderShape

from .settings import RunSettings

#: Tokenizer, model and image processor of these settings.
LoadModel = Callable[[RunSettings], tuple[Any, Any, Any]]


def load_model(settings: RunSettings) -> tuple[Any, Any, Any]:
    """What `load_checkpoint` gives, without the context length."""
    return load_checkpoint(settings)[:3]


def load_checkpoint(settings: RunSettings) -> tuple[Any, Any, Any, int]:
    """Tokenizer, model, image processor and context length of these settings, or of a parsed
    command line with the same names.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, device, kernel or compiler; says
            which.
    """
    from llava.model.builder import default_device, load_pretrained_model
    from llava.model.compilation import check_compiler, compile_layers

    if settings.device is not None:
        try:
            torch.empty(0, device=settings.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a missing device
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {settings.device} cannot be used here: {reason}") from None
    if settings.compile:
        check_compiler(settings.device or default_device())
    loaded = load_pretrained_model(
        settings.model_path,
        settings.model_base,
        vision_tower=settings.vision_tower,
        dtype=settings.dtype,
        device=settings.device,
        attn_implementation=settings.attn_implementation,
        load_8bit=settings.load_8bit,
        load_4bit=settings.load_4bit,
        merge_type=settings.merge_type,
        processing=settings.processing,
        offline=settings.offline,
    )
    if settings.compile:
        compile_layers(loaded[1])
    return loaded


class ModelOnce:
    """Loads the model at the first call and hands out the same one afterwards.

    Where the settings ask for a feature cache, the model gets one, which then outlives the runs,
    and has answered once before the first run does. `seconds` is how long all of that took.
    `pruners`, if set before, are those of the runs to come, see `feature_cache.install`.
    Raises what `load_model` raises, and ValueError for settings of another model.
    """

    def __init__(self, load: LoadModel = load_model) -> None:
        self.seconds = 0.0
        self.pruners: Sequence[Any] = ()
        self._load = load
        self._loaded: tuple[Any, Any, Any] | None = None
        self._identity: dict[str, Any] = {}

    def __call__(self, settings: RunSettings) -> tuple[Any, Any, Any]:
        identity = {name: getattr(settings, name) for name in _OF_THE_MODEL}
        if self._loaded is None:
            since = perf_counter()
            self._loaded = self._load(settings)
            self._identity = identity
            if settings.feature_cache_gb is not None:
                # Imported here because it brings the model's code, thus transformers.
                from .feature_cache import install

                _warm_up(self._loaded[1])
                install(self._loaded[1], settings.feature_cache_gb, self.pruners)
            self.seconds = perf_counter() - since
        if identity != self._identity:
            raise ValueError(
                f"the model was loaded for {self._identity}, but {identity} is asked for."
            )
        return self._loaded

    @property
    def features_dropped(self) -> int:
        """How many images the feature cache had no room for, 0 without one."""
        if self._loaded is None or self._identity["feature_cache_gb"] is None:
            return 0
        return getattr(self._loaded[1].get_vision_tower(), "dropped", 0)


def decoder_layers(model_path: str, offline: bool = False) -> int:
    """How many layers the decoder of a checkpoint has, from its config.json.

    offline: whether nothing is downloaded.

    Raises:
        ValueError, OSError: no LLaVA checkpoint; says which.
    """
    path = Path(model_path) / "config.json"
    # Without the model's code, which brings transformers: a complete run must not wait for it.
    layers = json_files.read(path).get("num_hidden_layers") if path.is_file() else None
    if json_files.is_one_of(layers, int) and layers > 0:
        return layers
    return _config(model_path, offline)["num_hidden_layers"]


def layers_to_scale_to(args: argparse.Namespace) -> int | None:
    """`decoder_layers` for a parsed command line; None where there is no checkpoint, which loading
    it says better, or nobody needs to hear: a complete run is complete without it.

    Raises:
        ValueError, OSError: no LLaVA checkpoint; or none at all, with --depth-layers.
    """
    try:
        return decoder_layers(args.model_path, args.offline)
    except FileNotFoundError:
        if args.depth_layers is not None:
            raise
        return None


def tiles_pictures(model_path: str, offline: bool = False) -> bool:
    """Whether a checkpoint tiles pictures, as LLaVA-1.6 does, from its config.json.

    offline: whether nothing is downloaded.

    Raises:
        ValueError, OSError: no LLaVA checkpoint; says which.
    """
    path = Path(model_path) / "config.json"
    values = json_files.read(path) if path.is_file() else _config(model_path, offline)
    return values.get("image_aspect_ratio") == "anyres" or values.get("model_type") == "llava_next"


def decoder_shape(model_path: str) -> DecoderShape:
    """The sizes of a checkpoint's decoder, from its config.json; raises as `decoder_layers`.

    Nothing is downloaded: what asks this reads records of runs that had the checkpoint.
    """
    return DecoderShape.from_config(SimpleNamespace(**_config(model_path, offline=True)))


def _config(model_path: str, offline: bool) -> dict[str, Any]:
    from llava.model.lora import demand_no_adapter
    from llava.model.reading import read_config, resolve

    folder = resolve(model_path, offline=offline, only="*.json")
    if not (folder / "config.json").is_file():
        demand_no_adapter(folder)
    return read_config(folder)[0]


def _warm_up(model: Any) -> None:
    """Answer once for nothing: what only the first prefill of a process pays is no run's cost."""
    tower = model.get_vision_tower()
    if tower is None:
        return
    side = tower.config.image_size
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, *[1] * _WARM_UP_TEXT]], device=model.device)
    blank = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    model.generate(ids, images=blank, max_new_tokens=2, do_sample=False)


_WARM_UP_TEXT = 60  # tokens, about a question's
_OF_THE_MODEL = (
    "model_path",
    "model_base",
    "vision_tower",
    "device",
    "dtype",
    "attn_implementation",
    "compile",
    "load_8bit",
    "load_4bit",
    "feature_cache_gb",
    "merge_type",
    "processing",
)
