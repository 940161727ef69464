"""Weight transfer from earlier runs, down to the rows of added tokens, and the record of the weights' origins.

`init_from` lists workdirs or model folders, each with a pattern; a parameter comes from the origin whose pattern
matches its path. Embedding and head have a row per token. The row of an added token comes from

  1. the origin whose pattern matches the token's name, as `<dream_` or `.` do, else
  2. the origin of the weights that were trained with it: the dream queries with <dream_start>, <dream_end> and <dream>,
     the visual projector with <im_start>, <im_end>, <im_patch> and <image>, else
  3. the origin of the embedding or the head.

The official code restarts these rows with each stage, so that queries and projectors meet other tokens than they were
trained with. Rows are matched by the token's name, not its id. An origin that lacks a token is skipped, and a row that
no origin has keeps its initial value.
"""

import collections
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dreamjax.config import InitFrom, RunConfig
from dreamjax.config.validation import to_dict
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic
from dreamjax.training import checkpoint, model_folder
from dreamjax.training.checksums import reading

VOCABULARY = {"llm/embed/embedding": 0, "llm/head/kernel": 1}  # the parameters with a row per token, and its axis
TRAINED_WITH = {
    **dict.fromkeys(("<dream_start>", "<dream_end>", "<dream>"), "dream_queries"),
    **dict.fromkeys(("<im_start>", "<im_end>", "<im_patch>", "<image>"), "visual_projector"),
}
# of a model folder or an export; the meta of a workdir's checkpoints holds the same
ORIGINS_FILE = "origins.json"


class _Origin(NamedTuple):
    """An entry of `init_from`, opened."""

    key: str  # config.init_from[0]
    config: InitFrom
    folder: epath.Path
    shapes: dict[str, tuple[int, ...]]  # of all its parameters, by path
    tokenizer: Tokenizer | None  # the run's own where the folder has none

    def matches(self, name: str) -> bool:
        return re.search(self.config.pattern, name) is not None

    def provides(self, part: str) -> bool:
        """True if its pattern matches a parameter of the part that it has."""
        return any(path.split("/")[0] == part and self.matches(path) for path in self.shapes)

    def named_rows(self, path: str) -> dict[str, int]:
        """{added token: row} of its embedding or head."""
        count = self.shapes[path][VOCABULARY[path]]
        return {token: row for token, row in self.tokenizer.added if row < count} if self.tokenizer else {}


class _Rows(NamedTuple):
    """Some rows of a parameter: leaf[to] = origin_leaf[source]."""

    name: str  # a token's name, [first:end], or "" for those of the tokenizer's pieces
    to: np.ndarray
    source: np.ndarray


class _Piece(NamedTuple):
    """A parameter, or some rows of one, from one origin."""

    path: str
    origin: _Origin | None  # None: the initial value stays
    rows: _Rows | None = None  # None: all

    @property
    def name(self) -> str:
        return f"{self.path}/{self.rows.name}" if self.rows and self.rows.name else self.path


def transfer(config: RunConfig, params: dict, tokenizer: Tokenizer | None, verify: bool = True) -> tuple[dict, dict]:
    """(parameters, record): those that `init_from` matches are replaced; arrays keep their sharding and dtype.

    The record lists the origins with their parameters, and the parameters without one (see `origins_of`). ConfigError
    where two origins match the same parameter, a pattern matches none, an origin does not fit, or (with `verify`) its
    arrays differ from their checksums.
    """
    leaves = checkpoint.flatten(params)
    origins = [_open(f"config.init_from[{i}]", entry, tokenizer) for i, entry in enumerate(config.init_from)]
    pieces = _pieces(origins, {path: leaf.shape for path, leaf in leaves.items()}, tokenizer)
    entries = []
    for origin in origins:
        own_pieces = [piece for piece in pieces if piece.origin is origin]
        if not own_pieces:
            raise ConfigError(f"{origin.key}.pattern: {origin.config.pattern!r} matches no parameter")
        origin_leaves = _read(origin, {piece.path: leaves[piece.path] for piece in own_pieces}, verify)
        for piece in own_pieces:
            leaves[piece.path] = _write(leaves[piece.path], origin_leaves[piece.path], piece)
        entries.append(_entry(origin, _names(own_pieces, pieces), origin_leaves))
    fresh = [piece for piece in pieces if piece.origin is None]
    for piece in fresh:
        by_path = _origin_by_path(origins, piece.path)
        if by_path and by_path.config.new_rows == "mean" and piece.rows:
            others = [other.rows for other in pieces if other.path == piece.path and other.origin and other.rows]
            old_rows = np.concatenate([rows.to for rows in others])
            leaves[piece.path] = _write_mean(leaves[piece.path], piece.path, piece.rows, old_rows)
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values()), {
        "origins": entries,
        "fresh": _names(fresh, pieces),
    }


