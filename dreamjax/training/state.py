"""The training state: its arrays, their shardings and initial values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.config import OptimConfig, RunConfig
from dreamjax.models import dreamllm
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.training import optimizer


class State(NamedTuple):
    """The arrays that a step updates: float32 masters, the optimiser's moments, averaged weights (None without)."""

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


def same_structure(a: Any, b: Any) -> bool:
    """True if two pytrees have the same structure."""
    return jax.tree.structure(a) == jax.tree.structure(b)  # type: ignore[operator]  # jaxlib's stub gives it no type


def shardings(
    state: State, frozen: dict, mesh: Mesh | AbstractMesh, replicated_patterns: tuple[str, ...] = ()
) -> tuple[State, dict]:
    """The shardings of (state, frozen): moments and averages as their parameters, scalars replicated.

    Frozen parameters whose path matches one of `replicated_patterns` are replicated.
    """
    trainable = parameter_shardings(state.trainable, mesh)
    replicated = NamedSharding(mesh, P())

    def is_params(node: Any) -> bool:
        return same_structure(node, state.trainable)

    moments = jax.tree.map(
        lambda node: trainable if is_params(node) else replicated, state.optimiser, is_leaf=is_params
    )
    of_state: dict[str, Any] = {
        "step": replicated,
        "trainable": trainable,
        "optimiser": moments,
        "average": trainable if state.average is not None else None,
    }
    return State(**of_state), parameter_shardings(frozen, mesh, replicated_patterns)
