"""A tiny Senna, as it is trained: the model of `llava.model` itself, and heads for its first stage.

576 patches and 128 tokens a view are Senna's; the widths are small. All parts are those that a
checkpoint is loaded into, so what is trained is what is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX
from llava.eval.benchmarks.senna.plan import CAMERAS
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.tensor_names import VISION, rename
from llava.model.weights import write_json, write_tensors, write_vision_tower
from llava.pruning.layout import TEXT, TokenLayout
from llava.pruning.selection import take
from llava.train.architecture import SELECT_LAYER, Sizes, sine_positions
from llava.train.drive.frames import Frame
from llava.train.export import VISION_FOLDER, llava_config
from llava.train.items import GRID, PATCH_SIZE
from llava.train.tokenizer import write_tokenizer

TOKENS = 128  # of a view, behind the adapter

_LIGHTS = (None, "red", "green")
_LEADS = (None, "rolling", "braking")
_ARROWS = (None, "left", "right")


@dataclass(frozen=True)
class Shape(Sizes):
    """Sizes of the model."""

    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 160
    layers: int = 6
    heads: int = 4
    vision_hidden_size: int = 48
    vision_intermediate_size: int = 96
    vision_layers: int = 2
    vision_heads: int = 3

    max_positions: ClassVar[int] = 2048

    def config(self) -> LlavaConfig:
        """The config of the model, with Senna's adapter."""
        return LlavaConfig(
            **self.decoder_values(),
            mm_vision_config=self.vision_config().to_dict(),
            mm_hidden_size=self.vision_hidden_size,
            mm_projector_type="mlp2x_gelu",
            mm_vision_select_layer=SELECT_LAYER,
            mm_vision_select_feature="patch",
            mm_token_adapter=[GRID**2, TOKENS],
            image_aspect_ratio="pad",
        )


