"""Trains a model: python -m dreamjax.train --config=experiments/X.py[:arg] --workdir=DIR [--config.a.b=c] [--dry_run]

The same command on the same workdir resumes the run, on another mesh and other hosts too; SIGTERM and Ctrl-C save
first. On several hosts the same command runs on each of them; dreamjax/parallel/multihost.py says how they find
each other. The workdir is shared. Indexes of data files are kept in the user's cache (~/.cache/dreamjax), or where a
source's `cache` says, which hosts may share.
"""

import contextlib
import dataclasses
import functools
import json
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from absl import flags
from etils import epath
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from ml_collections import config_flags

from dreamjax import cli
from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.data.pipeline.loader import Loaded, Loader
from dreamjax.data.pipeline.vocabulary import open_tokenizer
from dreamjax.document import Document, Text, render_html
from dreamjax.document.batch import Batch
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic, lock
from dreamjax.models.dreamllm import Model
from dreamjax.parallel import multihost
from dreamjax.parallel.mesh import ROWS, check_divides, make_mesh, planned_mesh
from dreamjax.sampling import interleave
from dreamjax.training import checkpoint, optimizer, profile, report, weight_transfer
from dreamjax.training.heldout import make_heldout
from dreamjax.training.initialize import Start, begin, check_encoders, prepare_workdir, rates, with_data, with_steps
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State, init
from dreamjax.training.state import shardings as state_shardings
from dreamjax.training.step import jit_train_step
from dreamjax.training.train_logger import RecordCounts, TrainLogger

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, perhaps with an argument after a colon; --config.key=value overrides."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, samples; may be gs://. A run that is in it goes on."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print what the run would do, the last line as JSON, and stop; needs no data and allocates no weight.",
)
SET_ASIDE = flags.DEFINE_integer(
    "set_aside",
    None,
    "Step of a damaged checkpoint, renamed to STEP.set_aside, once; the run goes on from the newest of the others.",
)
flags.declare_key_flag("verify_checksums")
STOPPED = flags.DEFINE_integer(
    "stopped_status",
    0,
    "Exit status of a run that a signal stopped before its last step; for a scheduler that restarts what "
    "failed, not 0.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A configured run in its workdir."""

    config: RunConfig
    mesh: Mesh
    shapes: tuple[State, dict]  # of (state, frozen)
    shardings: tuple[State, dict]
    workdir: epath.Path
    check_lock: Callable[[], None]  # raises on host 0 when another run has taken the workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A run's tokenizer and batches."""

    tokenizer: Tokenizer
    loader: Loader
    heldout: dict[str, Loader]  # by source
    rows: NamedSharding  # of batches
    own_groups: tuple[int, ...]  # of each batch, on this host
    groups: int

    @property
    def ids(self) -> SpecialIds:
        return SpecialIds(self.tokenizer.bos, self.tokenizer.dream_start, self.tokenizer.im_patch)

    def put(self, loaded: Loaded) -> Batch:
        """The global batch on the devices, from this host's share."""
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.rows, x, (self.groups, *x.shape[1:])), loaded.batch
        )


def main() -> int:
    multihost.join()
    if CONFIG.value is None:
        raise ConfigError("--config: is missing, for example --config=experiments/quickstart.py")
    config = from_dict(RunConfig, CONFIG.value)
    if DRY_RUN.value:
        _, _, facts = plan(config, planned_mesh(config.mesh))
        multihost.print_on_host0(json.dumps(facts))
        return 0
    mesh = make_mesh(config.mesh)
    shapes, shardings, _ = plan(config, mesh)
    if WORKDIR.value is None:
        raise ConfigError("--workdir: is missing")
    check_divides(config, mesh)
    if config.sample_every and jax.process_count() > 1:
        raise ConfigError(
            "config.sample_every: a run of several hosts writes no samples; set 0 and call "
            "dreamjax.sample on its checkpoints"
        )
    workdir = checkpoint.open_folder(WORKDIR.value)
    locked = lock.held(workdir, "--workdir") if multihost.is_first() else contextlib.nullcontext(lambda: None)
    with locked as check_lock:
        return train(
            Run(
                config=config,
                mesh=mesh,
                shapes=shapes,
                shardings=shardings,
                workdir=workdir,
                check_lock=check_lock,
            )
        )


