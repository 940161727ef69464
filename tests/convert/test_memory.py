"""How much memory an import takes: never more than two of the largest stacked parameter and 2 GiB, whatever the model's size."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dreamjax.config import LlamaConfig, ModelConfig
from dreamjax.convert import assemble, llama
from dreamjax.convert.names import names_of, their_shape
from dreamjax.convert.tables import of

GIB = 2**30
WATCHED = """
import json, pathlib, sys, threading, time
from etils import epath
from dreamjax.convert import importing

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

peak, running = [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
plan = importing.make_plan([sys.argv[1]])
importing.write(plan, epath.Path(sys.argv[2]))
running[0] = False
print(json.dumps({"peak": peak[0], "end": anonymous()}))
"""


def generate(folder: pathlib.Path, config: LlamaConfig, shard_bytes: int, tokenizer: bytes):
    """A LLaMA folder in bfloat16 whose tensors are noise, written shard by shard with little in memory."""
    shapes = assemble.shapes_of(ModelConfig(llm=config))
    table = of("llm", ModelConfig(llm=config), shapes)
    wanted = {}
    for path, shape in assemble.part_shapes(shapes, "llm").items():
        one = shape[1:] if "{i}" in table.names[path] else shape
        wanted |= {name: their_shape(path, one) for name in names_of(table, path)}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llama.write_config(config, "bfloat16", {"bos": 1, "eos": 2, "pad": 0})))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    shards, size = [[]], 0
    for name, shape in wanted.items():
        if size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * int(np.prod(shape))
    weight_map = {}
    rng = np.random.default_rng(0)
    for number, names in enumerate(shards):
        file = folder / f"model-{number:05d}.safetensors"
        header, at = {}, 0
        for name in names:
            size = 2 * int(np.prod(wanted[name]))
            header[name] = {"dtype": "BF16", "shape": list(wanted[name]), "data_offsets": [at, at + size]}
            weight_map[name] = file.name
            at += size
        text = json.dumps(header).encode()
        with open(file, "wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for begin in range(0, at, 2**24):
                # Exponents of small numbers: neither infinite nor all alike, so that nothing compresses away.
                opened.write((rng.integers(0, 2**16, min(2**24, at - begin) // 2, np.uint16) & 0xBFFF).tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measure(tmp_path: pathlib.Path, config: LlamaConfig, shard_bytes: int, tokenizer: bytes) -> dict:
    """{peak, end} bytes of anonymous memory of an import, and the {model, largest} bytes that it reads."""
    generate(tmp_path / "source", config, shard_bytes, tokenizer)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "source"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    sizes = [2 * int(np.prod(shape)) for shape in assemble.shapes_of(ModelConfig(llm=config)).values()]
    return json.loads(done.stdout.splitlines()[-1]) | {"model": sum(sizes), "largest": max(sizes)}


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_import_of_several_gigabytes_stays_small(tmp_path, shapes_tokenizer):
    if os.environ.get("DREAMJAX_BIG") is None:
        pytest.skip("writes 10 GB: DREAMJAX_BIG=1 runs it")
    config = LlamaConfig(vocab_size=32000, width=3072, layers=32, heads=24, kv_heads=24, ffn_width=8192)
    found = measure(tmp_path, config, 2 * GIB, shapes_tokenizer.model)
    print({name: round(value / GIB, 2) for name, value in found.items()})
    assert found["model"] > 6 * GIB
    assert found["peak"] < 2 * found["largest"] + 2 * GIB


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_import_does_not_hold_the_model(tmp_path, shapes_tokenizer):
    """The same in small: 0.75 GB of which the largest parameter is 0.13 GB."""
    config = LlamaConfig(vocab_size=2000, width=1024, layers=24, heads=16, kv_heads=16, ffn_width=2688)
    found = measure(tmp_path, config, GIB // 4, shapes_tokenizer.model)
    started = 0.35 * GIB  # of a process that has imported everything
    assert found["model"] > 0.5 * GIB and found["peak"] < started + 2 * max(found["largest"], 2**28), found
