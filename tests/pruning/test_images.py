"""A budget for each image: who stays where an image has fewer tokens left than its share."""

from __future__ import annotations

import torch

from llava.pruning.images import order_within_images
from llava.pruning.layout import Segment, TokenLayout


def test_an_image_gives_what_it_cannot_use_to_the_others_in_proportion() -> None:
    """Of 8 tokens the first image would get 5 and has 2; the 6 others are shared 4 to 2, although
    all of the third image have better scores than the second's."""
    images = [Segment(n, i, torch.arange(n)) for i, n in enumerate((2, 5, 5))]
    layout = TokenLayout.from_segments([[Segment(1), *images, Segment(3)]])
    scores = torch.arange(16.0)[None] + layout.rank_bias
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    order = order_within_images(layout, ranked, [8], [[10.0, 4.0, 2.0]])
    assert sorted(order[0].tolist()) == list(range(16))
    # Text comes first, then what stays.
    assert set(order[0, :4].tolist()) == {0, 13, 14, 15}
    first = layout.image[0, order[0, 4:12]].tolist()
    assert [first.count(image) for image in range(3)] == [2, 4, 2]
