"""The files of a run: layout, writing, reading.

    workdir/
      config.json           the RunConfig
      tokenizer/            tokenizer.model, special_tokens.json
      lengths/              lengths of all documents, measured once (data/pipeline/lengths.py)
      frozen/               parameters that the run does not train, written once (Orbax)
      checkpoints/STEP/     state: trainable, optimiser, average (Orbax); meta: seconds, path of frozen, origins of
                            weights; checksums: of the state's arrays and of meta; metrics: the held-out loss
      checkpoints/STEP.set_aside/   a damaged one that the run continues without, see `set_aside`
      metrics.jsonl, samples/, TensorBoard events
      lock.json             the process that trains here (filesystem/lock.py)

model_folder.py describes a model folder, without a run; `load_params` reads both.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from dreamjax.config import ModelConfig, RunConfig
from dreamjax.config.validation import from_dict, to_dict
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic
from dreamjax.models import dreamllm
from dreamjax.parallel.param_sharding import path_of
from dreamjax.training import checksums, model_folder, optimizer
from dreamjax.training.checksums import checksums as checksums_of
from dreamjax.training.checksums import reading
from dreamjax.training.state import State, same_structure

BEST = "heldout_loss"
BEST_BEFORE_0_2 = "held_back_loss"  # its name in checkpoints of version 0.1
Manager = ocp.CheckpointManager
NAMES = ocp.path.step.standard_name_format()


def open_folder(path: str | os.PathLike) -> epath.Path:
    """A workdir or model folder by its name: local (made absolute, as Orbax wants it) or gs://."""
    folder = epath.Path(path)
    return folder if "://" in os.fspath(path) else folder.absolute()


def checkpoint_path(workdir: epath.Path, step: int) -> epath.Path:
    """The folder of a workdir's checkpoint."""
    return workdir / "checkpoints" / str(step)


# ----------------------------------------------------------------------------------------------------------------------
# Finished checkpoints


class _FinishedSteps(ocp.path.step.NameFormat):
    """The checkpoints that Orbax has finished, by its own marks.

    On a disk Orbax renames a finished checkpoint, in a bucket it writes in place and adds a mark at the end. A copy of
    a bucket's folder on a disk has the name of a finished one from the start, so the mark, or the commit time in
    Orbax's metadata, is required too.
    """

    def build_name(self, step: int) -> str:
        return NAMES.build_name(step)

    def find_all(self, base_path) -> Iterator[ocp.path.step.Metadata]:
        return filter(self._is_finished, NAMES.find_all(base_path))

    def find_step(self, base_path, step: int) -> ocp.path.step.Metadata:
        metadata = NAMES.find_step(base_path, step)
        if not self._is_finished(metadata):
            raise ValueError(f"{metadata.path}: is not complete")
        return metadata

    def _is_finished(self, metadata: ocp.path.step.Metadata) -> bool:
        return (
            metadata.path / ocp.path.atomicity.COMMIT_SUCCESS_FILE
        ).exists() or metadata.commit_timestamp_nsecs is not None


def steps(folder: epath.Path) -> list[int]:
    """The steps of a workdir's finished checkpoints, in order."""
    with reading(folder / "checkpoints"):
        return sorted(metadata.step for metadata in _FinishedSteps().find_all(folder / "checkpoints"))


def last_step(folder: epath.Path) -> int:
    """The newest checkpoint of a workdir."""
    finished = steps(folder)
    if not finished:
        raise ConfigError(f"{folder}: has no checkpoint yet")
    return finished[-1]


def best_step(folder: epath.Path) -> int:
    """The step of the checkpoint with the lowest held-out loss; of equal ones the newest."""
    losses = {
        step: loss for step in steps(folder) if (loss := heldout_loss(folder, step)) is not None and math.isfinite(loss)
    }
    if not losses:
        raise ConfigError(f"{folder}: no checkpoint has a held-out loss that is a number (set eval_every)")
    return min(losses, key=lambda step: (losses[step], -step))


def step_of(folder: epath.Path, which: str) -> int:
    """The step of a workdir's last or best checkpoint."""
    return best_step(folder) if which == "best" else last_step(folder)


def heldout_loss(folder: epath.Path, step: int) -> float | None:
    """The held-out loss of a workdir's checkpoint, None where it has none."""
    path = checkpoint_path(folder, step)
    with reading(path):
        loss = None
        if (path / "metrics").exists():
            loss = float(_loss_in(ocp.JsonCheckpointHandler("metrics").restore(path / "metrics")))
        if _loss_in(_record(path), repr(loss)) != repr(loss):
            raise ConfigError(f"{path}: its held-out loss is damaged")
    return loss


