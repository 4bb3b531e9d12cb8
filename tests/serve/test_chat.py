"""Conversations: what later turns compute, how turns are joined, what ends an answer."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import image_message, new_conversation
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.pruning.checks import PromptError
from llava.pruning.cost import DecoderShape, measure
from llava.serve.chat import Chat, ContextFull
from llava.serve.streaming import Stream

from .. import senna_files

PRUNER = pruning.build("autoprune", target_token_num=64, x0=5.6)
QUESTIONS = ("What word is on the blue sign?", "What color is the sign?", "Is there a circle?")
EOS = 2


def chat(demo, picture, pruner=PRUNER, **options) -> Chat:
    options = {"temperature": 0.0, "max_new_tokens": 16, **options}
    return Chat(demo.tokenizer, demo.model, demo.image_processor, [picture], pruner, **options)


@pytest.fixture(scope="module")
def three_turns(demo, picture):
    """A chat, its turns and, for each, where its answer begins and ends among the ids."""
    talked = chat(demo, picture)
    turns, spans = [], []
    for question in QUESTIONS:
        turn = talked.say(question)
        turns.append(turn)
        spans.append((len(talked.ids) - turn.new_tokens, len(talked.ids)))
    return talked, turns, spans


@torch.no_grad()
def test_every_answer_is_that_of_one_pass_over_the_kept_tokens(demo, picture, three_turns) -> None:
    """The first prompt prefilled and pruned, then every later token fed singly, as one long decode:
    its argmax is what each turn answered."""
    talked, _, spans = three_turns
    ids, model = talked.ids, demo.model
    pixels = process_images([picture], demo.image_processor, model.config)
    prompt = torch.tensor([ids[: spans[0][0]]])
    out = model(prompt, images=pixels, image_sizes=[picture.size], pruner=PRUNER)
    best = [int(out.logits[0, -1].argmax())]
    for token in ids[spans[0][0] :]:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values)
        best.append(int(out.logits[0, -1].argmax()))
    for start, stop in spans:
        first = start - spans[0][0]
        assert ids[start:stop] == best[first : first + stop - start]
    held = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    assert held == [layer.keys.shape[-2] + 1 for layer in talked.cache.layers]


def test_the_ids_are_those_of_the_template(demo, three_turns) -> None:
    """As if the whole conversation had been written down and tokenised, as in training."""
    talked, turns, _ = three_turns
    written = new_conversation("vicuna_v1")
    for i, (question, turn) in enumerate(zip(QUESTIONS, turns)):
        text = image_message(question, 1, demo.model.config) if i == 0 else question
        written.append_message("USER", text)
        written.append_message("ASSISTANT", turn.text)
    assert talked.ids == tokenizer_image_token(written.get_prompt(), demo.tokenizer)
    assert talked.ids.count(EOS) == 3 and talked.ids.count(IMAGE_TOKEN_INDEX) == 1


def test_a_turn_says_what_it_took(demo, three_turns) -> None:
    _, (first, second, _), spans = three_turns
    assert first.first and not second.first
    assert first.ended == second.ended == "end"
    # 576 patches in place of one id; every answer token but the last is fed.
    assert first.fed == spans[0][0] - 1 + 576
    assert first.unpruned == first.fed + first.new_tokens - 1
    text = first.fed - 576
    assert first.sample.n_text == text and sum(first.sample.leaving) / 12 == pytest.approx(
        64, abs=2
    )
    assert first.held == tuple(n + text + first.new_tokens - 1 for n in first.sample.entering)
    # The first answer's </s> and the second question, up to the second answer.
    assert second.fed == spans[1][0] - spans[0][1] + 1
    grown = second.fed + second.new_tokens - 1
    assert second.held == tuple(n + grown for n in first.held)
    # Multiply-accumulates of q tokens behind h: 4 q d^2 + 2 q (h + q) d + 3 q d m; d 192, m 512.
    q, d, m = second.fed, 192, 512
    flops = sum(2 * (4 * q * d**2 + 2 * q * (h + q) * d + 3 * q * d * m) for h in first.held)
    assert second.prefill_flops == flops
    h = first.unpruned
    dense = 12 * 2 * (4 * q * d**2 + 2 * q * (h + q) * d + 3 * q * d * m)
    assert second.dense_prefill_flops == dense
    assert first.prefill_flops < 0.3 * first.dense_prefill_flops
    shape = DecoderShape.from_config(demo.model.config)
    assert first.computed_flops == measure(first.sample, shape).computed_flops
    assert second.computed_flops is None
    assert first.seconds["prefill"] > 0 and first.seconds["decode"] > 0


def test_what_the_tower_drops_counts_as_put_in(demo, picture) -> None:
    talked = chat(demo, picture, pruning.build("visionzip", target_token_num=64))
    first = talked.say(QUESTIONS[0])
    text = first.sample.n_text
    assert first.sample.entering == [64] * 12 and first.fed == 576 + text
    assert first.unpruned == 576 + text + first.new_tokens - 1
    assert first.held == (64 + text + first.new_tokens - 1,) * 12
    second = talked.say(QUESTIONS[1])
    assert second.unpruned - second.held[0] == 576 - 64


def test_several_pictures_and_none(demo, picture) -> None:
    options = {"temperature": 0.0, "max_new_tokens": 4}
    loaded = (demo.tokenizer, demo.model, demo.image_processor)
    talked = Chat(*loaded, [picture, picture.resize((200, 100))], PRUNER, **options)
    first = talked.say(QUESTIONS[0])
    assert talked.ids.count(IMAGE_TOKEN_INDEX) == 2
    assert first.fed == len(talked.ids) - first.new_tokens - 2 + 2 * 576
    assert talked.say(QUESTIONS[1]).fed < 30

    talked = Chat(*loaded, [], **options)
    first = talked.say(QUESTIONS[0])
    assert first.fed == len(talked.ids) - first.new_tokens and first.sample.n_visual == 0
    assert not talked.say(QUESTIONS[1]).first


def test_mixed_tokens_of_six_views(tmp_path, picture) -> None:
    """Senna: 128 tokens a view, 32 of each on average; the second turn sees what is left."""
    folder = senna_files.write_senna(tmp_path / "Senna")
    *loaded, context_len = load_pretrained_model(
        folder, vision_tower=tmp_path / senna_files.TOWER, dtype="float32", device="cpu"
    )
    pruner = pruning.build("autoprune", target_token_num=32, budget_per="image", x0=1.4)
    options = {"temperature": 0.0, "max_new_tokens": 2, "context_len": context_len}
    talked = Chat(*loaded, [picture] * 6, pruner, **options)
    first, second = talked.say("Plan?"), talked.say("Why?")
    assert first.sample.n_visual == first.sample.entering[0] == 6 * 128
    assert sum(first.sample.leaving) / 3 == pytest.approx(6 * 32, abs=3)
    grown = second.fed + second.new_tokens - 1
    assert second.held == tuple(n + grown for n in first.held)


def test_a_cut_answer_is_closed_in_the_next_turn(demo, picture) -> None:
    talked = chat(demo, picture, max_new_tokens=1)
    turn = talked.say(QUESTIONS[0])
    assert (turn.ended, turn.new_tokens) == ("length", 1)
    before = talked.ids
    assert EOS not in before
    talked.say(QUESTIONS[1])
    added = talked.ids[len(before) :]
    assert added[0] == EOS and added.count(EOS) == 1
    text = f"</s>USER: {QUESTIONS[1]} ASSISTANT:"
    assert added[:-1] == demo.tokenizer.encode(text, add_special_tokens=False)


def test_an_answer_can_be_stopped(demo, picture) -> None:
    talked, pieces = chat(demo, picture), []
    turn = talked.say(QUESTIONS[0], pieces.append, stop=lambda: True)
    assert (turn.ended, turn.new_tokens) == ("stopped", 1)
    assert talked.say(QUESTIONS[1]).ended == "end"


def test_pieces_make_the_answer(demo, picture, three_turns) -> None:
    pieces: list[str] = []
    turn = chat(demo, picture).say(QUESTIONS[0], pieces.append)
    assert "".join(pieces).strip() == turn.text == three_turns[1][0].text != ""
    assert len(pieces) > 1


def test_a_full_context_is_said_before_anything_changes(demo, picture, three_turns) -> None:
    _, (first, second, _), _ = three_turns
    room = first.unpruned + second.fed
    talked = chat(demo, picture, context_len=room)
    talked.say(QUESTIONS[0])
    before = talked.ids
    with pytest.raises(ContextFull, match=f"have {room} tokens.*holds {room}"):
        talked.say(QUESTIONS[1])
    assert talked.ids == before
    talked.reset()
    assert talked.say(QUESTIONS[0]).text == first.text
    # With one token more there is room for one token of an answer.
    talked = chat(demo, picture, context_len=room + 1)
    talked.say(QUESTIONS[0])
    turn = talked.say(QUESTIONS[1])
    assert (turn.ended, turn.new_tokens) == ("context", 1)


def test_an_error_begins_anew(demo, picture) -> None:
    impossible = pruning.build("autoprune", target_token_num=1, budget_mode="strict")
    talked = chat(demo, picture, impossible)
    with pytest.raises(ValueError, match="below the floor"):
        talked.say(QUESTIONS[0])
    assert talked.ids == [] and talked.cache.is_empty


def test_a_picture_written_as_text_is_none(demo, picture) -> None:
    talked = chat(demo, picture, max_new_tokens=1)
    talked.say("What is <image> here?")
    assert talked.ids.count(IMAGE_TOKEN_INDEX) == 1


def test_a_template_with_an_end_of_its_own(demo, picture) -> None:
    """The v0 templates end turns with ###, which is several tokens of this tokenizer."""
    talked = chat(demo, picture, conv_mode="llava_v0", max_new_tokens=3)
    first = talked.say(QUESTIONS[0])
    talked.say(QUESTIONS[1])
    text = demo.tokenizer.decode([i for i in talked.ids if i >= 0])
    assert f"Assistant: {first.text}###Human: {QUESTIONS[1]}###Assistant:" in text


