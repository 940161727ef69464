"""Foreign configuration files: defaults for missing keys, and one clear error for a value that is not supported."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from dreamjax.config.model import BLOCKS, MOST
from dreamjax.convert.tensors import read_json
from dreamjax.errors import ConfigError

LARGEST = 1e300


@dataclasses.dataclass(frozen=True)
class ForeignConfig:
    """The keys of a foreign config.json, with their location for error messages."""

    values: dict[str, Any]
    location: str

    @classmethod
    def of(cls, file: pathlib.Path) -> "ForeignConfig":
        """The keys of a JSON file."""
        return cls(read_json(file), str(file))

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value; the default where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """An integer from `least` to `most`; ConfigError where it is not one, or missing without a default."""
        return self._require_integer(key, self.get(key, default), least, most)

    def _require_integer(self, key: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.location}: {key}: needs a whole number, not {value!r:.80}")
        if not least <= value <= most:
            raise ConfigError(f"{self.location}: {key}: needs a whole number from {least} to {most}, not {value!r:.80}")
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Integers, one per block of a network."""
        return tuple(self._require_integer(key, value, 1, MOST) for value in self._list(key, default))

    def names(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """Strings, one per block of a network."""
        values = self._list(key, default)
        if not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{self.location}: {key}: needs a list of names, not {values!r:.80}")
        return tuple(values)

    def _list(self, key: str, default: tuple) -> list | tuple:
        values = self.get(key, default)
        if not isinstance(values, list | tuple) or not 0 < len(values) <= BLOCKS:
            raise ConfigError(f"{self.location}: {key}: needs a list of 1 to {BLOCKS} entries, not {values!r:.80}")
        return values

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; ConfigError where it is not one, or missing without a default."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
            raise ConfigError(f"{self.location}: {key}: needs a number, not {value!r:.80}")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.location}: {key}: needs a string, not {value!r:.80}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean: the default where the key is missing, false where it is null."""
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.location}: {key}: needs true or false, not {value!r:.80}")
        return bool(value)

    def per_block(self, key: str, default: int, count: int, most: int = MOST) -> tuple[int, ...]:
        """An integer for each of `count` blocks, from a list of that length or one value for all."""
        value = self.get(key, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
        if len(values) != count:
            raise ConfigError(f"{self.location}: {key}: needs {count} entries, one per block, not {value!r:.80}")
        return tuple(self._require_integer(key, entry, 1, most) for entry in values)

    def section(self, key: str) -> "ForeignConfig":
        """The settings below a key."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self.location}: {key}: needs an object, not {value!r:.80}")
        return ForeignConfig(value, f"{self.location}: {key}")

    def require(self, accepted: Mapping[str, Iterable[Any]]) -> None:
        """ConfigError where a key has none of its accepted values; null and missing are always accepted."""
        for key, values in accepted.items():
            value = self.values.get(key)
            value = tuple(value) if isinstance(value, list) else value
            if value is not None and value not in tuple(values):
                known = " or ".join(repr(v) for v in values)
                raise ConfigError(
                    f"{self.location}: {key}: {value!r:.200} is not supported, which would change the "
                    f"numbers; {known or 'null'} is"
                )
