"""What the tokenizer files of a folder say together, each checked, conflicts settled.

Up to five files hold one tokenizer, and which of them counts changed with transformers' releases.
Here as in its release 5: `added_tokens_decoder` of tokenizer_config.json goes before `added_tokens`
of tokenizer.json, and that before added_tokens.json; special_tokens_map.json goes before
tokenizer_config.json, unless that has an `added_tokens_decoder`.
Release 5 writes tokenizer.json beside a tokenizer.model that it has read, and no longer says
`legacy`, `add_bos_token` and `add_eos_token`: then tokenizer.json says them in its own way.

Deviation: of two vocabularies release 5 takes tokenizer.json's and LLaVA tokenizer.model's, so
that they must be the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..common.json_files import check, read, shorten
from .vocabulary import Bpe, SentencePiece, Vocabulary, check_id, read_pieces

NAMES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
_TOKEN = (str, dict)
_SPECIAL = {
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "unk_token": _TOKEN,
    "pad_token": _TOKEN,
    "additional_special_tokens": list,
    "extra_special_tokens": (list, dict),
}
_CONFIG = {
    "added_tokens_decoder": dict,
    "legacy": bool,
    "add_bos_token": bool,
    "add_eos_token": bool,
    "padding_side": str,
    "model_max_length": float,
}
_FLAGS = {"special": bool, "lstrip": bool, "rstrip": bool}
#: What transformers says where no length is known.
NO_LIMIT = int(1e30)


class Added(NamedTuple):
    """A token that is cut out of the text before the vocabulary is asked."""

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its files describe it.

    special: text of bos_token, eos_token, unk_token and pad_token.
    added: special and added tokens by their text.
    legacy: whether text after a special token gets the dummy prefix.
    model_max_length: in tokens; 10**30 where no file says.
    """

    vocabulary: Vocabulary
    special: dict[str, str]
    added: dict[str, Added]
    legacy: bool
    add_bos: bool
    add_eos: bool
    padding_side: str
    model_max_length: int


def read_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer files of a folder.

    Raises:
        FileNotFoundError: neither tokenizer.model nor tokenizer.json is there.
        ValueError: a file is damaged or is not of a Llama tokenizer, or two contradict each other;
            names the file.
    """
    model_file, json_file, config_file, map_file, added_file = (folder / name for name in NAMES)
    if not model_file.is_file() and not json_file.is_file():
        raise FileNotFoundError(
            f"{folder} holds neither tokenizer.model nor tokenizer.json: copy one of "
            "them from the checkpoint's repository"
        )
    content, config, names, numbers = (
        read(path) if path.is_file() else {}
        for path in (json_file, config_file, map_file, added_file)
    )
    if json_file.is_file():
        optional = {"added_tokens": list, "pre_tokenizer": dict, "post_processor": dict}
        check(content, json_file, {"model": dict}, optional)
    check(config, config_file, {}, {**_SPECIAL, **_CONFIG})
    check(names, map_file, {}, _SPECIAL)
    sources = [(config_file, config), (map_file, names)]
    if "added_tokens_decoder" not in config:
        sources.reverse()
    texts = [{key: _text(s.get(key), f, key) for key in _DEFAULTS} for f, s in sources]
    special = {key: texts[0][key] or texts[1][key] or default for key, default in _DEFAULTS.items()}
    special["pad_token"] = special["pad_token"] or special["unk_token"]
    # Later sources take ids and texts over from earlier ones.
    added = _merged(_of_numbers(numbers, added_file), {})
    added = _merged(_of_list(content.get("added_tokens") or (), json_file), added)
    added = _merged(_of_decoder(config.get("added_tokens_decoder") or {}, config_file), added)

    vocabulary: Vocabulary
    if not model_file.is_file():
        vocabulary = Bpe(json_file, content["model"], special["unk_token"])
    else:
        vocabulary = SentencePiece(model_file)
        if content:
            pieces = read_pieces(json_file, content["model"])
            _demand_same(vocabulary.ids, pieces, added, folder)
    extra = [t for f, s in sources for t in _extra(s, f)]
    for token in [*special.values(), *extra]:
        if token in added:
            added[token] = added[token]._replace(special=True)
        elif token in vocabulary.ids:
            added[token] = Added(vocabulary.ids[token])
        else:
            raise ValueError(
                f"{folder}: special token {shorten(token)!r} has no id in the vocabulary or "
                "among the added tokens: these files belong to different tokenizers"
            )
    for token, entry in added.items():
        if vocabulary.ids.get(token, entry.id) != entry.id:
            raise ValueError(
                f"{folder}: {shorten(token)!r} has id {vocabulary.ids[token]} in the vocabulary, "
                f"but {entry.id} among the added tokens: these files belong to different tokenizers"
            )
    return TokenizerFiles(
        vocabulary,
        special,
        added,
        *_behaviour(config, content, json_file),
        *_padding(config, config_file),
    )


def _behaviour(
    config: dict[str, Any], content: dict[str, Any], json_file: Path
) -> tuple[bool, bool, bool]:
    """`legacy`, `add_bos` and `add_eos`."""
    said = {"legacy": True, "add_bos_token": True, "add_eos_token": False}
    if "backend" in config and content:  # release 5 wrote them
        before, after = _template(content.get("post_processor") or {}, json_file)
        scheme = (content.get("pre_tokenizer") or {}).get("prepend_scheme")
        said = {"legacy": scheme != "first", "add_bos_token": before, "add_eos_token": after}
    legacy, bos, eos = (
        default if config.get(key) is None else config[key] for key, default in said.items()
    )
    return legacy, bos, eos


def _template(post_processor: dict[str, Any], json_file: Path) -> tuple[bool, bool]:
    """Whether a tokenizer.json puts a special token before and behind a text."""
    parts = post_processor.get("single") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{json_file}: post_processor.single must be a list of objects")
    special = ["SpecialToken" in part for part in parts]
    return special[:1] == [True], special[-1:] == [True]


def _padding(config: dict[str, Any], config_file: Path) -> tuple[str, int]:
    """`padding_side` and `model_max_length`."""
    side, length = config.get("padding_side") or "right", config.get("model_max_length")
    if side not in ("left", "right"):
        raise ValueError(f"{config_file}: padding_side must be left or right, got {shorten(side)}")
    if length is not None and length < 1:
        raise ValueError(f"{config_file}: model_max_length must be at least 1, got {length}")
    # Written as 1e30, Infinity or NaN where there is no limit.
    return side, int(length) if length is not None and length < NO_LIMIT else NO_LIMIT


def write_files(source: Path, target: Path, later: Mapping[str, Added]) -> None:
    """Copy the tokenizer files of `source` into `target`, and put `later` tokens behind."""
    target.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        file = source / name
        if file.is_file() and file.resolve() != (target / name).resolve():
            shutil.copyfile(file, target / name)
    if not later:
        return
    numbers, names = (
        read(target / name) if (target / name).is_file() else {} for name in NAMES[:2:-1]
    )
    numbers.update((token, entry.id) for token, entry in later.items())
    special = names.setdefault("additional_special_tokens", [])
    special += [token for token, entry in later.items() if entry.special and token not in special]
    for name, value in zip(NAMES[:2:-1], (numbers, names)):
        (target / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _text(token: Any, file: Path, key: str) -> str | None:
    """The text of a token in a config, which may stand alone or with flags."""
    if isinstance(token, dict):
        token = check(token, f"{file}: {key}", {"content": str})["content"]
    if token is not None and not isinstance(token, str):
        raise ValueError(f"{file}: {key} must be a string or an object, got {shorten(token)}")
    return token


def _extra(source: dict[str, Any], file: Path) -> Iterable[str]:
    """Special tokens beside the four."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = source.get(key) or ()
        tokens = tokens.values() if isinstance(tokens, dict) else tokens
        yield from filter(None, (_text(token, file, key) for token in tokens))


