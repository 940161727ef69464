"""Foreign names and layouts.

Every slice of a leaf is the slice of the whole, both ways round, and each misfit is named.
"""

import pathlib

import numpy as np
import pytest

from dreamjax.convert.assemble import definite_index
from dreamjax.convert.mapping import Table, match, to_foreign
from dreamjax.convert.tensors import from_array
from dreamjax.errors import ConfigError

TABLE = Table(
    {
        "embed": "tokens.weight",
        "layers/a/kernel": "h.{i}.a.weight",
        "conv/kernel": "conv.weight",
        "norm/scale": "norm.weight",
    },
    layers=3,
    old_names=((r"^block\.", "h."),),
    ignored=(r"\.inv_freq$",),
)
SHAPES = {"embed": (5, 4), "layers/a/kernel": (3, 4, 6), "conv/kernel": (3, 3, 2, 4), "norm/scale": (4,)}
THEIRS = {
    "tokens.weight": (5, 4),
    **{f"h.{i}.a.weight": (6, 4) for i in range(3)},
    "conv.weight": (4, 2, 3, 3),
    "norm.weight": (4,),
}


def arrays(changes: dict | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, shape in (THEIRS | (changes or {})).items() if shape is not None}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def leaves(given: dict[str, np.ndarray]) -> dict:
    tensors = {name: from_array(name, array, pathlib.Path("some.file")) for name, array in given.items()}
    return match("part", TABLE, SHAPES, tensors, "some.file")


def read(leaf, index=None) -> np.ndarray:
    return leaf.read(definite_index(index or (slice(None),) * len(leaf.shape), leaf.shape))


def test_layouts_are_turned_and_layers_stacked():
    given = arrays()
    made = {path: read(leaf) for path, leaf in leaves(given).items()}
    assert {path.removeprefix("part/"): array.shape for path, array in made.items()} == SHAPES
    np.testing.assert_array_equal(made["part/layers/a/kernel"][2], given["h.2.a.weight"].T)
    np.testing.assert_array_equal(made["part/conv/kernel"][1, 2, 0, 3], given["conv.weight"][3, 0, 1, 2])
    back = {
        name: array
        for path, value in made.items()
        for name, array in to_foreign(TABLE, path.removeprefix("part/"), value)
    }
    assert back.keys() == given.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, given[name], err_msg=name)


def test_a_slice_of_a_leaf_is_the_slice_of_the_definite_index():
    for leaf in leaves(arrays()).values():
        index = tuple(slice(n // 3, n - n // 4) for n in leaf.shape)
        np.testing.assert_array_equal(read(leaf, index), read(leaf)[index])


def test_older_names_mean_the_same():
    old = {name.replace("h.", "block.") if name.startswith("h.") else name: array for name, array in arrays().items()}
    for path, leaf in leaves(old | {"h.0.inv_freq": np.ones(2)}).items():
        np.testing.assert_array_equal(read(leaf), read(leaves(arrays())[path]))


def test_a_1x1_convolution_and_a_linear_layer_are_the_same():
    table = Table({"a/kernel": "a.weight"})
    values = np.arange(6.0).reshape(3, 2)
    for shape, ours in (((3, 2), (1, 1, 2, 3)), ((3, 2, 1, 1), (2, 3))):
        tensors = {"a.weight": from_array("a.weight", values.reshape(shape), pathlib.Path("f"))}
        np.testing.assert_array_equal(
            read(match("p", table, {"a/kernel": ours}, tensors, "f")["p/a/kernel"]), values.T.reshape(ours)
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"h.1.a.weight": None}, r"has no h.1.a.weight, needed for part/layers/a/kernel \(3, 4, 6\)"),
        ({"h.3.a.weight": (6, 4)}, r"1 tensors fit nowhere, the first is h.3.a.weight \(6, 4\)"),
        ({"h.1.a.weight": (4, 6)}, r"h.1.a.weight is \(4, 6\), must be \(6, 4\) for part/layers/a/kernel \(3, 4, 6\)"),
        ({"conv.weight": (4, 2, 1, 1)}, r"conv.weight is \(4, 2, 1, 1\), must be \(4, 2, 3, 3\) for part/conv/kernel"),
        ({"block.0.a.weight": (6, 4)}, "block.0.a.weight and h.0.a.weight are both h.0.a.weight"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=f"^some.file: {message}"):
        leaves(arrays(changes))
