"""Reading foreign configuration files: defaults where a key is missing, one clear error where a value is not what we compute."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from dreamjax.convert.tensors import read_json
from dreamjax.schema import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of a foreign config.json and where they stand, for errors."""

    values: dict[str, Any]
    where: str

    @classmethod
    def of(cls, file: pathlib.Path) -> "Settings":
        """Those of a JSON file."""
        return cls(read_json(file), str(file))

    def get(self, key: str, default=None):
        """The key's value; the default where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer; ConfigError where it is none, or missing without a default."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.where}: {key}: needs a whole number, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; ConfigError where it is none, or missing without a default."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.where}: {key}: needs a number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null, which is what Python's `if` takes for false, is false, and the default where the key is missing."""
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key}: needs true or false, not {value!r}")
        return bool(value)

    def per_block(self, key: str, default, count: int) -> tuple:
        """A value for each of `count` blocks, from a list of that length or one value for all."""
        value = self.get(key, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
        if len(values) != count:
            raise ConfigError(f"{self.where}: {key}: needs {count} entries, one per block, not {value!r}")
        return values

    def inner(self, key: str) -> "Settings":
        """The settings below a key."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {key}: needs an object, not {value!r}")
        return Settings(value, f"{self.where}: {key}")

    def require(self, accepted: dict[str, Iterable]):
        """ConfigError where a key has none of its accepted values; null and missing are always accepted."""
        for key, values in accepted.items():
            value = self.values.get(key)
            value = tuple(value) if isinstance(value, list) else value
            if value is not None and value not in tuple(values):
                known = " or ".join(repr(v) for v in values)
                raise ConfigError(f"{self.where}: {key}: {value!r} is not supported, which would change the numbers; {known or 'null'} is")
