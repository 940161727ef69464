"""A trace of some steps of a run, by config: what the device did, for TensorBoard or Perfetto."""

import jax
from etils import epath

from dreamjax.config import RunConfig


def before_step(config: RunConfig, workdir: epath.Path, step: int):
    """Begins the trace before step number `profile_from`."""
    if config.profile_from and step == config.profile_from:
        jax.profiler.start_trace(str(workdir / "profile"))


def after_step(config: RunConfig, step: int, begun_at: int, metrics: dict, last: bool):
    """Ends the trace behind step `profile_to`, or with the run, when the device is through with the step.

    `begun_at` is the run's first step.
    """
    tracing = config.profile_from and max(begun_at, 1) <= config.profile_from <= step
    if tracing and (step == config.profile_to or (last and step < config.profile_to)):
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
