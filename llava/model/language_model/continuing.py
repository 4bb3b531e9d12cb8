"""A conversation that goes on with the cache of an earlier call: only what is new is embedded.

What the earlier prefill dropped stays dropped; new tokens attend to what each layer still holds.
Pictures that the cache has seen are not encoded again; one that comes later enters whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...constants import IMAGE_TOKEN_INDEX
from ...pruning.cache import PrunedCache
from ..context import demand_context
from ..llava_arch import LlavaMetaForCausalLM


def embed_continuation(
    model: LlavaMetaForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Tensor | Sequence[Tensor] | None,
    image_sizes: Sequence[tuple[int, int]] | None,
    cache: PrunedCache,
    visual_token_num: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Embeddings (batch, n, d) of a conversation whose front `cache` holds, and its mask.

    `generate` takes the whole sequence and cuts off what the cache has, so zeros stand for that.

    input_ids, attention_mask: (batch, m), the whole conversation, -200 at an image.
    images: all of the conversation in order, or only those that the cache has not seen.

    Raises ValueError when the ids are not the cached conversation and something new, when the
    images are neither all nor the new ones, or when samples go on with unequally many tokens;
    PromptError for a conversation beyond the context.
    """
    layout, appended = cache.layout, cache.get_seq_length() - cache.layout.n
    ids = input_ids.to("cpu")
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to("cpu")
    if len(ids) != layout.batch:
        raise ValueError(f"the cache holds {layout.batch} sequences, but {len(ids)} are to go on")
    seen_images = (layout.image.amax(1) + 1).tolist()
    rows = []
    for i, images_here in enumerate(seen_images):
        row = ids[i][mask[i].bool()]
        seen = layout.lengths[i] - layout.n_visual[i] + images_here + appended
        slots = int((row[:seen] == IMAGE_TOKEN_INDEX).sum())
        if len(row) <= seen or slots != images_here:
            raise ValueError(
                f"the cache holds {seen - images_here} text tokens and {images_here} images, and "
                f"the {len(row)} ids must be these, in order, and at least one more; give the "
                "whole conversation, or no cache to begin another"
            )
        rows.append(row[seen:])
    if len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"all samples must go on with equally many tokens, got {[len(row) for row in rows]}: "
            "a cache takes no padding after its prefill"
        )
    new_images = [int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows]
    if images is not None and len(images) != sum(new_images):
        wanted = _unseen(seen_images, new_images)
        if len(images) != sum(seen_images) + sum(new_images):
            raise ValueError(
                f"the conversation has {sum(seen_images) + sum(new_images)} images, of which "
                f"{sum(new_images)} are new; got {len(images)}"
            )
        images = [images[i] for i in wanted] or None
        image_sizes = None if image_sizes is None else [image_sizes[i] for i in wanted]
    new = model.embed_prompt(
        torch.stack(rows), None, images, image_sizes, visual_token_num=visual_token_num
    )
    grown = appended + new.embeds.shape[1]
    lengths = [length + grown for length in layout.lengths]
    visual = [old + more for old, more in zip(layout.n_visual, new.layout.n_visual)]
    demand_context(lengths, visual, model.config)
    shape = (layout.batch, cache.get_seq_length(), new.embeds.shape[-1])
    embeds = torch.cat([new.embeds.new_zeros(shape), new.embeds], 1)
    return embeds, torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)


def _unseen(seen: Sequence[int], new: Sequence[int]) -> list[int]:
    """Places of the new images among those of the whole batch, sample by sample."""
    places, start = [], 0
    for old, more in zip(seen, new):
        places += range(start + old, start + old + more)
        start += old + more
    return places
