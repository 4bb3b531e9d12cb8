"""CDPruner: relevance against transformers' own CLIP, the choice against determinants."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.cdpruner import CDPruner, load_clip, scaled
from llava.pruning.vision import VisionFeatures
from tests import clip_files, tiny
from tests.closeness import FLOAT32, assert_close

from .common import kept, vicuna

TEXTS = ["What is on the sign?", "red or blue " * 9]  # the second has two segments


def seen(views: int, patches: int = 16) -> VisionFeatures:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(views, patches, 32, generator=generator)
    return VisionFeatures(features, torch.zeros(views, 32), ran=2)


def pruner(target: int, *texts: str) -> CDPruner:
    question = {"question": texts} if texts else {}
    return pruning.build("cdpruner", target_token_num=target, clip=clip_files.folder(), **question)


def relevance(patches: torch.Tensor, text: str) -> torch.Tensor:
    """(views, p), by transformers, written down from the equations."""
    clip = clip_files.model()
    tokens = load_clip(clip_files.folder(), torch.device("cpu")).tokenizer(text)["input_ids"]
    tokens += [0] * (-len(tokens) % 77)
    cosines = []
    for start in range(0, len(tokens), 77):
        ids = torch.tensor([tokens[start : start + 77]])
        mask = (ids != 0).long()
        text_embed = clip.text_projection(
            clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
        )
        image = clip.visual_projection(clip.vision_model.post_layernorm(patches.float()))
        cosines.append(torch.cosine_similarity(image, text_embed, dim=-1))
    a = -torch.stack(cosines).mean(0)
    return (a - a.min() + 1e-6) / (a.max() - a.min())


@torch.no_grad()
def test_relevance_is_over_the_views_of_a_sample() -> None:
    """Three samples: two pictures, none, and one; each with its own text."""
    features = seen(3)
    reduced = pruner(8, TEXTS[0], "", TEXTS[1]).reduce(features, ((1, 1), (), (1,)))
    for view, part in enumerate(reduced):
        assert torch.equal(part.features, features.patches[view])
        assert part.patch.tolist() == list(range(16))
    first, second = features.patches[:2], features.patches[2:]
    expected = torch.cat([relevance(first, TEXTS[0]), relevance(second, TEXTS[1])])
    assert_close(torch.stack([part.scores for part in reduced]), expected, FLOAT32)
    assert not torch.allclose(expected[2:], relevance(second, TEXTS[0]), atol=0.1)
    # One text is that of all samples.
    (alone,) = pruner(8, TEXTS[0]).reduce(seen(1), ((1,),))
    assert_close(alone.scores[None], relevance(seen(1).patches, TEXTS[0]), FLOAT32)


def test_scaled_relevance() -> None:
    a = torch.tensor([[-0.5, 0.0], [0.25, 0.5]])
    assert_close(scaled(a), torch.tensor([[1e-6, 0.5 + 1e-6], [0.75 + 1e-6, 1 + 1e-6]]), FLOAT32)
    assert torch.equal(scaled(torch.full((1, 3), -0.2)), torch.ones(1, 3))


def test_the_choice_is_of_the_largest_weighed_volume_in_each_view() -> None:
    """By hand: two pictures of three patches, two tokens each.

    First: twins of relevance 1 and 0.9 and one of 0.1 at a right angle: 0, then 2, since the twin
    adds nothing. Second: 0.5, 1, 0.8 with a cosine of 0.6 between the last two: 1 first, then of 0
    0.25 is left and of 2 0.64 (1 - 0.36) = 0.41.
    """
    scores = (torch.tensor([1.0, 0.9, 0.1]), torch.tensor([0.5, 1.0, 0.8]))
    images = [Segment(3, i, torch.arange(3), scores[i]) for i in range(2)]
    tokens = TokenLayout.from_segments([[Segment(1), images[0], Segment(1), images[1], Segment(2)]])
    embeds = torch.zeros(1, tokens.n, 3)
    embeds[0, 1:4] = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]])
    embeds[0, 5:8] = torch.tensor([[0, 0, 1.0], [1.0, 0, 0], [0.6, 0.8, 0]])
    run = pruner(4, "sign").start(tokens, vicuna(4))
    assert kept(tokens, run.at_entry(tokens, embeds)) == [[0, 2, 3 + 1, 3 + 2]]
    # Text tower: one segment of 77 tokens through 2 layers of widths 16 and 32. 6 patches from 32
    # to 8 dimensions, and each compared with the segment. Pairs in two pictures, 3 dimensions.
    layer = 77 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 77 * 77 * 16
    assert run.scoring_flops() == [2 * (2 * layer + 6 * 8 * (32 + 1) + 2 * 9 * 3)]


def test_tiles_are_chosen_from_one_by_one() -> None:
    """Six patches, the views interleaved as rows of tiles are: one token of each view."""
    scores, tile = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.3, 1.0]), torch.tensor([0, 0, 1, 2, 1, 2])
    runs = [Segment(1), Segment(6, 0, torch.arange(6), scores, tile=tile), Segment(1)]
    tokens = TokenLayout.from_segments([runs])
    run = pruner(3, "sign").start(tokens, vicuna(4))
    embeds = torch.randn(1, tokens.n, 4, generator=torch.Generator().manual_seed(0))
    assert kept(tokens, run.at_entry(tokens, embeds)) == [[1, 2, 5]]


@torch.no_grad()
def test_the_question_decides_what_is_kept() -> None:
    model, pixels = tiny.model(), tiny.pixels(0, 2)
    ids = tiny.prompt(0)[None].repeat(2, 1)

    def patches(*texts: str) -> list[list[int]]:
        out = model.generate(
            ids,
            images=pixels,
            pruner=pruner(6).about(texts),
            max_new_tokens=2,
            return_dict_in_generate=True,
        )
        return [out.past_key_values.trace.kept_patches(i)[-1] for i in range(2)]

    there, back = patches(*TEXTS), patches(*reversed(TEXTS))
    assert all(len(ids) == 6 for ids in there + back)
    assert there != back and patches(TEXTS[0])[0] == there[0]
    assert patches(TEXTS[1])[1] == there[1]


def test_what_is_missing_is_said() -> None:
    nothing = pruning.build("cdpruner", target_token_num=8)
    assert nothing.reduce(seen(1, 8), ((1,),)) is None, "nothing to choose"
    message = "needs CLIP's text tower and projections, which LLaVA checkpoints lack"
    with pytest.raises(ValueError, match=message):
        nothing.reduce(seen(1), ((1,),))
    with pytest.raises(ValueError, match="scores patches against the question, and nobody gave"):
        pruner(8).reduce(seen(1), ((1,),))
    with pytest.raises(ValueError, match="2 questions, but the batch 3 samples"):
        pruner(8, *TEXTS).reduce(seen(3), ((1,), (1,), (1,)))
    narrow = VisionFeatures(torch.randn(1, 16, 24), torch.zeros(1, 24), ran=2)
    with pytest.raises(ValueError, match="of width 32, but the checkpoint's is 24 wide"):
        pruner(8, *TEXTS[:1]).reduce(narrow, ((1,),))
    for field, value in (("clip", "nowhere"), ("question", ())):
        with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
            pruning.build("cdpruner", **{field: value})


def test_a_folder_without_a_part_is_refused(tmp_path: Path) -> None:
    for name, part in (("empty", None), ("vision", CLIPVisionModel)):
        folder = tmp_path / name
        folder.mkdir()
        if part is not None:
            part(clip_files.model().config.vision_config).save_pretrained(folder)
            clip_files.model().config.save_pretrained(folder)
            clip_files.save_tokenizer(folder)
        with pytest.raises(ValueError, match=f"--clip {re.escape(str(folder))}"):
            load_clip(str(folder), torch.device("cpu"))
    whole = tmp_path / "whole"
    shutil.copytree(clip_files.folder(), whole)
    for file in ("tokenizer.json", "vocab.json"):
        (whole / file).unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor vocab\.json"):
        load_clip(str(whole), torch.device("cpu"))
