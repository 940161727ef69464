"""Trains a model: python -m dreamjax.train --config=experiments/X.py[:arg] --workdir=DIR [--config.a.b=c] [--dry_run]

Run it again on the same workdir and it goes on where it was, on another mesh and other hosts too; SIGTERM and Ctrl-C
save first. On several hosts the same command runs on each of them; dreamjax/parallel/multihost.py says how they find
each other. The workdir is shared. Indexes of data files are kept in the user's cache (~/.cache/dreamjax), or where a
source's `cache` says, which hosts may share.
"""

import contextlib
import json
import signal
import time

import jax
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import config_flags

from dreamjax import cli
from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.data.pipeline.loader import Loaded, Loader
from dreamjax.data.pipeline.vocabulary import open_tokenizer
from dreamjax.document import Document, Text, render_html
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic, lock
from dreamjax.models.dreamllm import Model
from dreamjax.parallel import multihost
from dreamjax.parallel.mesh import ROWS, check_divides, make_mesh, planned_mesh
from dreamjax.sampling import interleave
from dreamjax.training import checkpoint, optimizer, profile, report, weight_transfer
from dreamjax.training.heldout import make_heldout
from dreamjax.training.initialize import begin, check_encoders, prepare_workdir, rates, with_data, with_steps
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State, init, shardings
from dreamjax.training.step import jit_train_step
from dreamjax.training.train_logger import TrainLogger

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


def main() -> int:
    # -- Hosts, configuration and shapes
    multihost.join()
    if CONFIG.value is None:
        raise ConfigError("--config: is missing, for example --config=experiments/quickstart.py")
    config = from_dict(RunConfig, CONFIG.value)
    mesh = planned_mesh(config.mesh) if DRY_RUN.value else make_mesh(config.mesh)
    shapes = jax.eval_shape(lambda: init(config))
    where = shardings(*shapes, mesh, config.replicated)
    facts = report.summary(config, mesh, *shapes, where)
    multihost.print_on_host0(report.format_summary(facts))
    if DRY_RUN.value:
        multihost.print_on_host0(json.dumps(facts))
        return 0
    if WORKDIR.value is None:
        raise ConfigError("--workdir: is missing")
    check_divides(config, mesh)
    if config.sample_every and jax.process_count() > 1:
        raise ConfigError(
            "config.sample_every: a run of several hosts writes no samples; set 0 and call "
            "dreamjax.sample on its checkpoints"
        )
    workdir = checkpoint.open_folder(WORKDIR.value)
    with (
        lock.held(workdir, "--workdir") if multihost.is_first() else contextlib.nullcontext(lambda: None) as check_lock
    ):
        return train(config, mesh, shapes, where, workdir, check_lock)