class DriveModel(nn.Module):
    """The model, and linear heads that name what a view shows from the mean of its tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.senna = LlavaLlamaForCausalLM(shape.config())
        _initialise(self.senna)
        sizes = {
            "camera": len(CAMERAS),
            "light": len(_LIGHTS),
            "lead": len(_LEADS),
            "arrow": len(_ARROWS),
            "cones": 2,
            "vehicle": 2,
        }
        self.heads = nn.ModuleDict(
            {name: nn.Linear(shape.hidden_size, size) for name, size in sizes.items()}
        )

    def see(self, pixels: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of naming what views show, by name, and `..._right`, the shares named rightly.

        pixels: (views, 3, 336, 336), normalised. labels: (views,) long each, as `view_labels`, of
        at least one view that the head is asked about.
        """
        seen = torch.stack([image.embeds for image in self.senna.encode_images(pixels)]).mean(1)
        losses = {}
        for name, head in self.heads.items():
            logits = head(F.layer_norm(seen, seen.shape[-1:]))
            losses[name] = F.cross_entropy(logits, labels[name])
            labelled = labels[name] != IGNORE_INDEX
            right = (logits.argmax(-1) == labels[name])[labelled].float().mean()
            losses[f"{name}_right"] = right.detach()
        return losses

    def answer(
        self,
        pixels: Tensor,
        ids: Tensor,
        mask: Tensor,
        labels: Tensor,
        visual: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The loss of the answers, and `exact`, the share of frames answered without a mistake.

        pixels: (6 x batch, 3, 336, 336); ids, mask, labels: (batch, n), left-padded. An answer
        counts if each of its tokens is the model's first choice after those before it. `visual`:
        the decoder gets so many tokens of each view, drawn by `generator`, with positions that
        close the gaps; None for all.
        """
        model = self.senna
        prompt = model.embed_prompt(ids, mask, pixels, labels=labels)
        embeds, valid, targets = prompt.embeds, prompt.layout.valid, prompt.labels
        if visual is not None:
            columns = some_columns(prompt.layout, visual, generator)
            embeds = take(embeds, columns)
            valid, targets = valid.gather(1, columns), targets.gather(1, columns)
        hidden = model.model(
            inputs_embeds=embeds, attention_mask=valid, use_cache=False
        ).last_hidden_state[:, :-1]
        labelled = (targets := targets[:, 1:]) != IGNORE_INDEX
        logits = model.lm_head(hidden[labelled])
        wrong = (logits.argmax(-1) != targets[labelled]).float()
        mistakes = torch.zeros_like(targets, dtype=torch.float)
        mistakes[labelled] = wrong
        exact = (mistakes.sum(1) == 0).float().mean()
        return {"answer": F.cross_entropy(logits, targets[labelled]), "exact": exact.detach()}


def some_columns(layout: TokenLayout, count: int, generator: torch.Generator | None) -> Tensor:
    """Columns (batch, m), ascending: all text and padding, and `count` tokens of each view, drawn
    at random. Samples must have the same number of views."""
    chance = torch.rand(layout.image.shape, generator=generator).to(layout.image.device)
    kept = layout.image == TEXT
    for view in range(int(layout.image.max()) + 1):
        in_view = layout.image == view
        rank = chance.masked_fill(~in_view, 2.0).argsort(1).argsort(1)
        kept |= in_view & (rank < count)
    return kept.nonzero()[:, 1].view(layout.batch, -1)


def view_labels(frame: Frame) -> dict[str, list[int]]:
    """What each view of a frame shows, in the order of CAMERAS, by the name of its head.

    IGNORE_INDEX where a head is not asked: what only the front view can show, of the others.
    """
    front = {
        "light": _LIGHTS.index(frame.light),
        "lead": _LEADS.index(frame.lead),
        "arrow": _ARROWS.index(frame.arrow),
        "cones": int(frame.cones),
    }
    others = [IGNORE_INDEX] * (len(CAMERAS) - 1)
    return {
        "camera": list(range(len(CAMERAS))),
        **{name: [label, *others] for name, label in front.items()},
        "vehicle": [IGNORE_INDEX, *(int(camera in frame.vehicles) for camera in CAMERAS[1:])],
    }


def export(model: DriveModel, tokenizer_model: bytes, folder: Path) -> None:
    """Write the checkpoint in Senna's format: original LLaVA names and the adapter, float16.

    Other than the published one, it brings its vision tower along, in the folder that its config
    names. The heads are left out.
    """
    config = model.senna.config
    state = {
        rename(name, "module", "original"): tensor.detach().to("cpu", torch.float16)
        for name, tensor in model.senna.state_dict().items()
    }
    write_tokenizer(folder, tokenizer_model, model.shape.max_positions)
    write_vision_tower(folder / VISION_FOLDER, config.mm_vision_config, state)
    write_tensors(folder, {k: v for k, v in state.items() if not k.startswith(VISION)})
    values = {"tokenizer_model_max_length": model.shape.max_positions, **llava_config(model.shape)}
    write_json(folder / "config.json", values)


@torch.no_grad()
def _initialise(model: LlavaLlamaForCausalLM) -> None:
    """Matrices keep the size of what goes through them; patches know their places from the start.

    Stock initial weights are meant for widths of thousands, and leave small models with almost
    nothing behind a few layers.
    """
    last = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")
    depth = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            scale = 1.0 if "embed" in name else parameter[0].numel() ** -0.5
            parameter.normal_(0, scale * (depth if name.endswith(last) else 1.0))
        elif name.endswith("bias"):
            parameter.zero_()
    embeddings = model.get_vision_tower().inner.embeddings
    embeddings.patch_embedding.weight.normal_(0, (3 * PATCH_SIZE**2) ** -0.5)
    embeddings.class_embedding.normal_()
    places = embeddings.position_embedding.weight
    places[0] = 0
    places[1:] = sine_positions(places.shape[1], -3, 0.5**0.5)
