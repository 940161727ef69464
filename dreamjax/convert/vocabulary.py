"""Check that a tokenizer belongs to an LLM: token ids against embedding rows, special tokens against config.json's ids.

Every row needs a token. Rows without one are padding where they follow all tokens and only fill the vocabulary up
to a multiple of 8, 16, 32, 64, 128 or 256, as libraries pad it for speed; any others belong to tokens that this
tokenizer lacks.
"""

import itertools
import os
import pathlib
from collections.abc import Mapping

from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.tensors import read_json, require_content
from dreamjax.document.tokenizer import MODEL_FILE, SPECIAL_FILE, Tokenizer
from dreamjax.errors import ConfigError

MULTIPLES = (8, 16, 32, 64, 128, 256)  # to which vocabularies are padded
DIGITS = 18  # of an id that is written as a string
NO_PAD = -1  # the pad_token_id of models without one


def check(tokenizer: Tokenizer, path: pathlib.Path, added: Mapping[str, int], config: ForeignConfig) -> tuple[str, ...]:
    """Notes on rows that are padding.

    ConfigError where the tokenizer from `path`, with what is `listed` there, does not fit an LLM's config.json.
    """
    rows, added = config.integer("vocab_size", 32000), dict(added)
    if path.is_dir() and (path / SPECIAL_FILE).exists():
        added |= dict(tokenizer.added)
    _check_special(tokenizer, path, config, rows)
    for name, number in added.items():
        if number < tokenizer.piece_count and tokenizer.pieces([number]) != [name]:
            raise ConfigError(
                f"{path}: token {name!r} has the id {number}, which is {_piece(tokenizer, number)} in its "
                "sentencepiece model"
            )
    return _check_rows(
        tokenizer,
        path,
        config.location,
        rows,
        {number: name for name, number in added.items() if number >= tokenizer.piece_count},
    )


def _check_rows(
    tokenizer: Tokenizer, path: pathlib.Path, location: str, rows: int, added: Mapping[int, str]
) -> tuple[str, ...]:
    pieces, within = tokenizer.piece_count, sorted(number for number in added if number < rows)
    has = f"{pieces} pieces" + (f" and {len(added)} added tokens" if added else "")
    if pieces > rows:
        raise ConfigError(f"{path}: has {has}, and {location} says vocab_size {rows}: it is another model's tokenizer")
    beyond = sorted(set(added) - set(within))
    without = rows - pieces - len(within)
    first = next(number for number in itertools.count(pieces) if number not in added)
    if beyond and (without or beyond != list(range(rows, rows + len(beyond)))):
        raise ConfigError(
            f"{path}: token {added[beyond[-1]]!r} has the id {beyond[-1]}, and {location} says vocab_size "
            f"{rows}: it is another model's tokenizer"
        )
    if not without:
        return ()
    tokens = rows - without
    if first < tokens or not any(rows % multiple == 0 and without < multiple for multiple in MULTIPLES):
        lacks = (
            f"{without} rows, the first {first}, would have no token, and they do not only pad to a multiple "
            f"of {MULTIPLES[-1]} or less"
        )
        raise ConfigError(
            f"{path}: has {has}, and {location} says vocab_size {rows}: {lacks}; give the model's own "
            "tokenizer (--tokenizer)"
        )
    taken = [name for name, number in tokenizer.added if tokens <= number < rows]
    note = f"rows {tokens} to {rows - 1} of the vocabulary are padding ({without})"
    return (note + (f", of which the added tokens {', '.join(taken)} take theirs as they are" if taken else ""),)


def _check_special(tokenizer: Tokenizer, path: pathlib.Path, config: ForeignConfig, rows: int):
    """ConfigError where config.json or the tokenizer's own files mean other tokens by <s>, </s> and <unk> than the
    sentencepiece model.
    """
    own_ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "unk": tokenizer.unk}
    for name, number in own_ids.items():
        value = config.get(f"{name}_token_id")
        stated = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(value_id, bool) or not isinstance(value_id, int) for value_id in stated):
            raise ConfigError(f"{config.location}: {name}_token_id: needs a whole number, not {value!r:.80}")
        if stated and number not in stated:
            raise ConfigError(
                f"{config.location}: {name}_token_id: is {value!r:.80}, but {number} "
                f"({_piece(tokenizer, number)}) in the tokenizer of {path}"
            )
    pad = config.integer("pad_token_id", NO_PAD, least=NO_PAD)
    if pad >= rows:
        raise ConfigError(f"{config.location}: pad_token_id: is {pad}, and the model has {rows} rows")
    for file in (path / name for name in ("tokenizer_config.json", "special_tokens_map.json") if path.is_dir()):
        for name, number in own_ids.items():
            token = _content(_read(file).get(f"{name}_token"), file, f"{name}_token")
            if token and token != tokenizer.pieces([number])[0]:
                raise ConfigError(
                    f"{file}: {name}_token: is {token!r}, but {_piece(tokenizer, number)} in the "
                    "sentencepiece model beside it"
                )


def _piece(tokenizer: Tokenizer, number: int) -> str:
    return repr(tokenizer.pieces([number])[0])


# ----------------------------------------------------------------------------------------------------------------------
# Files of transformers


def listed(path: os.PathLike) -> dict[str, int]:
    """{token: id} of all tokens that a tokenizer's folder adds to its sentencepiece model; empty for a single file."""
    path = pathlib.Path(path)
    added: dict[str, int] = {}
    if not path.is_dir():
        return added
    require_content(path / MODEL_FILE)
    _read(path / "special_tokens_map.json")  # which the tokenizer reads too, with an error of its own
    file = path / "tokenizer.json"
    entries = _read(file).get("added_tokens") or []
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: added_tokens: needs a list, not {entries!r:.80}")
    for entry in entries:
        added |= _entry(entry, entry.get("id") if isinstance(entry, dict) else None, file)
    file = path / "tokenizer_config.json"
    for number, entry in _object(_read(file).get("added_tokens_decoder"), file, "added_tokens_decoder").items():
        added |= _entry(entry, int(number) if number.isdecimal() and len(number) <= DIGITS else number, file)
    for name, number in _read(path / "added_tokens.json").items():
        added |= _entry(name, number, path / "added_tokens.json")
    return added


def _entry(token, number, file: pathlib.Path) -> dict[str, int]:
    name = _content(token, file, "added token")
    if not name or isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(
            f"{file}: an added token needs a name and an id from 0 on, not {name!r:.80} and {number!r:.80}"
        )
    return {name: number}


def _content(token, file: pathlib.Path, key: str) -> str | None:
    """The string of a token, which may be given as an object with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise ConfigError(f"{file}: {key}: needs a string, not {token!r:.80}")
    return text


def _read(file: pathlib.Path) -> dict:
    return read_json(file) if file.exists() else {}


def _object(value, file: pathlib.Path, key: str) -> dict:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{file}: {key}: needs an object, not {value!r:.80}")
    return value or {}
