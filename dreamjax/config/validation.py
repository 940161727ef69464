"""Settings as checked data: requirements that name their key, and frozen dataclasses from and to plain dicts."""

import dataclasses
import math
import numbers
import re
import sys
import types
import typing

from dreamjax.config.aliases import current_names
from dreamjax.errors import ConfigError

Value = typing.TypeVar("Value")


def require(condition: bool, key: str, reason: str):
    """Raises ConfigError("key: reason") unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {reason}")


def require_present(value: Value | None, key: str) -> Value:
    """The value; ConfigError where it is None."""
    if value is None:
        raise ConfigError(f"{key}: is missing")
    return value


def require_positive(config, *names: str, or_zero: bool = False):
    """Requires that the named fields are finite and above zero, or zero where that is allowed."""
    for name in names:
        value = getattr(config, name)
        require(
            0 < value < math.inf or (or_zero and value == 0),
            name,
            f"must be {'zero or ' if or_zero else ''}positive, is {value}",
        )


def require_number(key: str, value, low: float, high: float) -> int | float:
    """The value as a plain int or float; raises ConfigError unless it is a number in [low, high], a whole one where
    `low` is an int.

    NumPy's numbers count; True, None, a text and NaN do not.
    """
    is_int = isinstance(low, int)
    fits = isinstance(value, numbers.Integral if is_int else numbers.Real) and not isinstance(value, bool)
    given = repr(value) if isinstance(value, (bool, str, float, type(None))) else f"of type {type(value).__name__}"
    require(fits, key, f"must be a {'whole ' * is_int}number, is {given:.80}")
    written = (
        "a number beyond 10^18" if isinstance(value, int) and abs(value) > 10**18 else value
    )  # Python does not print the longest ones
    require(
        low <= value <= high,
        key,
        f"{written} is {f'below {low}' if value < low else f'above {high}' if value > high else 'no number'}",
    )
    return int(value) if is_int else float(value)


MAX_SEED = 2**32 - 1


def require_seed(key: str, value) -> int:
    """A seed as a plain int.

    Raises ConfigError unless it is a whole number from 0 to 2^32 - 1: keys are made of 32 bits.
    """
    return int(require_number(key, value, 0, MAX_SEED))


def require_pattern(pattern: str, key: str):
    """Requires a regular expression that compiles."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key}: {pattern!r} is no regular expression: {error}") from None


def from_dict(cls, values: typing.Mapping, path: str = "config"):
    """Builds the dataclass `cls` from nested mappings (a ConfigDict, parsed JSON).

    A ConfigError names the key that is unknown, missing, of the wrong type or out of range.
    """
    hints = typing.get_type_hints(cls)
    try:
        values = current_names(cls, values)
    except TypeError as error:
        raise ConfigError(f"{path}.{error}") from None
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{path}.{unknown[0]}: unknown key; {path} has {', '.join(hints)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    for name in sorted(required - set(values)):
        raise ConfigError(f"{path}.{name}: is missing")
    converted = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def _convert(hint, value, path: str):
    if typing.get_origin(hint) is types.UnionType:  # X | None
        return None if value is None else _convert(typing.get_args(hint)[0], value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not hasattr(value, "items"):
            raise ConfigError(f"{path}: needs the keys of {hint.__name__}, not {value!r:.200}")
        return from_dict(hint, dict(value.items()), path)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path}: needs a list, not {value!r:.200}")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int and abs(value) < 2**1000:  # which a float holds
        require(abs(value) <= sys.float_info.max, path, "is larger than any float")
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: needs {hint.__name__}, not {value!r:.200}")
    return value


def to_dict(config) -> dict:
    """The inverse of `from_dict`.

    Nested dicts and tuples, fit for JSON and for a ConfigDict (whose flags can override tuples, but not lists).
    """
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value):
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value
