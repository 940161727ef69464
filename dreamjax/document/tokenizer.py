"""Text to token ids and back: a sentencepiece model and the special tokens, with every id read from files.

It reproduces the official code's slow LlamaTokenizer (transformers 4.35, `legacy` true and false); the LlamaTokenizer
of transformers 5 gives other ids. Tokens are plain Python ints. Special tokens are <s>, </s>, <unk> of the
sentencepiece model and the added ones after it, which mark images in a sequence (tokenize.py).
"""

import collections.abc
import dataclasses
import functools
import json
import os
import re

import sentencepiece

from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic

SPACE = "\u2581"  # what a space is in a piece
PAD_TOKEN = "[PAD]"
ROW_TOKENS = ("<im_patch>", "<im_start>", "<im_end>", "<dream_start>", "<dream_end>")
ADDED_TOKENS = (PAD_TOKEN, *ROW_TOKENS, "<image>", "<dream>")  # the last two stand for pictures in the official data

NO_TOKEN = 2**31 - 1  # an id that no row of logits has

MODEL_FILE = "tokenizer.model"
SPECIAL_FILE = "special_tokens.json"

# A second NormalizerSpec { add_dummy_prefix: false } in protobuf's wire format: appended to a model, it is merged into
# it.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A sentencepiece model with added tokens; make it by `from_model` or `load`. It can be pickled, compared and
    hashed.

    Without any added tokens it is that of a model of text alone: the ids of picture tokens are then NO_TOKEN. `legacy`
    is transformers' flag: True puts a space before the text and after every special token, False only before the text.
    """

    model: bytes = dataclasses.field(repr=False)
    added: tuple[tuple[str, int], ...]
    legacy: bool = True
    pad_token: str = PAD_TOKEN

    def __post_init__(self):
        names, ids, pieces = [n for n, _ in self.added], [i for _, i in self.added], self._processor.get_piece_size()
        if len(set(names)) < len(names) or len(set(ids)) < len(ids) or "" in names:
            raise ValueError(f"added tokens: names or ids repeat or are empty: {dict(self.added)}")
        if ids and min(ids) < pieces:
            raise ValueError(f"added tokens: id {min(ids)} is one of the sentencepiece model's {pieces}")
        needed = {*ROW_TOKENS, self.pad_token} if self.added else {self.pad_token}
        missing = sorted(needed - set(self.special))
        if missing:
            raise ValueError(f"added tokens: {', '.join(missing)} missing")

    @classmethod
    def from_model(
        cls,
        model: bytes | str | os.PathLike,
        added: dict[str, int] | None = None,
        legacy: bool = True,
        pad_token: str = PAD_TOKEN,
    ) -> "Tokenizer":
        """From a sentencepiece model or its file.

        Without `added`, ADDED_TOKENS follow its pieces in their order. ConfigError where a file is none.
        """
        if not isinstance(model, bytes):
            try:
                return cls.from_model(_path(model).read_bytes(), added, legacy, pad_token)
            except ValueError as error:
                raise ConfigError(f"{model}: {error}") from None
        if added is None:
            added = _complete({}, _processor(model).get_piece_size(), ADDED_TOKENS)
        return cls(model, tuple(sorted(added.items(), key=lambda item: item[1])), legacy, pad_token)

    @classmethod
    def load(cls, folder: str | os.PathLike, text_only: bool = False) -> "Tokenizer":
        """From a folder that `save` wrote, or one in the official release's layout.

        A folder of a bare LLaMA or Vicuna gets ADDED_TOKENS behind what it has, or nothing where it is `text_only`.
        Raises FileNotFoundError without a tokenizer.model, ConfigError where a file makes no sense.
        """
        path = _path(folder)
        if not (path / MODEL_FILE).exists():
            raise FileNotFoundError(f"{folder}: has no {MODEL_FILE} (a sentencepiece model)")
        try:
            model = (path / MODEL_FILE).read_bytes()
            if (path / SPECIAL_FILE).exists():
                return cls.from_model(model, *_own_settings(_read_json(path / SPECIAL_FILE)))
            return cls.from_model(model, *_official_settings(path, _processor(model), text_only))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{folder}: {f'{SPECIAL_FILE} lacks {error}' if isinstance(error, KeyError) else error}"
            ) from error

    def save(self, folder: str | os.PathLike):
        """Writes tokenizer.model and special_tokens.json."""
        path = _path(folder)
        path.mkdir(parents=True, exist_ok=True)
        special = {"legacy": self.legacy, "pad": self.pad_token, "added": dict(self.added)}
        atomic.write_text(path / SPECIAL_FILE, json.dumps(special, indent=2) + "\n")
        atomic.write_bytes(path / MODEL_FILE, self.model)  # last: without the other it would be read in another layout

    def __reduce__(self):
        return Tokenizer, (
            self.model,
            self.added,
            self.legacy,
            self.pad_token,
        )  # without the processors: they are rebuilt

    # ------------------------------------------------------------------------------------------------------------------
    # Ids

    bos = property(lambda self: self._processor.bos_id(), doc="Id of <s>.")
    eos = property(lambda self: self._processor.eos_id(), doc="Id of </s>.")
    unk = property(lambda self: self._processor.unk_id(), doc="Id of <unk>.")
    pad = property(lambda self: self.special[self.pad_token], doc="Id that fills rows.")
    im_patch = property(
        lambda self: self.special.get("<im_patch>", NO_TOKEN), doc="Id that every picture slot carries."
    )
    im_start = property(lambda self: self.special.get("<im_start>", NO_TOKEN), doc="Id before an input image.")
    im_end = property(lambda self: self.special.get("<im_end>", NO_TOKEN), doc="Id after an input image.")
    dream_start = property(
        lambda self: self.special.get("<dream_start>", NO_TOKEN),
        doc="Id before the dream queries: an image comes here.",
    )
    dream_end = property(lambda self: self.special.get("<dream_end>", NO_TOKEN), doc="Id after the dream queries.")

    @functools.cached_property
    def special(self) -> dict[str, int]:
        """Every special token and its id."""
        control = {self._processor.id_to_piece(i): i for i in (self.unk, self.bos, self.eos)}
        return {**control, **dict(self.added)}

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that plain text never gets."""
        return frozenset(self.special.values())

    @property
    def piece_count(self) -> int:
        """Number of the sentencepiece model's own ids."""
        return self._processor.get_piece_size()

    @functools.cached_property
    def size(self) -> int:
        """Number of ids: the pieces and the added tokens."""
        return max([self.piece_count - 1, *self.special.values()]) + 1

    # ------------------------------------------------------------------------------------------------------------------
    # Text to ids

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`, without <s> and </s>.

        Strings that look like special tokens stay plain text, so no text can forge a control id; with `special` they
        become their ids, as in the official code.
        """
        text = self._prepare(text)
        if not text or not special:
            return self._encode_run(text) if text else []
        parts = [part for part in self._special_pattern.split(text) if part]
        ids = [i for part in parts for i in ([self.special[part]] if part in self.special else self._encode_run(part))]
        if (
            not self.legacy
            and len(ids) > 1
            and ids[0] == self._processor.piece_to_id(SPACE)
            and ids[1] in self.special_ids
        ):
            return ids[1:]  # the space put before the text, alone
        return ids

    def encode_with_offsets(self, text: str, continued: bool = False) -> tuple[list[int], list[int]]:
        """(ids, starts): `encode(text)`, and the index in `text` of the character at which each piece begins.

        The bytes of one character all begin at it; the space put before the text begins at 0. A `continued` text stands
        behind a special token of its own string: only legacy tokenizers put a space before it.
        """
        prepared = self._prepare(text)
        if not prepared:
            return [], []
        if self.legacy:
            encoded = self._processor.encode(prepared, out_type="offset_mapping")
            return list(encoded["ids"]), [start for start, _ in encoded["offsets"]]
        run = prepared[1:] if continued else prepared
        behind = self._unk_piece if run.startswith((SPACE, " ")) else ""  # as in _encode_run
        encoded = self._bare_processor.encode(behind + run, out_type="offset_mapping")
        inserted, skip = len(behind) + (not continued), self._unk_length if behind else 0
        return list(encoded["ids"][skip:]), [max(start - inserted, 0) for start, _ in encoded["offsets"][skip:]]

    def _prepare(self, text: str) -> str:
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)  # lone surrogates, which found text has and UTF-8 has not
        return text if self.legacy or not text else SPACE + text.replace(SPACE, " ")

    def _encode_run(self, text: str) -> list[int]:
        """Ids of text without special tokens, after `_prepare`."""
        if self.legacy:
            return self._processor.encode(text)
        if not text.startswith((SPACE, " ")):
            return self._bare_processor.encode(text)
        # Behind a piece that is cut off again: at the very beginning sentencepiece may drop a space.
        return self._bare_processor.encode(self._unk_piece + text)[self._unk_length :]

    # ------------------------------------------------------------------------------------------------------------------
    # Ids to text

    def pieces(self, ids: collections.abc.Iterable[int]) -> list[str]:
        """The string of each id; raises ValueError for an id that has none."""
        count, added = self._processor.get_piece_size(), {i: name for name, i in self.added}
        ids = [int(i) for i in ids]
        unknown = [i for i in ids if not 0 <= i < count and i not in added]
        if unknown:
            raise ValueError(f"{unknown[0]} is the id of no token; there are {self.size}")
        return [self._processor.id_to_piece(i) if i < count else added[i] for i in ids]

    def decode(self, ids: collections.abc.Iterable[int], skip_special: bool = False) -> str:
        """Text of whole rows, to the letter what the official code's tokenizer gives: added tokens are set off by
        spaces
        and one or (legacy) two spaces at the beginning are taken for the tokenizer's own. See `decode_continuation`.
        """
        texts, run = [], []
        set_off = {name for name, _ in self.added if name != self.pad_token}
        for piece in self.pieces(ids):
            if skip_special and piece in self.special:
                continue
            if piece not in set_off:
                run.append(piece)
                continue
            text = self._decode_run(run)
            texts += [text, piece] if text else [piece]
            run = []
        return " ".join(texts + [self._decode_run(run)] if run else texts)

    def decode_continuation(self, ids: collections.abc.Iterable[int]) -> str:
        """Text of ids in the middle of a text: nothing is added or taken, special tokens are left out.

        At the beginning of a text it therefore starts with the space that `encode` put there. For streaming: bytes of
        an unfinished character come out as U+FFFD.
        """
        ids = [int(i) for i in ids]
        self.pieces(ids)  # names an id that has no token
        return self._bare_processor.decode([i for i in ids if i not in self.special_ids])

    def _decode_run(self, pieces: list[str]) -> str:
        """Pieces, <s>, </s>, <unk> and the pad token to text."""
        if not pieces:
            return ""
        processor = self._processor if self.legacy else self._bare_processor
        pieces = [pieces[0].removeprefix(SPACE), *pieces[1:]]
        text, plain = "", []
        for i, piece in enumerate(pieces):
            if piece not in self.special:
                plain.append(piece)
                continue
            gap = " " if self.legacy and i > 0 and pieces[i - 1] not in self.special else ""
            text += gap + processor.decode(plain) + piece if plain else gap + piece
            plain = []
        return text + processor.decode(plain) if plain else text

    # ------------------------------------------------------------------------------------------------------------------
    # Parts

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self.model)

    @functools.cached_property
    def _bare_processor(self) -> sentencepiece.SentencePieceProcessor:
        """The processor without the space before every text."""
        return _processor(self.model + _NO_DUMMY_PREFIX)

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @functools.cached_property
    def _unk_piece(self) -> str:
        return self._processor.id_to_piece(self.unk)

    @functools.cached_property
    def _unk_length(self) -> int:
        return len(self._bare_processor.encode(self._unk_piece))


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError):
        raise ValueError(f"{MODEL_FILE}: is no sentencepiece model") from None
    if min(processor.bos_id(), processor.eos_id(), processor.unk_id()) < 0:
        raise ValueError(f"{MODEL_FILE}: lacks one of <s>, </s>, <unk>")
    return processor


def _own_settings(values: dict) -> tuple[dict[str, int], bool, str]:
    """(added tokens, legacy, pad token) of a special_tokens.json.

    ValueError where a value is of another type, which would only show in a row.
    """
    added, legacy, pad = values["added"], values["legacy"], values["pad"]
    if not isinstance(added, dict) or not all(type(i) is int and 0 <= i < NO_TOKEN for i in added.values()):
        raise ValueError(f"{SPECIAL_FILE}: added: needs an id for each token, a whole number from 0 to {NO_TOKEN - 1}")
    if not isinstance(legacy, bool) or not isinstance(pad, str):
        raise ValueError(f"{SPECIAL_FILE}: needs true or false for legacy and a token for pad")
    return added, legacy, pad


def _official_settings(
    folder, processor: sentencepiece.SentencePieceProcessor, text_only: bool
) -> tuple[dict[str, int], bool, str]:
    """(added tokens, legacy, pad token) of a folder written by transformers' slow LlamaTokenizer."""
    config = _read_json(folder / "tokenizer_config.json")
    names = _read_json(folder / "special_tokens_map.json")
    listed = {entry["content"]: int(i) for i, entry in (config.get("added_tokens_decoder") or {}).items()}
    listed.update(_read_json(folder / "added_tokens.json"))
    pieces = processor.get_piece_size()
    added = {name: i for name, i in listed.items() if i >= pieces or processor.id_to_piece(i) != name}
    pad = names.get("pad_token") or config.get("pad_token")
    pad = pad["content"] if isinstance(pad, dict) else pad
    if text_only and not set(ROW_TOKENS) <= set(added):
        added, pad = {}, processor.id_to_piece(processor.unk_id())
    elif not set(ROW_TOKENS) <= set(added):  # a bare LLaMA
        added, pad = _complete(added, pieces, ADDED_TOKENS), PAD_TOKEN
    elif pad is None or pad not in added:  # its rows of embeddings are fixed: nothing may be appended
        pad = PAD_TOKEN if PAD_TOKEN in added else processor.id_to_piece(processor.unk_id())
    legacy = config.get("legacy")
    return added, legacy is None or bool(legacy), pad


def _complete(added: dict[str, int], pieces: int, names: tuple[str, ...]) -> dict[str, int]:
    """`added` with the wanted tokens that it lacks behind the highest id."""
    first = max([pieces - 1, *added.values()]) + 1
    missing = [name for name in names if name not in added]
    return {**added, **{name: first + i for i, name in enumerate(missing)}}


def _read_json(path) -> dict:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: is no JSON object")
    return values


def _path(path: str | os.PathLike):
    from etils import epath  # gs:// and local paths alike

    return epath.Path(path)