def train(
    config: RunConfig,
    mesh: Mesh,
    shapes: tuple[State, dict],
    where: tuple[State, dict],
    workdir: epath.Path,
    check_lock,
) -> int:
    """The run in a workdir from where it is to its end; shapes and shardings are those of (state, frozen). Returns the
    exit status.

    Host 0 holds the workdir, and `check_lock()` raises there when another run has taken it.
    """
    # -- Data
    with multihost.one_before_the_others("data"):
        if SET_ASIDE.value is not None and multihost.is_first():
            checkpoint.set_aside(workdir, SET_ASIDE.value)
        prepare_workdir(workdir, config)
        tokenizer = open_tokenizer(config, workdir)
        loader = Loader(config, config.data.train, tokenizer, workdir / "lengths", jax.process_index())
        heldout_sources = heldout_loaders(config, tokenizer, workdir / "lengths")
    multihost.print_on_host0(loader.format_summary())
    rows = NamedSharding(mesh, ROWS)
    own = multihost.own_groups(rows, config.groups)

    def put(loaded):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(rows, x, (config.groups, *x.shape[1:])), loaded.batch
        )

    with jax.set_mesh(mesh):
        # -- State: restored, handed over or fresh
        manager = checkpoint.open_manager(workdir, config.checkpoints_kept)
        state, frozen, meta = begin(config, workdir, manager, shapes, where, cli.VERIFY.value)
        meta = with_data(meta, loader.fingerprint, config, workdir)
        meta, longer = with_steps(meta, config, int(state.step))
        if longer:
            multihost.print_on_host0(f"longer        {rates(config, longer['total_steps_before'], int(state.step))}")
        check_encoders(loader.encoders, frozen)
        if config.init_from:
            multihost.print_on_host0(weight_transfer.format_summary(meta))
        start = int(state.step)
        if start >= config.total_steps:
            multihost.print_on_host0(
                f"{workdir}: complete at step {start}, nothing to do; a higher --config.total_steps goes on"
            )
            return 0

        # -- Compile
        ids = SpecialIds(tokenizer.bos, tokenizer.dream_start, tokenizer.im_patch)
        began = time.monotonic()
        step = jit_train_step(config, ids, where, mesh).lower(state, frozen, put(loader.load(start, own))).compile()
        multihost.print_on_host0(
            f"compiled      in {time.monotonic() - began:.1f} s; a step needs "
            f"{report.temporary_bytes(step) / 2**20:,.1f} MiB besides its arguments"
        )
        multihost.wait_for_all("compiled")
        heldout = make_heldout(
            config,
            ids,
            {
                name: lambda one=one: map(put, one)
                for name, one in heldout_batches(config, heldout_sources, own).items()
            },
        )

        # -- Loop
        signals, agree = catch_signals(), multihost.stop_consensus(mesh)
        watch = TrainLogger(
            config, workdir, start, loader.documents, loader.skipped, loader.unnamed, multihost.is_first()
        )
        watch.note = longer
        for done, loaded in enumerate(loader.batches(start, config.total_steps, own), start + 1):
            check_lock()
            profile.before_step(config, workdir, done)
            state, metrics = step(state, frozen, put(loaded))
            watch.after_dispatch(done, metrics | {"stop": agree(bool(signals))}, loaded.documents, loaded.skipped)
            last = done == config.total_steps or watch.stopping
            profile.after_step(config, done, start + 1, metrics, last)
            if is_due(config.eval_every, done, last):
                watch.heldout = heldout(state, frozen)
            if is_due(config.sample_every, done, last):
                write_samples(config, tokenizer, state, frozen, workdir / "samples" / f"step_{done:07d}.html")
            if is_due(config.checkpoint_every, done, last):
                loss = watch.heldout.get("eval_loss")
                watch.settle()
                checkpoint.save(manager, state, meta | {"seconds": watch.seconds()}, loss)
            if last:
                break
        watch.close()
        manager.wait_until_finished()
        manager.close()
    if done < config.total_steps:
        multihost.print_on_host0(
            f"{signals[0] if signals else 'signal on another host'}: saved step {done}; the same command "
            "goes on from there"
        )
        return STOPPED.value
    return 0


def is_due(every: int, done: int, last: bool) -> bool:
    """Whether what happens every so many steps (0: never) happens now; all of it happens at the last step."""
    return every > 0 and (done % every == 0 or last)


def heldout_loaders(config: RunConfig, tokenizer: Tokenizer, lengths: epath.Path) -> dict[str, Loader]:
    """{held-back source: its Loader}."""
    if not config.eval_every:
        return {}
    formats = [source.format for source in config.data.eval]
    names = [name if formats.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(formats)]
    return {
        name: Loader(config, (source,), tokenizer, lengths, jax.process_index())
        for name, source in zip(names, config.data.eval, strict=True)
    }


def heldout_batches(config: RunConfig, loaders: dict[str, Loader], own: tuple[int, ...]) -> dict[str, list[Loaded]]:
    """{held-back source: this host's share of its batches}."""
    return {
        name: [loader.load_first_epoch(k, own) for k in range(config.eval_batches) if loader.has(k)]
        for name, loader in loaders.items()
    }


def write_samples(config: RunConfig, tokenizer: Tokenizer, state: State, frozen: dict, path: epath.Path):
    """Writes what the model makes of the configured prompts, as one page."""
    params = optimizer.merge(state.trainable if state.average is None else state.average, frozen)
    model = Model(config.model, params)
    prompts = [Document((Text(prompt),)) for prompt in config.sample_prompts]
    options = interleave.Options(max_tokens=config.sample_tokens, max_images=4, template=config.data.template)
    written = interleave.generate(model, tokenizer, prompts, range(len(prompts)), options)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [
        Document(prompt.parts + made.parts, notes=made.notes) for prompt, made in zip(prompts, written, strict=True)
    ]
    atomic.write_text(path, render_html(whole, title=f"Step {int(state.step)}"))


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
