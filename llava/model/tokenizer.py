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

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchEncoding

from .tokenizer_files import NO_LIMIT, Added, read_files, write_files
from .vocabulary import SPACE

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


def _id_of(name: str) -> property:
    """The id of the special token whose text is the attribute `name`; setting it sets the text."""

    def read(self: LlavaTokenizer) -> int:
        return self._id(getattr(self, name))

    def write(self: LlavaTokenizer, i: int) -> None:
        setattr(self, name, self.convert_ids_to_tokens(i))

    return property(read, write)


class LlavaTokenizer:
    """Text to ids and back, as LLaVA's checkpoints expect it.

    It has what LLaVA's programs and lmms-eval ask of a transformers tokenizer, and no more.

    Attributes:
        bos_token, eos_token, unk_token, pad_token: special tokens as text.
        bos_token_id, eos_token_id, unk_token_id, pad_token_id: their ids.
        all_special_ids: set of the ids that `decode` skips.
        legacy: whether text after a special token gets the dummy prefix.
        padding_side: where `pad` pads, "right" unless the files say otherwise.
        model_max_length: the length to truncate to where none is given; 10**30 for no limit.
        vocab_size: pieces of the vocabulary, without added tokens; see `len`.
    """

    model_input_names = ("input_ids", "attention_mask")
    is_fast = False
    bos_token_id, eos_token_id = _id_of("bos_token"), _id_of("eos_token")
    unk_token_id, pad_token_id = _id_of("unk_token"), _id_of("pad_token")

    def __init__(self, folder: str | Path) -> None:
        """Read the tokenizer files of `folder`; see `load_tokenizer`."""
        self.folder = Path(folder)
        files = read_files(self.folder)
        self.legacy, self._add_bos, self._add_eos = files.legacy, files.add_bos, files.add_eos
        self.padding_side, self.model_max_length = files.padding_side, files.model_max_length
        self._vocabulary = files.vocabulary
        self.vocab_size = len(files.vocabulary.ids)
        self._ids = dict(files.vocabulary.ids)
        self._added: dict[str, Added] = {}
        self._later: dict[str, Added] = {}  # not in the files
        self._cut_out(files.added)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = files.special.values()

    def _cut_out(self, added: Mapping[str, Added]) -> None:
        self._added.update(added)
        self._ids.update((token, entry.id) for token, entry in added.items())
        self._pieces = {i: token for token, i in self._ids.items()}
        # Longest first, so that a token wins over another that it begins with.
        longest_first = sorted(self._added, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.all_special_ids = {entry.id for entry in self._added.values() if entry.special}

    def _id(self, token: str) -> int:
        if token not in self._ids:
            raise ValueError(f"token {token!r} has no id; give it one with add_tokens")
        return self._ids[token]

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of the tokens that `decode` skips."""
        return [self._pieces[i] for i in sorted(self.all_special_ids)]

    @property
    def name_or_path(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        """Rows an embedding table needs: the highest id plus one."""
        return max(self._pieces) + 1

    def get_vocab(self) -> dict[str, int]:
        """Ids of all pieces and added tokens."""
        return dict(self._ids)

    def add_tokens(self, tokens: Any, special_tokens: bool = False) -> int:
        """Give tokens that have no id the next free ones; returns how many these are.

        tokens: one or several, as text or as transformers' AddedToken.
        """
        texts = [str(t) for t in (tokens if isinstance(tokens, list | tuple) else [tokens])]
        new = [text for text in dict.fromkeys(texts) if text and text not in self._ids]
        later = {text: Added(i, special_tokens) for i, text in enumerate(new, start=len(self))}
        self._later.update(later)
        self._cut_out(later)
        return len(new)

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """`input_ids` and `attention_mask` of a text (lists) or of several (lists of lists).

        padding: True or "longest", "max_length", or False; truncation: True cuts the end off.
        max_length: for both; None is `model_max_length`. return_tensors: "pt", "np" or None.
        """
        single = isinstance(text, str)
        rows = [self.encode(t, add_special_tokens) for t in ([text] if single else text)]
        if truncation and truncation != "do_not_truncate":
            longest = self.model_max_length if max_length is None else max_length
            rows = [row[:longest] for row in rows]
        unbatched = single and return_tensors is None
        encoded = {"input_ids": rows[0] if unbatched else rows}
        return self.pad(encoded, padding, max_length, return_tensors)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with BOS in front (and EOS behind, where the files ask for it).

        Raises:
            UnicodeEncodeError: a ValueError, for half of a surrogate pair, which is no character.
        """
        text.encode()  # sentencepiece's own error would tell nothing
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

    def tokenize(self, text: str) -> list[str]:
        """Pieces of a text, without special tokens in front or behind."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad `input_ids` and `attention_mask` of several sequences with `pad_token_id` and 0.

        encoded_inputs: one mapping to lists of lists, or a mapping of lists for each sequence; of
            a single sequence one mapping to lists, which stay such.
        padding: to the longest (True, "longest"), to `max_length` ("max_length"), or False.

        Raises:
            ValueError: other entries, which nothing says how to pad; an unknown `padding`.
        """
        if not isinstance(encoded_inputs, Mapping):
            keys = encoded_inputs[0].keys()
            encoded_inputs = {key: [each[key] for each in encoded_inputs] for key in keys}
        if unknown := encoded_inputs.keys() - set(self.model_input_names):
            raise ValueError(f"pad takes input_ids and attention_mask, got {sorted(unknown)} too")
        ids = _plain(encoded_inputs["input_ids"])
        if len(ids) and isinstance(ids[0], int):
            batch = {key: [_plain(value)] for key, value in encoded_inputs.items()}
            padded = self.pad(batch, padding, max_length)
            return BatchEncoding({k: v[0] for k, v in padded.items()}, tensor_type=return_tensors)
        rows = [_plain(row) for row in ids]
        masks = encoded_inputs.get("attention_mask") or [[1] * len(row) for row in rows]
        width = 0
        if padding in (True, "longest"):
            width = max(map(len, rows), default=0)
        elif padding == "max_length":
            width = self.model_max_length if max_length is None else max_length
            if width == NO_LIMIT:
                raise ValueError(
                    "padding='max_length' needs max_length: the tokenizer has no limit"
                )
        elif padding not in (False, "do_not_pad"):
            raise ValueError(f"padding must be True, False, longest or max_length, got {padding!r}")
        padded = {
            "input_ids": [self._filled(row, self.pad_token_id, width) for row in rows],
            "attention_mask": [self._filled(_plain(mask), 0, width) for mask in masks],
        }
        return BatchEncoding(padded, tensor_type=return_tensors)

    def _filled(self, row: list[int], value: int, width: int) -> list[int]:
        fill = [value] * (width - len(row))
        return fill + row if self.padding_side == "left" else row + fill

    def decode(
        self,
        ids: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of one sequence of ids (a number, a list or a 1-D tensor), or a list of texts.

        Bytes that are no UTF-8 (the start of a character still to be finished) come out as U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary; spaces that are to be cleaned up, since
                LLaVA's answers keep theirs.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("LLaVA keeps spaces: leave clean_up_tokenization_spaces out")
        ids = _plain(ids)
        if isinstance(ids, int):
            ids = [ids]
        ids = [_plain(i) for i in ids]
        if any(isinstance(i, list) for i in ids):
            return [self.decode(row, skip_special_tokens) for row in ids]
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.all_special_ids]
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids))

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` for each of several sequences, or each row of a 2-D tensor."""
        options = (skip_special_tokens, clean_up_tokenization_spaces)
        return [self.decode(ids, *options) for ids in sequences]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Text of pieces and added tokens."""
        text, run = "", b""
        prefixed = True
        for piece in tokens:
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

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Id of a token (a piece of the vocabulary or an added token), the unknown one's if none.

        A sequence of tokens gives a list.
        """
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self._ids.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Piece of the vocabulary behind an id, or behind each of several.

        `SPACE` stands for a space.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = _plain(ids)
        if isinstance(ids, int):
            return self.convert_ids_to_tokens([ids])[0]
        ids = [int(i) for i in ids]
        unknown = next((i for i in ids if i not in self._pieces), None)
        if unknown is not None:
            raise ValueError(
                f"id {unknown} is not in the vocabulary of {len(self)} tokens: image placeholders "
                "and padded rows of the output head have no text, remove them before decoding"
            )
        return [self._pieces[i] for i in ids]

    # What transformers' StopStringCriteria calls.
    _convert_id_to_token = convert_ids_to_tokens

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, unchanged, into `folder`, which is created if needed.

        Tokens that were added since go into added_tokens.json and special_tokens_map.json.
        """
        write_files(self.folder, Path(folder), self._later)


def load_tokenizer(folder: str | Path) -> LlavaTokenizer:
    """The tokenizer of a checkpoint folder in LLaVA's or llava-hf's layout.

    `tokenizer.model` is preferred over `tokenizer.json`; `tokenizer_config.json`,
    `special_tokens_map.json` and `added_tokens.json` are read when present, and the added tokens of
    a `tokenizer.json` always: see `tokenizer_files`.

    Raises:
        FileNotFoundError: the folder has neither of the two.
        ValueError: a file is damaged or is not of a Llama tokenizer, or two contradict each other.
    """
    return LlavaTokenizer(folder)


def _plain(ids: Any) -> Any:
    """Numbers of Python for a tensor, an array or a number of numpy's; else what came."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _utf8(run: bytes) -> str:
    # One mark per undecodable byte, as SentencePiece does; "replace" would merge some.
    return _UNDECODABLE.sub("\ufffd", run.decode("utf-8", errors="surrogateescape"))
