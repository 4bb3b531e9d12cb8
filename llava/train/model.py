"""The small LLaVA as it is trained: CLIP tower, projector, Llama decoder, auxiliary heads.

All parts are stock transformers modules, so that the exported weights load wherever LLaVA's do. The
heads exist during training only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.train import packed_attention
from llava.train.architecture import SELECT_LAYER, Sizes, sine_positions
from llava.train.data import Batch
from llava.train.heads import CaptionEncoder, PatchHeads
from llava.train.items import GRID, PATCH_SIZE
from llava.train.pointing import AttentionGuide
from llava.train.readouts import ReadOuts
from llava.train.watching import outputs_of


@dataclass(frozen=True)
class Shape(Sizes):
    """Sizes of the model. The defaults are the embedded demo."""

    vocab_size: int = 720
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 12
    heads: int = 4
    vision_hidden_size: int = 192
    vision_intermediate_size: int = 768
    vision_layers: int = 5
    vision_heads: int = 4
    max_positions: int = 2048

    def decoder_config(self) -> LlamaConfig:
        return LlamaConfig(**self.decoder_values())


class DemoModel(nn.Module):
    """Tower, projector and decoder, with the heads of the auxiliary objectives."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        width = shape.vision_hidden_size
        self.tower = CLIPVisionModel._from_config(shape.vision_config(), attn_implementation="sdpa")
        self.projector = nn.Sequential(
            nn.Linear(width, shape.hidden_size),
            nn.GELU(),
            nn.Linear(shape.hidden_size, shape.hidden_size),
        )
        self.decoder = LlamaForCausalLM._from_config(
            shape.decoder_config(), attn_implementation=packed_attention.NAME
        )
        self.guide = AttentionGuide(self.decoder)
        self.readouts = ReadOuts(self.decoder)
        self.patch_heads = PatchHeads(width)
        self.caption = CaptionEncoder(width)
        # stock positions start 25 times fainter than patches, but reading needs to find neighbours
        with torch.no_grad():
            positions = self.tower.embeddings.position_embedding.weight
            positions[1:] = sine_positions(width, -4, 0.5)

    def see(self, pixels: torch.Tensor, corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the tower on a square window of the picture.

        Args:
            pixels: (batch, 3, side, side), normalised; side is a multiple of the patch size.
            corners: (batch, 2) long, row and column of the window's first patch in the full grid.

        Returns:
            The hidden states (batch, 1 + patches, width) of the selected layer and of the last one.
            With the full picture and corners of 0 they are what `CLIPVisionModel` gives.
        """
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        ids = 1 + window_patches(corners, pixels.shape[-1] // PATCH_SIZE)
        positions = embeddings.position_embedding.weight
        first = (embeddings.class_embedding + positions[0]).expand(len(pixels), 1, -1)
        states = torch.cat([first, patches + positions[ids]], dim=1)
        states = self.tower.pre_layrnorm(states)
        outputs = []
        for layer in self.tower.encoder.layers:
            states = layer(states, None)
            outputs.append(states)
        return outputs[SELECT_LAYER], outputs[-1]

    def contrastive_loss(
        self, selected: torch.Tensor, last: torch.Tensor, captions: list[torch.Tensor]
    ) -> torch.Tensor:
        """CLIP's loss between the CLS token and what is in the picture.

        It is applied to the selected layer and to the last one: pruning methods read the attention
        of the CLS token in the selected layer, so this layer must have learned where to look.
        """
        text = self.caption(captions)
        pooled = self.tower.post_layernorm(last[:, 0])
        target = torch.arange(len(text), device=text.device)
        loss = text.new_zeros(())
        for image in (selected[:, 0], pooled):
            logits = F.normalize(self.caption.image(image).float(), dim=-1) @ text.T * 10
            loss = loss + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        return loss / 4

    def answer(
        self, selected: torch.Tensor, batch: Batch, guided: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Teacher-forced answers to packed turns.

        Args:
            selected: (batch, 1 + patches, width), the tower's selected layer.
            batch: what the tower has seen, with turns.
            guided: whether to look at attention and states of the guided layers, too.

        Returns:
            Logits (tokens, vocabulary) for the tokens of all answers, `</s>` included, in the order
            of the batch, the tokens themselves (tokens,), and what `AttentionGuide.loss` and
            `ReadOuts` give, or nothing.
        """
        turns, kept = batch.turns, batch.kept
        side = math.isqrt(selected.shape[1] - 1)
        chosen = kept[:, :, None].expand(-1, -1, selected.shape[2])
        visual = self.projector(selected[:, 1:].gather(1, chosen))
        embed = self.decoder.model.embed_tokens
        prefix = embed(turns.prefix).expand(len(visual), -1, -1)
        inputs = torch.cat([prefix, visual, embed(turns.ids)], dim=1)
        patches = window_patches(batch.corners, side).gather(1, kept)
        mask, positions, labels = turns.layout(patches)
        watched = {**self.guide.projections, **self.readouts.layers} if guided else {}
        with outputs_of(watched) as outputs:
            states = self.decoder.model(
                inputs_embeds=inputs,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                shared=inputs.shape[1] - turns.ids.shape[1],
            ).last_hidden_state
        losses = {}
        if guided:
            owner = batch.labels.item.gather(1, kept)
            losses = self.guide.loss(
                outputs, turns.pointing, turns.items, turns.options, owner, mask, positions
            )
            losses |= self.readouts(outputs, turns, batch.labels)
        labelled = labels != IGNORE_INDEX
        return self.decoder.lm_head(states[labelled]).float(), labels[labelled], losses


def window_patches(corners: torch.Tensor, side: int) -> torch.Tensor:
    """Indices (batch, side * side) in the full grid of the patches of square windows, in row order.

    `corners` (batch, 2) long holds row and column of each window's first patch.
    """
    steps = torch.arange(side, device=corners.device)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    return (rows[:, :, None] * GRID + columns[:, None, :]).flatten(1)
