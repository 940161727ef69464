"""What a run leaves on disk, and how it is read back.

    workdir/
      config.json           the RunConfig
      tokenizer/            tokenizer.model, special_tokens.json
      frozen/               parameters that the run does not train, written once (Orbax)
      checkpoints/STEP/     state: trainable, optimiser, average (Orbax); meta: batches taken, seconds, where frozen lies
      metrics.jsonl, samples/, TensorBoard events

A model folder to use or to hand on (`convert export`) holds config.json, tokenizer/ and params/.
"""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from dreamjax.config import RunConfig
from dreamjax.models import dreamllm
from dreamjax.schema import ConfigError, from_dict, to_dict
from dreamjax.sharding import parameter_shardings, path_of
from dreamjax.training import optim
from dreamjax.training.state import State, init

BEST = "held_back_loss"


def open_folder(path: str | os.PathLike) -> epath.Path:
    """A workdir or model folder by its name: local (made absolute, as Orbax wants it) or gs://."""
    folder = epath.Path(path)
    return folder if "://" in os.fspath(path) else folder.absolute()


def open_manager(workdir: epath.Path, kept: int) -> ocp.CheckpointManager:
    """Keeps the newest `kept` checkpoints and the one with the lowest held-back loss; saves in the background, atomically."""
    negative = lambda metrics: -metrics[BEST]
    best = policies.BestN(get_metric_fn=negative, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=kept), best]),
        best_fn=negative,  # the policy alone decides what is kept; without this no metric is written
    )
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def save(manager: ocp.CheckpointManager, state: State, meta: dict, held_back_loss: float | None):
    """Starts writing the state after its last step; `manager.wait_until_finished` waits for it."""
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state._asdict()), meta=ocp.args.JsonSave(meta))
    manager.save(int(state.step), args=args, metrics=None if held_back_loss is None else {BEST: held_back_loss})


def restore(manager: ocp.CheckpointManager, state: State) -> tuple[State, dict]:
    """The newest checkpoint as (state, meta); `state` gives shapes and shardings."""
    target = state._asdict()
    args = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=args, meta=ocp.args.JsonRestore()))
    return State(**restored["state"]), restored["meta"]


# ----------------------------------------------------------------------------------------------------------------------
# Parameters by themselves


def save_tree(path: epath.Path, params: dict):
    """Writes a tree of parameters in one Orbax checkpoint."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(params))


def load_tree(path: epath.Path, wanted, keys: tuple[str, ...] = ()) -> dict:
    """Reads the leaves of `wanted` (shapes, with shardings where they matter) from an Orbax checkpoint; `keys` lead to their tree."""
    for key in reversed(keys):
        wanted = {key: wanted}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
        tree = checkpointer.restore(path, args=args)
    for key in keys:
        tree = tree[key]
    return tree


def checksum(params: dict) -> str:
    """16 hex digits over the bytes and paths of a tree's leaves, computed where they lie; does not depend on the sharding."""

    @jax.jit
    def words(leaf):
        bits = jax.lax.bitcast_convert_type(leaf.reshape(-1), f"uint{leaf.dtype.itemsize * 8}").astype(np.uint32)
        word = bits ^ jax.lax.iota(np.uint32, bits.size) * np.uint32(2654435761)
        # Murmur3's finaliser: a plain weighted sum would miss changes that cancel, such as an even number of signs.
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            word = (word ^ (word >> shift)) * np.uint32(factor)
        return word.sum(dtype=np.uint32)

    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total = (total * 1000003 + sum(path_of(path).encode()) + int(words(leaf))) % 2**64
    return f"{total:016x}"


def write_config(folder: epath.Path, config: RunConfig):
    """config.json: all that was set, defaults included."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")


def read_config(folder: epath.Path) -> RunConfig:
    """The RunConfig of a workdir or model folder; ConfigError where there is none."""
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(f"{folder}: is neither a training workdir nor a model folder (it has no config.json)")
    return from_dict(RunConfig, json.loads(path.read_text()), str(path))


def load_params(folder: epath.Path, which: str = "last", shardings=None) -> dict:
    """All parameters of a workdir (its averaged weights where it keeps an average) or of a model folder.

    which: last | best (lowest held-back loss). `shardings`, a tree like the parameters, says where they go; without it
    they go whole to the default device.
    """
    config = read_config(folder)
    shapes = jax.eval_shape(lambda: dreamllm.init(dreamllm.build(config.model), jax.random.key(0)))
    shardings = shardings or jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    target = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings)
    if (folder / "params").exists():
        return load_tree(folder / "params", target)
    step = best_step(folder) if which == "best" else last_step(folder)
    trainable, frozen = optim.split(config.optim, target)
    kind = "average" if config.optim.ema_decay else "trainable"
    trained = load_tree(folder / "checkpoints" / str(step) / "state", trainable, (kind,))
    return optim.merge(trained, load_tree(folder / "frozen", frozen) if frozen else {})


def shardings_on(config: RunConfig, mesh: jax.sharding.Mesh) -> dict:
    """Where each parameter of a model goes on a mesh."""
    return parameter_shardings(jax.eval_shape(lambda: dreamllm.init(dreamllm.build(config.model), jax.random.key(0))), mesh)


def last_step(folder: epath.Path) -> int:
    """The newest checkpoint of a workdir."""
    if not steps(folder):
        raise ConfigError(f"{folder}: has no checkpoint yet")
    return max(steps(folder))


def steps(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints a workdir holds; one that is being written has another name until it is whole."""
    return [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]


