"""What a run takes over from earlier ones, down to the rows of single tokens, and the record of what came from where.

`init_from` lists workdirs or model folders, each with a pattern; a parameter comes from the one whose pattern finds its
path. Embedding and head have a row per token. The row of an added token comes from

  1. the origin whose pattern finds the token's name, as `<dream_` or `.` do, else
  2. the one that hands over what was trained behind it: the dream queries behind <dream_start>, <dream_end> and
     <dream>, the
     visual projector behind <im_start>, <im_end>, <im_patch> and <image>, else
  3. the one that hands over the embedding or the head.

The official code restarts these rows with each stage, so that queries and projectors meet other tokens than they were
trained with. Rows are found by the token's name, not its id. An origin that lacks a token is passed over, and a row
that none has stays as the run began it.
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
TRAINED_BEHIND = {
    **dict.fromkeys(("<dream_start>", "<dream_end>", "<dream>"), "dream_queries"),
    **dict.fromkeys(("<im_start>", "<im_end>", "<im_patch>", "<image>"), "visual_projector"),
}
# of a model folder, and beside what is exported; a workdir's checkpoints hold the same in their meta
ORIGINS_FILE = "origins.json"


class _Origin(NamedTuple):
    """An entry of `init_from`, opened."""

    key: str  # config.init_from[0]
    given: InitFrom
    folder: epath.Path
    shapes: dict[str, tuple[int, ...]]  # of all that it holds, by path
    tokenizer: Tokenizer | None  # the run's own where the folder has none

    def finds(self, name: str) -> bool:
        return re.search(self.given.pattern, name) is not None

    def gives(self, part: str) -> bool:
        """Whether it names a parameter of the part that it has."""
        return any(path.split("/")[0] == part and self.finds(path) for path in self.shapes)

    def named_rows(self, path: str) -> dict[str, int]:
        """The rows of added tokens that its embedding or head has."""
        count = self.shapes[path][VOCABULARY[path]]
        return {token: row for token, row in self.tokenizer.added if row < count} if self.tokenizer else {}


class _Unit(NamedTuple):
    """What comes from one place: a parameter, or some rows of one, mine[to] = theirs[source]."""

    path: str
    origin: _Origin | None  # None: stays as the run began it
    rows: str = ""  # which, where it is not the whole parameter: a token's name, or [first:end]
    to: np.ndarray | None = None
    source: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.path}/{self.rows}" if self.rows else self.path


def take_over(config: RunConfig, params: dict, tokenizer: Tokenizer | None, verify: bool = True) -> tuple[dict, dict]:
    """(parameters, record): those that `init_from` names are replaced; arrays keep their sharding and dtype.

    The record lists the origins, each with the parameters that it gave, and what came from none (see `origins_of`).
    Raises ConfigError where two origins name the same parameter, a pattern names none, an origin does not fit, or (with
    `verify`) its arrays are not those that their checksums tell of.
    """
    mine = checkpoint.flatten(params)
    origins = [_open(f"config.init_from[{number}]", given, tokenizer) for number, given in enumerate(config.init_from)]
    units = _units(origins, {path: leaf.shape for path, leaf in mine.items()}, tokenizer)
    entries = []
    for origin in origins:
        given = [unit for unit in units if unit.origin is origin]
        if not given:
            raise ConfigError(f"{origin.key}.pattern: {origin.given.pattern!r} matches no parameter")
        theirs = _read(origin, {unit.path: mine[unit.path] for unit in given}, verify)
        for unit in given:
            mine[unit.path] = _put(mine[unit.path], theirs[unit.path], unit)
        entries.append(_entry(origin, _names(given, units), theirs))
    fresh = [unit for unit in units if unit.origin is None]
    for unit in fresh:
        general = _general(origins, unit.path)
        if general and general.given.new_rows == "mean":
            old = np.concatenate([other.to for other in units if other.path == unit.path and other.origin])
            mine[unit.path] = _put_mean(mine[unit.path], unit, old)
    return jax.tree.unflatten(jax.tree.structure(params), mine.values()), {
        "origins": entries,
        "fresh": _names(fresh, units),
    }


def _open(key: str, given: InitFrom, tokenizer: Tokenizer | None) -> _Origin:
    folder = checkpoint.open_folder(given.path)
    shapes = checkpoint.flatten(checkpoint.parameter_shapes(model_folder.read_card(folder).model))
    own = tokenizer and (folder / "tokenizer").exists()
    return _Origin(
        key,
        given,
        folder,
        {path: leaf.shape for path, leaf in shapes.items()},
        Tokenizer.load(folder / "tokenizer") if own else tokenizer,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Who gives what


def _units(origins: list[_Origin], mine: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer | None) -> list[_Unit]:
    """Every parameter of the run once, whole or by its rows."""
    units = []
    for path, shape in mine.items():
        general = _general(origins, path)
        if general:
            theirs = general.shapes.get(path)
            if theirs != shape and not (theirs and path in VOCABULARY and _has_grown(path, theirs, shape)):
                raise ConfigError(f"{general.key}: {general.given.path} has {theirs or 'nothing'} for {path} {shape}")
        units += _row_units(origins, general, path, shape, tokenizer) if path in VOCABULARY else [_Unit(path, general)]
    return units


def _has_grown(path: str, before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    axis = VOCABULARY[path]
    return before[axis] <= now[axis] and before[1 - axis] == now[1 - axis]


def _general(origins: list[_Origin], path: str) -> _Origin | None:
    """The one origin that names a parameter by its path."""
    return _only([origin for origin in origins if origin.finds(path)], path)


def _only(named: list[_Origin], name: str) -> _Origin | None:
    if len(named) > 1:
        first, second = named[:2]
        raise ConfigError(
            f"{first.key} and {second.key}: {first.given.pattern!r} and {second.given.pattern!r} both "
            f"name {name}; one of them may"
        )
    return named[0] if named else None


def _row_units(
    origins: list[_Origin], general: _Origin | None, path: str, shape: tuple[int, ...], tokenizer: Tokenizer | None
) -> list[_Unit]:
    """The rows of an embedding or a head.

    Those of the tokenizer's own pieces, each added token's, and those that none has.
    """
    if general and tokenizer and general.tokenizer.model != tokenizer.model:
        advice = f"set config.data.tokenizer to {general.folder / 'tokenizer'}"
        raise ConfigError(
            f"{general.key}: the rows of {path} in {general.given.path} belong to other tokens than this "
            f"run's; {advice}"
        )
    named = dict(tokenizer.added) if tokenizer else {}
    fits = [origin for origin in origins if path in origin.shapes and _has_grown(path, origin.shapes[path], shape)]
    units = []
    for token, row in named.items():
        origin = _origin_of_row([origin for origin in fits if token in origin.named_rows(path)], general, token)
        units.append(
            _Unit(path, origin, token, np.array([row]), np.array([origin.named_rows(path)[token] if origin else row]))
        )
    rest = np.setdiff1d(np.arange(shape[VOCABULARY[path]]), list(named.values()))
    if general:
        theirs = np.setdiff1d(
            np.arange(general.shapes[path][VOCABULARY[path]]), list(general.named_rows(path).values())
        )
        rest, missing = np.intersect1d(rest, theirs), np.setdiff1d(rest, theirs)
        if len(missing):
            units.append(_Unit(path, None, f"[{missing[0]}:{missing[-1] + 1}]", missing, missing))
    units.insert(0, _Unit(path, general, "", rest, rest))
    same = all(unit.origin is general and np.array_equal(unit.to, unit.source) for unit in units)
    return [_Unit(path, general)] if same else units


def _origin_of_row(able: list[_Origin], general: _Origin | None, token: str) -> _Origin | None:
    """Who gives the row of an added token, among the origins that have it: the rule of this file's docstring."""
    if named := _only([origin for origin in able if origin.finds(token)], f"the row of {token}"):
        return named
    behind = [origin for origin in able if origin.gives(TRAINED_BEHIND.get(token, ""))]
    return behind[0] if behind else general if general in able else None