def _of_numbers(tokens: dict[str, Any], file: Path) -> list[tuple[str, Added]]:
    for token, i in tokens.items():
        check_id(i, f"{file}: {shorten(token)!r}")
    return _distinct([(token, Added(i, special=False)) for token, i in tokens.items()], file)


def _of_list(entries: Iterable[Any], file: Path) -> list[tuple[str, Added]]:
    tokens = []
    for place, entry in enumerate(entries):
        where = f"{file}: added_tokens[{place}]"
        check(entry, where, {"id": int, "content": str}, _FLAGS)
        check_id(entry["id"], where)
        tokens.append((entry["content"], _added(entry["id"], entry)))
    return _distinct(tokens, file)


def _of_decoder(entries: dict[str, Any], file: Path) -> list[tuple[str, Added]]:
    tokens = []
    for key, entry in entries.items():
        where = f"{file}: added_tokens_decoder[{shorten(key)!r}]"
        check(entry, where, {"content": str}, _FLAGS)
        i = int(key) if key.isdecimal() and len(key) < 10 else key
        check_id(i, where)
        tokens.append((entry["content"], _added(i, entry)))
    return _distinct(tokens, file)


def _added(i: int, entry: dict[str, Any]) -> Added:
    return Added(i, **{flag: bool(entry.get(flag)) for flag in _FLAGS})


def _distinct(tokens: list[tuple[str, Added]], file: Path) -> list[tuple[str, Added]]:
    """`tokens`, once no two of them have the same text or the same id."""
    texts: dict[str, int] = {}
    ids: dict[int, str] = {}
    for text, entry in tokens:
        if not text or text.encode("utf-8", "replace").decode() != text:
            raise ValueError(f"{file}: the token with id {entry.id} is empty or no text: {text!a}")
        if texts.setdefault(text, entry.id) != entry.id or ids.setdefault(entry.id, text) != text:
            raise ValueError(
                f"{file}: token {shorten(text)!r} with id {entry.id} is at odds with token "
                f"{shorten(ids.get(entry.id, text))!r} with id {texts[text]}: ids and tokens go in "
                "pairs"
            )
    return tokens


def _merged(tokens: list[tuple[str, Added]], below: dict[str, Added]) -> dict[str, Added]:
    """`tokens` and those of `below` whose id and text are not taken."""
    taken = {entry.id for _, entry in tokens}
    return {t: entry for t, entry in below.items() if entry.id not in taken} | dict(tokens)


def _demand_same(
    model: dict[str, int], content: dict[str, int], added: dict[str, Added], folder: Path
) -> None:
    """Raise ValueError when tokenizer.model and tokenizer.json disagree beside the added tokens."""
    taken = {entry.id for entry in added.values()}
    two = [{i: piece for piece, i in ids.items() if i not in taken} for ids in (model, content)]
    if two[0] == two[1]:
        return
    i = min(i for i in two[0].keys() | two[1].keys() if two[0].get(i) != two[1].get(i))
    here, there = (shorten(pieces[i]) if i in pieces else "nothing" for pieces in two)
    raise ValueError(
        f"{folder}: tokenizer.model and tokenizer.json hold different vocabularies (id {i} is "
        f"{here!r} in the one, {there!r} in the other): remove the one that the checkpoint was not "
        "trained with"
    )
