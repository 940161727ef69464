"""Names that fields had in earlier versions, which files and experiments written for those still use."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def renamed(names: Mapping[str, str]) -> Callable[[type[T]], type[T]]:
    """A class decorator for dataclasses and the like, with {old name: new name}.

    The old names are taken by the constructor and can be read from instances; `from_dict` and readers of stored
    documents take them by `current_names`.
    """

    def decorate(cls: type[T]) -> type[T]:
        init: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(init)
        def with_old_names(self: T, *args: object, **values: object):
            init(self, *args, **current_names(cls, values))

        setattr(cls, "__init__", with_old_names)  # noqa: B010  an assignment is unsound to type checkers
        setattr(cls, "old_names", names)  # noqa: B010  as is an attribute that type has not
        for old, new in names.items():
            setattr(cls, old, property(functools.partial(_read, new)))
        return cls

    return decorate


def current_path(cls: type | None, path: str) -> str:
    """A dotted path of fields below the dataclass `cls` by today's names; names that are not known stay."""
    names = []
    for name in path.split("."):
        name = getattr(cls, "old_names", {}).get(name, name)
        names.append(name)
        field = typing.get_type_hints(cls).get(name) if cls is not None else None
        cls = field if dataclasses.is_dataclass(field) and isinstance(field, type) else None
    return ".".join(names)


def earlier_names(cls: type, values: Mapping) -> dict:
    """`values` by the earlier names of the fields of `cls`: the inverse of `current_names`.

    Digests that were stored are over those, and have to be found again.
    """
    names = {new: old for old, new in getattr(cls, "old_names", {}).items()}
    return {names.get(name, name): value for name, value in values.items()}


def _read(name: str, instance: object) -> object:
    return getattr(instance, name)


def current_names(cls: type, values: Mapping) -> dict:
    """`values` by today's names of the fields of `cls`; TypeError where a value is given by both names."""
    names = getattr(cls, "old_names", {})
    current = {names.get(name, name): value for name, value in values.items()}
    if len(current) < len(values):
        twice = next(old for old, new in names.items() if old in values and new in values)
        raise TypeError(f"{twice}: is the earlier name of {names[twice]}, which is given too")
    return current