def plan(config: RunConfig, mesh: Mesh | AbstractMesh) -> tuple[tuple[State, dict], tuple[State, dict], dict]:
    """(shapes, shardings, facts) of a run, for (state, frozen); prints the facts."""
    state, frozen = jax.eval_shape(lambda: init(config))
    shardings = state_shardings(state, frozen, mesh, config.replicated)
    facts = report.summary(config, mesh, state, frozen, shardings)
    multihost.print_on_host0(report.format_summary(facts))
    return (state, frozen), shardings, facts


def train(run: Run) -> int:
    """Trains from the last checkpoint, or from the beginning, to the last step; returns the exit status."""
    config, workdir = run.config, run.workdir
    data = open_data(run)
    with jax.set_mesh(run.mesh):
        manager = checkpoint.open_manager(workdir, config.checkpoints_kept)
        start, note = start_run(run, data, manager)
        first_step = int(start.state.step) + 1
        if first_step > config.total_steps:
            multihost.print_on_host0(
                f"{workdir}: complete at step {first_step - 1}, nothing to do; a higher --config.total_steps goes on"
            )
            return 0
        step = compile_step(run, data, start)
        batches = heldout_batches(config, data)
        measure = make_heldout(
            config, data.ids, {name: functools.partial(map, data.put, loaded) for name, loaded in batches.items()}
        )
        signals = catch_signals()
        loader = data.loader
        counts = RecordCounts(loader.documents, loader.skipped, loader.unnamed)
        logger = TrainLogger(config, workdir, first_step - 1, counts, writes=multihost.is_first(), note=note)
        last_step = run_steps(run, data, start, Steps(step, measure, manager, logger, signals))
        logger.close()
        manager.wait_until_finished()
        manager.close()
    if last_step < config.total_steps:
        multihost.print_on_host0(
            f"{signals[0] if signals else 'signal on another host'}: saved step {last_step}; the same command "
            "goes on from there"
        )
        return STOPPED.value
    multihost.print_on_host0(
        f"complete      step {last_step} in {workdir}; next: python -m dreamjax.sample --model={workdir} --out=DIR"
    )
    return 0


def open_data(run: Run) -> Data:
    """Opens tokenizer and sources; host 0 does it first, and writes the files that the others read."""
    config, workdir = run.config, run.workdir
    with multihost.one_before_the_others("data"):
        if SET_ASIDE.value is not None and multihost.is_first():
            checkpoint.set_aside(workdir, SET_ASIDE.value)
        prepare_workdir(workdir, config)
        tokenizer = open_tokenizer(config, workdir)
        loader = Loader(config, config.data.train, tokenizer, workdir / "lengths", jax.process_index())
        heldout = heldout_loaders(config, tokenizer, workdir / "lengths")
    multihost.print_on_host0(loader.format_summary())
    rows = NamedSharding(run.mesh, ROWS)
    return Data(
        tokenizer=tokenizer,
        loader=loader,
        heldout=heldout,
        rows=rows,
        own_groups=multihost.own_groups(rows, config.groups),
        groups=config.groups,
    )


def start_run(run: Run, data: Data, manager: checkpoint.Manager) -> tuple[Start, dict]:
    """(the state to start from, note for the metrics), after checks that the run is the same as before."""
    config = run.config
    start = begin(config, run.workdir, manager, run.shapes, run.shardings, cli.VERIFY.value)
    done = int(start.state.step)
    meta = with_data(start.meta, data.loader.fingerprint, config, run.workdir)
    meta, note = with_steps(meta, config, done)
    if note:
        multihost.print_on_host0(f"longer        {rates(config, note['total_steps_before'], done)}")
    check_encoders(data.loader.encoders, start.frozen)
    if config.init_from:
        multihost.print_on_host0(weight_transfer.format_summary(meta))
    return start._replace(meta=meta), note


