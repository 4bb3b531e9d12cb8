"""What splits text without special tokens: SentencePiece, or the BPE of a `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..common.json_files import check, shorten

SPACE = "\u2581"  # SentencePiece writes a space as this character, a lower one eighth block

#: Ids lie below this: no language model's table is near it, and one stray id would size others.
MOST_IDS = 2**20

#: A ModelProto whose only content is normalizer_spec.add_dummy_prefix = false (field 3 in field 3).
#: Serialised messages that are joined are merged, and the later value holds.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Vocabulary(Protocol):
    """Pieces of text and their ids."""

    ids: dict[str, int]

    def encode(self, text: str, prefix: bool) -> list[int]:
        """Ids of a non-empty text, with or without the dummy prefix."""
        ...


class SentencePiece:
    """`tokenizer.model` through the sentencepiece library, without its protobuf module.

    The generated module fails to import beside an older protobuf, as other packages pin it.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        content = path.read_bytes()
        if not content:
            raise ValueError(f"{path} is not a SentencePiece model: it is empty")
        try:
            self._with_prefix = SentencePieceProcessor(model_proto=content)
            self._without_prefix = SentencePieceProcessor(model_proto=content + _NO_DUMMY_PREFIX)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        size = self._with_prefix.get_piece_size()
        self.ids = {self._with_prefix.id_to_piece(i): i for i in range(size)}

    def encode(self, text: str, prefix: bool) -> list[int]:
        return (self._with_prefix if prefix else self._without_prefix).encode(text)


class Bpe:
    """`model` of a `tokenizer.json` through the tokenizers library.

    Normaliser and pre-tokeniser of the file are left out: which of them a file carries depends on
    the release that wrote it, while LLaVA's are fixed (prefix, spaces as `SPACE`, no splitting).
    """

    def __init__(self, path: Path, model: dict[str, Any], unk_token: str) -> None:
        """`unk_token` stands for what has no piece, unless the file names another."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        vocab = read_pieces(path, model)
        merges = _read_merges(path, model, vocab)
        # Older converters left out the merge of Llama's first piece, the double space; without it
        # every text with two spaces in a row gets other ids.
        first = min(vocab[left + right] for left, right in merges)
        if vocab.get(SPACE * 2, first) < first:
            merges.insert(0, (SPACE, SPACE))
        flags = {key: bool(model.get(key)) for key in ("fuse_unk", "byte_fallback")}
        unknown = model.get("unk_token") or unk_token
        if unknown not in vocab:
            raise ValueError(f"{path}: unk_token {shorten(unknown)!r} is not in the vocabulary")
        try:
            self._tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unknown, **flags))
        except (TypeError, ValueError) as error:  # a lone surrogate
            raise ValueError(f"{path}: a piece is no text ({error})") from None
        self.ids = vocab

    def encode(self, text: str, prefix: bool) -> list[int]:
        text = (SPACE if prefix else "") + text.replace(" ", SPACE)
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def read_pieces(path: Path, model: dict[str, Any]) -> dict[str, int]:
    """Pieces and their ids of the `model` of a tokenizer.json.

    Raises:
        ValueError: it is not Llama's (BPE with spaces as `SPACE`), or an id is wrong.
    """
    where = f"{path}: model"
    if model.get("type") != "BPE":
        raise ValueError(
            f"{where} must be a Llama tokenizer's (type BPE), got type {shorten(model.get('type'))}"
        )
    optional = {"unk_token": str, "fuse_unk": bool, "byte_fallback": bool}
    check(model, where, {"vocab": dict, "merges": list}, optional)
    vocab, names = model["vocab"], {}
    for piece, i in vocab.items():
        check_id(i, f"{path}: piece {shorten(piece)!r}")
        if names.setdefault(i, piece) != piece:
            raise ValueError(
                f"{path}: pieces {shorten(names[i])!r} and {shorten(piece)!r} have the same id {i}"
            )
    if SPACE not in vocab:
        raise ValueError(
            f"{where} must be a Llama tokenizer's, but {SPACE!r} is not among its {len(vocab)} "
            "pieces"
        )
    return vocab


def check_id(i: Any, where: str) -> None:
    """Raise ValueError, beginning with `where`, for what is no id of a token."""
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < MOST_IDS:
        raise ValueError(
            f"{where} must have a whole number from 0 to {MOST_IDS - 1} as its id, got {shorten(i)}"
        )


def _read_merges(path: Path, model: dict[str, Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        ):
            raise ValueError(f"{path}: a merge must be two pieces, got {shorten(merge)}")
        # The library would end the whole process in a panic.
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise ValueError(f"{path}: merge {shorten(merge)} uses pieces outside the vocabulary")
        merges.append(tuple(pair))
    if not merges:
        raise ValueError(f"{path}: model must be a Llama tokenizer's, but it has no merges")
    return merges
