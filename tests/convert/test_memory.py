"""How much memory an import takes, in small: benchmarks/import_memory.py shows it for several gigabytes."""

import pathlib

import pytest
from benchmarks import import_memory

from dreamjax.config import LlamaConfig

GIB = 2**30


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_import_does_not_hold_the_model(tmp_path):
    """0.75 GB of which the largest parameter is 0.13 GB."""
    config = LlamaConfig(vocab_size=2000, width=1024, layers=24, heads=16, kv_heads=16, ffn_width=2688)
    import_memory.generate(tmp_path / "source", config, GIB // 4)
    found = import_memory.measure(import_memory.import_command(tmp_path / "source", tmp_path / "out"))
    sizes = import_memory.sizes(config)
    started = 0.35 * GIB  # of a process that has imported everything
    assert sum(sizes) > 0.5 * GIB and found.peak < started + 2 * max(*sizes, 2**28), found
