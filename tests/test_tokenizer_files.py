"""The files of one tokenizer: saved again by transformers, in conflict, malformed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from llava.model.hf_tokenizer import HfTokenizer
from llava.model.tokenizer import LlavaTokenizer, load_tokenizer

DEMO = Path(__file__).parents[1] / "playground" / "demo" / "llava-demo"
SIZE = 720
TEXTS = (
    "USER: What color is  the sign?\nASSISTANT: orange</s>USER: two  </s> x",
    "é世🙂 </s>\n<s>a<unk>b",
)


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded checkpoint's tokenizer: tokenizer.model and two configs, `legacy` false."""
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def saved_json(tmp_path_factory) -> str:
    """tokenizer.json of that tokenizer, as transformers writes it."""
    target = tmp_path_factory.mktemp("saved")
    LlamaTokenizer.from_pretrained(DEMO).save_pretrained(target)
    return (target / "tokenizer.json").read_text()


class TestSavedAgainByTransformers:
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
    def test_ids_are_as_before(self, folder, legacy, bos, eos):
        config = folder / "tokenizer_config.json"
        edit(config, legacy=legacy, add_bos_token=bos, add_eos_token=eos)
        before = load_tokenizer(folder)
        assert before.legacy == legacy
        LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
        # The file no longer says them.
        assert (
            not {"legacy", "add_bos_token", "add_eos_token"} & json.loads(config.read_text()).keys()
        )
        (folder / "alone").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, folder / "alone")
        for after in (load_tokenizer(folder), load_tokenizer(folder / "alone")):
            for text in TEXTS:
                assert after(text).input_ids == before(text).input_ids
            assert after.padding_side == "right" and after.model_max_length == 2048

    def test_added_tokens_are_in_the_new_file_alone(self, folder):
        (folder / "special_tokens_map.json").unlink()
        theirs = LlamaTokenizer.from_pretrained(folder)
        theirs.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
        theirs.add_tokens(["plain"])
        theirs.pad_token = "<im_end>"
        theirs.save_pretrained(folder)
        ours = load_tokenizer(folder)
        assert len(ours) == SIZE + 3 and ours.pad_token_id == SIZE + 1
        ids = ours.encode("a<im_start><im_end>plain", add_special_tokens=False)
        assert ids[-3:] == [SIZE, SIZE + 1, SIZE + 2]
        assert ours.decode(ids) == "aplain"
        assert ours.decode(ids, skip_special_tokens=False) == "a<im_start><im_end>plain"

    def test_special_tokens_are_those_that_transformers_reads(self, folder):
        # The map of before is still there, and has the last word.
        theirs = LlamaTokenizer.from_pretrained(folder)
        theirs.add_special_tokens({"pad_token": "<pad>"})
        theirs.save_pretrained(folder)
        for _ in range(2):
            theirs, ours = LlamaTokenizer.from_pretrained(folder), load_tokenizer(folder)
            for name in ("bos", "eos", "unk", "pad"):
                key = f"{name}_token_id"
                assert getattr(ours, key) == getattr(theirs, key)
            # With a decoder the config has it.
            entry = {"content": "<pad>", "special": True}
            edit(folder / "tokenizer_config.json", added_tokens_decoder={str(SIZE): entry})
        assert ours.pad_token == "<pad>"


def put(name: str, **content: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **content)


def entry(i: int, content: str) -> dict[str, Any]:
    return {"id": i, "content": content, "special": True}


