"""The start of a run: the check of its workdir, and its first state: restored, or new with transferred weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from dreamjax.config import RunConfig
from dreamjax.config.validation import to_dict
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, checksums, optimizer, weight_transfer
from dreamjax.training.state import State, init

SAME_ON_RESUME = (
    "model",
    "data",
    "optim",
    "loss",
    "seed",
    "batch_size",
    "accumulate",
    "init_from",
)  # and total_steps, which may grow
DATA_MAY_CHANGE = ("eval", "threads", "workers", "max_bad_share")  # settings of `data` that no batch depends on
NAMED = 5  # settings that a refusal lists


def prepare_workdir(workdir: epath.Path, config: RunConfig) -> None:
    """Writes config.json; ConfigError, with the differences and the remedies, where the workdir holds another run.

    Files of a failed start are replaced. Of several hosts the first alone writes, and calls this before the others.
    """
    if not checkpoint.steps(workdir):
        if jax.process_index() == 0:
            (workdir / "tokenizer").rmtree(missing_ok=True)
    elif (workdir / "config.json").exists():
        check_same_run(workdir, checkpoint.read_config(workdir), config, checkpoint.last_step(workdir))
    if jax.process_index() == 0:
        checkpoint.write_config(workdir, config)


def check_same_run(workdir: epath.Path, stored: RunConfig, config: RunConfig, done: int) -> None:
    """ConfigError where `config` is another run than `stored`, which has trained `done` steps.

    Other data are the same run with `allow_changed_data`; more steps are where the learning rate does not depend on
    their number, or with `allow_longer`.
    """
    ways = ["bring the old values back", way_on(workdir)]
    old, new = to_dict(stored), to_dict(config)
    for name in DATA_MAY_CHANGE:
        old["data"].pop(name), new["data"].pop(name)
    names = [name for name in SAME_ON_RESUME if name != "data" or not config.allow_changed_data]
    changed = [line for name in names for line in differences(old[name], new[name], f"config.{name}")]
    if changed and all(line.startswith("config.data.") for line in changed):
        ways.append("go on with these data by --config.allow_changed_data=True")
    total, more = stored.total_steps, config.total_steps > stored.total_steps
    if total != config.total_steps and not (
        more and (config.allow_longer or not optimizer.depends_on_total(config.optim, total, config.total_steps, done))
    ):
        changed += differences(total, config.total_steps, "config.total_steps")
        if more:
            ways.append(f"go on by --config.allow_longer=True, with {rates(config, total, done)}")
    if changed:
        rest = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise ConfigError(
            f"--workdir: {workdir} holds a run with other values of {', '.join(changed[:NAMED])}{rest}; "
            f"{', or '.join(ways)}"
        )


def way_on(workdir: epath.Path) -> str:
    """The flags that begin another run with the weights of a workdir."""
    init_from = f"""--config.init_from="({{'path': {str(workdir)!r}}},)\""""
    return f"begin another run with its weights by another --workdir and {init_from}"