def _names(some: list[_Unit], units: list[_Unit]) -> list[str]:
    """The names of some of the units; a parameter all of whose rows are among them stands by its path."""
    split = {unit.path for unit in units if unit not in some}
    return list(dict.fromkeys(unit.name if unit.path in split else unit.path for unit in some))


# ----------------------------------------------------------------------------------------------------------------------
# Moving arrays


def _read(origin: _Origin, wanted: dict[str, jax.Array], verify: bool) -> dict[str, jax.Array]:
    """The origin's parameters {path: array}, with the dtype and the sharding of the run's own, alone in memory."""
    target = {
        path: jax.ShapeDtypeStruct(origin.shapes[path], leaf.dtype, sharding=leaf.sharding)
        for path, leaf in wanted.items()
    }
    return checkpoint.flatten(
        checkpoint.read_params(origin.folder, checkpoint.unflatten(target), origin.given.which, verify)
    )


def _put(mine: jax.Array, theirs: jax.Array, unit: _Unit) -> jax.Array:
    if unit.to is None:
        return theirs
    return _write_rows(mine, _take_rows(theirs, unit.source, VOCABULARY[unit.path]), unit)


def _put_mean(mine: jax.Array, unit: _Unit, old: np.ndarray) -> jax.Array:
    """Rows that no origin has, as the mean of the rows `old`."""
    axis = VOCABULARY[unit.path]
    return _write_rows(mine, jnp.mean(_take_rows(mine, old, axis), axis, keepdims=True), unit)


def _take_rows(array: jax.Array, rows: np.ndarray, axis: int) -> jax.Array:
    return jnp.take(array, rows, axis)