class TestConflicts:
    def test_the_newer_file_takes_ids_and_texts_over(self, folder, saved_json):
        (folder / "tokenizer.json").write_text(saved_json)
        added = json.loads(saved_json)["added_tokens"]
        edit(folder / "added_tokens.json", **{"<old>": SIZE, "<a>": SIZE + 1, "<b>": SIZE + 2})
        added += [entry(SIZE, "<new>"), entry(SIZE + 3, "<a>")]
        edit(folder / "tokenizer.json", added_tokens=added)
        ids = load_tokenizer(folder).get_vocab()
        assert (ids["<new>"], ids["<a>"], ids["<b>"]) == (SIZE, SIZE + 3, SIZE + 2)
        assert "<old>" not in ids
        decoder = {str(SIZE + 2): {"content": "<new>"}}
        edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
        ids = load_tokenizer(folder).get_vocab()
        assert (ids["<new>"], ids["<a>"]) == (SIZE + 2, SIZE + 3) and "<b>" not in ids

    def test_a_placeholder_that_was_replaced_is_no_conflict(self, folder, saved_json):
        content = json.loads(saved_json)
        piece = next(p for p, i in content["model"]["vocab"].items() if i == SIZE - 1)
        vocab = {("<image>" if p == piece else p): i for p, i in content["model"]["vocab"].items()}
        merges = [m for m in content["model"]["merges"] if piece not in (*m, "".join(m))]
        content["model"].update(vocab=vocab, merges=merges)
        content["added_tokens"].append(entry(SIZE - 1, "<image>"))
        (folder / "tokenizer.json").write_text(json.dumps(content))
        assert load_tokenizer(folder).decode([SIZE - 1], False) == "<image>"

    def test_two_vocabularies_are_refused(self, folder, saved_json):
        content = json.loads(saved_json)
        piece = next(p for p, i in content["model"]["vocab"].items() if i == 700)
        content["model"]["vocab"]["other"] = content["model"]["vocab"].pop(piece)
        merges = [m for m in content["model"]["merges"] if piece not in (*m, "".join(m))]
        content["model"]["merges"] = merges
        (folder / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"(?s)id 700 is .*'other'.*remove the one"):
            load_tokenizer(folder)

    def test_a_piece_with_another_id_among_the_added_is_refused(self, folder):
        edit(folder / "added_tokens.json", **{"</s>": 5})
        with pytest.raises(ValueError, match=r"'</s>' has id 2 in the vocabulary, but 5"):
            load_tokenizer(folder)


DEEP = "[" * 100_000
JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class TestMalformed:
    @pytest.mark.parametrize("name", JSON_FILES)
    @pytest.mark.parametrize(
        "content", [DEEP, f'{{"a": {DEEP}', "[]", "3", "null", '"x"', "", "{", "\xff", "\x00"]
    )
    def test_whole_files(self, folder, name, content):
        (folder / name).write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=name):
            load_tokenizer(folder)

    @pytest.mark.parametrize("token", [3, True, ["<s>"], {}, {"content": 3}, {"content": ["<s>"]}])
    @pytest.mark.parametrize("key", ["bos_token", "unk_token", "pad_token"])
    @pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
    def test_special_tokens(self, folder, name, key, token):
        edit(folder / name, **{key: token})
        with pytest.raises(ValueError, match=rf"{name}: .*{key}|{name}: .*content"):
            load_tokenizer(folder)

    @pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
    @pytest.mark.parametrize("tokens", ["<s>", 3, [3], [["<s>"]], [{}], [{"content": {}}]])
    def test_more_special_tokens(self, folder, key, tokens):
        edit(folder / "special_tokens_map.json", **{key: tokens})
        with pytest.raises(ValueError, match=r"special_tokens_map\.json: "):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("legacy", "false"),
            ("add_bos_token", 1),
            ("add_eos_token", []),
            ("padding_side", "middle"),
            ("padding_side", ["right"]),
            ("model_max_length", "2048"),
            ("model_max_length", 0),
            ("model_max_length", -5),
            ("added_tokens_decoder", []),
            ("added_tokens_decoder", {"7": "<x>"}),
            ("added_tokens_decoder", {"x": {"content": "<x>"}}),
            ("added_tokens_decoder", {"-1": {"content": "<x>"}}),
            ("added_tokens_decoder", {"9" * 5000: {"content": "<x>"}}),
            ("added_tokens_decoder", {"7": {"content": ["<x>"]}}),
            ("added_tokens_decoder", {"720": {"content": ""}}),
            ("added_tokens_decoder", {"720": {"content": "<x>", "lstrip": "no"}}),
            ("added_tokens_decoder", {"720": {"content": "<x>"}, "0720": {"content": "<y>"}}),
            ("added_tokens_decoder", {"720": {"content": "<x>"}, "721": {"content": "<x>"}}),
        ],
    )
    def test_config(self, folder, key, value):
        edit(folder / "tokenizer_config.json", **{key: value})
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        "tokens",
        [
            {"<x>": "720"},
            {"<x>": -1},
            {"<x>": 1.5},
            {"<x>": True},
            {"<x>": None},
            {"<x>": [720]},
            {"<x>": 10**30},
            {"": 720},
            {"\ud800": 720},
            {"<x>": 720, "<y>": 720},
        ],
    )
    def test_added_tokens(self, folder, tokens):
        edit(folder / "added_tokens.json", **tokens)
        with pytest.raises(ValueError, match=r"added_tokens\.json"):
            load_tokenizer(folder)

    @pytest.mark.parametrize("beside_the_model", [True, False])
    @pytest.mark.parametrize(
        "change",
        [
            {"model": None},
            {"model": []},
            {"model": {"type": ["BPE"]}},
            {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
            {"model": {"type": "BPE", "vocab": [], "merges": []}},
            {"model": {"vocab": {"▁": "0"}}},
            {"model": {"vocab": {"▁": -1}}},
            {"model": {"vocab": {"▁": 2**40}}},
            {"model": {"vocab": {"▁": [0]}}},
            {"model": {"vocab": {"▁": 0, "a": 0}}},
            {"model": {"vocab": {"a": 0}}},
            {"model": {"merges": "a b"}},
            {"added_tokens": {}},
            {"added_tokens": [3]},
            {"added_tokens": [{"content": "<x>"}]},
            {"added_tokens": [{"id": 720}]},
            {"added_tokens": [{"id": "720", "content": "<x>"}]},
            {"added_tokens": [{"id": 720, "content": {"a": 1}}]},
            {"added_tokens": [{"id": -720, "content": "<x>"}]},
            {"added_tokens": [{"id": 720, "content": "<x>"}, {"id": 720, "content": "<y>"}]},
            {"added_tokens": [{"id": 720, "content": "<x>"}, {"id": 721, "content": "<x>"}]},
            {"pre_tokenizer": [3]},
            {"post_processor": "x"},
        ],
    )
    def test_tokenizer_json(self, folder, saved_json, change, beside_the_model):
        content = json.loads(saved_json)
        for key, value in change.items():
            both = isinstance(value, dict) and isinstance(content[key], dict)
            content[key] = {**content[key], **value} if both else value
        (folder / "tokenizer.json").write_text(json.dumps(content))
        if not beside_the_model:
            (folder / "tokenizer.model").unlink()
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        "change",
        [
            {"merges": [3]},
            {"merges": ["a"]},
            {"merges": ["a b c"]},
            {"merges": [["a"]]},
            {"merges": [["a", ["b"]]]},
            {"merges": [{"a": "b"}]},
            {"merges": []},
            {"unk_token": "no such piece"},
            {"unk_token": ["<unk>"]},
            {"byte_fallback": "yes"},
        ],
    )
    def test_tokenizer_json_alone(self, folder, saved_json, change):
        content = json.loads(saved_json)
        content["model"].update(change)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer.model").unlink()
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            load_tokenizer(folder)

    def test_a_piece_that_is_no_text(self, folder, saved_json):
        content = json.loads(saved_json)
        content["model"]["vocab"]["\ud800"] = SIZE
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer.model").unlink()
        with pytest.raises(ValueError, match=r"tokenizer\.json: a piece is no text"):
            load_tokenizer(folder)

    def test_a_template_that_is_none(self, folder, saved_json):
        edit(folder / "tokenizer_config.json", backend="tokenizers", add_bos_token=None)
        for single in (3, [3]):
            content = {**json.loads(saved_json), "post_processor": {"single": single}}
            (folder / "tokenizer.json").write_text(json.dumps(content))
            with pytest.raises(ValueError, match=r"tokenizer\.json: post_processor\.single"):
                load_tokenizer(folder)

    @pytest.mark.parametrize("name", JSON_FILES)
    def test_transformers_reading_names_the_file(self, folder, name):
        (folder / name).write_text("{")
        with pytest.raises(ValueError, match=name):
            HfTokenizer(folder)

    def test_an_empty_model_file(self, folder):
        (folder / "tokenizer.model").write_bytes(b"")
        with pytest.raises(ValueError, match=r"tokenizer\.model .*it is empty"):
            load_tokenizer(folder)


