"""From token ids to a `TokenLayout`: which tokens are visual, and of which picture.

A picture is not always a run of placeholders. By `Family.pictures`:

    sizes        the inputs say how many tokens each picture has: their features, which `generate`
                 encodes first, their grids, or pixels of equally large pictures. A video, with text
                 between its frames, is one. Where they do not say it, every run is a picture
    runs         every run is a picture (a cropped picture of Gemma 3 is several)
    first marks  the token in front of a run says what it shows: a tile, or the whole picture, which
                 comes last
    last marks   the token behind a run says whether it ends a row or the picture
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..pruning.layout import TEXT, TokenLayout, Tokens

#: (kind of placeholder, first column, column behind the last) of a run of visual tokens
Run = tuple[str, int, int]


def placeholders(config: Any) -> dict[int, str]:
    """Token ids that stand for visual tokens, with their kind, "image" or "video"."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = {name: getattr(config, name, None) for name in names}
    return {number: name[:5] for name, number in ids.items() if isinstance(number, int)}


def layout_of(
    config: Any, pictures: str, ids: Tensor, mask: Tensor | None, inputs: Mapping[str, Any]
) -> TokenLayout:
    """The layout of a prompt.

    ids: (batch, n); mask: (batch, n), 0 on padding, which is on the left; None: there is none.
    inputs: the model's other inputs, of which those named in the module are read.

    Raises ValueError for padding that is not on the left, for a prompt that ends with a visual
    token, and for pictures that do not fit the ids.
    """
    kinds, rows = placeholders(config), ids.tolist()
    n = ids.shape[1]
    lengths = [n] * len(rows) if mask is None else [int(sum(row)) for row in mask.tolist()]
    for row, length in zip([] if mask is None else mask.tolist(), lengths):
        if not length or not all(row[n - length :]):
            raise ValueError("padding must be on the left (processor.tokenizer.padding_side)")
    runs = [list(_runs(row, n - length, kinds)) for row, length in zip(rows, lengths)]
    if any(sample and sample[-1][2] == n for sample in runs):
        raise ValueError(
            "the prompt ends with a visual token: text has to follow, and prefill_chunk_size, "
            "which cuts prompts, cannot be used"
        )
    if pictures == "sizes":
        sizes = _by_sizes(config, runs, inputs)
    else:
        sizes = [_by_marks(row, sample, pictures) for row, sample in zip(rows, runs)]
    image, patch = torch.full((2, len(rows), n), TEXT, dtype=torch.long).unbind()
    for i, sample in enumerate(runs):
        columns = torch.tensor([c for _, start, end in sample for c in range(start, end)])
        numbers = torch.arange(len(sizes[i])).repeat_interleave(torch.tensor(sizes[i]).long())
        image[i, columns.long()] = numbers
        patch[i, columns.long()] = torch.arange(len(columns))
    step = torch.arange(n)[None] - torch.tensor([[n - length] for length in lengths])
    device = ids.device
    tokens = Tokens(
        image.to(device), step.clamp(min=0).to(device), patch.to(device), (step >= 0).to(device)
    )
    visual = tuple(sum(sample) for sample in sizes)
    tails = tuple(n - sample[-1][2] if sample else 0 for sample in runs)
    counts = tuple(lengths), visual, tails, tuple(map(tuple, sizes))
    return TokenLayout(tokens, n, *counts, mixed=True)


def _runs(row: Sequence[int], first: int, kinds: Mapping[int, str]) -> Iterator[Run]:
    column = 0
    for kind, tokens in groupby(row, kinds.get):
        start, column = column, column + sum(1 for _ in tokens)
        if kind is not None and column > first:
            yield kind, max(start, first), column


def _by_sizes(
    config: Any, runs: Sequence[Sequence[Run]], inputs: Mapping[str, Any]
) -> list[list[int]]:
    """Of each sample the tokens of its pictures, in order."""
    known = {kind: iter(_sizes(config, runs, inputs, kind)) for kind in ("image", "video")}
    result = []
    for sample in runs:
        sizes: list[int] = []
        open_tokens = 0
        for kind, start, end in sample:
            tokens = end - start
            while tokens:
                if not open_tokens:
                    open_tokens = next(known[kind])
                    sizes.append(open_tokens)
                taken = min(tokens, open_tokens)
                tokens, open_tokens = tokens - taken, open_tokens - taken
        result.append(sizes)
    return result


def _sizes(
    config: Any, runs: Sequence[Sequence[Run]], inputs: Mapping[str, Any], kind: str
) -> list[int]:
    """Tokens of all pictures of a kind, in order."""
    of_runs = [end - start for sample in runs for name, start, end in sample if name == kind]
    total = sum(of_runs)
    encoded = (inputs.get("mm_encoder_outputs") or {}).get(kind)
    features = getattr(encoded, "pooler_output", None)
    grid = inputs.get(f"{kind}_grid_thw")
    pixels = inputs.get({"image": "pixel_values", "video": "pixel_values_videos"}[kind])
    if features is not None:
        sizes = [picture.shape[:-1].numel() for picture in features]
    elif grid is not None:
        merged = getattr(config.vision_config, "spatial_merge_size", 1) ** 2
        sizes = (grid.prod(-1) // merged).tolist()
    elif pixels is not None and total % len(pixels) == 0:
        each = total // len(pixels)
        sizes = [each] * len(pixels) if each and all(n % each == 0 for n in of_runs) else of_runs
    else:
        sizes = of_runs
    if sum(sizes) != total:
        raise ValueError(f"the {kind}s have {sum(sizes)} tokens, and the ids {total} for them")
    return sizes


def _by_marks(row: Sequence[int], sample: Sequence[Run], pictures: str) -> list[int]:
    """Sizes of pictures, each of which ends with a run that has the same mark as the last run."""
    marks = [row[start - 1] if pictures == "first marks" else row[end] for _, start, end in sample]
    sizes, size = [], 0
    for (_, start, end), mark in zip(sample, marks):
        size += end - start
        if pictures == "runs" or mark == marks[-1]:
            sizes.append(size)
            size = 0
    return sizes
