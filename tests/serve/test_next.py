"""LLaVA-1.6 in chat and viewer: flags arrive, turns are right, the viewer draws tiles."""

from __future__ import annotations

import argparse

import pytest
import torch

from llava import pruning
from llava.mm_utils import process_images
from llava.pruning.base import Pruner
from llava.serve.chat import Chat
from llava.serve.startup import Loaded, add_checkpoint_arguments, load
from llava.serve.viewing import Viewer, ViewerQuestion, tokens_of

from .. import checkpoints_next, tiny_next


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints_next.write_original(tmp_path_factory.mktemp("next"))


def loaded_with(folder, *flags: str) -> Loaded:
    parser = argparse.ArgumentParser()
    add_checkpoint_arguments(parser)
    return load(parser.parse_args(["--model-path", str(folder), "--device", "cpu", *flags]))


def test_the_merge_type_arrives_and_the_context_is_the_checkpoints(folder) -> None:
    for flags, merged in (([], "spatial_unpad"), (["--merge-type", "spatial"], "spatial")):
        loaded = loaded_with(folder, *flags)
        assert loaded.model.config.mm_patch_merge_type == merged
        assert loaded.model.config.anyres_reading == "llava"
        assert loaded.context_len == 4096


def test_the_canvas_arrives_and_a_wrong_one_is_refused_at_once(folder, capsys) -> None:
    for processing in ("fill", "112x168"):
        loaded = loaded_with(folder, "--processing", processing)
        assert loaded.model.config.anyres_reading == processing
    with pytest.raises(SystemExit):
        loaded_with(folder, "--processing", "112x")
    assert "or the width and height of a canvas such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pruner",
    [
        pruning.build("autoprune", target_fraction=0.25, x0=1.4),
        pruning.build("fastv", target_fraction=0.25, depth=1),
    ],
    ids=lambda pruner: pruner.method,
)
@torch.no_grad()
def test_turns_of_a_chat_are_those_of_one_pass(folder, pruner: Pruner) -> None:
    """Two pictures of unequal tiles: the first prompt pruned, then every token fed singly."""
    tokenizer, model, image_processor, context_len = vars(
        loaded_with(folder, "--dtype", "float32")
    ).values()
    sizes = (200, 100), (80, 100)
    pictures = [tiny_next.picture(size, seed) for seed, size in enumerate(sizes)]
    talked = Chat(
        *(tokenizer, model, image_processor, pictures, pruner),
        temperature=0.0,
        max_new_tokens=3,
        context_len=context_len,
    )
    turns, spans = [], []
    for question in ("What is on the sign?", "What is a chat?"):
        turns.append(talked.say(question))
        spans.append((len(talked.ids) - turns[-1].new_tokens, len(talked.ids)))
    first, second = turns
    visual = sum(tiny_next.COUNTS[size] for size in sizes)
    assert first.sample.n_visual == visual == 52 + 72
    assert first.fed == spans[0][0] - 2 + visual and first.sample.leaving[-1] <= visual // 4
    assert first.first and not second.first
    assert second.unpruned == len(talked.ids) - 2 + visual - 1

    pixels = list(process_images(pictures, image_processor, model.config))
    prompt = torch.tensor([talked.ids[: spans[0][0]]])
    out = model(prompt, images=pixels, image_sizes=list(sizes), pruner=pruner)
    best = [int(out.logits[0, -1].argmax())]
    for token in talked.ids[spans[0][0] :]:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values)
        best.append(int(out.logits[0, -1].argmax()))
    for start, stop in spans:
        moved = start - spans[0][0]
        assert talked.ids[start:stop] == best[moved : moved + stop - start]


def test_the_viewer_draws_overview_and_tiles(folder) -> None:
    loaded = loaded_with(folder)
    pruner = pruning.build("fastv", target_token_num=16, depth=1)
    made = Viewer(loaded, pruner, name="next", max_new_tokens=1)
    settings = made.settings()
    assert settings["about"] == "up to 5 views of 16 patches" and settings["most_tokens"] == 80
    question = ViewerQuestion(tiny_next.picture((200, 100)), "What is on the sign?", "fastv", 16)
    answer = made.answer(question)
    assert [(view["title"], view["columns"], view["rows"]) for view in answer["views"]] == [
        ("overview", 4, 4),
        ("2 x 1 tiles", 8, 4),
    ]
    assert len(answer["pictures"]) == 4  # of both views what enters layer 0, and the others
    assert [panel["pictures"] for panel in answer["panels"]] == [[0, 1]] + [[2, 3]] * 3
    first, *_, last = answer["panels"]
    assert (first["kept"], first["nowhere"], last["kept"]) == (52, 4, 16)


def test_canvases_of_other_readings_have_their_most_tokens(folder) -> None:
    loaded = loaded_with(folder, "--processing", "112x168")
    assert tokens_of(loaded) == (7 * 16, "up to 7 views of 16 patches")