def compile_step(run: Run, data: Data, start: Start) -> jax.stages.Compiled:
    """Compiles the training step for the first batch's shapes."""
    began = time.monotonic()
    batch = data.put(data.loader.load(int(start.state.step), data.own_groups))
    jitted = jit_train_step(run.config, data.ids, run.shardings, run.mesh)
    step = jitted.lower(start.state, start.frozen, batch).compile()
    multihost.print_on_host0(
        f"compiled      in {time.monotonic() - began:.1f} s; a step needs "
        f"{report.temporary_bytes(step) / 2**20:,.1f} MiB besides its arguments"
    )
    multihost.wait_for_all("compiled")
    return step


class Steps(NamedTuple):
    """The functions and writers that the training loop calls."""

    step: Callable[[State, dict, Batch], tuple[State, dict]]
    measure_heldout: Callable[[State, dict], dict]
    manager: checkpoint.Manager
    logger: TrainLogger
    signals: list[str]  # names of the signals that have come


def run_steps(run: Run, data: Data, start: Start, steps: Steps) -> int:
    """The training loop; returns the last step, earlier than config.total_steps after a signal."""
    config, logger, state, frozen = run.config, steps.logger, start.state, start.frozen
    agree = multihost.stop_consensus(run.mesh)
    done = first = int(state.step)
    for done, loaded in enumerate(data.loader.batches(first, config.total_steps, data.own_groups), first + 1):
        run.check_lock()
        profile.before_step(config, run.workdir, done)
        state, metrics = steps.step(state, frozen, data.put(loaded))
        stop = agree(bool(steps.signals))
        logger.after_dispatch(done, metrics | {"stop": stop}, loaded.documents, loaded.skipped)
        last = done == config.total_steps or logger.stopping
        profile.after_step(config, done, first + 1, metrics, last)
        if is_due(config.eval_every, done, last):
            logger.add_heldout(steps.measure_heldout(state, frozen))
        if is_due(config.sample_every, done, last):
            page = run.workdir / "samples" / f"step_{done:07d}.html"
            write_samples(config, data.tokenizer, state, frozen, page)
        if is_due(config.checkpoint_every, done, last):
            loss = logger.heldout.get("eval_loss")
            logger.settle()
            checkpoint.save(steps.manager, state, start.meta | {"seconds": logger.seconds()}, loss)
        if last:
            break
    return done


def is_due(every: int, done: int, last: bool) -> bool:
    """True at every `every`-th step (0: never) and at the last one."""
    return every > 0 and (done % every == 0 or last)


def heldout_loaders(config: RunConfig, tokenizer: Tokenizer, lengths: epath.Path) -> dict[str, Loader]:
    """{held-out source: its Loader}."""
    if not config.eval_every:
        return {}
    formats = [source.format for source in config.data.eval]
    names = [name if formats.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(formats)]
    return {
        name: Loader(config, (source,), tokenizer, lengths, jax.process_index())
        for name, source in zip(names, config.data.eval, strict=True)
    }


def heldout_batches(config: RunConfig, data: Data) -> dict[str, list[Loaded]]:
    """{held-out source: this host's share of its batches}."""
    return {
        name: [loader.load_first_epoch(k, data.own_groups) for k in range(config.eval_batches) if loader.has(k)]
        for name, loader in data.heldout.items()
    }


def write_samples(config: RunConfig, tokenizer: Tokenizer, state: State, frozen: dict, path: epath.Path) -> None:
    """Writes a page with the model's documents for the configured prompts."""
    params = optimizer.merge(state.trainable if state.average is None else state.average, frozen)
    model = Model(config.model, params)
    prompts = [Document((Text(prompt),)) for prompt in config.sample_prompts]
    options = interleave.Options(max_tokens=config.sample_tokens, max_images=4, template=config.data.template)
    generated = interleave.generate(
        model,
        tokenizer,
        interleave.GenerationRequest(prompts=prompts, seeds=range(len(prompts)), options=options),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [
        Document(prompt.parts + continuation.parts, notes=continuation.notes)
        for prompt, continuation in zip(prompts, generated, strict=True)
    ]
    atomic.write_text(path, render_html(documents, title=f"Step {int(state.step)}"))


def catch_signals() -> list[str]:
    """A list that the first SIGTERM or Ctrl-C adds its name to; a second one ends the program at once."""
    caught: list[str] = []

    def catch(number, _):
        caught.append(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, catch)
    return caught


if __name__ == "__main__":
    cli.run("dreamjax.train", multihost.multihost_main(main))
