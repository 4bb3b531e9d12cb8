"""Later turns of a conversation on a pruned cache: what they compute, and what they do not."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.analysis.oracle import masked_states
from llava.constants import IMAGE_TOKEN_INDEX
from tests import tiny
from tests.closeness import ROUNDED, assert_close

QUESTIONS = (torch.tensor([11, 12, 13, 14]), torch.tensor([21, 22]))
PRUNERS = {
    "compact": pruning.build("autoprune", target_token_num=6, x0=3.0, recycle_ratio=0.0),
    "original": pruning.build("autoprune", preset="paper", target_token_num=6, x0=3.0),
    "fastv": pruning.build("fastv", target_token_num=8),
    "dense": None,
}


@pytest.fixture(scope="module")
def model():
    return tiny.double(tiny.model(11))


def say(model, ids, images=None, cache=None, pruner=None, new=4):
    return model.generate(
        ids if ids.dim() == 2 else ids[None],
        images=images,
        pruner=pruner,
        past_key_values=cache,
        do_sample=False,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.mark.parametrize("name", PRUNERS)
@torch.no_grad()
def test_three_turns_equal_one_masked_forward(model, name) -> None:
    """Every logit of every turn is that of one full-length pass in which what the first turn
    dropped is masked, layer by layer."""
    ids, images, pruner = tiny.prompt(1), tiny.pixels(1), PRUNERS[name]
    whole = model.embed_prompt(ids[None], None, images)
    out = say(model, ids, images, pruner=pruner)
    logits = [torch.cat(out.logits)]
    said = out.sequences[0]
    for question in QUESTIONS:
        said = torch.cat([said, question])
        cache = out.past_key_values
        out = say(model, torch.cat([ids, said]), cache=cache)
        logits.append(torch.cat(out.logits))
        said = torch.cat([said, out.sequences[0]])

    patch = whole.layout.patch[0].tolist()
    embeds = torch.cat([whole.embeds, model.model.embed_tokens(said)[None]], 1)
    text = {i for i in range(embeds.shape[1]) if i >= len(patch) or patch[i] == pruning.layout.TEXT}
    kept = cache.trace.kept_patches(0)
    seen = [text | {patch.index(p) for p in patches} for patches in kept]
    assert name == "dense" or len(kept[-1]) < len(kept[0]) == 16
    full = model.lm_head(masked_states(model.model, embeds, seen, cache.positions))
    first = len(patch) - 1  # its logits are the first answer's first
    starts = [first, first + 4 + 4, first + 4 + 4 + 4 + 2]
    assert starts[-1] + 4 == embeds.shape[1] - 1
    for start, got in zip(starts, logits):
        assert_close(got, full[start : start + 4].float(), ROUNDED)


def test_pictures_are_encoded_once(model, monkeypatch) -> None:
    ids, images = tiny.prompt(1), tiny.pixels(1)
    first = say(model, ids, images, pruner=PRUNERS["compact"])
    whole = torch.cat([ids, first.sequences[0], QUESTIONS[0]])

    def refuse(*_, **__):
        raise AssertionError("the vision tower must not run again")

    monkeypatch.setattr(model, "encode_images", refuse)
    held = first.past_key_values.layers[-1].keys.shape[-2]
    second = say(model, whole, images, first.past_key_values)
    cache = second.past_key_values
    # The first answer's last token, the question, and three of the four new tokens were fed.
    assert cache.layers[-1].keys.shape[-2] == held + 1 + 4 + 3
    assert cache.get_seq_length() == 16 + len(whole) - 1 + 3


def test_a_later_picture_enters_whole(model) -> None:
    """The same as feeding its embeddings one by one; nothing of it is dropped."""
    ids, images = tiny.prompt(1), tiny.pixels(1, 2)
    first = say(model, ids, images[:1], pruner=PRUNERS["compact"])
    question = torch.tensor([11, IMAGE_TOKEN_INDEX, 12, 13])
    whole = torch.cat([ids, first.sequences[0], question])
    cache = first.past_key_values
    again = say(model, ids, images[:1], pruner=PRUNERS["compact"]).past_key_values
    second = say(model, whole, images, cache)
    only_new = say(model, whole, images[1:], again)
    assert torch.equal(second.sequences, only_new.sequences)

    slow = say(model, ids, images[:1], pruner=PRUNERS["compact"]).past_key_values
    new = model.embed_prompt(torch.cat([first.sequences[0][-1:], question])[None], None, images[1:])
    assert new.embeds.shape[1] == 1 + 3 + 16
    with torch.no_grad():
        for embed in new.embeds[0]:
            out = model(inputs_embeds=embed[None, None], past_key_values=slow)
    assert_close(second.logits[0], out.logits[:, -1].float(), ROUNDED)


def test_a_batch_goes_on_like_its_samples(model) -> None:
    prompts = [tiny.prompt(1, images=1), tiny.prompt(2, before=5, images=2), tiny.prompt(3)]
    images = tiny.pixels(1, 5)
    ids, mask = tiny.batch(prompts)
    pruner = PRUNERS["compact"]

    def both(ids, mask, images, more):
        options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True}
        out = model.generate(ids, images=images[0], attention_mask=mask, pruner=pruner, **options)
        ids = torch.cat([ids, out.sequences, more], 1)
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)
        cache = out.past_key_values
        out = model.generate(
            ids, images=images[1], attention_mask=mask, past_key_values=cache, **options
        )
        return out.sequences

    more = torch.tensor([[11, IMAGE_TOKEN_INDEX, 12]] * 2 + [[11, IMAGE_TOKEN_INDEX, 13]])
    # Of each sample first the old pictures, then the new one.
    old, new = [[0], [2, 3], [5]], [1, 4, 6]
    images = tiny.pixels(1, 7)
    first = images[[i for own in old for i in own]]
    together = both(ids, mask, (first, images), more)
    for i, prompt in enumerate(prompts):
        own = images[[*old[i], new[i]]]
        alone = both(
            prompt[None], torch.ones(1, len(prompt)).long(), (own[:-1], own), more[i : i + 1]
        )
        assert alone[0].tolist() == together[i].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, new, px: (torch.cat([ids, new[:-1]]), None), "and at least one more"),
        (lambda ids, new, px: (new.repeat(9), None), "text tokens and 1 images"),
        (lambda ids, new, px: (torch.cat([ids, new]), px[[0, 0]]), "1 images, of which 0 are new"),
        (
            lambda ids, new, px: (torch.cat([ids, new, torch.tensor([IMAGE_TOKEN_INDEX])]), None),
            "1 image placeholders, but 0 images",
        ),
        (lambda ids, new, px: (torch.cat([ids, new]).repeat(2, 1), None), "1 sequences, but 2"),
    ],
)
def test_what_is_no_continuation_is_refused(model, change, message) -> None:
    ids, images = tiny.prompt(1), tiny.pixels(1)
    first = say(model, ids, images, pruner=PRUNERS["compact"])
    again, pictures = change(ids, first.sequences[0], images)
    with pytest.raises(ValueError, match=message):
        say(model, again, pictures, first.past_key_values)


def test_samples_go_on_together_or_not_at_all(model) -> None:
    prompts = [tiny.prompt(1), tiny.prompt(2)]
    ids, mask = tiny.batch(prompts)
    out = model.generate(
        ids,
        images=tiny.pixels(1, 2),
        attention_mask=mask,
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
    )
    rows = [
        torch.cat([p, o, torch.tensor(q)]) for p, o, q in zip(prompts, out.sequences, ([5], [5, 6]))
    ]
    ids, mask = tiny.batch(rows)
    with pytest.raises(ValueError, match=r"equally many tokens, got \[2, 3\]"):
        model.generate(ids, attention_mask=mask, past_key_values=out.past_key_values)
