"""CDPruner: the T patches of largest volume, each weighed by how much the question is about it.

Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
MLLMs", NeurIPS 2025, arXiv 2506.10967; reference: github.com/Theia-4869/CDPruner at 9541616. For
each view, with f_i its projected features, x_i what CLIP's `post_layernorm` and `visual_projection`
make of the tower's patches, and t_m the embeddings of the question's segments of 77 tokens by
CLIP's text tower:

    a_i = mean over m of -cos(x_i, t_m),    r_i = (a_i - min a + 1e-6) / (max a - min a)
    K_ij = r_i cos(f_i, f_j) r_j            keep the T of largest det K_S, greedily: see `dpp`

The sign is the reference's: CLIP's patches resemble a text the less, the more they show of it.

`clip` is a CLIP folder whose vision tower is the checkpoint's (openai/clip-vit-large-patch14-336,
say): LLaVA checkpoints have neither text tower nor projections. `question` is the text of each
sample of the batch, or one for all; programs of this package that ask questions fill it in (see
`about`), who calls `generate` gives it: `pruner.about(["What is on the sign?"])`. The text-free
form, every r_i = 1, is the method `dpp`.

T patches are chosen before layer 0, positions are contiguous, both ways of counting T mean the
same. Views share T evenly, as in `tower`; LLaVA-1.6 needs tiles in order (merge_type "spatial"),
which is what the reference makes of every checkpoint.

Deviations from the reference:
- Minimum and maximum are over the views of a sample; there over those of the batch, so that one
  sample's answer depends on the others.
- Where all a_i are equal, r_i is 1. Where nothing is left to span, the most relevant are next;
  there the root of 0 gives no number.
- Relevance and volumes are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from logging import ERROR
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..base import PrunerRun
from ..budget import Budgeted
from ..checks import demand
from ..cost import DecoderShape
from ..entry import ImageTokens, select_in_images
from ..images import divide
from ..layout import TokenLayout
from ..registry import register
from ..selection import Selection
from ..tower import view_counts
from ..vision import Groups, Reduced, VisionFeatures
from .dpp import cosines, largest_volume


@register
@dataclass(frozen=True, kw_only=True)
class CDPruner(Budgeted):
    """Settings of CDPruner, see the module.

    clip: folder of CLIP with both towers, its projections and its tokenizer.
    question: text of each sample, or a single one for all.
    positions: rotary positions "compact" (reference) or "original".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "cdpruner"
    reads_text: ClassVar[bool] = True

    clip: str | None = None
    question: tuple[str, ...] | None = None
    positions: Literal["compact", "original"] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None:
            # A record may come from where the folder is and this machine is not.
            folder = Path(self.clip)
            demand(self, "clip", folder.is_absolute() or folder.is_dir(), "a CLIP folder")
            object.__setattr__(self, "clip", str(folder.absolute()))
        if self.question is not None:
            demand(self, "question", len(self.question) > 0, "a text, or one for each sample")
            object.__setattr__(self, "question", tuple(self.question))

    def about(self, texts: Sequence[str]) -> CDPruner:
        return replace(self, question=tuple(texts))

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """All patches, with their relevance as scores; None where every view keeps all."""
        patches = features.patches.shape[1]
        if min(view_counts(self, patches, groups), default=patches) == patches:
            return None
        clip, texts = self.loaded(features.patches.device), self.texts(len(groups))
        every = torch.arange(patches, device=features.patches.device)
        ends = [0, *accumulate(sum(views) for views in groups)]
        relevance: list[Tensor] = []
        for text, (start, end) in zip(texts, pairwise(ends)):
            if start < end:
                seen = clip.embed_patches(features.patches[start:end])
                relevance += scaled(-(seen @ clip.embed_text(text).mT).mean(-1))
        return [Reduced(view, every, r) for view, r in zip(features.patches, relevance)]

    def start(self, layout: TokenLayout, shape: DecoderShape) -> CDPrunerRun:
        return CDPrunerRun(self, layout, shape)

    def texts(self, samples: int) -> tuple[str, ...]:
        """The question of each sample.

        Raises ValueError without one, and for another number of them.
        """
        if self.question is None:
            raise ValueError(
                "method cdpruner scores patches against the question, and nobody gave it: "
                "pruner.about([...]) takes the text of each sample"
            )
        texts = self.question * samples if len(self.question) == 1 else self.question
        if len(texts) != samples:
            raise ValueError(
                f"cdpruner has {len(texts)} questions, but the batch {samples} samples"
            )
        return texts

    def demand_complete(self) -> None:
        if self.clip is None:
            raise ValueError(
                "method cdpruner needs CLIP's text tower and projections, which LLaVA checkpoints "
                "lack: give the folder of the CLIP that the vision tower is from (--clip DIR)"
            )
        if not Path(self.clip).is_dir():
            raise ValueError(f"--clip {self.clip}: no such folder")

    def loaded(self, device: torch.device) -> Clip:
        """CLIP on a device. Raises ValueError without a folder, or for one that lacks a part."""
        self.demand_complete()
        assert self.clip is not None, "it is complete"
        return load_clip(self.clip, device)