def set_aside(workdir: epath.Path, step: int) -> None:
    """Renames a damaged checkpoint so that no run reads it; does nothing the second time.

    The run may reach that step again and be restarted with the same flags.
    """
    source, target = checkpoint_path(workdir, step), _aside(workdir, step)
    if target.exists():
        return
    if not source.exists():
        raise ConfigError(
            f"--set_aside: {workdir} has no checkpoint {step}; it has {', '.join(map(str, steps(workdir))) or 'none'}"
        )
    source.rename(target)


def _aside(workdir: epath.Path, step: int) -> epath.Path:
    return workdir / "checkpoints" / f"{step}.set_aside"


@contextlib.contextmanager
def _resuming(workdir: epath.Path, step: int) -> Iterator[None]:
    """Adds to the error of an unreadable checkpoint how its run can continue without it."""
    try:
        yield
    except ConfigError as error:
        others = [other for other in steps(workdir) if other != step]
        goes_on = f"goes on from step {others[-1]}" if others else "begins anew, as there is no other checkpoint"
        flag = (
            f"the same command with --set_aside={step} renames that folder to {_aside(workdir, step).name} "
            f"and {goes_on}"
        )
        by_hand = f"once that folder is moved away, the same command {goes_on}"
        raise ConfigError(f"{error}; {by_hand if _aside(workdir, step).exists() else flag}") from error


# ----------------------------------------------------------------------------------------------------------------------
# A run's state


def open_manager(workdir: epath.Path, count: int) -> ocp.CheckpointManager:
    """A manager that keeps the newest `count` checkpoints and the one with the lowest held-out loss.

    It saves in the background, atomically.
    """

    def goodness(metrics: dict) -> float:  # a loss that is not finite is never the best
        loss = _loss_in(metrics)
        return -loss if math.isfinite(loss) else -math.inf

    for step in steps(workdir):
        with _resuming(workdir, step):
            heldout_loss(workdir, step)  # the manager reads them all, and would not name one that is damaged
    best = policies.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=count), best]),
        step_name_format=_FinishedSteps(),
    )
    with reading(workdir / "checkpoints"):
        return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def save(manager: ocp.CheckpointManager, state: State, meta: dict, heldout_loss: float | None) -> None:
    """Starts writing the state in the background; `manager.wait_until_finished` waits for it."""
    tree = state._asdict()
    record = {
        "arrays": checksums_of(tree),
        "meta": _digest(meta),
        BEST: repr(heldout_loss),
    }
    items = {
        "state": ocp.args.PyTreeSave(tree),
        "meta": ocp.args.JsonSave(meta),
        "checksums": ocp.args.JsonSave(record),
    }
    metrics = None
    if heldout_loss is not None:
        # Written here: the manager writes it itself only with a best_fn, and then warns at each save without metrics.
        metrics = {BEST: heldout_loss}
        items["metrics"] = ocp.args.JsonSave(metrics)
    manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)


def _loss_in(values: Mapping, default: Any = None) -> Any:
    """The held-out loss among stored values, by its name today or before version 0.2."""
    return values.get(BEST, values.get(BEST_BEFORE_0_2, default))


def restore(manager: ocp.CheckpointManager, state: State, verify: bool = True) -> tuple[State, dict]:
    """The newest checkpoint as (state, meta); `state` gives shapes and shardings.

    ConfigError, with the command that continues without it, where it cannot be read or differs from what was written;
    `verify` compares checksums.
    """
    workdir, step, target = manager.directory.parent, manager.latest_step(), state._asdict()
    args = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    with _resuming(workdir, step):
        meta = read_meta(workdir, step)
        with reading(checkpoint_path(workdir, step)):
            restored = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            if verify:
                checksums.check(restored, stored_checksums(workdir, step), checkpoint_path(workdir, step))
            if not same_structure(restored, target):
                raise ConfigError(f"{checkpoint_path(workdir, step)}: holds other arrays than it should")
    return State(**restored), meta


def read_meta(folder: epath.Path, step: int) -> dict:
    """The meta of a workdir's checkpoint."""
    path = checkpoint_path(folder, step)
    with reading(path):
        meta = ocp.JsonCheckpointHandler().restore(path / "meta")
        if _record(path).get("meta", _digest(meta)) != _digest(meta):
            raise ConfigError(f"{path}: its meta is damaged (its checksum differs)")
    return meta


def stored_checksums(folder: epath.Path, step: int) -> dict[str, str]:
    """{path: dtype and checksum} of the state's arrays in a checkpoint; empty for one from before checksums."""
    path = checkpoint_path(folder, step)
    with reading(path):
        return checksums.as_checksums(_record(path).get("arrays", {}))


def _record(path: epath.Path) -> dict:
    return ocp.JsonCheckpointHandler().restore(path / "checksums") if (path / "checksums").exists() else {}


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------------------
# Parameters by themselves