def differences(old: Any, new: Any, key: str) -> list[str]:
    """The settings that differ below a key, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(old.get(name), new.get(name), f"{key}.{name}") for name in old | new]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(a, b, f"{key}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{key} ({_short(old)}, now {_short(new)})"]
    return [line for pair in pairs for line in differences(*pair)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def rates(config: RunConfig, before: int, done: int) -> str:
    """The effect of more steps than `before` on the learning rate, as text."""
    old_rate, new_rate = (
        float(optimizer.schedule(config.optim, total)(done)) for total in (before, config.total_steps)
    )
    return (
        f"the learning rate of {config.total_steps} steps: {new_rate:.3g} at step {done + 1}, where that of "
        f"{before} steps is {old_rate:.3g}"
    )


def with_steps(meta: dict, config: RunConfig, done: int) -> tuple[dict, dict]:
    """(meta with the run's number of steps, note for its next line of metrics).

    The note is {} unless the run has more steps than before.
    """
    before = meta.get("total_steps", config.total_steps)
    note = {} if before == config.total_steps else {"total_steps": config.total_steps, "total_steps_before": before}
    return meta | {"total_steps": config.total_steps}, note


class Start(NamedTuple):
    """The first state of a run, and the meta that goes into every checkpoint."""

    state: State
    frozen: dict
    meta: dict  # the path of frozen, and the record of origins, see `weight_transfer.origins_of`


def begin(
    config: RunConfig,
    workdir: epath.Path,
    manager: ocp.CheckpointManager,
    shapes: tuple[State, dict],
    shardings: tuple[State, dict],
    verify: bool = True,
) -> Start:
    """The restored state, or a new one with the weights of `init_from`; a new run's frozen parameters are written.

    `shapes` and `shardings` are those of (state, frozen). `verify` compares stored arrays with their checksums.
    """
    if manager.latest_step() is not None:
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        )
        return _restore(workdir, manager, target, verify)
    state, frozen = jax.jit(lambda: init(config), out_shardings=shardings)()
    meta: dict = {
        "frozen": None,
        "origins": [],
        "fresh": list(checkpoint.flatten(optimizer.merge(state.trainable, frozen))),
    }
    if config.init_from:
        tokenizer = Tokenizer.load(workdir / "tokenizer") if (workdir / "tokenizer").exists() else None
        params = optimizer.merge(state.trainable, frozen)
        params, record = weight_transfer.transfer(config, params, tokenizer, verify)
        trainable, frozen = optimizer.split(config.optim, params)
        average = jax.tree.map(jnp.copy, trainable) if state.average is not None else None
        state, meta = state._replace(trainable=trainable, average=average), meta | record
    if frozen:
        checkpoint.save_tree(workdir / "frozen", frozen, overwrite=True)  # replaces those of a failed start
        arrays = checksums.checksums(frozen)
        meta["frozen"] = {"path": "../../frozen", "checksum": checksums.fold(arrays), "checksums": arrays}
    return Start(state, frozen, meta)


def _restore(workdir: epath.Path, manager: ocp.CheckpointManager, target: tuple[State, dict], verify: bool) -> Start:
    state_target, frozen_target = target
    state, meta = checkpoint.restore(manager, state_target, verify)
    frozen = _read_frozen(workdir / "frozen", frozen_target, meta["frozen"], verify) if frozen_target else {}
    return Start(state, frozen, meta)


def _read_frozen(path: epath.Path, target: dict, written: dict, verify: bool) -> dict:
    """The frozen parameters; ConfigError where they are not those that the run began with."""
    if not verify or "checksums" in written:
        return checkpoint.load_tree(path, target, expected=written["checksums"] if verify else None)
    frozen = checkpoint.load_tree(path, target)  # of a run that began before each array had a checksum
    if checkpoint.checksum(frozen) != written["checksum"]:
        raise ConfigError(f"{path}: is not what this run began with (its checksum differs)")
    return frozen


def with_data(meta: dict, fingerprint: str, config: RunConfig, workdir: epath.Path) -> dict:
    """meta with the fingerprint of the run's data.

    ConfigError where the run began with other documents, unless `allow_changed_data`.
    """
    if meta.get("data", fingerprint) != fingerprint and not config.allow_changed_data:
        raise ConfigError(
            f"--workdir: {workdir} holds a run whose documents were others than those of config.data.train now; "
            f"bring them back, {way_on(workdir)}, or go on with these by --config.allow_changed_data=True"
        )
    return meta | {"data": fingerprint}


def encoders_of(params: dict) -> str:
    """Checksum of the image encoders among the parameters, which must be in the compute dtype."""
    return checkpoint.checksum({name: params[name] for name in ("clip", "vae") if name in params})


def check_encoders(used: set[str], frozen: dict) -> None:
    """ConfigError where the batches hold outputs of other image encoders than the run's frozen ones."""
    if used and used != {encoders_of(frozen)}:
        raise ConfigError(
            "config.data.train: its images were encoded by other encoders than this run's clip and "
            "vae, or those are not all frozen; "
            "encode them anew with python -m dreamjax.precompute, or freeze ^(clip|vae)/"
        )
