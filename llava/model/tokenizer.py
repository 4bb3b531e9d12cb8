"""The tokenizer of a LLaVA checkpoint, with the same ids on every version of transformers.

LLaVA was trained with transformers' slow `LlamaTokenizer`: SentencePiece on the text between
special tokens. Later releases rebuild that tokenizer from its vocabulary and give other ids (no
prefix space before the newline after an image, none before a text that begins with a space,
other splits of double spaces), so this module asks the two underlying libraries directly:
SentencePiece for `tokenizer.model`, else `tokenizers`' BPE for `tokenizer.json`.

How a text becomes ids (behaviour of transformers 4.37.2, slow `LlamaTokenizer`):
special and added tokens written out in the text are cut out as single ids; each remaining piece
of text gets the dummy prefix (a space in front) when `legacy` is true, the default of a
tokenizer_config.json that does not say; otherwise only a piece that begins the text does.

Deviations: `pad_token` falls back to `unk_token`; `decode` skips special tokens by default and
drops exactly the spaces that encoding put in front, so that decoding what was encoded gives the
text back; a special token without an id in the files is an error rather than a new row.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformers import BatchEncoding

SPACE = "\u2581"  # SentencePiece writes a space as this character, a lower one eighth block

_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


class _Added(NamedTuple):
    """A token that is cut out of the text before the vocabulary is asked."""

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class _Vocabulary(Protocol):
    """What splits text without special tokens."""

    ids: dict[str, int]

    def encode(self, text: str, prefix: bool) -> list[int]:
        """Ids of a non-empty text, with or without the dummy prefix."""
        ...


class _SentencePiece:
    """`tokenizer.model` through the sentencepiece library."""

    def __init__(self, path: Path, legacy: bool) -> None:
        from sentencepiece import SentencePieceProcessor

        content = path.read_bytes()
        try:
            self._with_prefix = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        self._without_prefix = self._with_prefix
        if not legacy:
            from sentencepiece import sentencepiece_model_pb2

            model = sentencepiece_model_pb2.ModelProto.FromString(content)
            model.normalizer_spec.add_dummy_prefix = False
            self._without_prefix = SentencePieceProcessor(model_proto=model.SerializeToString())
        size = self._with_prefix.get_piece_size()
        self.ids = {self._with_prefix.id_to_piece(i): i for i in range(size)}

    def encode(self, text: str, prefix: bool) -> list[int]:
        return (self._with_prefix if prefix else self._without_prefix).encode(text)


class _Bpe:
    """`model` of a `tokenizer.json` through the tokenizers library.

    Normaliser and pre-tokeniser of the file are left out: which of them a file carries depends on
    the release that wrote it, while LLaVA's are fixed (prefix, spaces as `SPACE`, no splitting).
    """

    def __init__(self, path: Path, model: dict[str, Any]) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        vocab: dict[str, int] = model.get("vocab") or {}
        merges = [
            tuple(merge.split(" ") if isinstance(merge, str) else merge)
            for merge in model.get("merges") or ()
        ]
        if model.get("type") != "BPE" or SPACE not in vocab or not merges:
            raise ValueError(
                f"{path}: expected a Llama tokenizer (model type BPE with merges, {SPACE!r} in "
                f"the vocabulary), got model type {model.get('type')!r} with {len(vocab)} pieces "
                f"and {len(merges)} merges"
            )
        for merge in merges:
            # The library would end the whole process in a panic.
            if not {*merge, "".join(merge)} <= vocab.keys():
                raise ValueError(f"{path}: merge {merge} uses pieces outside the vocabulary")
        # Older converters left out the merge of Llama's first piece, the double space; without it
        # every text with two spaces in a row gets other ids.
        first = min(vocab[left + right] for left, right in merges)
        if vocab.get(SPACE * 2, first) < first:
            merges.insert(0, (SPACE, SPACE))
        flags = {key: bool(model.get(key)) for key in ("fuse_unk", "byte_fallback")}
        self._tokenizer = Tokenizer(BPE(vocab, merges, unk_token=model.get("unk_token"), **flags))
        self.ids = vocab

    def encode(self, text: str, prefix: bool) -> list[int]:
        text = (SPACE if prefix else "") + text.replace(" ", SPACE)
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class LlavaTokenizer:
    """Text to ids and back, as LLaVA's checkpoints expect it.

    Attributes:
        bos_token, eos_token, unk_token, pad_token: special tokens as text.
        bos_token_id, eos_token_id, unk_token_id, pad_token_id: their ids.
        all_special_ids: set of the ids that `decode` skips.
        legacy: whether text after a special token gets the dummy prefix.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the tokenizer files of `folder`; see `load_tokenizer`."""
        self.folder = Path(folder)
        model_file, json_file = (self.folder / name for name in _FILES[:2])
        if not model_file.is_file() and not json_file.is_file():
            raise FileNotFoundError(
                f"{self.folder} holds neither tokenizer.model nor tokenizer.json: copy one of "
                "them from the checkpoint's repository"
            )
        config = _read_json(self.folder / "tokenizer_config.json")
        names = _read_json(self.folder / "special_tokens_map.json")
        # The newer layout keeps everything in the config; before, the map had the last word.
        sources = (config, names) if "added_tokens_decoder" in config else (names, config)
        self.legacy = config.get("legacy") is not False
        self._add_bos = config.get("add_bos_token") is not False
        self._add_eos = bool(config.get("add_eos_token"))

        self._vocabulary: _Vocabulary
        if model_file.is_file():
            content = {}
            self._vocabulary = _SentencePiece(model_file, self.legacy)
        else:
            content = _read_json(json_file)
            self._vocabulary = _Bpe(json_file, content.get("model") or {})
        added = _read_added(self.folder, config, content)
        self._ids = dict(self._vocabulary.ids)

        special = {}
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            found = (_content(source.get(key)) for source in sources)
            special[key] = next(filter(None, found), _DEFAULTS.get(key))
        special["pad_token"] = special["pad_token"] or special["unk_token"]
        extra = [_content(t) for s in sources for t in s.get("additional_special_tokens") or ()]
        for token in filter(None, [*special.values(), *extra]):
            if token in added:
                added[token] = added[token]._replace(special=True)
            elif token in self._ids:
                added[token] = _Added(self._ids[token])
            else:
                raise ValueError(
                    f"{self.folder}: special token {token!r} has no id in the vocabulary or in "
                    "added_tokens.json: these files belong to different tokenizers"
                )
        self._added = added
        self._ids.update((token, entry.id) for token, entry in added.items())
        self._pieces = {i: token for token, i in self._ids.items()}
        # Longest first, so that a token wins over another that it begins with.
        longest_first = sorted(added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

        self.bos_token, self.eos_token, self.unk_token, self.pad_token = special.values()
        self.bos_token_id = self._ids[self.bos_token]
        self.eos_token_id = self._ids[self.eos_token]
        self.unk_token_id = self._ids[self.unk_token]
        self.pad_token_id = self._ids[self.pad_token]
        self.all_special_ids = {entry.id for entry in added.values() if entry.special}

    def __len__(self) -> int:
        """Rows an embedding table needs: the highest id plus one."""
        return max(self._pieces) + 1

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return dict(self._ids)

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> BatchEncoding:
        """`input_ids` of a text (a list of ids) or of several (a list of lists)."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
        else:
            ids = [self.encode(one, add_special_tokens) for one in text]
        return BatchEncoding({"input_ids": ids})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with BOS in front (and EOS behind, where the files ask for it)."""
        # Odd places hold the added tokens, because the pattern captures what it splits at.
        parts = self._cut.split(text)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._ids[part])
                continue
            if i > 0 and self._added[parts[i - 1]].rstrip:
                part = part.lstrip()
            if i + 1 < len(parts) and self._added[parts[i + 1]].lstrip:
                part = part.rstrip()
            if part:
                ids += self._vocabulary.encode(part, prefix=self.legacy or i == 0)
        if add_special_tokens:
            bos = [self.bos_token_id] if self._add_bos else []
            eos = [self.eos_token_id] if self._add_eos else []
            ids = [*bos, *ids, *eos]
        return ids

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of one sequence of ids (a number, a list or a 1-D tensor).

        Bytes that are no UTF-8 (the start of a character still to be finished) come out as U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = [int(i) for i in (ids if isinstance(ids, Iterable) else (ids,))]
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.all_special_ids]
        text, run = "", b""
        prefixed = True
        for piece in self.convert_ids_to_tokens(ids):
            if piece in self._added:
                text += _utf8(run) + piece
                # Only in legacy mode did the text after a special token get a prefix.
                run, prefixed = b"", self.legacy
            elif byte := _BYTE.fullmatch(piece):
                run, prefixed = run + bytes([int(byte[1], 16)]), False
            else:
                piece = piece.removeprefix(SPACE) if prefixed else piece
                run, prefixed = run + piece.replace(SPACE, " ").encode(), False
        return text + _utf8(run)

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """`decode` for each of several sequences, or each row of a 2-D tensor."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Id of a token (a piece of the vocabulary or an added token), the unknown one's if none.

        A sequence of tokens gives a list.
        """
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self._ids.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Piece of the vocabulary behind each id, `SPACE` standing for a space.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        unknown = next((i for i in ids if i not in self._pieces), None)
        if unknown is not None:
            raise ValueError(
                f"id {unknown} is not in the vocabulary of {len(self)} tokens: image placeholders "
                "and padded rows of the output head have no text, remove them before decoding"
            )
        return [self._pieces[i] for i in ids]

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, unchanged, into `folder`, which is created if needed."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)


def load_tokenizer(folder: str | Path) -> LlavaTokenizer:
    """The tokenizer of a checkpoint folder in LLaVA's or llava-hf's layout.

    `tokenizer.model` is preferred over `tokenizer.json`; `tokenizer_config.json`,
    `special_tokens_map.json` and `added_tokens.json` are read when present.

    Raises:
        FileNotFoundError: the folder has neither of the two.
        ValueError: a file is damaged or is not of a Llama tokenizer.
    """
    return LlavaTokenizer(folder)


def _utf8(run: bytes) -> str:
    # One mark per undecodable byte, as SentencePiece does; "replace" would merge some.
    return _UNDECODABLE.sub("\ufffd", run.decode("utf-8", errors="surrogateescape"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _read_added(folder: Path, config: dict[str, Any], content: dict[str, Any]) -> dict[str, _Added]:
    """Added tokens of every file that lists some, later layouts over earlier ones."""
    names = _read_json(folder / "added_tokens.json")
    added = {token: _Added(i, special=False) for token, i in names.items()}
    entries = [(entry["id"], entry) for entry in content.get("added_tokens") or ()]
    entries += (config.get("added_tokens_decoder") or {}).items()
    for i, entry in entries:
        flags = {key: bool(entry.get(key)) for key in ("special", "lstrip", "rstrip")}
        added[entry["content"]] = _Added(int(i), **flags)
    return added
