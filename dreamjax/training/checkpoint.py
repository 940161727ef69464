"""What a run leaves on disk, and how it is read back.

    workdir/
      config.json           the RunConfig
      tokenizer/            tokenizer.model, special_tokens.json
      lengths/              how long each document is, found once (data/lengths.py)
      frozen/               parameters that the run does not train, written once (Orbax)
      checkpoints/STEP/     state: trainable, optimiser, average (Orbax); meta: seconds, where frozen lies, what came from where
      metrics.jsonl, samples/, TensorBoard events

A model folder to use or to hand on is described in model_folder.py; `load_params` reads both.
"""

import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from dreamjax.config import ModelConfig, RunConfig
from dreamjax.models import dreamllm
from dreamjax.schema import ConfigError, from_dict, to_dict
from dreamjax.sharding import path_of
from dreamjax.training import model_folder, optim
from dreamjax.training.state import State

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


def save_tree(path: epath.Path, params: dict, overwrite: bool = False):
    """Writes a tree of parameters, which all is in memory, in one Orbax checkpoint; every host calls it and writes what it holds."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(params), force=overwrite)


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
    """The RunConfig of a workdir; ConfigError where there is none. `model_folder.read_card` reads model folders too."""
    return from_dict(RunConfig, *model_folder.read_settings(folder))


def parameter_shapes(model: ModelConfig) -> dict:
    """The tree of a model's parameters as float32 shapes."""
    return jax.eval_shape(lambda: dreamllm.init(dreamllm.build(model), jax.random.key(0)))


def load_params(folder: epath.Path, which: str = "last", shardings=None) -> dict:
    """All parameters of a workdir (its averaged weights where it keeps an average) or of a model folder.

    which: last | best (lowest held-back loss). `shardings`, a tree like the parameters, says where they go; without it
    they go whole to the default device.
    """
    shapes = parameter_shapes(model_folder.read_card(folder).model)
    shardings = shardings or jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    target = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings)
    return read_params(folder, target, which)


def read_params(folder: epath.Path, wanted: dict, which: str = "last") -> dict:
    """Some parameters of a workdir or model folder, as in `load_params`; `wanted` is a tree of shapes with shardings."""
    if (folder / "params").exists():
        return load_tree(model_folder.params_path(folder), wanted)
    config = read_config(folder)
    trainable, frozen = optim.split(config.optim, wanted)
    state = folder / "checkpoints" / str(step_of(folder, which)) / "state"
    trained = load_tree(state, trainable, ("average" if config.optim.ema_decay else "trainable",)) if trainable else {}
    return optim.merge(trained, load_tree(folder / "frozen", frozen) if frozen else {})


def read_meta(folder: epath.Path, step: int) -> dict:
    """What a workdir's checkpoint says of itself besides its arrays."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder / "checkpoints" / str(step) / "meta")


def step_of(folder: epath.Path, which: str) -> int:
    """The step of a workdir's last or best checkpoint."""
    return best_step(folder) if which == "best" else last_step(folder)


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


def flatten(params: dict) -> dict:
    """{path: leaf} of a tree of parameters."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def unflatten(flat: dict) -> dict:
    """The nested dict of {path: leaf}: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")