class CDPrunerRun(PrunerRun):
    """One prefill: everything happens at its entry."""

    def __init__(self, config: CDPruner, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config, self.shape, self.positions = config, shape, config.positions
        self._flops = [0] * layout.batch

    def scoring_flops(self) -> list[int]:
        return self._flops

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Waits for the device, to see the images, and once for each image."""
        config, visual = self.config, layout.n_visual
        targets = [int(config.resolved(sizes).target_token_num) for sizes in layout.sizes]
        if all(n <= target for n, target in zip(visual, targets)):
            return None
        scores = layout.cls
        assert scores is not None, "the tower's patches came with their relevance"
        clip, texts = config.loaded(embeds.device), config.question or ("",)
        for sample, (n, target) in enumerate(zip(visual, targets)):
            if n > target:
                # Several samples ask the same: all of them, or the beams of a search.
                text = texts[sample * len(texts) // layout.batch]
                self._flops[sample] = clip.flops(text, n)
        tiles = None if layout.tile is None else layout.tile.tolist()

        def choose(sample: int, image: ImageTokens, count: int) -> list[int]:
            views: dict[int, list[int]] = {}
            for index, column in enumerate(image.columns):
                views.setdefault(tiles[sample][column] if tiles else 0, []).append(index)
            chosen = []
            shares = divide(count, [len(indices) for indices in views.values()])
            for indices, share in zip(views.values(), shares):
                place = torch.tensor(indices, device=embeds.device)
                span = torch.tensor([image.columns[i] for i in indices], device=embeds.device)
                quality = scores[sample, span]
                kernel = quality[:, None] * cosines(embeds[sample, span]) * quality
                chosen.append(place[largest_volume(kernel, share)])
                self._flops[sample] += 2 * len(indices) ** 2 * embeds.shape[-1]
            kept: list[int] = torch.cat(chosen).tolist()
            return kept

        keep = [min(target, n) for target, n in zip(targets, visual)]
        return select_in_images(layout, keep, choose, config.targets_in_images(layout.sizes))


def scaled(scores: Tensor) -> Tensor:
    """r of a (views, patches): from a little above 0 to 1 over all; ones where all are equal."""
    spread = scores.amax() - scores.amin()
    return torch.where(spread > 0, (scores - scores.amin() + 1e-6) / spread, 1.0)


@dataclass(frozen=True)
class Clip:
    """What CDPruner needs of CLIP: `model` is transformers' `CLIPModel`, without vision layers."""

    model: Any
    tokenizer: Any

    @torch.no_grad()
    def embed_patches(self, patches: Tensor) -> Tensor:
        """(views, p, d) of the tower: unit vectors (views, p, c) float32."""
        norm, project = self.model.vision_model.post_layernorm, self.model.visual_projection
        if patches.shape[-1] != project.in_features:
            raise ValueError(
                f"the CLIP of cdpruner has a vision tower of width {project.in_features}, but the "
                f"checkpoint's is {patches.shape[-1]} wide: --clip takes the CLIP it is from"
            )
        return normalize(project(norm(patches.float())), dim=-1)

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """(segments, c) float32, unit vectors."""
        ids, mask = self.segments(text)
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return normalize(self.model.text_projection(pooled), dim=-1)

    def segments(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids and mask (segments, 77): the text's tokens in order, the last segment filled up with
        zeros. Only the first begins with CLIP's mark of the start, as in the reference."""
        ids = self.tokenizer(text)["input_ids"]
        width = self.model.config.text_config.max_position_embeddings
        blank = -len(ids) % width
        device = self.model.text_projection.weight.device
        filled = torch.tensor([*ids, *[0] * blank], device=device).view(-1, width)
        mask = torch.tensor([1] * len(ids) + [0] * blank, device=device).view(-1, width)
        return filled, mask

    def flops(self, text: str, patches: int) -> int:
        """Of the text tower, of projecting so many patches, and of comparing them."""
        config, project = self.model.config.text_config, self.model.visual_projection
        segments, n = self.segments(text)[0].shape
        d, m = config.hidden_size, config.intermediate_size
        layer = n * (4 * d * d + 2 * d * m) + 2 * n * n * d
        compared = patches * project.out_features * (project.in_features + segments)
        total: int = 2 * (segments * config.num_hidden_layers * layer + compared)
        return total


@lru_cache(maxsize=1)
def load_clip(folder: str, device: torch.device) -> Clip:
    """Load CLIP, in float32, from a folder.

    Raises ValueError for no folder of CLIP, or one without text tower or projections.
    """
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.utils import logging

    # What is missing is said below, and not in a table of all tensors.
    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        # Without files transformers makes a tokenizer that knows nothing.
        if not any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise OSError("it has neither tokenizer.json nor vocab.json")
        loaded: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"--clip {folder} is no CLIP with its tokenizer: {error}") from None
    finally:
        logging.set_verbosity(level)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"--clip {folder} lacks {missing[0]} and {len(missing) - 1} more tensors")
    model.vision_model.encoder = None
    # What `to` does, by assignment: it would keep tensors of another kind than the device's.
    model.load_state_dict({k: v.to(device) for k, v in model.state_dict().items()}, assign=True)
    for part in model.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    return Clip(model.eval().requires_grad_(False), tokenizer)
