"""A trace of steps N .. M: it begins and ends there, or with the run."""

import dataclasses

import jax.numpy as jnp
import pytest
from etils import epath
from small_model import run_config

from dreamjax.errors import ConfigError
from dreamjax.training import profile


@pytest.mark.parametrize("profile_to, steps", [(3, 5), (9, 4)])
def test_a_trace_of_some_steps(tmp_path, monkeypatch, profile_to, steps):
    events = []
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda folder: events.append(("start", folder)))
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: events.append("stop"))
    config = run_config(profile_from=2, profile_to=profile_to)
    for step in range(1, steps + 1):
        profile.before_step(config, epath.Path(tmp_path), step)
        events.append(step)
        profile.after_step(config, step, 1, {"loss": jnp.zeros(())}, step == steps)
    end = min(profile_to, steps)
    assert events == [1, ("start", str(tmp_path / "profile")), *range(2, end + 1), "stop", *range(end + 1, steps + 1)]


def test_a_run_that_goes_on_behind_the_trace_does_not_end_it(monkeypatch):
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: pytest.fail("no trace was begun"))
    config = run_config(profile_from=2, profile_to=5)
    profile.after_step(config, 5, 4, {}, False)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="profile_to: 1 is before profile_from = 2"):
        dataclasses.replace(run_config(), profile_from=2, profile_to=1)
