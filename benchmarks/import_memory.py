"""Memory of an import, and of loading it onto a mesh: python -m benchmarks.import_memory [--gigabytes=6]
[--folder=DIR]

Writes a LLaMA of noise in bfloat16, in shards of about 2 GB, imports it by the real command and samples the anonymous
memory of that process (pages of mapped files may leave at any time and do not count). The limit is two of the largest
stacked parameter and 2 GiB. Then loads the result onto a mesh of eight fake CPU devices, whose memory is the host's:
beside the parameters there is room for as little again. --load=False leaves that out, since loaded parameters are
float32.
"""

import datetime
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from dreamjax.config import LlamaConfig, ModelConfig
from dreamjax.convert import assemble
from dreamjax.convert.formats import llama
from dreamjax.convert.mapping import foreign_names, torch_shape
from dreamjax.convert.tables import of
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer

GIGABYTES = flags.DEFINE_float("gigabytes", 6.0, "Size of the checkpoint in bfloat16, in 10^9 bytes.", lower_bound=0.1)
FOLDER = flags.DEFINE_string(
    "folder",
    None,
    "Where checkpoint and model are written, and removed again; a temporary folder where it is left out.",
)
LOAD = flags.DEFINE_bool("load", True, "Also load the model onto a mesh.")

GIB = 2**30
SHARD_BYTES = 2 * 10**9
ROOT = pathlib.Path(__file__).parents[1]
LOADING = """
import sys
from dreamjax.api import DreamLLM
from dreamjax.config import MeshConfig
from dreamjax.parallel.mesh import make_mesh
import jax
model = DreamLLM.load(sys.argv[1], mesh=make_mesh(MeshConfig(1, 4, 2)))
jax.block_until_ready(model.params)
"""


class Measured(NamedTuple):
    """A command that ran."""

    seconds: float
    peak: int  # bytes of anonymous memory
    output: str


def llama_of(gigabytes: float) -> LlamaConfig:
    """A LLaMA of about that many 10^9 bytes in bfloat16: as wide as 32 layers of it can be."""
    # A layer has 4 D^2 + 3 D 8/3 D = 12 D^2 parameters.
    width = max(round((gigabytes * 1e9 / 2 / (32 * 12)) ** 0.5 / 128), 1) * 128
    return LlamaConfig(
        vocab_size=2000,
        width=width,
        layers=32,
        heads=width // 128,
        kv_heads=width // 128,
        ffn_width=width * 8 // 3 // 128 * 128,
    )


def generate(folder: pathlib.Path, config: LlamaConfig, shard_bytes: int = SHARD_BYTES):
    """A LLaMA folder in bfloat16 whose tensors are noise, written shard by shard with little in memory."""
    shapes = assemble.shapes_of(ModelConfig(llm=config))
    table = of("llm", ModelConfig(llm=config), shapes)
    wanted = {}
    for path, shape in assemble.part_shapes(shapes, "llm").items():
        one = shape[1:] if "{i}" in table.names[path] else shape
        wanted |= {name: torch_shape(path, one) for name in foreign_names(table, path)}
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(llama.write_config(config, "bfloat16", {"bos": 1, "eos": 2, "pad": 0}))
    )
    pieces = train_tokenizer(["a red circle"], 300)
    (folder / "tokenizer.model").write_bytes(pieces)
    first = Tokenizer.from_model(pieces).piece_count
    (folder / "added_tokens.json").write_text(
        json.dumps({f"<extra_{row}>": row for row in range(first, config.vocab_size)})
    )  # a token for every row
    shards, size = [[]], 0
    for name, shape in wanted.items():
        if size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * math.prod(shape)
    weight_map = {}
    rng = np.random.default_rng(0)
    for number, names in enumerate(shards):
        file = folder / f"model-{number:05d}.safetensors"
        header, at = {}, 0
        for name in names:
            size = 2 * math.prod(wanted[name])
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


def measure(command: Sequence[str], **environment: str) -> Measured:
    """Runs a command of this project's Python and samples its anonymous memory; RuntimeError where it fails."""
    variables = (
        {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"} | environment
    )
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=variables, cwd=ROOT
        )
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {process.returncode}: {text[-2000:]}")
    return Measured(time.perf_counter() - start, peak, text)


def anonymous(pid: int) -> int:
    """Bytes of memory of a process that no file stands behind; 0 where it has ended."""
    try:
        line = next((line for line in open(f"/proc/{pid}/status") if line.startswith("RssAnon")), "RssAnon: 0 kB")
    except OSError:
        return 0
    return int(line.split()[1]) * 1024


def sizes(config: LlamaConfig) -> list[int]:
    """Bytes of each stacked parameter in bfloat16."""
    return [2 * math.prod(shape) for shape in assemble.shapes_of(ModelConfig(llm=config)).values()]


def import_command(source: pathlib.Path, out: pathlib.Path) -> list[str]:
    return ["-m", "dreamjax.convert", "import", f"--source={source}", f"--out={out}"]


def main(_):
    config = llama_of(GIGABYTES.value)
    total, largest = sum(sizes(config)), max(sizes(config))

    def row(what, limit, found):
        return (
            f"| {what} | {total / GIB:.2f} | {largest / GIB:.2f} | {limit / GIB:.2f} | {found.peak / GIB:.2f} "
            f"| {found.seconds:.0f} |"
        )

    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        source, out = pathlib.Path(folder) / "source", pathlib.Path(folder) / "model"
        generate(source, config)
        print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
        print("| bfloat16, GiB | model | largest parameter | limit | peak | seconds |\n|---|---|---|---|---|---|")
        print(row("import", 2 * largest + 2 * GIB, measure(import_command(source, out))), flush=True)
        if LOAD.value:
            eight = measure(["-c", LOADING, str(out)], XLA_FLAGS="--xla_force_host_platform_device_count=8")
            print(row("load in float32 onto 8 devices", 2 * total + 4 * largest + GIB, eight))


if __name__ == "__main__":
    app.run(main)
