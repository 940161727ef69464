"""Experiments on the command line, `--config=NAME:WORD,WORD,..` or `--config=FILE.py:WORD,WORD,..`: file and argument.

Every word acts, or is an error that says which are known.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

from dreamjax.errors import ConfigError

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def experiment_file(value: str) -> str:
    """The value of --config with the path of the package's own experiment in place of its name.

    Paths stay as they are. Raises ConfigError for a name that is neither a file nor an experiment.
    """
    name, colon, argument = value.partition(":")
    if not name.isidentifier() or os.path.isfile(name):
        return value
    names = sorted(file.stem for file in EXPERIMENTS.glob("*.py") if file.stem != "__init__")
    if name not in names:
        raise ConfigError(f"{name!r} is neither a file nor one of the experiments {', '.join(names)}")
    return f"{EXPERIMENTS / name}.py{colon}{argument}"


def read(arg: str, choices: Mapping[str, Sequence[str]] | None = None, paths: Sequence[str] = ()) -> dict[str, str]:
    """{what: value} of an argument's words, each `what` at most once. Raises ConfigError, in one line.

    A word is one of `choices` (its group is what it sets), or NAME=PATH for one of `paths`, or a path alone, which is
    the first one's: it has a slash or a full stop, or is there. A word that is neither would otherwise be taken for a
    folder.
    """
    choices = choices or {}
    values: dict[str, str] = {}
    for word in filter(None, (word.strip() for word in arg.split(","))):
        name, value = _meaning(word, choices, paths)
        if name in values:
            twice = "stands there twice" if values[name] == value else f"contradicts {values[name]!r}"
            raise ConfigError(f"{word!r} {twice}: an argument has one {name}")
        values[name] = value
    return values


def _meaning(word: str, choices: Mapping[str, Sequence[str]], paths: Sequence[str]) -> tuple[str, str]:
    """(name, value) that a word sets."""
    for group, known in choices.items():
        if word in known:
            return group, word
    name, equals, value = word.partition("=")
    if equals and name in paths:
        if not value.strip():
            raise ConfigError(f"{word!r} names no folder")
        return name, value.strip()
    is_key = equals and not set(name) & set("/.")  # an equals sign may be part of a path
    if paths and not is_key and (set(word) & set("/.") or os.path.exists(word)):
        return paths[0], word
    known = [*(word for group in choices.values() for word in group), *(f"{path}=FOLDER" for path in paths)]
    raise ConfigError(
        f"{word!r} is none of {', '.join(known)}" if known else f"{word!r}: this experiment takes no argument"
    )
