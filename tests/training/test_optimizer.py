"""What trains and how fast: the schedule, the rules, the split of the parameters, clipping, the average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.config import LrRule, OptimConfig
from dreamjax.errors import ConfigError
from dreamjax.training import optimizer
from dreamjax.training.step import average

EVERYTHING = (".",)


@pytest.mark.parametrize("kind, middle", [("cosine", 0.5 * (1 + 0.1)), ("linear", 0.5 * (1 + 0.1)), ("constant", 1.0)])
def test_schedule_at_the_warm_up_the_peak_and_the_end(kind, middle):
    config = OptimConfig(EVERYTHING, learning_rate=2e-3, schedule=kind, warmup_share=0.1, final_share=0.1)
    rate = optimizer.schedule(config, total_steps=100)
    warm_up = [float(rate(step)) for step in range(10)]
    np.testing.assert_allclose(
        warm_up, 2e-3 * np.arange(1, 11) / 10, rtol=1e-6
    )  # the first step moves, the tenth is at the peak
    np.testing.assert_allclose(float(rate(10)), 2e-3, rtol=1e-6)
    np.testing.assert_allclose(float(rate(55)), 2e-3 * middle, rtol=1e-6)
    np.testing.assert_allclose(float(rate(100)), 2e-3 * (1.0 if kind == "constant" else 0.1), rtol=1e-6)


def test_cosine_bends_and_linear_does_not():
    rates = {
        kind: optimizer.schedule(OptimConfig(EVERYTHING, learning_rate=1.0, schedule=kind, warmup_share=0.0), 100)
        for kind in ("cosine", "linear")
    }
    np.testing.assert_allclose(float(rates["cosine"](25)), 0.5 * (1 + np.cos(np.pi / 4)), rtol=1e-6)
    np.testing.assert_allclose(float(rates["linear"](25)), 0.75, rtol=1e-6)


def test_a_warm_up_shorter_than_a_step_is_none():
    rate = optimizer.schedule(OptimConfig(EVERYTHING, learning_rate=1.0, warmup_share=0.003), total_steps=20)
    assert float(rate(0)) == 1.0


def test_the_first_rule_that_matches_sets_the_factor():
    rules = (LrRule("^llm/embed", 0.0), LrRule("^llm/", 0.1))
    config = OptimConfig(
        EVERYTHING, learning_rate=1.0, schedule="constant", warmup_share=0.0, clip_norm=1e9, lr_rules=rules
    )
    params = {"llm": {"embed": jnp.zeros(2), "head": jnp.zeros(2)}, "dream_queries": jnp.zeros(2)}
    optimiser = optimizer.optimiser(config, 10)
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    # Adam's first step is minus the sign of the gradient.
    np.testing.assert_allclose(updates["llm"]["embed"], 0.0)
    np.testing.assert_allclose(updates["llm"]["head"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["dream_queries"], -1.0, rtol=1e-5)


def test_two_steps_of_clipped_adamw_by_hand():
    config = OptimConfig(
        EVERYTHING,
        learning_rate=0.1,
        schedule="constant",
        warmup_share=0.0,
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    optimiser = optimizer.optimiser(config, 10)
    params = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([0.5])}
    state = optimiser.init(params)
    w, mu, nu = np.array([3.0, -1.0, 0.5]), np.zeros(3), np.zeros(3)
    for count, gradient in enumerate(([3.0, 0.0, 4.0], [0.1, -0.2, 0.2]), 1):
        updates, state = optimiser.update({"a": jnp.array(gradient[:2]), "b": jnp.array(gradient[2:])}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = np.array(gradient) / max(1.0, np.linalg.norm(gradient))
        mu, nu = 0.8 * mu + 0.2 * g, 0.9 * nu + 0.1 * g**2
        w = w - 0.1 * (mu / (1 - 0.8**count) / (np.sqrt(nu / (1 - 0.9**count)) + 1e-3) + 0.01 * w)
        np.testing.assert_allclose(np.concatenate([params["a"], params["b"]]), w, rtol=1e-5)


PARAMS = {
    "llm": {"embed": {"embedding": 1}, "layers": {"mlp": {"up": {"kernel": 2}}}},
    "unet": {"conv_in": {"kernel": 3}},
    "dream_queries": 4,
}


def test_split_and_merge_are_inverse():
    config = OptimConfig(trainable=("^llm/layers", "^dream_queries$"), frozen=("^unet/", "embedding$"))
    trainable, frozen = optimizer.split(config, PARAMS)
    assert trainable == {"llm": {"layers": {"mlp": {"up": {"kernel": 2}}}}, "dream_queries": 4}
    assert frozen == {"llm": {"embed": {"embedding": 1}}, "unet": {"conv_in": {"kernel": 3}}}
    assert optimizer.merge(trainable, frozen) == optimizer.merge(frozen, trainable) == PARAMS


@pytest.mark.parametrize("trainable, frozen, whole", [((".",), (), 0), ((), (".",), 1)])
def test_either_tree_may_be_empty(trainable, frozen, whole):
    trees = optimizer.split(OptimConfig(trainable=trainable, frozen=frozen), PARAMS)
    assert trees[whole] == PARAMS and trees[1 - whole] == {} and optimizer.merge(*trees) == PARAMS


@pytest.mark.parametrize(
    "trainable, frozen, message",
    [
        (
            ("^llm/", "^dream_queries$"),
            (),
            "neither optim.trainable nor optim.frozen matches the parameter unet/conv_in/kernel",
        ),
        ((".",), ("^unet/",), "both optim.trainable and optim.frozen match the parameter unet/conv_in/kernel"),
    ],
)
def test_a_parameter_that_no_list_or_both_match_is_named(trainable, frozen, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.split(OptimConfig(trainable=trainable, frozen=frozen), PARAMS)


def test_the_average_follows_its_formula():
    old, new = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 0.0])}
    for step, decay in ((0, 0.1), (8, 0.5), (10_000, 0.995)):
        expected = decay * np.array([1.0, -2.0]) + (1 - decay) * np.array([3.0, 0.0])
        np.testing.assert_allclose(average(0.995, jnp.int32(step), old, new)["w"], expected, rtol=1e-5)
