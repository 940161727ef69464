"""Compiles a training step ahead of time for a TPU slice: python -m dreamjax.compile --config=experiments/X.py[:arg]
--topology=v4:4x4x8

Reports the memory of a chip, FLOPs, collectives and an estimate of the time, from the program that the trainer would
run; the last line is JSON. Ends with status 1 where the step does not fit or fails a check (see `checks` in the
report). Needs the compiler for TPUs, pip install "jax[tpu]", but no TPU. At the paper's sizes it takes minutes and
about 14 GiB; compiled programs are kept in --cache.
"""

import json
import os
import time

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from dreamjax import cli
from dreamjax.compile_tpu import program, report, sampling, topology
from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.errors import ConfigError
from dreamjax.parallel.mesh import TPU_OPTIONS, check_divides, make_mesh
from dreamjax.training import report as training_report
from dreamjax.training import state as training_state

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, perhaps with an argument after a colon; --config.key=value overrides."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chip and sides of the slice: v4:4x4x8, v5p:4x4x4, v5e:16x16, v6e:8x16."
)
SLICES = flags.DEFINE_integer(
    "slices", 1, "Slices of that shape, joined by the data axis over the data centre's network."
)
SAMPLING = flags.DEFINE_bool("sampling", True, "Compile the steps of sampling too: writing a token and denoising.")
CACHE = flags.DEFINE_string("cache", "~/.cache/dreamjax/compiled", "Folder of compiled programs; empty: none.")
PRINT_FLAGS = flags.DEFINE_bool(
    "print_flags", False, "Print the compiler's options as a value for LIBTPU_INIT_ARGS, and stop."
)


def main() -> int:
    if PRINT_FLAGS.value:
        print(" ".join(f"--{name}={value}" for name, value in TPU_OPTIONS.items()))
        return 0
    if CONFIG.value is None or TOPOLOGY.value is None:
        raise ConfigError(
            "--config and --topology: both are needed, for example --config=experiments/stage2_igpt.py "
            "--topology=v4:4x4x8"
        )
    config = from_dict(RunConfig, CONFIG.value)
    slice_ = topology.parse(TOPOLOGY.value, SLICES.value)
    jax.config.update("jax_platforms", "cpu")  # no device is used
    mesh = make_mesh(config.mesh, topology.devices_of(slice_))
    check_divides(config, mesh)
    cache = epath.Path(os.path.expanduser(CACHE.value)) if CACHE.value else None

    state, frozen = shapes = jax.eval_shape(lambda: training_state.init(config))
    shardings = training_state.shardings(state, frozen, mesh, config.replicated)
    summary = training_report.summary(config, mesh, state, frozen, shardings) | {"trained_parts": list(state.trainable)}
    facts = report.basics(config, slice_, summary)
    began = time.monotonic()
    target = report.Target(slice_, mesh)
    try:
        compiled = program.compile_cached(program.lower_train_step(config, shapes, shardings, mesh), cache)
        trees = (state.trainable, frozen)
        result = report.of_step(config, target, compiled, facts, summary["bytes_per_device"], trees)
        if SAMPLING.value:
            result["sampling"] = sampling.reports(config, target, cache)
    except jax.errors.JaxRuntimeError as error:
        result = report.too_large(facts, program.too_large(error), time.monotonic() - began)
    print(report.format_summary(result))
    print(json.dumps(result))
    return 0 if result["fits"] and not any(result["checks"].values()) else 1


if __name__ == "__main__":
    cli.run("dreamjax.compile", main)
