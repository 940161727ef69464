"""One step.

What it changes, what it leaves alone, microbatches, bfloat16, batches that are not finite, held-out losses.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import IDS, PIXEL, leaves, parameters, relative_error, run_config, start

from dreamjax.config import LossConfig
from dreamjax.document.batch import fake_batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training import losses, optimizer
from dreamjax.training.heldout import make_heldout
from dreamjax.training.state import State, cast
from dreamjax.training.step import gradients, make_eval_step, make_train_step

CONFIG = run_config(frozen=("^unet/", "^clip/"), optim_changes={"ema_decay": 0.9})
BATCH = fake_batch(CONFIG)


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_train_step(CONFIG, IDS))


@pytest.fixture(scope="module")
def first(step):
    """(state, frozen, new state, metrics) of a first step."""
    state, frozen = start(CONFIG)
    return state, frozen, *step(state, frozen, BATCH)


def test_every_trained_leaf_changes_and_no_frozen_one(first):
    state, frozen, new, metrics = first
    assert {path.split("/")[0] for path in leaves(frozen)} == {"unet", "clip"}
    before, after = leaves(state.trainable), leaves(new.trainable)
    assert before.keys() == after.keys() and {path.split("/")[0] for path in after} == {
        "llm",
        "visual_projector",
        "condition_projector",
        "dream_queries",
    }
    assert [path for path in before if np.array_equal(before[path], after[path])] == []
    expected = leaves(parameters(PIXEL))
    for path, leaf in leaves(frozen).items():
        assert leaf.tobytes() == expected[path].tobytes(), path
    assert int(state.step) == 0 and int(new.step) == 1 and metrics["finite"]


def test_metrics_say_what_the_batch_held_and_the_weighted_loss(first):
    *_, metrics = first
    np.testing.assert_allclose(metrics["loss"], metrics["lm_loss"] + 10 * metrics["image_loss"], rtol=1e-6)
    assert metrics["lm_loss"] > 1 and metrics["image_loss"] > 0.1 and metrics["grad_norm"] > 0
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3, rtol=1e-6)
    assert (
        metrics["tokens"] == BATCH.tokens.size
        and metrics["pictures"] == BATCH.target_valid.sum()
        and metrics["documents"] == 8
    )


def test_the_average_follows_the_weights(first):
    state, _, new, _ = first
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(state.trainable), strict=True)
    )
    for average, before, after in zip(
        *map(jax.tree.leaves, (new.average, state.trainable, new.trainable)), strict=True
    ):
        np.testing.assert_allclose(
            average, 0.1 * before + 0.9 * after, rtol=1e-5, atol=1e-6
        )  # the first step's decay is 1 / 10


@pytest.mark.parametrize("poison", ["parameter", "moment"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(step, poison):
    state, frozen = start(CONFIG)
    if poison == "parameter":
        frozen["unet"]["conv_in"]["bias"] = frozen["unet"]["conv_in"]["bias"].at[0].set(np.inf)
    else:
        queries = state.trainable["dream_queries"].at[0, 0].set(np.inf)
        state = state._replace(trainable=state.trainable | {"dream_queries": queries})
    new, metrics = step(state, frozen, BATCH)
    assert not metrics["finite"] and int(new.step) == 1
    for before, after in zip(
        jax.tree.leaves(state._replace(step=0)), jax.tree.leaves(new._replace(step=0)), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    assert np.isfinite(new.optimiser[1].mu["dream_queries"]).all()


def test_draws_differ_from_step_to_step(step, first):
    state, frozen, _, metrics = first
    _, later = step(state._replace(step=jnp.int32(1)), frozen, BATCH)
    assert later["lm_loss"] == metrics["lm_loss"] and later["image_loss"] != metrics["image_loss"]


def gradients_of(config, batch=BATCH):
    trainable, frozen = optimizer.split(config.optim, parameters(PIXEL))
    frozen = cast(frozen, config.model.dtype)
    return jax.jit(lambda *args: gradients(config, IDS, *args, jax.random.key(1)))(trainable, frozen, batch)


@pytest.fixture(scope="module")
def whole():
    return gradients_of(CONFIG)


def test_microbatches_add_up_to_the_batch(whole):
    counts = BATCH.target_valid.sum(axis=1)
    assert counts.min() < counts.max()  # a mean of the microbatches' means would be something else
    (total, expected) = gradients_of(dataclasses.replace(CONFIG, accumulate=4))
    np.testing.assert_allclose(total, whole[0], rtol=1e-5)
    errors = {path: relative_error(leaf, leaves(whole[1])[path]) for path, leaf in leaves(expected).items()}
    assert {path: error for path, error in errors.items() if error > 1e-5} == {}


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_gradients(whole):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(PIXEL, dtype="bfloat16"))
    losses, grads = gradients_of(config)
    assert {leaf.dtype for leaf in jax.tree.leaves((losses, grads))} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(losses, whole[0], rtol=2e-2)

    def flat(tree):
        return np.concatenate([leaf.reshape(-1) for leaf in leaves(tree).values()])

    assert 1e-4 < relative_error(flat(grads), flat(whole[1])) < 0.1


# ----------------------------------------------------------------------------------------------------------------------
# Held-back losses


@pytest.fixture(scope="module")
def eval_step():
    config = dataclasses.replace(CONFIG, loss=LossConfig(condition_dropout=0.5, noise_offset=1.0))
    return jax.jit(make_eval_step(config, IDS))


def test_held_out_sums_are_those_of_plain_losses_over_even_timesteps(eval_step):
    params = parameters(PIXEL)
    sums = eval_step(params, {}, BATCH, np.uint32(3))
    assert sums["tokens"] == BATCH.loss_mask[..., 1:].sum()
    valid, key = BATCH.target_valid.reshape(-1), jax.random.fold_in(jax.random.key(0), 3)
    timesteps = (
        np.asarray(jax.random.permutation(key, 16)) * 125 // 2 + 31
    )  # 16 slots run evenly through 1000 timesteps, in any order
    quarters = np.eye(4)[timesteps // 250]
    np.testing.assert_array_equal(sums["pictures"], valid @ quarters)
    samples = losses.sample(PIXEL, LossConfig(), key, jnp.arange(16))._replace(timesteps=jnp.asarray(timesteps))

    @jax.jit
    def reference(model, batch):
        hidden = dreamllm.hidden_states(model, batch)
        tokens = losses.cross_entropy_sum(model, hidden, batch.tokens[:, 0], batch.loss_mask[:, 0], 32)
        images = batch.target_images.reshape(16, 8, 8, 3)
        states = dreamllm.read_out(model, hidden, batch)
        return tokens, losses.denoising_loss(model, LossConfig(), images, states, samples)

    tokens, errors = reference(Model(PIXEL, params), BATCH)
    np.testing.assert_allclose(sums["lm_loss"], tokens, rtol=1e-5)
    np.testing.assert_allclose(sums["image_loss"], (errors * valid) @ quarters, rtol=1e-5)


def test_held_out_draws_depend_on_the_index_alone(eval_step):
    params = parameters(PIXEL)
    one, two, other = (eval_step(params, {}, BATCH, np.uint32(index)) for index in (0, 0, 1))
    np.testing.assert_array_equal(one["image_loss"], two["image_loss"])
    assert one["lm_loss"] == other["lm_loss"] and np.all(one["image_loss"] != other["image_loss"])


def test_held_out_losses_are_means_over_all_batches_of_the_averaged_weights(monkeypatch):
    def sums(weights, frozen, batch, index):
        images = batch + jnp.array([0.0, 1.0, 2.0, 0.0]) * (index + 1)
        return {
            "lm_loss": weights["w"] * batch,
            "tokens": 10 * batch,
            "image_loss": frozen["v"] * images**2,
            "pictures": images,
        }

    monkeypatch.setattr("dreamjax.training.heldout.make_eval_step", lambda *_: sums)
    measure = make_heldout(CONFIG, IDS, {"one": lambda: iter((0.0, 2.0)), "none": lambda: iter((4.0,))})
    measured = measure(State(jnp.int32(0), {"w": 1.0}, None, average={"w": 30.0}), {"v": 0.5})
    # one: pictures are (0, 1, 2, 0) and (2, 4, 6, 2), their errors half their squares
    assert measured.pop("eval_one_lm_loss") == pytest.approx(30 * 2 / 20)
    assert measured.pop("eval_one_image_loss") == pytest.approx((0.5 + 2 + 2 + 8 + 18 + 2) / 17)
    assert [measured.pop(f"eval_one_image_loss_t{k}") for k in range(4)] == pytest.approx(
        [2 / 2, 8.5 / 5, 20 / 8, 2 / 2]
    )
    none = 30 * 4 / 40 + 10 * measured["eval_none_image_loss"]
    assert measured["eval_loss"] == pytest.approx((3 + 10 * 32.5 / 17 + none) / 2)
