"""Slices by name, and what happens without the compiler for them."""

import pytest

from dreamjax.compile_tpu import topology
from dreamjax.errors import ConfigError


@pytest.mark.parametrize(
    "name, chips, wraps",
    [
        ("v4:4x4x8", 128, (True,) * 3),
        ("v4:2x2x4", 16, (False,) * 3),
        ("v5p:4x4x4", 64, (True,) * 3),
        ("v5e:16x16", 256, (True, True)),
        ("v6e:8x16", 128, (False, True)),
    ],
)
def test_slices(name, chips, wraps):
    found = topology.parse(name)
    assert found.chips == chips and found.wraps == wraps
    assert topology.parse(name, slices=2).chips == 2 * chips


@pytest.mark.parametrize("name", ["v4-128", "v9:2x2x1", "v4:4x4", "v5e:4x4x4", "v4:0x1x1", ""])
def test_what_is_no_slice(name):
    with pytest.raises(ConfigError, match="^--topology: "):
        topology.parse(name)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jax\[tpu\]"'):
        topology.devices_of(topology.parse("v4:2x2x1"))
