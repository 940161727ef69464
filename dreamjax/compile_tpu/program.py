"""Programs lowered from shapes alone and compiled for devices that are not at hand, with what the compiler says of
them kept on disk.
"""

import dataclasses
import gzip
import hashlib
import json
import re
import sys
import time
import zlib

import jax
import jaxlib
from etils import epath
from jax.sharding import Mesh, NamedSharding

from dreamjax.config import RunConfig
from dreamjax.document.batch import empty_batch, shape_of
from dreamjax.errors import gist
from dreamjax.filesystem import atomic
from dreamjax.models import dreamllm
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State
from dreamjax.training.step import jit_train_step

IDS = SpecialIds(bos=1, dream_start=3, im_patch=4)  # which ids they are changes no shape


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler gave: the scheduled module and bytes of one device."""

    text: str
    arguments: int  # bytes, as are the next four
    results: int
    aliased: int  # results that take the place of arguments
    temporary: int
    code: int
    seconds: float  # that compiling took, when it was done

    @property
    def peak(self) -> int:
        """Bytes of HBM that the program needs."""
        return self.arguments + self.results - self.aliased + self.temporary + self.code


def placed(tree, where):
    """Shapes with shardings, to lower for."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, where
    )


def lower_train_step(
    config: RunConfig, parts: dreamllm.Parts, shapes: tuple[State, dict], where: tuple[State, dict], mesh: Mesh
) -> jax.stages.Lowered:
    """The step of `dreamjax.train`, lowered for a mesh without data or weights.

    Shapes and shardings of (state, frozen).
    """
    rows = NamedSharding(mesh, ROWS)
    batch = empty_batch(shape_of(config, encoded=bool(config.data.train[0].encoded)))
    with jax.set_mesh(mesh):
        return jit_train_step(config, parts, IDS, where, mesh).lower(
            *placed(shapes, where), placed(batch, jax.tree.map(lambda _: rows, batch))
        )


def too_large(error: jax.errors.JaxRuntimeError) -> float:
    """GiB of a device that a program would need which the compiler gave up for that.

    Raises the error where it is another one.
    """
    used = re.search(r"Used ([\d.]+)([GMK]) of [\d.]+[GMK] hbm", str(error))
    if not used:
        raise error
    return float(used[1]) / {"G": 1, "M": 2**10, "K": 2**20}[used[2]]


def compile_cached(lowered: jax.stages.Lowered, cache: epath.Path | None) -> Compiled:
    """Compiles, or reads what an earlier call with the same program, options and versions has kept in `cache`.

    The compilation cache of jax cannot do that: it does not read programs back for devices that are not there.
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
    program = lowered.compile()
    memory = program.memory_analysis()
    done = Compiled(
        program.as_text(), memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.alias_size_in_bytes,
        memory.temp_size_in_bytes, memory.generated_code_size_in_bytes, time.monotonic() - began,
    )  # fmt: skip
    if entry is not None:
        cache.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(entry, gzip.compress(json.dumps(dataclasses.asdict(done)).encode()))
    return done
