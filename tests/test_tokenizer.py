"""Tokenisation on a real 32,000-piece vocabulary (mistral-common's, Apache-2.0).

It has the format, size and special ids of Llama's, but other pieces: where Llama gives
`29871 -200 29871 13` around an image, this one gives `28705 -200 28705 13`. Expected ids of texts
with special tokens were made with transformers 4.37.2's slow `LlamaTokenizer`, the tokenizer LLaVA
was trained with; all other text is compared with sentencepiece itself.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import TextIteratorStreamer

from llava.conversation import conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, tokenizer_image_token
from llava.model.tokenizer import LlavaTokenizer, load_tokenizer

BOS, EOS, SPACE, NEWLINE = 1, 2, 28705, 13

# Words, spaces in every number, special tokens, bytes without a piece, look-alikes of them.
PARTS = [
    "USER",
    ":",
    " ",
    "  ",
    "   ",
    " two",
    "black",
    "\n",
    "\t",
    "é",
    "世",
    "🙂",
    "<",
    "</",
    "1",
]
SPECIAL = ["<s>", "</s>", "<unk>"]
plain_texts = (
    st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=8)
    .map("".join)
    .filter(lambda text: not any(token in text for token in SPECIAL))
)
texts = st.lists(st.sampled_from(SPECIAL) | plain_texts, max_size=5).map("".join)


@pytest.fixture(scope="session")
def model_file() -> Path:
    return Path(str(importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"))


@pytest.fixture(scope="session")
def sentencepiece(model_file: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(model_file))


@pytest.fixture(scope="session")
def build(
    model_file: Path, sentencepiece: SentencePieceProcessor, tmp_path_factory
) -> Callable[..., LlavaTokenizer]:
    """Write a checkpoint's tokenizer files in one of the two layouts, and load them."""
    bpe = json.dumps(bpe_of(sentencepiece))

    def write(layout: str, **files: dict) -> LlavaTokenizer:
        folder = tmp_path_factory.mktemp(layout)
        if layout == "model":
            shutil.copy(model_file, folder / "tokenizer.model")
        else:
            (folder / "tokenizer.json").write_text(bpe)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return load_tokenizer(folder)

    return write


def bpe_of(processor: SentencePieceProcessor) -> dict:
    """A tokenizer.json as the converters of transformers 4.x wrote it.

    All splits of a piece into two pieces are merges, ordered by the piece's score; the
    pre-tokeniser is one of transformers 5, which drops the prefix before spaces.
    """
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    merges = []
    for piece, i in vocab.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(vocab[a], vocab[b], a, b) for a, b in splits if a in vocab and b in vocab]
        merges += [(-processor.get_score(i), i, *pair) for pair in sorted(pairs)]
    names = enumerate(("<unk>", "<s>", "</s>"))
    return {
        "added_tokens": [{"id": i, "content": name, "special": True} for i, name in names],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [f"{a} {b}" for *_, a, b in sorted(merges)],
        },
    }


@pytest.fixture(scope="session", params=["model", "json"])
def tokenizer(request, build) -> LlavaTokenizer:
    """Both layouts without further files, so with every default (legacy among them)."""
    return build(request.param)


@pytest.fixture(scope="session", params=["model", "json"])
def modern(request, build) -> LlavaTokenizer:
    """Both layouts with `legacy: false`, as llava-hf's folders have it."""
    return build(request.param, tokenizer_config={"legacy": False})


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" ", [259]),
        ("\n", [SPACE, NEWLINE]),
        ("\nhi", [SPACE, NEWLINE, 5365]),
        ("USER", [2223, 725]),
        (" one", [SPACE, 624]),
        ("  two", [259, 989]),
        ("a  ", [264, 259]),
        ("last two black  marvel", [1432, 989, 2687, SPACE, 27778]),
    ],
)
def test_ids_of_text(tokenizer: LlavaTokenizer, modern: LlavaTokenizer, text, ids) -> None:
    for each in (tokenizer, modern):
        assert each(text).input_ids == [BOS, *ids]
        assert each.encode(text) == [BOS, *ids]
        assert each.encode(text, add_special_tokens=False) == ids


@pytest.mark.parametrize(
    ("text", "legacy", "not_legacy"),
    [
        ("Yes</s>USER: ", [5592, EOS, 2223, 725, 28747, SPACE], [5592, EOS, 11123, 28747, SPACE]),
        (": A</s> USER", [714, 330, EOS, SPACE, 2223, 725], [714, 330, EOS, 2223, 725]),
        ("</s>USER", [EOS, 2223, 725], [EOS, 11123]),
        ("x</s>\ny", [1318, EOS, SPACE, NEWLINE, 28724], [1318, EOS, NEWLINE, 28724]),
        ("<s><unk></s>", [1, 0, 2], [1, 0, 2]),
    ],
)
def test_text_around_special_tokens(
    tokenizer: LlavaTokenizer, modern: LlavaTokenizer, text, legacy, not_legacy
) -> None:
    assert tokenizer(text).input_ids == [BOS, *legacy]
    assert modern(text).input_ids == [BOS, *not_legacy]