def _open(key: str, config: InitFrom, tokenizer: Tokenizer | None) -> _Origin:
    folder = checkpoint.open_folder(config.path)
    shapes = checkpoint.flatten(checkpoint.parameter_shapes(model_folder.read_card(folder).model))
    has_tokenizer = tokenizer and (folder / "tokenizer").exists()
    return _Origin(
        key,
        config,
        folder,
        {path: leaf.shape for path, leaf in shapes.items()},
        Tokenizer.load(folder / "tokenizer") if has_tokenizer else tokenizer,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Matching parameters and origins


def _pieces(origins: list[_Origin], shapes: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer | None) -> list[_Piece]:
    """Every parameter of the run once, entire or by its rows."""
    pieces = []
    for path, shape in shapes.items():
        by_path = _origin_by_path(origins, path)
        if by_path:
            origin_shape = by_path.shapes.get(path)
            if origin_shape != shape and not (
                origin_shape and path in VOCABULARY and _has_grown(path, origin_shape, shape)
            ):
                raise ConfigError(
                    f"{by_path.key}: {by_path.config.path} has {origin_shape or 'nothing'} for {path} {shape}"
                )
        pieces += (
            _row_pieces(origins, by_path, path, shape, tokenizer) if path in VOCABULARY else [_Piece(path, by_path)]
        )
    return pieces


def _has_grown(path: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    axis = VOCABULARY[path]
    return before[axis] <= after[axis] and before[1 - axis] == after[1 - axis]


def _origin_by_path(origins: list[_Origin], path: str) -> _Origin | None:
    """The only origin whose pattern matches a parameter's path."""
    return _only([origin for origin in origins if origin.matches(path)], path)


def _only(named: list[_Origin], name: str) -> _Origin | None:
    if len(named) > 1:
        first, second = named[:2]
        raise ConfigError(
            f"{first.key} and {second.key}: {first.config.pattern!r} and {second.config.pattern!r} both "
            f"match {name}; only one may"
        )
    return named[0] if named else None


def _row_pieces(
    origins: list[_Origin], by_path: _Origin | None, path: str, shape: tuple[int, ...], tokenizer: Tokenizer | None
) -> list[_Piece]:
    """The rows of an embedding or a head: of the tokenizer's pieces, of added tokens, and those without an origin."""
    if by_path and tokenizer and (by_path.tokenizer is None or by_path.tokenizer.model != tokenizer.model):
        advice = f"set config.data.tokenizer to {by_path.folder / 'tokenizer'}"
        raise ConfigError(
            f"{by_path.key}: the rows of {path} in {by_path.config.path} belong to other tokens than this "
            f"run's; {advice}"
        )
    named = dict(tokenizer.added) if tokenizer else {}
    fits = [origin for origin in origins if path in origin.shapes and _has_grown(path, origin.shapes[path], shape)]
    pieces: list[tuple[_Origin | None, _Rows]] = []
    for token, row in named.items():
        origin = _origin_of_row([origin for origin in fits if token in origin.named_rows(path)], by_path, token)
        source = origin.named_rows(path)[token] if origin else row
        pieces.append((origin, _Rows(token, np.array([row]), np.array([source]))))
    plain = np.setdiff1d(np.arange(shape[VOCABULARY[path]]), list(named.values()))
    if by_path:
        all_rows = np.arange(by_path.shapes[path][VOCABULARY[path]])
        origin_rows = np.setdiff1d(all_rows, list(by_path.named_rows(path).values()))
        plain, missing = np.intersect1d(plain, origin_rows), np.setdiff1d(plain, origin_rows)
        if len(missing):
            pieces.append((None, _Rows(f"[{missing[0]}:{missing[-1] + 1}]", missing, missing)))
    pieces.insert(0, (by_path, _Rows("", plain, plain)))
    if all(origin is by_path and np.array_equal(rows.to, rows.source) for origin, rows in pieces):
        return [_Piece(path, by_path)]
    return [_Piece(path, origin, rows) for origin, rows in pieces]


def _origin_of_row(able: list[_Origin], by_path: _Origin | None, token: str) -> _Origin | None:
    """The origin of an added token's row among the origins that have it, by the rule in this file's docstring."""
    if named := _only([origin for origin in able if origin.matches(token)], f"the row of {token}"):
        return named
    trained_with = [origin for origin in able if origin.provides(TRAINED_WITH.get(token, ""))]
    return trained_with[0] if trained_with else by_path if by_path in able else None


def _names(selected: list[_Piece], pieces: list[_Piece]) -> list[str]:
    """The names of the selected pieces; a parameter with all its rows among them is named by its path."""
    split = {piece.path for piece in pieces if piece not in selected}
    return list(dict.fromkeys(piece.name if piece.path in split else piece.path for piece in selected))


# ----------------------------------------------------------------------------------------------------------------------
# Moving arrays


def _read(origin: _Origin, leaves: dict[str, jax.Array], verify: bool) -> dict[str, jax.Array]:
    """The origin's parameters {path: array} in the dtype and sharding of the run's `leaves`."""
    target = {
        path: jax.ShapeDtypeStruct(origin.shapes[path], leaf.dtype, sharding=leaf.sharding)
        for path, leaf in leaves.items()
    }
    return checkpoint.flatten(
        checkpoint.read_params(origin.folder, checkpoint.unflatten(target), origin.config.which, verify)
    )


def _write(leaf: jax.Array, origin_leaf: jax.Array, piece: _Piece) -> jax.Array:
    if piece.rows is None:
        return origin_leaf
    values = jnp.take(origin_leaf, piece.rows.source, VOCABULARY[piece.path])
    return _write_rows(leaf, values, piece.path, piece.rows)


def _write_mean(leaf: jax.Array, path: str, rows: _Rows, old_rows: np.ndarray) -> jax.Array:
    """Sets `rows` to the mean of `old_rows`."""
    axis = VOCABULARY[path]
    return _write_rows(leaf, jnp.mean(jnp.take(leaf, old_rows, axis), axis, keepdims=True), path, rows)


def _write_rows(leaf: jax.Array, values: jax.Array, path: str, rows: _Rows) -> jax.Array:
    index = (slice(None),) * VOCABULARY[path] + (rows.to,)
    return jax.device_put(leaf.at[index].set(values), leaf.sharding)


# ----------------------------------------------------------------------------------------------------------------------
# The record


def _entry(origin: _Origin, names: list[str], leaves: dict[str, jax.Array]) -> dict:
    """The record's entry for one origin, its own origins included."""
    before = origins_of(origin.folder, origin.config.which)
    taken = {"pattern": origin.config.pattern, "parameters": names, "checksum": checkpoint.checksum(leaves)}
    return {
        "path": before["path"],
        "step": before["step"],
        **taken,
        "origins": before["origins"],
        "fresh": before["fresh"],
    }


def origins_of(folder: epath.Path, which: str = "last") -> dict:
    """The chain of origins of a workdir's checkpoint or a model folder, back to the first run.

    {path, step (None for a model folder), origins, fresh}: `origins` is a list of the same with, in addition, the
    pattern, the transferred parameters (rows of tokens as PARAMETER/<token>) and the checksum of these parameters,
    entire and in the dtype of the run that took them; foreign weights have their files with checksums instead. `fresh`
    are the parameters that were initialised. Unknown values are None.
    """
    if (folder / "params").exists():
        file = folder / ORIGINS_FILE
        record, step = _read_record(file) if file.exists() else _of_card(model_folder.read_card(folder)), None
    else:
        step = checkpoint.step_of(folder, which)
        record = checkpoint.read_meta(folder, step)
    return {"path": str(folder), "step": step, "origins": record.get("origins"), "fresh": record.get("fresh")}


def _read_record(file: epath.Path) -> dict:
    """The record of a model folder from any source; ConfigError where it is malformed. Its paths are never opened."""
    with reading(file):
        record = json.loads(file.read_text())
        record = {"origins": record["origins"], "fresh": record["fresh"]}
        format_summary(record)  # fails on a malformed record
    return record


def _of_card(card: model_folder.ModelCard) -> dict:
    """The record of an imported model; empty where its card has no origins."""
    if not card.origins:
        return {}
    unknown = {"step": None, "pattern": None, "checksum": None, "origins": None, "fresh": None}

    def known(origin: model_folder.Origin) -> dict:
        return {
            "path": origin.source,
            "format": origin.format,
            "parameters": list(origin.parts),
            "files": tuple(to_dict(file) for file in origin.files),
        }

    entries = [known(origin) | unknown for origin in card.origins]
    return {"origins": entries, "fresh": list(card.fresh)}


def write_import(folder: epath.Path, card: model_folder.ModelCard) -> None:
    """Writes the origins of an imported model's sources, as far as they have a record, as exports do."""
    record, known = _of_card(card), False
    for entry in record.get("origins", ()):
        file = epath.Path(entry["path"]) / ORIGINS_FILE
        if file.exists():
            entry |= _read_record(file)
            known = True
    if known:
        atomic.write_text(folder / ORIGINS_FILE, json.dumps(record, indent=1) + "\n")


def write_origins(folder: epath.Path, source: epath.Path, which: str) -> None:
    """Writes the record of a model folder or export whose parameters are all those of a workdir or model folder."""
    before = origins_of(source, which)
    entry = {"path": before["path"], "step": before["step"], "pattern": ".", "parameters": None, "checksum": None}
    record = {"origins": [entry | {"origins": before["origins"], "fresh": before["fresh"]}], "fresh": []}
    atomic.write_text(folder / ORIGINS_FILE, json.dumps(record, indent=1) + "\n")


def format_summary(record: dict) -> str:
    """A record with its chain of origins, as indented lines."""
    return "\n".join(_lines(record, ""))


def _lines(record: dict, indent: str) -> list[str]:
    lines = []
    for origin in record["origins"] or []:
        at = "" if origin["step"] is None else f" at step {origin['step']}"
        taken = "everything" if origin["parameters"] is None else _count_by_part(origin["parameters"])
        facts = [f"{name} {origin[name]}" for name in ("format", "pattern", "checksum") if origin.get(name)]
        lines.append(f"{indent}from {origin['path']}{at}: {taken}" + (f" ({', '.join(facts)})" if facts else ""))
        lines += [
            f"{indent}  {file['sha256']}  {file['size']:15,d}  {file['name']}" for file in origin.get("files", ())
        ]
        lines += _lines(origin, indent + "  ")
    if record["fresh"]:
        lines.append(f"{indent}initialised{' in that run' if indent else ''}: {_count_by_part(record['fresh'])}")
    return lines


def _count_by_part(names: list[str]) -> str:
    """Parameters counted by part, rows of tokens by name: llm (12 parameters), llm/embed/embedding/<dream_start>."""
    counts: collections.Counter[str] = collections.Counter()
    rows: list[str] = []
    for name in names:
        if name.rpartition("/")[0] in VOCABULARY:
            rows.append(name)
        else:
            part, *inside = name.split("/")
            counts[part] += bool(inside)
    counted = [
        f"{part} ({count} parameter{'s' if count > 1 else ''})" if count else part for part, count in counts.items()
    ]
    return ", ".join([*counted, *rows])