def test_wrong_settings_are_refused(demo, picture) -> None:
    with pytest.raises(ValueError, match="temperature must not be negative"):
        chat(demo, picture, temperature=-1.0)
    with pytest.raises(ValueError, match="unknown conv_mode 'v9'"):
        chat(demo, picture, conv_mode="v9")


def test_a_stream_holds_back_what_may_change() -> None:
    said = "a \u00e9#b###Human"
    data, pieces = said.encode(), []
    stream = Stream(lambda ids: bytes(ids).decode(errors="replace"), "###", pieces.append)
    for byte in data:
        stream.put(torch.tensor([byte]))
    stream.end()
    assert pieces == ["a", " ", "\u00e9", "#b"]


def test_half_a_surrogate_pair_changes_nothing(demo, picture) -> None:
    talked = chat(demo, picture, max_new_tokens=1)
    talked.say(QUESTIONS[0])
    before = talked.ids
    with pytest.raises(PromptError, match=r"U\+D800, in 'Is \\ud800 it\?'"):
        talked.say("Is \ud800 it?")
    assert talked.ids == before and not talked.say(QUESTIONS[1]).first


def test_a_first_prompt_beyond_the_context(demo, picture) -> None:
    talked = chat(demo, picture, max_new_tokens=1)
    with pytest.raises(PromptError, match=r"the context of this model is 2048"):
        talked.say("word " * 2000)
    assert talked.say(QUESTIONS[0]).first


def test_the_first_question_is_what_the_method_is_told(demo, picture, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(
        type(PRUNER), "about", lambda pruner, texts: told.append(texts) or pruner, raising=False
    )
    talk = chat(demo, picture)
    for text in ("What is red?", "And blue?"):
        talk.say(text)
    assert told == [["What is red?"]]