@settings(max_examples=100, deadline=None)
@given(text=plain_texts)
def test_plain_text_equals_sentencepiece(tokenizer, modern, sentencepiece, text: str) -> None:
    expected = [BOS, *sentencepiece.encode(text)]
    assert tokenizer(text).input_ids == expected
    assert modern(text).input_ids == expected


def test_lost_merge_of_the_double_space_is_restored(model_file: Path, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2  # fails beside an older protobuf

    # Llama scores its pieces by id, so that its first one, the double space, goes before all.
    model = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
    for i, piece in enumerate(model.pieces):
        piece.score = min(0, 259 - i)
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    bpe = bpe_of(processor)
    assert bpe["model"]["merges"].pop(0) == "▁ ▁"
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("last two black  marvel", "  two", "a   b     c  ", "one space only"):
        assert tokenizer.encode(text) == [BOS, *processor.encode(text)]


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_decoding_gives_the_text_back(tokenizer, modern, text: str) -> None:
    text = text.replace("▁", " ")
    for each in (tokenizer, modern):
        ids = each.encode(text, add_special_tokens=False)
        assert each.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=100, deadline=None)
@example(ids=[3 + 0x20, 3 + 0x20])  # spaces as bytes are no prefix
@example(ids=[3 + 0xE2, 3 + 0x96, 3 + 0x81])  # nor is the prefix character as bytes a space
@example(ids=[3 + 0xE4, 3 + 0xB8, 5592])  # the start of a character
@given(ids=st.lists(st.integers(3, 31999) | st.integers(3, 258), max_size=8))
def test_decoding_equals_sentencepiece(tokenizer, sentencepiece, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == sentencepiece.decode(ids)


def prompt_of(*messages: str | None) -> str:
    conversation = conv_templates["vicuna_v1"].copy()
    for i, message in enumerate(messages):
        conversation.append_message(conversation.roles[i % 2], message)
    return conversation.get_prompt()


def test_prompt_of_the_evaluation_scripts(tokenizer: LlavaTokenizer) -> None:
    ids = tokenizer_image_token(prompt_of("<image>\nWhat is this?", None), tokenizer)
    # On Llama's vocabulary the prefix is 35 ids long.
    assert ids.index(-200) == 34
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert ids[29:37] == [28723, 2223, 725, 28747, SPACE, -200, SPACE, NEWLINE]
    assert ids[37:] == [3195, 349, 456, 28804, 8602, 8048, 12738, 28747]


def test_several_turns(tokenizer: LlavaTokenizer, modern: LlavaTokenizer) -> None:
    prompt = prompt_of("<image>\nWhat is this?", "A  cat.", "And this?", None)
    question = [SPACE, NEWLINE, 3195, 349, 456, 28804, 8602, 8048, 12738, 28747]
    answer = [330, SPACE, 5255, 28723, EOS]
    follow_up = [28747, 1015, 456, 28804, 8602, 8048, 12738, 28747]
    ids = tokenizer_image_token(prompt, tokenizer)
    assert ids[35:] == [*question, *answer, 2223, 725, *follow_up]
    ids = tokenizer_image_token(prompt, modern)
    assert ids[35:] == [*question, *answer, 11123, *follow_up]


@pytest.mark.parametrize(
    "prompt",
    [
        "Two <image>\n and <image>\nlast two black  marvel",
        "<image> starts with a space",
        "ends with the image <image>",
        "<image><image>",
        "no image at all",
    ],
)
def test_each_chunk_equals_sentencepiece(tokenizer, sentencepiece, prompt: str) -> None:
    expected = [BOS]
    for i, chunk in enumerate(prompt.split("<image>")):
        expected += ([-200] if i else []) + sentencepiece.encode(chunk)
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    assert ids.dtype == torch.long
    assert ids.tolist() == expected


def test_list_of_texts(tokenizer: LlavaTokenizer) -> None:
    assert tokenizer(["USER", "\n"])["input_ids"] == [[BOS, 2223, 725], [BOS, SPACE, NEWLINE]]


def test_special_tokens_and_defaults(tokenizer: LlavaTokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<unk>", 0)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<unk>", 0)
    assert len(tokenizer) == 32000
    assert tokenizer.all_special_ids == {0, 1, 2}


def test_decode_skips_special_tokens_unless_asked(tokenizer: LlavaTokenizer) -> None:
    ids = torch.tensor([BOS, 5592, EOS, 0])
    assert tokenizer.decode(ids) == "Yes"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>Yes</s><unk>"
    assert tokenizer.decode(5592) == "Yes"
    assert tokenizer.batch_decode(torch.tensor([[BOS, 5592], [5592, 624]])) == ["Yes", "Yes one"]


@pytest.mark.parametrize("i", [-200, 32000])
def test_decoding_an_id_without_text_is_an_error(tokenizer: LlavaTokenizer, i: int) -> None:
    with pytest.raises(ValueError, match=str(i)):
        tokenizer.decode([5592, i])


def test_half_of_a_surrogate_pair_is_no_text(tokenizer: LlavaTokenizer) -> None:
    for text in ("a\ud800b", "\udfff", "</s>\udc80"):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            tokenizer.encode(text)


def test_tokens_and_ids(tokenizer: LlavaTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids("</s>") == EOS
    assert tokenizer.convert_tokens_to_ids(["▁one", "no such piece"]) == [624, 0]
    assert tokenizer.convert_ids_to_tokens([624, SPACE, 259]) == ["▁one", "▁", "▁▁"]


@pytest.mark.parametrize("layout", ["model", "json"])
def test_added_tokens_of_llava_hf(build, layout: str) -> None:
    added = {
        "32000": {"content": "<image>", "special": True},
        "32001": {"content": "<pad>", "special": True},
        "32002": {"content": "<plain>", "special": False, "lstrip": True, "rstrip": True},
    }
    tokenizer = build(
        layout,
        tokenizer_config={
            "added_tokens_decoder": added,
            "pad_token": {"content": "<pad>"},
            "legacy": False,
        },
        special_tokens_map={"pad_token": "</s>"},
    )
    assert len(tokenizer) == 32003
    assert tokenizer.pad_token_id == 32001
    ids = tokenizer.encode("USER<image> <pad> <plain> USER", add_special_tokens=False)
    assert ids == [2223, 725, 32000, SPACE, 32001, 32002, 11123]
    assert tokenizer.decode(ids) == "USER <plain>USER"


def test_added_tokens_of_older_folders(build) -> None:
    tokenizer = build(
        "model",
        added_tokens={"<pad>": 32000, "<pad>+": 32001},
        special_tokens_map={
            "bos_token": "",
            "pad_token": "<pad>",
            "additional_special_tokens": ["</s>", ""],
        },
        tokenizer_config={"pad_token": None, "add_bos_token": False, "add_eos_token": True},
    )
    assert tokenizer.pad_token_id == 32000
    assert tokenizer("USER<pad>+<pad>").input_ids == [2223, 725, 32001, 32000, EOS]
    assert tokenizer.all_special_ids == {0, 1, 2, 32000}


def test_special_token_without_an_id_is_an_error(build) -> None:
    with pytest.raises(ValueError, match=r"\[PAD\]"):
        build("model", special_tokens_map={"pad_token": "[PAD]"})


def test_folder_without_tokenizer_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", "version https://git-lfs.github.com/spec/v1"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"▁": 0}, "merges": []}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"▁": 0}, "merges": ["▁ ▁"]}}'),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("layout", ["model", "json"])
def test_saved_copy_is_the_same_tokenizer(build, layout: str, tmp_path: Path) -> None:
    tokenizer = build(layout, tokenizer_config={"legacy": False}, added_tokens={"<x>": 32000})
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    tokenizer.save_pretrained(tokenizer.folder)
    copy = load_tokenizer(tmp_path / "new" / "folder")
    text = "Yes</s>USER<x>"
    assert copy(text).input_ids == tokenizer(text).input_ids == [BOS, 5592, EOS, 11123, 32000]


@pytest.mark.parametrize(
    "text",
    [
        "A cat on  a mat, two black marvels.",
        "Lines:\nfirst one\nsecond one",
        "Grüße 世界, a 🙂 and more words",
    ],
)
def test_streaming_gives_the_decoded_text(tokenizer: LlavaTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=0)
    for i in [*ids, EOS]:
        streamer.put(torch.tensor([i]))
    streamer.end()
    try:
        pieces = list(streamer)
    except Empty:
        pytest.fail("the stream did not end")
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 3


def test_keyword_is_found_in_any_tokenisation(tokenizer: LlavaTokenizer) -> None:
    prompt = torch.tensor([tokenizer("a question").input_ids])
    stop = KeywordsStoppingCriteria(["###", "</s>"], tokenizer, prompt)
    hashes = tokenizer.convert_tokens_to_ids("#")
    whole = tokenizer.encode("Yes ###", add_special_tokens=False)
    assert stop(torch.tensor([whole]), None).tolist() == [True]
    assert stop(torch.tensor([[5592, hashes, hashes, hashes]]), None).tolist() == [True]
    assert stop(torch.tensor([[5592, hashes, hashes]]), None).tolist() == [False]
    assert stop(torch.tensor([[5592, EOS]]), None).tolist() == [True]
