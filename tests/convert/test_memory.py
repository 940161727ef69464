"""How much memory an import takes and how much a host reads, in small.

Benchmarks/import_memory.py shows the memory for several gigabytes.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ports import free_port

from benchmarks import import_memory
from dreamjax.config import LlamaConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="memory and bytes read are taken from /proc"),
]
GIB = 2**30
HOSTS = 2
LOADING = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
from dreamjax.api import DreamLLM
from dreamjax.config import MeshConfig
from dreamjax.parallel.mesh import make_mesh

read = lambda: int(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1])
mesh, before = make_mesh(MeshConfig(1, jax.device_count(), 1)), read()
params = jax.block_until_ready(DreamLLM.load(sys.argv[1], mesh=mesh).params)
held = sum(shard.data.size for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print(json.dumps({"read": read() - before, "held": held}))
"""


def test_an_import_does_not_hold_the_model(tmp_path):
    """0.75 GB of which the largest parameter is 0.13 GB."""
    config = LlamaConfig(vocab_size=2000, width=1024, layers=24, heads=16, kv_heads=16, ffn_width=2688)
    import_memory.generate(tmp_path / "source", config, GIB // 4)
    found = import_memory.measure(import_memory.import_command(tmp_path / "source", tmp_path / "out"))
    sizes = import_memory.sizes(config)
    started = 0.35 * GIB  # of a process that has imported everything
    assert sum(sizes) > 0.5 * GIB and found.peak < started + 2 * max(*sizes, 2**28), found


def test_a_host_reads_what_its_devices_hold(tmp_path):
    """Of 100 MB, two hosts read about half each: whole chunks of the file, so some more than they hold."""
    config = LlamaConfig(vocab_size=2000, width=1024, layers=4, heads=16, kv_heads=16, ffn_width=2688)
    import_memory.generate(tmp_path / "source", config)
    import_memory.measure(import_memory.import_command(tmp_path / "source", tmp_path / "out"))
    variables = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOADING, str(tmp_path / "out"), f"127.0.0.1:{free_port()}", str(HOSTS)]
    hosts = [
        subprocess.Popen(
            [*command, str(host)],
            env=variables,
            cwd=import_memory.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for host in range(HOSTS)
    ]
    whole = sum(import_memory.sizes(config))
    for host in hosts:
        said, _ = host.communicate(timeout=240)
        assert host.returncode == 0
        found = json.loads(said.splitlines()[-1])
        held = 2 * found["held"]  # bytes on disk, in bfloat16
        assert held < 0.51 * whole and held < found["read"] < 1.3 * held, found