def save_tree(path: epath.Path, params: dict, overwrite: bool = False) -> None:
    """Writes a tree of parameters as one Orbax checkpoint. Every host calls it and writes its own shards."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(params), force=overwrite)


def load_tree(path: epath.Path, shapes, keys: tuple[str, ...] = (), expected: Mapping[str, str] | None = None) -> dict:
    """Reads the leaves of `shapes` (with shardings where they matter) from an Orbax checkpoint; `keys` lead to their
    tree.

    Arrays with `expected` checksums are read in their stored dtype, compared, then cast.
    """
    for key in reversed(keys):
        shapes = {key: shapes}
    stored = {name: checksums.dtype_of(checksum) for name, checksum in (expected or {}).items()}

    def as_stored(name, leaf):
        return (
            jax.ShapeDtypeStruct(leaf.shape, stored[path_of(name)], sharding=leaf.sharding)
            if path_of(name) in stored
            else leaf
        )

    target = jax.tree_util.tree_map_with_path(as_stored, shapes)
    with reading(path):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            args = ocp.args.PyTreeRestore(
                target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
            )
            tree = checkpointer.restore(path, args=args)
        leaves, structure = jax.tree.flatten(tree)
        if expected:
            checksums.check(tree, expected, path)
            del tree
            for number, leaf in enumerate(jax.tree.leaves(shapes)):  # one by one: two copies of all may not fit
                leaves[number] = leaves[number].astype(leaf.dtype)
        tree = jax.tree.unflatten(structure, leaves)
        if not same_structure(tree, shapes):
            raise ConfigError(f"{path}: holds other arrays than it should")
    for key in keys:
        tree = tree[key]
    return tree


def checksum(params: dict) -> str:
    """16 hex digits over the bits and paths of a tree's leaves; does not depend on the sharding."""
    return checksums.fold(checksums_of(params))


def write_config(folder: epath.Path, config: RunConfig) -> None:
    """Writes config.json: all settings, defaults included."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "config.json", json.dumps(to_dict(config), indent=1) + "\n")


def read_config(folder: epath.Path) -> RunConfig:
    """The RunConfig of a workdir; ConfigError where there is none. `model_folder.read_card` reads model folders too."""
    return from_dict(RunConfig, *model_folder.read_settings(folder))


def parameter_shapes(model: ModelConfig) -> dict:
    """The tree of a model's parameters as float32 shapes."""
    return jax.eval_shape(lambda: dreamllm.init(model, jax.random.key(0)))


def load_params(folder: epath.Path, which: str = "last", shardings=None, verify: bool = True) -> dict:
    """All parameters of a workdir (its averaged weights where it keeps an average) or of a model folder.

    which: last | best (lowest held-out loss). `shardings` is a tree like the parameters; without it they go to the
    default device. `verify` compares each array with its checksum.
    """
    shapes = parameter_shapes(model_folder.read_card(folder).model)
    shardings = shardings or jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return read_params(folder, target, which, verify)


@contextlib.contextmanager
def _reading_another(workdir: epath.Path, step: int) -> Iterator[None]:
    """Adds to the error of an unreadable checkpoint which one is read without it."""
    try:
        yield
    except ConfigError as error:
        others = [str(other) for other in steps(workdir) if other != step]
        advice = (
            f"; once {checkpoint_path(workdir, step)} is moved out of {workdir / 'checkpoints'}, another one "
            f"is read ({', '.join(others)})"
        )
        raise ConfigError(f"{error}{advice if others else ''}") from error


def read_params(folder: epath.Path, shapes: dict, which: str = "last", verify: bool = True) -> dict:
    """Some parameters of a workdir or model folder, as in `load_params`.

    `shapes` is a tree of shapes with shardings.
    """
    if (folder / "params").exists():
        return load_tree(
            model_folder.params_path(folder), shapes, expected=model_folder.read_checksums(folder) if verify else None
        )
    config = read_config(folder)
    trainable, frozen = optimizer.split(config.optim, shapes)
    step, trainable_params, frozen_params = step_of(folder, which), {}, {}
    if trainable:
        keys = ("average" if config.optim.ema_decay else "trainable",)
        with _reading_another(folder, step):
            trainable_params = load_tree(
                checkpoint_path(folder, step) / "state",
                trainable,
                keys,
                stored_checksums(folder, step) if verify else None,
            )
    if frozen:
        frozen_params = load_tree(
            folder / "frozen", frozen, expected=read_meta(folder, step)["frozen"].get("checksums") if verify else None
        )
    return optimizer.merge(trainable_params, frozen_params)


def flatten(params: dict) -> dict:
    """{path: leaf} of a tree of parameters."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def unflatten(flat: dict) -> dict:
    """The nested dict of {path: leaf}: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")
