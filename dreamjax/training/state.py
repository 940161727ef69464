"""What a run carries from step to step, where each of its arrays lives, and how it comes to be."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.config import OptimConfig, RunConfig
from dreamjax.models import dreamllm
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.training import optimizer


class State(NamedTuple):
    """The part of a run that changes.

    Float32 masters, the optimiser's moments, an average of the weights (None without one).
    """

    step: jax.Array  # [] int32, steps taken
    trainable: dict
    optimiser: Any
    average: dict | None


def fresh_state(config: OptimConfig, total_steps: int, trainable: dict) -> State:
    """Step 0 over the given parameters."""
    average = jax.tree.map(jnp.copy, trainable) if config.ema_decay else None
    return State(jnp.int32(0), trainable, optimizer.optimiser(config, total_steps).init(trainable), average)


def init(config: RunConfig) -> tuple[State, dict]:
    """(state, frozen parameters in the compute dtype) from the run's seed.

    Traceable, so shapes come from `jax.eval_shape`.
    """
    trainable, frozen = optimizer.split(config.optim, dreamllm.init(config.model, jax.random.key(config.seed)))
    return fresh_state(config.optim, config.total_steps, trainable), cast(frozen, config.model.dtype)


def cast(params: dict, dtype: str) -> dict:
    """The parameters in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def shardings(state: State, frozen: dict, mesh: Mesh, whole_patterns: tuple[str, ...] = ()) -> tuple[State, dict]:
    """The shardings of (state, frozen): moments and averages lie as their parameters do, scalars on every device.

    Frozen parameters that one of `whole_patterns` finds are not split.
    """
    trainable = parameter_shardings(state.trainable, mesh)
    whole = NamedSharding(mesh, P())

    def matches(node):
        return jax.tree.structure(node) == jax.tree.structure(state.trainable)

    moments = jax.tree.map(lambda node: trainable if matches(node) else whole, state.optimiser, is_leaf=matches)
    return State(whole, trainable, moments, trainable if state.average is not None else None), parameter_shardings(
        frozen, mesh, whole_patterns
    )
