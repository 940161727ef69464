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
DATA_MAY_CHANGE = ("eval", "threads", "workers", "max_bad_share")  # settings of `data` that no batch depends on


def prepare_workdir(workdir: epath.Path, config: RunConfig):
    """Writes config.json; a workdir that holds another run's checkpoint is a ConfigError that names what differs.

    What a start that failed has left there is written anew. With `allow_changed_data` other data are no other run. Of several
    hosts the first alone writes, and has to be here before the others.
    """
    if not checkpoint.steps(workdir):
        if jax.process_index() == 0:
            (workdir / "tokenizer").rmtree(missing_ok=True)
    elif (workdir / "config.json").exists():
        before, now = to_dict(checkpoint.read_config(workdir)), to_dict(config)
        for name in DATA_MAY_CHANGE:
            before["data"].pop(name), now["data"].pop(name)
        allowed = ("data",) if config.allow_changed_data else ()
        changed = [name for name in SAME_ON_RESUME if before[name] != now[name] and name not in allowed]
        if changed:
            raise ConfigError(f"--workdir: {workdir} holds a run with other values of config.{', config.'.join(changed)}; use another folder or the old values")
    if jax.process_index() == 0:
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
        checkpoint.save_tree(workdir / "frozen", frozen, overwrite=True)  # of a start that failed
        meta["frozen"] = {"path": "../../frozen", "checksum": checkpoint.checksum(frozen)}
    return state, frozen, meta


def with_data(meta: dict, fingerprint: str, config: RunConfig, workdir: epath.Path) -> dict:
    """meta with the fingerprint of the run's data; ConfigError where the run began with other documents, unless it may go on with these."""
    if meta.get("data", fingerprint) != fingerprint and not config.allow_changed_data:
        raise ConfigError(
            f"--workdir: {workdir} holds a run whose documents were others than those of config.data.train now; "
            "bring them back, use another folder, or go on with these by --config.allow_changed_data=True"
        )
    return meta | {"data": fingerprint}


def encoders_of(params: dict) -> str:
    """Checksum of the encoders of pictures among the parameters, which must be in the compute dtype."""
    return checkpoint.checksum({name: params[name] for name in ("clip", "vae") if name in params})


def check_encoders(used: set[str], frozen: dict):
    """ConfigError where the batches hold what other encoders made of the pictures than those that the run keeps frozen."""
    if used and used != {encoders_of(frozen)}:
        raise ConfigError(
            "config.data.train: its pictures were encoded by other encoders than this run's clip and vae, or those are not frozen whole; "
            "encode them anew with python -m dreamjax.precompute, or freeze ^(clip|vae)/"
        )