def best_step(folder: epath.Path) -> int:
    """The step whose held-back loss is lowest among the checkpoints that a workdir keeps."""
    losses = {}
    for metrics in (folder / "checkpoints").glob("*/metrics/metrics"):
        losses[int(metrics.parent.parent.name)] = json.loads(metrics.read_text())[BEST]
    if not losses:
        raise ConfigError(f"{folder}: no checkpoint has a held-back loss (set eval_every)")
    return min(losses, key=losses.get)


def take_over(config: RunConfig, params: dict) -> dict:
    """Parameters with those named by `init_from` replaced by an earlier run's; ConfigError names what does not fit."""
    for number, origin in enumerate(config.init_from):
        key = f"config.init_from[{number}]"
        earlier = flatten(load_params(open_folder(origin.path)))
        mine = flatten(params)
        taken = [path for path in mine if re.search(origin.pattern, path)]
        if not taken:
            raise ConfigError(f"{key}.pattern: {origin.pattern!r} matches no parameter")
        for path in taken:
            if path not in earlier or earlier[path].shape != mine[path].shape:
                found = earlier[path].shape if path in earlier else "nothing"
                raise ConfigError(f"{key}: {origin.path} has {found} for {path} {mine[path].shape}")
            mine[path] = jax.device_put(earlier[path].astype(mine[path].dtype), mine[path].sharding)
        params = jax.tree.unflatten(jax.tree.structure(params), mine.values())
    return params


def flatten(params: dict) -> dict:
    """{path: leaf} of a tree of parameters."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


# ----------------------------------------------------------------------------------------------------------------------
# The beginning of a run

SAME_ON_RESUME = ("model", "data", "optim", "loss", "seed", "batch_size", "accumulate", "total_steps", "init_from")


def prepare_workdir(workdir: epath.Path, config: RunConfig):
    """Writes config.json; a workdir that holds another run's checkpoint is a ConfigError that names what differs.

    What a start that failed has left there is written anew.
    """
    if not steps(workdir):
        (workdir / "tokenizer").rmtree(missing_ok=True)
    elif (workdir / "config.json").exists():
        before, now = to_dict(read_config(workdir)), to_dict(config)
        changed = [name for name in SAME_ON_RESUME if before[name] != now[name]]
        if changed:
            raise ConfigError(f"--workdir: {workdir} holds a run with other values of config.{', config.'.join(changed)}; use another folder or the old values")
    write_config(workdir, config)


def start(config: RunConfig, parts: dreamllm.Parts, workdir: epath.Path, manager: ocp.CheckpointManager, shapes, shardings) -> tuple[State, dict, dict]:
    """(state, frozen, meta) to go on from: restored, or fresh with what `init_from` hands over; `frozen` is written once."""
    to_target = lambda tree, where: jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, where)
    state_target, frozen_target = map(to_target, shapes, shardings)
    if manager.latest_step() is not None:
        state, meta = restore(manager, state_target)
        frozen = load_tree(workdir / "frozen", frozen_target) if frozen_target else {}
        if frozen and checksum(frozen) != meta["frozen"]["checksum"]:
            raise ConfigError(f"{workdir / 'frozen'}: is not what this run began with (its checksum differs)")
        return state, frozen, meta
    state, frozen = jax.jit(lambda: init(config, parts), out_shardings=shardings)()
    if config.init_from:
        trainable, frozen = optim.split(config.optim, take_over(config, optim.merge(state.trainable, frozen)))
        average = jax.tree.map(jnp.copy, trainable) if state.average is not None else None
        state = state._replace(trainable=trainable, average=average)
    meta = {"frozen": None}
    if frozen:
        (workdir / "frozen").rmtree(missing_ok=True)
        save_tree(workdir / "frozen", frozen)
        meta = {"frozen": {"path": "../../frozen", "checksum": checksum(frozen)}}
    return state, frozen, meta
