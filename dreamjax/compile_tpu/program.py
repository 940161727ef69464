"""Programs lowered from shapes alone and compiled ahead of time for absent devices, with a cache of the results."""

import dataclasses
import gzip
import hashlib
import json
import re
import sys
import time
import zlib
from typing import Any

import jax
import jaxlib
from etils import epath
from jax.sharding import Mesh, NamedSharding

from dreamjax.config import RunConfig
from dreamjax.document.batch import empty_batch, shape_of
from dreamjax.errors import gist
from dreamjax.filesystem import atomic
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State
from dreamjax.training.step import jit_train_step

IDS = SpecialIds(bos=1, dream_start=3, im_patch=4)  # shapes do not depend on the ids


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The result of compiling: the scheduled module and bytes of one device."""

    text: str
    arguments: int  # bytes, as are the next four
    results: int
    aliased: int  # results that reuse the memory of arguments
    temporary: int
    code: int
    seconds: float  # that compiling took

    @property
    def peak(self) -> int:
        """Bytes of HBM that the program needs."""
        return self.arguments + self.results - self.aliased + self.temporary + self.code


def with_shardings(tree: Any, shardings: Any) -> Any:
    """The shapes of a tree with shardings, to lower for."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def lower_train_step(
    config: RunConfig, shapes: tuple[State, dict], shardings: tuple[State, dict], mesh: Mesh
) -> jax.stages.Lowered:
    """The step of `dreamjax.train`, lowered for a mesh from the shapes and shardings of (state, frozen)."""
    rows = NamedSharding(mesh, ROWS)
    batch = empty_batch(shape_of(config, encoded=bool(config.data.train[0].encoded)))
    with jax.set_mesh(mesh):
        return jit_train_step(config, IDS, shardings, mesh).lower(
            *with_shardings(shapes, shardings), with_shardings(batch, jax.tree.map(lambda _: rows, batch))
        )


def too_large(error: jax.errors.JaxRuntimeError) -> float:
    """GiB of a device that a program would need, from the compiler's error; raises another error again."""
    used = re.search(r"Used ([\d.]+)([GMK]) of [\d.]+[GMK] hbm", str(error))
    if not used:
        raise error
    return float(used[1]) / {"G": 1, "M": 2**10, "K": 2**20}[used[2]]


def compile_cached(lowered: jax.stages.Lowered, cache: epath.Path | None) -> Compiled:
    """Compiles, or reads from `cache` the result for the same program, options and versions.

    JAX's own compilation cache cannot load programs for absent devices.
    """
    versions = f"{jax.__version__} {jaxlib.__version__} {json.dumps(TPU_OPTIONS)}"
    entry = (
        None
        if cache is None
        else cache / f"{hashlib.sha256((versions + lowered.as_text()).encode()).hexdigest()[:24]}.json.gz"
    )
    if entry is not None and entry.exists():
        try:
            return Compiled(**json.loads(gzip.decompress(entry.read_bytes())))
        except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
            print(f"{entry}: damaged ({gist(error)}), compiled anew", file=sys.stderr, flush=True)
    began = time.monotonic()
    executable = lowered.compile()
    memory: Any = executable.memory_analysis()  # the compiler for TPUs always returns it, and the module's text
    result = Compiled(
        text=executable.as_text() or "",
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        seconds=time.monotonic() - began,
    )
    if entry is not None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(entry, gzip.compress(json.dumps(dataclasses.asdict(result)).encode()))
    return result
