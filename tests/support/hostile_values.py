"""JSON values that a configuration may hold and should not, and how an error about them reads."""

from collections.abc import Iterator

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    2**31,
    10**12,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "32",
    "\0",
    "\ud800",
    [],
    [1],
    [None],
    ["a"],
    [[1], [2]],
    [1] * 1000,
    {},
    {"a": 1},
    [{}],
    {"content": 5},
]


def mutations(values: dict) -> Iterator[dict]:
    """The values with each key, two levels deep, missing or with each of VALUES."""
    for key, value in values.items():
        yield {name: other for name, other in values.items() if name != key}
        yield from ({**values, key: wrong} for wrong in VALUES)
        if isinstance(value, dict):
            yield from ({**values, key: inner} for inner in mutations(value))


def one_line(error: Exception, *named: str):
    """Requires a message of one readable line that holds `named`."""
    text = str(error)
    assert "\n" not in text and len(text) < 1000 and all(name in text for name in named), text
