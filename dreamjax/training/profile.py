"""A profiler trace of some steps of a run, for TensorBoard or Perfetto."""

import jax
from etils import epath

from dreamjax.config import RunConfig


def before_step(config: RunConfig, workdir: epath.Path, step: int):
    """Begins the trace before step number `profile_from`."""
    if config.profile_from and step == config.profile_from:
        jax.profiler.start_trace(str(workdir / "profile"))


def after_step(config: RunConfig, step: int, first_step: int, metrics: dict, last: bool):
    """Ends the trace after step `profile_to`, or after the run's last step, once the device has finished it.

    `first_step` is the run's first step.
    """
    tracing = config.profile_from and max(first_step, 1) <= config.profile_from <= step
    if tracing and (step == config.profile_to or (last and step < config.profile_to)):
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