def _write_rows(array: jax.Array, values: jax.Array, unit: _Unit) -> jax.Array:
    where = (slice(None),) * VOCABULARY[unit.path] + (unit.to,)
    return jax.device_put(array.at[where].set(values), array.sharding)


# ----------------------------------------------------------------------------------------------------------------------
# The record


def _entry(origin: _Origin, names: list[str], theirs: dict[str, jax.Array]) -> dict:
    """What the record says of one origin, its own origins included."""
    before = origins_of(origin.folder, origin.given.which)
    mine = {"pattern": origin.given.pattern, "parameters": names, "checksum": checkpoint.checksum(theirs)}
    return {
        "path": before["path"],
        "step": before["step"],
        **mine,
        "origins": before["origins"],
        "fresh": before["fresh"],
    }


def origins_of(folder: epath.Path, which: str = "last") -> dict:
    """Where a workdir's checkpoint or a model folder comes from, back to the first run.

    {path, step (None for a model folder), origins, fresh}: `origins` is a list of the same, each besides with the
    pattern, the parameters that were taken (rows of tokens as PARAMETER/<token>) and the checksum of these parameters,
    whole and in the dtype of the taker; foreign weights have their files with checksums instead. `fresh` are the
    parameters that came from none. What is not known is None.
    """
    if (folder / "params").exists():
        file = folder / ORIGINS_FILE
        record, step = _read_record(file) if file.exists() else _of_card(model_folder.read_card(folder)), None
    else:
        step = checkpoint.step_of(folder, which)
        record = checkpoint.read_meta(folder, step)
    return {"path": str(folder), "step": step, "origins": record.get("origins"), "fresh": record.get("fresh")}


def _read_record(file: epath.Path) -> dict:
    """The record of a model folder, which may be anybody's.

    ConfigError where it is none. Its paths are told, and never opened.
    """
    with reading(file):
        record = json.loads(file.read_text())
        record = {"origins": record["origins"], "fresh": record["fresh"]}
        format_summary(record)  # what cannot be told is no record
    return record


def _of_card(card: model_folder.ModelCard) -> dict:
    """The record of an imported model; one that says nothing of its origins is of unknown descent."""
    if not card.origins:
        return {}
    unknown = {"step": None, "pattern": None, "checksum": None, "origins": None, "fresh": None}

    def known(origin):
        return {
            "path": origin.source,
            "format": origin.format,
            "parameters": list(origin.parts),
            "files": to_dict(origin.files),
        }

    entries = [known(origin) | unknown for origin in card.origins]
    return {"origins": entries, "fresh": list(card.fresh)}


def write_import(folder: epath.Path, card: model_folder.ModelCard):
    """Writes down in an imported model where its sources came from, as far as they say so.

    Those that were exported here do.
    """
    record, known = _of_card(card), False
    for entry in record.get("origins", ()):
        file = epath.Path(entry["path"]) / ORIGINS_FILE
        if file.exists():
            entry |= _read_record(file)
            known = True
    if known:
        atomic.write_text(folder / ORIGINS_FILE, json.dumps(record, indent=1) + "\n")


def write_origins(folder: epath.Path, source: epath.Path, which: str):
    """Says in a model folder, or beside an export, that all its parameters are those of a workdir or model folder."""
    before = origins_of(source, which)
    entry = {"path": before["path"], "step": before["step"], "pattern": ".", "parameters": None, "checksum": None}
    record = {"origins": [entry | {"origins": before["origins"], "fresh": before["fresh"]}], "fresh": []}
    atomic.write_text(folder / ORIGINS_FILE, json.dumps(record, indent=1) + "\n")


def format_summary(record: dict) -> str:
    """A record, with the whole chain behind it, as indented lines."""
    return "\n".join(_lines(record, ""))


def _lines(record: dict, indent: str) -> list[str]:
    lines = []
    for origin in record["origins"] or []:
        at = "" if origin["step"] is None else f" at step {origin['step']}"
        taken = "everything" if origin["parameters"] is None else _in_parts(origin["parameters"])
        facts = [f"{name} {origin[name]}" for name in ("format", "pattern", "checksum") if origin.get(name)]
        lines.append(f"{indent}from {origin['path']}{at}: {taken}" + (f" ({', '.join(facts)})" if facts else ""))
        lines += [
            f"{indent}  {file['sha256']}  {file['size']:15,d}  {file['name']}" for file in origin.get("files", ())
        ]
        lines += _lines(origin, indent + "  ")
    if record["fresh"]:
        lines.append(f"{indent}fresh: {_in_parts(record['fresh'])}")
    return lines


def _in_parts(names: list[str]) -> str:
    """Parameters counted by part, rows of tokens by name: llm (12 parameters), llm/embed/embedding/<dream_start>."""
    counts, rows = collections.Counter(), []
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
