"""The beginning of a run: the rule of its folder, and the state that it goes on from: restored, handed over or fresh."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from dreamjax.config import RunConfig
from dreamjax.models import dreamllm
from dreamjax.schema import ConfigError, to_dict
from dreamjax.tokenizer import Tokenizer
from dreamjax.training import checkpoint, handover, optim
from dreamjax.training.state import State, init

SAME_ON_RESUME = ("model", "data", "optim", "loss", "seed", "batch_size", "accumulate", "total_steps", "init_from")


def prepare_workdir(workdir: epath.Path, config: RunConfig):
    """Writes config.json; a workdir that holds another run's checkpoint is a ConfigError that names what differs.

    What a start that failed has left there is written anew.
    """
    if not checkpoint.steps(workdir):
        (workdir / "tokenizer").rmtree(missing_ok=True)
    elif (workdir / "config.json").exists():
        before, now = to_dict(checkpoint.read_config(workdir)), to_dict(config)
        changed = [name for name in SAME_ON_RESUME if before[name] != now[name]]
        if changed:
            raise ConfigError(f"--workdir: {workdir} holds a run with other values of config.{', config.'.join(changed)}; use another folder or the old values")
    checkpoint.write_config(workdir, config)


def begin(config: RunConfig, parts: dreamllm.Parts, workdir: epath.Path, manager: ocp.CheckpointManager, shapes, shardings) -> tuple[State, dict, dict]:
    """(state, frozen, meta) to go on from: restored, or fresh with what `init_from` hands over; `frozen` is written once.

    meta goes into every checkpoint: where frozen lies, and the record of what came from where (`handover.origins_of`).
    """
    to_target = lambda tree, where: jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, where)
    state_target, frozen_target = map(to_target, shapes, shardings)
    if manager.latest_step() is not None:
        state, meta = checkpoint.restore(manager, state_target)
        frozen = checkpoint.load_tree(workdir / "frozen", frozen_target) if frozen_target else {}
        if frozen and checkpoint.checksum(frozen) != meta["frozen"]["checksum"]:
            raise ConfigError(f"{workdir / 'frozen'}: is not what this run began with (its checksum differs)")
        return state, frozen, meta
    state, frozen = jax.jit(lambda: init(config, parts), out_shardings=shardings)()
    meta = {"frozen": None, "origins": [], "fresh": list(checkpoint.flatten(optim.merge(state.trainable, frozen)))}
    if config.init_from:
        tokenizer = Tokenizer.load(workdir / "tokenizer") if (workdir / "tokenizer").exists() else None
        params, record = handover.take_over(config, optim.merge(state.trainable, frozen), tokenizer)
        trainable, frozen = optim.split(config.optim, params)
        average = jax.tree.map(jnp.copy, trainable) if state.average is not None else None
        state, meta = state._replace(trainable=trainable, average=average), meta | record
    if frozen:
        (workdir / "frozen").rmtree(missing_ok=True)
        checkpoint.save_tree(workdir / "frozen", frozen)
        meta["frozen"] = {"path": "../../frozen", "checksum": checkpoint.checksum(frozen)}
    return state, frozen, meta