class TestWithoutProtobuf:
    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch):
        """Another protobuf than sentencepiece's generated modules were made for, or none."""
        for name in [*sys.modules, "sentencepiece.sentencepiece_model_pb2", "google.protobuf"]:
            if name.endswith("_pb2") or name.startswith("google.protobuf"):
                monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2", raising=False)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_the_model_file_is_read(self, folder, legacy):
        edit(folder / "tokenizer_config.json", legacy=legacy)
        ids = load_tokenizer(folder).encode("a</s>a", add_special_tokens=False)
        assert len(ids) == 3 and (ids[0] == ids[2]) == legacy

    def test_transformers_reading_says_what_it_needs(self, folder):
        with pytest.raises(ValueError, match="pip install -U protobuf sentencepiece"):
            HfTokenizer(folder)


def test_tokens_added_later_are_saved(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.add_tokens(["<x>", "</s>", "<x>"], special_tokens=True) == 1
    assert tokenizer.add_tokens("plain") == 1
    for target in (tmp_path / "copy", folder):
        tokenizer.save_pretrained(target)
        copy = LlavaTokenizer(target)
        ids = copy.encode("<x>plain", add_special_tokens=False)
        assert ids == [SIZE, SIZE + 1] and copy.decode(ids) == "plain"
        assert copy.all_special_ids == {0, 1, 2, SIZE}
