"""Which tokens end an answer, and which can never be chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.analysis import traced
from llava.eval import model_vqa_loader
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main
from llava.serve.chat import Chat

from .. import checkpoints, tiny
from ..answers import inputs, picture, refused
from ..eval.stub import command, read_answers, write_data

EXTRA = checkpoints.EXTRA_ROWS
HEAD = {"original": "lm_head.weight", "hf": "language_model.lm_head.weight"}


@pytest.fixture(params=["original", "hf"])
def kind(request) -> str:
    return request.param


def write(folder: Path, kind: str, **config) -> Path:
    if kind == "hf":
        return checkpoints.write_hf(folder, "safetensors", **config)
    return checkpoints.write_original(folder, "safetensors", ("weights",), **config)


def load(folder: Path, **options) -> tuple:
    return load_pretrained_model(folder, device="cpu", dtype="float32", **options)


def answered(loaded: tuple, **options) -> list[int]:
    ids, pixels = inputs(loaded)
    options = {"do_sample": False, "max_new_tokens": 6, **options}
    return loaded[1].generate(ids, images=pixels, **options)[0].tolist()


PLACES = ("generation_config", "config")


@pytest.fixture(scope="module")
def third(original) -> int:
    tokens = answered(load(original))
    assert tokens[2] not in tokens[:2]
    return tokens[2]


class TestEnds:
    """The third token of the answer is made an end, wherever it can be named."""

    def name(self, folder: Path, place: str, value: object) -> None:
        checkpoints.edit_json(folder / f"{place}.json", eos_token_id=value)

    @pytest.mark.parametrize("place", PLACES)
    def test_a_list_of_ends_is_obeyed(self, tmp_path, kind, third, place):
        folder = write(tmp_path, kind)
        self.name(folder, place, [2, third])
        loaded = load(folder)
        assert loaded[1].generation_config.eos_token_id == [2, third]
        assert len(answered(loaded)) == 3

    def test_a_list_in_the_text_config_of_llava_hf_is_obeyed(self, tmp_path, third):
        folder = write(tmp_path, "hf")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        for outer, ends in ((None, [2, third]), (2, [2, third]), ([2, 7], [2, 7, third])):
            changes = {"eos_token_id": outer, "text_config": {**text, "eos_token_id": [third]}}
            checkpoints.edit_json(folder / "config.json", **changes)
            loaded = load(folder)
            assert loaded[1].generation_config.eos_token_id == ends
        assert len(answered(loaded)) == 3

    def test_one_end_beside_the_tokenizers(self, tmp_path, kind, third):
        folder = write(tmp_path, kind)
        self.name(folder, "generation_config", third)
        assert load(folder)[1].generation_config.eos_token_id == [2, third]

    def test_one_end_in_the_config_counts_where_nothing_else_names_any(self, tmp_path, kind):
        folder = write(tmp_path, kind, eos_token_id=7)
        assert load(folder)[1].generation_config.eos_token_id == 2
        for change in (lambda f: checkpoints.edit_json(f, eos_token_id=...), Path.unlink):
            change(folder / "generation_config.json")
            assert load(folder)[1].generation_config.eos_token_id == [2, 7]

    def test_a_temperature_beside_them_is_not_read(self, tmp_path, kind):
        folder = write(tmp_path, kind)
        stray = {"do_sample": True, "temperature": 0.1, "num_beams": 4, "max_length": 5}
        checkpoints.edit_json(folder / "generation_config.json", **stray)
        generation = load(folder)[1].generation_config
        assert not generation.do_sample and generation.temperature in (None, 1.0)
        assert len(answered(load(folder))) == 6

    @pytest.mark.parametrize("place", PLACES)
    def test_what_is_no_id_is_refused(self, tmp_path, kind, place):
        folder = write(tmp_path, kind)
        (folder / "generation_config.json").write_text("{}")
        for value in ("</s>", [2, "x"], 2.5, -1, 10_000, [2, 10_000], {}, True):
            self.name(folder, place, value)
            refused(folder, f"{place}.json", "eos_token_id", "must be the id of a token", "got ")

    @pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
    def test_a_damaged_file_is_refused_by_name(self, tmp_path, kind, content):
        file = write(tmp_path, kind) / "generation_config.json"
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
        refused(tmp_path, str(file))

    @pytest.mark.parametrize("value", [None, []])
    def test_none_at_all_leaves_the_tokenizers(self, tmp_path, kind, value):
        folder = write(tmp_path, kind, eos_token_id=value)
        self.name(folder, "generation_config", value)
        assert load(folder)[1].generation_config.eos_token_id == 2

    def test_those_of_the_base_model_hold(self, tmp_path):
        checkpoints.write_projector_only(tmp_path / "mine", tmp_path / "base")
        checkpoints.write_clip(tmp_path / "mine" / checkpoints.CLIP)
        checkpoints.write_json(tmp_path / "base" / "generation_config.json", {"eos_token_id": [5]})
        model = load(tmp_path / "mine", model_base=tmp_path / "base")[1]
        assert model.generation_config.eos_token_id == [2, 5]

    @pytest.mark.parametrize("to", ["original", "llava-hf"])
    @pytest.mark.parametrize("place", PLACES)
    def test_they_survive_a_conversion(self, tmp_path, kind, place, to):
        folder = write(tmp_path / "source", kind)
        self.name(folder, place, [2, 7])
        assert main(["convert", str(folder), str(tmp_path / "out"), "--to", to]) == 0
        assert load(tmp_path / "out")[1].generation_config.eos_token_id == [2, 7]


class TestNeverChosen:
    def learn(self, folder: Path, **tokens: int) -> None:
        """Tokens that a fine-tune added behind <image> and <pad>."""
        file = folder / "tokenizer_config.json"
        added = json.loads(file.read_text()).get("added_tokens_decoder", {})
        for name, i in tokens.items():
            added[str(i)] = {"content": f"<{name}>", "special": False, "normalized": False}
        checkpoints.edit_json(file, added_tokens_decoder=added)

    def prefer(self, folder: Path, kind: str, *rows: int) -> None:
        """Make these rows of the head win wherever another row did."""

        def change(tensors):
            head = tensors[HEAD[kind]]
            for n, row in enumerate(rows):
                # Of two opposite rows one is always positive.
                head[row] = (100 if n % 2 == 0 else -100) * head[4 + n // 2]

        checkpoints.edit_weights(folder / "model.safetensors", change)

    def padded(self, folder: Path, kind: str) -> Path:
        """Rows behind the vocabulary, in either format."""
        if kind == "hf":
            return write(folder, kind)
        write(folder, kind, vocab_size=tiny.VOCAB + EXTRA)

        def grow(tensors):
            for name in ("model.embed_tokens.weight", HEAD[kind]):
                rows = torch.zeros(EXTRA, tensors[name].shape[1], dtype=torch.float16)
                tensors[name] = torch.cat([tensors[name], rows])

        checkpoints.edit_weights(folder / "model.safetensors", grow)
        return folder

    @pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}])
    def test_rows_that_no_token_names(self, tmp_path, kind, options):
        folder = self.padded(tmp_path, kind)
        self.prefer(folder, kind, *range(tiny.VOCAB, tiny.VOCAB + 8))
        loaded = load(folder)
        ids, pixels = inputs(loaded)
        assert loaded[1](input_ids=ids, images=pixels).logits[0, -1].argmax() >= tiny.VOCAB
        torch.manual_seed(0)
        tokens = answered(loaded, **options)
        assert max(tokens) < tiny.VOCAB
        loaded[0].decode(tokens)  # every one has a text

    def test_learned_tokens_are_said(self, tmp_path, kind):
        folder = self.padded(tmp_path, kind)
        box, click = tiny.VOCAB + 2, tiny.VOCAB + 9
        self.learn(folder, box=box, click=click)
        self.prefer(folder, kind, box, click)
        loaded = load(folder)
        tokens = answered(loaded)
        assert set(tokens) <= {box, click}
        assert loaded[0].decode(tokens[:1]) in ("<box>", "<click>")
        gaps = set(range(tiny.VOCAB + 2, tiny.VOCAB + EXTRA)) - {box, click}
        assert gaps <= set(loaded[1].generation_config.suppress_tokens)

    def test_the_picture_and_the_padding_are_not(self, tmp_path):
        folder = self.padded(tmp_path, "hf")
        self.prefer(folder, "hf", tiny.VOCAB, tiny.VOCAB + 1)
        assert max(answered(load(folder))) < tiny.VOCAB

    def test_a_learned_end_is_no_part_of_an_answer(self, tmp_path, kind):
        """In the runner, in a chat and in what is drawn; the token is no special one."""
        folder, ends = self.padded(tmp_path / "llava", kind), range(tiny.VOCAB + 2, tiny.VOCAB + 10)
        self.learn(folder, **{f"end{i}": i for i in ends})
        self.prefer(folder, kind, *ends)
        assert load(folder)[0].decode(answered(load(folder))).startswith("<end")
        checkpoints.edit_json(folder / "generation_config.json", eos_token_id=[2, *ends])

        write_data(tmp_path, 2)
        flags = ("--device", "cpu", "--dtype", "float32", "--method", "none", "--batch-size", "2")
        argv = [str(folder) if part == "stub-7b" else part for part in command(tmp_path, *flags)]
        assert model_vqa_loader.main(argv) == 0
        for entry in read_answers(tmp_path):
            assert (entry["text"], entry["metadata"]["new_tokens"]) == ("", 1)
        tokenizer, model, processor, _ = load(folder)
        pieces = []
        turn = Chat(tokenizer, model, processor, [picture()], temperature=0).say("?", pieces.append)
        assert (turn.text, turn.ended, turn.new_tokens, pieces) == ("", "end", 1, [])
        drawn = traced.run(model, tokenizer, processor, picture(), "What?")
        assert (drawn.text, drawn.new_tokens) == ("", 1)

    def test_an_end_without_a_text_can_be_chosen(self, tmp_path, kind):
        folder, ends = self.padded(tmp_path, kind), list(range(tiny.VOCAB + 2, tiny.VOCAB + 10))
        self.prefer(folder, kind, *ends)
        checkpoints.edit_json(folder / "generation_config.json", eos_token_id=ends)
        tokens = answered(load(folder))
        assert len(tokens) == 1 and tokens[0] in ends

    def test_where_every_row_has_a_token_nothing_is_suppressed(self, original):
        assert load(original)[1].generation_config.suppress_tokens is None

    def test_a_placeholder_of_transformers_tokenizer_in_the_original_format(self, tmp_path):
        """It gets a row that the checkpoint has for no token."""
        folder = self.padded(tmp_path, "original")
        tokenizer, model, *_ = load(folder, processing="llava-hf")
        at = tokenizer.convert_tokens_to_ids("<image>")
        assert at in model.generation_config.suppress_tokens
