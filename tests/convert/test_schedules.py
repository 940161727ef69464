"""scheduler_config.json.

What a file leaves out is what diffusers' class of that name takes for it, key by key and class by class.
"""

import inspect

import numpy as np
import pytest

from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats.stable_diffusion import SCHEDULE_FIXED, SCHEDULERS, read_schedule, write_schedule
from dreamjax.diffusion.schedules import alphas_cumprod
from dreamjax.errors import ConfigError

diffusers = pytest.importorskip("diffusers")

# {their key: (our field, a value that is no class's default)}
READ = {
    "num_train_timesteps": ("timesteps", 500),
    "beta_schedule": ("beta_schedule", "squaredcos_cap_v2"),
    "beta_start": ("beta_start", 0.002),
    "beta_end": ("beta_end", 0.03),
    "prediction_type": ("prediction", "v_prediction"),
    "steps_offset": ("steps_offset", 2),
    "set_alpha_to_one": ("set_alpha_to_one", None),
}
WHOLE = {key: value for key, (_, value) in READ.items() if value is not None} | {
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def theirs(name: str, values: dict):
    """diffusers' object, made of the keys that its class has."""
    cls = getattr(diffusers, name)
    return cls(**{key: value for key, value in values.items() if key in inspect.signature(cls).parameters})


def ours(name: str, values: dict):
    return read_schedule(ForeignConfig({"_class_name": name, **values}, "scheduler_config.json"))


def without(key: str) -> dict:
    return {other: value for other, value in WHOLE.items() if other != key}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_key_that_is_left_out_is_diffusers_default(name):
    for key, (field, _) in READ.items():
        expected = theirs(name, without(key)).config
        if key in expected:
            assert getattr(ours(name, without(key)), field) == expected[key], key
    for key in SCHEDULE_FIXED:
        assert theirs(name, WHOLE).config.get(key) in (None, *SCHEDULE_FIXED[key]), key


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_class_that_clips_by_default_needs_to_be_told_not_to(name):
    if theirs(name, without("clip_sample")).config.get("clip_sample"):
        with pytest.raises(
            ConfigError, match=f"clip_sample: is missing, which is true for a {name}, and not supported; false is"
        ):
            ours(name, without("clip_sample"))
    else:
        assert ours(name, without("clip_sample")) == ours(name, WHOLE)
    with pytest.raises(ConfigError, match="clip_sample: true and not supported"):
        ours(name, WHOLE | {"clip_sample": True})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_empty_file_gives_diffusers_noise_schedule(name):
    """Under a class's name alone; written out again and read, the same."""
    found = ours(name, {"clip_sample": False})
    np.testing.assert_allclose(alphas_cumprod(found), theirs(name, {}).alphas_cumprod.numpy(), rtol=2e-6)
    assert read_schedule(ForeignConfig(write_schedule(found), "again")) == found


def test_null_is_false_where_diffusers_asks_if():
    assert ours("DDIMScheduler", WHOLE | {"clip_sample": None, "set_alpha_to_one": None}) == ours(
        "DDIMScheduler", WHOLE
    )


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "UnCLIPScheduler", "DDIMSchedular"]
)
def test_other_processes_are_refused_by_their_class(name):
    with pytest.raises(
        ConfigError, match=f"_class_name: '{name}' is not supported, which would change the numbers; 'DDIMScheduler' or"
    ):
        ours(name, WHOLE)


def test_sigmas_of_flow_matching_are_refused():
    """Several classes take them in place of their betas, which the file still names."""
    with pytest.raises(ConfigError, match="use_flow_sigmas: True is not supported"):
        ours("EulerDiscreteScheduler", WHOLE | {"use_flow_sigmas": True})
    assert ours("EulerDiscreteScheduler", WHOLE | {"use_flow_sigmas": False}) == ours("EulerDiscreteScheduler", WHOLE)
