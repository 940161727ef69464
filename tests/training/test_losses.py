"""The two losses: cross-entropy in chunks, denoising errors by hand, random draws, and where the gradients go."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import IDS, LATENT, PIXEL, leaves, parameters, relative_error, run_config

from dreamjax.config import LossConfig
from dreamjax.document.batch import fake_batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training import losses, optimizer, step
from dreamjax.training.losses import denoising

WIDTH, VOCABULARY, QUERIES = PIXEL.llm.width, PIXEL.llm.vocab_size, PIXEL.dream_queries

# ----------------------------------------------------------------------------------------------------------------------
# Tokens


def token_case(length: int = 13):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, length, WIDTH)).astype(np.float32)
    return hidden, rng.integers(VOCABULARY, size=(2, length), dtype=np.int32), rng.random((2, length)) < 0.5


def cross_entropy(llm: dict, hidden, tokens, supervised, chunk: int):
    return losses.cross_entropy_sum(Model(PIXEL, {"llm": llm}), hidden, tokens, supervised, chunk)


@pytest.mark.parametrize("chunk", [1, 4, 13, 64])
def test_cross_entropy_in_chunks_is_that_of_all_logits(chunk):
    hidden, tokens, supervised = token_case()
    llm = parameters(PIXEL)["llm"]

    def reference(llm, hidden):
        logits = hidden[:, :-1] @ llm["head"]["kernel"]
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]) * supervised[:, 1:])

    expected, expected_gradients = jax.value_and_grad(reference, argnums=(0, 1))(llm, hidden)
    ours = jax.jit(
        jax.value_and_grad(lambda llm, hidden: cross_entropy(llm, hidden, tokens, supervised, chunk), argnums=(0, 1))
    )
    total, gradients = ours(llm, hidden)
    assert total.dtype == jnp.float32 and relative_error(total, expected) < 1e-6
    assert relative_error(gradients[0]["head"]["kernel"], expected_gradients[0]["head"]["kernel"]) < 1e-6
    assert relative_error(gradients[1], expected_gradients[1]) < 1e-6


def test_what_is_not_learned_does_not_matter():
    hidden, tokens, supervised = token_case()
    other = np.where(supervised, tokens, (tokens + 7) % VOCABULARY)
    other[:, 0] = 5  # nothing predicts a row's first token, learned or not
    before_unlearned = ~np.roll(supervised, -1, axis=1)
    before_unlearned[:, -1] = True  # nor does its last state predict the first token
    elsewhere = np.where(before_unlearned[..., None], hidden * 100, hidden)
    llm = parameters(PIXEL)["llm"]
    assert cross_entropy(llm, hidden, tokens, supervised, 4) == cross_entropy(llm, elsewhere, other, supervised, 4)
    assert cross_entropy(llm, hidden, tokens, np.zeros_like(supervised), 4) == 0


def largest_logits(length: int, chunk: int) -> int:
    """Elements of the largest array that ends in the vocabulary's axis, anywhere in the loss and its gradient."""
    hidden, tokens, supervised = token_case(length)
    program = jax.make_jaxpr(
        jax.value_and_grad(lambda hidden: cross_entropy(parameters(PIXEL)["llm"], hidden, tokens, supervised, chunk))
    )(hidden)
    shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"\bf(?:32|64)\[([\d,]+)\]", str(program))]
    return max(math.prod(shape) for shape in shapes if shape[-1] == VOCABULARY and shape != (WIDTH, VOCABULARY))


def test_the_logits_of_all_positions_never_exist_at_once():
    assert largest_logits(48, chunk=8) == 2 * 8 * VOCABULARY
    assert largest_logits(48, chunk=48) == 2 * 48 * VOCABULARY  # so this would have been seen


def test_counts_are_of_targets_and_of_valid_images_and_at_least_1():
    batch = fake_batch(run_config())
    tokens, images = losses.count(batch)
    assert tokens == batch.loss_mask[..., 1:].sum() and images == batch.target_valid.sum()
    empty = batch._replace(loss_mask=np.zeros_like(batch.loss_mask), target_valid=np.zeros_like(batch.target_valid))
    assert losses.count(empty) == (1, 1)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures

ALL_ON = LossConfig(noise_offset=0.1, input_perturbation=0.2, snr_gamma=1.5, condition_dropout=0.5)


def alphas(config) -> np.ndarray:
    """The schedule in float64, from its papers' formulas."""
    if config.diffusion.beta_schedule == "scaled_linear":
        return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    curve = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - curve[1:] / curve[:-1], 0.999))


@pytest.mark.parametrize(
    "config, loss", [(LATENT, ALL_ON), (PIXEL, ALL_ON), (PIXEL, LossConfig())], ids=["latent", "pixel", "plain"]
)
def test_image_errors_by_hand(config, loss):
    model, rng = Model(config, parameters(config)), np.random.default_rng(0)
    images = rng.integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    hidden, empty = (
        rng.normal(size=(6, QUERIES, WIDTH)).astype(np.float32),
        rng.normal(size=(QUERIES, WIDTH)).astype(np.float32),
    )
    draws = losses.sample(config, loss, jax.random.key(3), jnp.arange(6, dtype=jnp.uint32))
    if loss.condition_dropout:
        assert 0 < draws.drop.sum() < 6

    @jax.jit
    def both(images, hidden, empty, draws):
        states = denoising.drop_condition(hidden, empty, draws)
        ours = losses.denoising_loss(model, loss, images, states, draws)
        x0 = images / 127.5 - 1
        if config.vae:
            mean, logvar = model.apply("vae", x0, method="encode")
            x0 = 0.18215 * (mean + jnp.exp(logvar / 2) * draws.posterior)
        alpha = jnp.asarray(alphas(config), jnp.float32)[draws.timesteps][:, None, None, None]
        noise, drop = draws.noise, jnp.zeros(6, bool) if draws.drop is None else draws.drop
        noise = noise if draws.offset is None else noise + 0.1 * draws.offset
        disturbed = noise if draws.perturbation is None else noise + 0.2 * draws.perturbation
        projection = model.params["condition_projector"]["linear"]["kernel"]
        context = jnp.where(drop[:, None, None], empty, hidden) @ projection
        said = model.apply("unet", jnp.sqrt(alpha) * x0 + jnp.sqrt(1 - alpha) * disturbed, draws.timesteps, context)
        wanted = noise if config is LATENT else jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * x0
        return ours, jnp.mean((said - wanted) ** 2, axis=(1, 2, 3))

    ours, expected = both(images, hidden, empty, draws)
    if loss.snr_gamma:
        snr = (alphas(config) / (1 - alphas(config)))[draws.timesteps] + (config is PIXEL)
        assert (snr > 1.5).any() and (snr < 1.5).any()
        expected = expected * np.minimum(snr, 1.5) / snr
    np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_a_draw_depends_on_the_key_and_its_own_number_alone():
    draw = jax.jit(lambda key, numbers: losses.sample(LATENT, ALL_ON, key, numbers))
    together = draw(jax.random.key(1), jnp.array([7, 300_000, 7, 2], jnp.uint32))
    alone = draw(jax.random.key(1), jnp.array([300_000], jnp.uint32))
    for name, values in together._asdict().items():
        np.testing.assert_array_equal(values[1:2], getattr(alone, name), err_msg=name)
        np.testing.assert_array_equal(values[0], values[2], err_msg=name)
    other = draw(jax.random.key(2), jnp.array([300_000], jnp.uint32))
    for name in ("timesteps", "noise", "posterior", "offset", "perturbation"):
        assert not np.array_equal(getattr(other, name), getattr(alone, name)), name
        assert not np.array_equal(getattr(together, name)[0], getattr(together, name)[1]), name
    fields = (together.noise, together.posterior, together.perturbation)
    assert all(not np.array_equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


def test_options_that_are_off_draw_nothing():
    draws = losses.sample(PIXEL, LossConfig(), jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
    assert (draws.posterior, draws.offset, draws.perturbation, draws.drop) == (None,) * 4


def test_draws_have_the_distributions_that_they_should():
    loss = LossConfig(condition_dropout=0.25)
    draws = jax.jit(lambda: losses.sample(PIXEL, loss, jax.random.key(0), jnp.arange(4000, dtype=jnp.uint32)))()
    assert draws.timesteps.min() < 5 and 994 < draws.timesteps.max() < 1000 and abs(draws.timesteps.mean() - 499.5) < 20
    assert abs(draws.drop.mean() - 0.25) < 0.03
    assert abs(draws.noise.mean()) < 0.01 and abs(draws.noise.std() - 1) < 0.01


def test_a_share_of_the_timesteps_can_be_drawn_late():
    late = LossConfig(late_timesteps=0.5)
    timesteps = jax.jit(
        lambda: losses.sample(PIXEL, late, jax.random.key(0), jnp.arange(4000, dtype=jnp.uint32)).timesteps
    )()
    assert abs((timesteps >= 875).mean() - (0.5 + 0.5 / 8)) < 0.03 and timesteps.max() < 1000 and timesteps.min() < 5
    early = timesteps[timesteps < 875]
    assert abs(early.mean() - 437) < 25  # the rest stays even


@pytest.mark.parametrize("norm, total", [("none", 13.0), ("l1", 13.0 / 5), ("l2", 13.0 / 17**0.5)])
def test_the_loss_is_divided_by_a_norm_of_its_weights(norm, total):
    lm, image = LossConfig(lm_weight=1.0, image_weight=4.0, weight_norm=norm).weights
    assert lm * 5 + image * 2 == pytest.approx(total) and image == pytest.approx(4 * lm)


# ----------------------------------------------------------------------------------------------------------------------
# Both, over a batch in which the U-Net and CLIP are frozen


@pytest.fixture(scope="module")
def gradients():
    """`f(batch, dream_queries) -> ((loss, lm_loss, image_loss), gradients)` with all else as it is."""
    config = run_config(frozen=("^unet/", "^clip/"), loss=LossConfig(condition_dropout=0.2))
    trainable, frozen = optimizer.split(config.optim, parameters(PIXEL))
    compiled = jax.jit(
        lambda trainable, frozen, batch: step.gradients(config, IDS, trainable, frozen, batch, jax.random.key(5))
    )
    return lambda batch, queries=parameters(PIXEL)["dream_queries"]: compiled(
        trainable | {"dream_queries": queries}, frozen, batch
    )


def test_without_an_image_the_image_loss_is_0_and_all_is_finite(gradients):
    batch = fake_batch(run_config())
    batch = batch._replace(target_valid=np.zeros_like(batch.target_valid), input_valid=np.zeros_like(batch.input_valid))
    (loss, lm, image), grads = gradients(batch)
    assert image == 0 and loss == lm and 0 < lm < np.inf
    assert all(np.isfinite(leaf).all() for leaf in leaves(grads).values())
    assert not np.any(grads["dream_queries"]) and not np.any(grads["condition_projector"]["linear"]["kernel"])


def test_an_empty_batch_has_no_loss(gradients):
    batch = fake_batch(run_config())
    (loss, lm, image), grads = gradients(jax.tree.map(np.zeros_like, batch))
    assert loss == lm == image == 0
    assert not any(np.any(leaf) for leaf in leaves(grads).values())


def test_what_a_slot_that_is_not_valid_holds_does_not_matter(gradients):
    batch = fake_batch(run_config())
    assert not batch.target_valid.all() and not batch.input_valid.all()

    def black(images, valid):
        return np.where(valid[:, :, None, None, None], images, 0)

    other = batch._replace(
        input_images=black(batch.input_images, batch.input_valid),
        target_images=black(batch.target_images, batch.target_valid),
        target_start=np.where(batch.target_valid, batch.target_start, 0),
        input_start=np.where(batch.input_valid, batch.input_start, 0),
    )
    for ours, theirs in zip(jax.tree.leaves(gradients(batch)), jax.tree.leaves(gradients(other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_reaches_the_dream_queries_through_the_frozen_unet(gradients):
    batch = fake_batch(run_config())
    batch = batch._replace(loss_mask=np.zeros_like(batch.loss_mask))  # the image loss alone
    queries = parameters(PIXEL)["dream_queries"]
    (loss, lm, image), grads = gradients(batch)
    assert lm == 0 and loss == 10 * image
    assert set(grads) == {"llm", "visual_projector", "condition_projector", "dream_queries"}
    norm = np.linalg.norm(grads["dream_queries"])
    direction = grads["dream_queries"] / norm
    ahead, behind = (gradients(batch, queries + sign * 0.03 * direction)[0][0] for sign in (1, -1))
    assert relative_error((ahead - behind) / 0.06, norm) < 0.02  # the slope along the gradient is its length


@pytest.mark.parametrize("form, instead", [("queries", None), ("official", IDS.im_patch)])
def test_dropped_images_learn_from_the_unconditional_row(form, instead):
    config = run_config(loss=LossConfig(condition_dropout=0.999, unconditional=form))
    batch = fake_batch(config)
    numbers = batch.target_draw.reshape(-1)
    draws = losses.sample(PIXEL, config.loss, jax.random.key(0), numbers)
    assert draws.drop.all()
    model, hidden = Model(PIXEL, parameters(PIXEL)), jnp.ones((8, 32, WIDTH))
    states = losses.condition_states(model, config.loss, IDS, batch, hidden, draws)
    unconditional = dreamllm.unconditional(model, IDS.bos, IDS.dream_start, instead)
    np.testing.assert_allclose(states, np.broadcast_to(unconditional, states.shape), rtol=1e-6)
    without = dataclasses.replace(config.loss, condition_dropout=0.0)
    states = losses.condition_states(model, without, IDS, batch, hidden, draws._replace(drop=None))
    np.testing.assert_array_equal(states, dreamllm.read_out(model, hidden, batch))


@pytest.mark.parametrize("frozen", [True, False])
def test_images_in_chunks_are_images_at_once(frozen):
    """The same errors and the same gradients, of the condition's path, and of the U-Net where it trains."""
    config = run_config()
    params, batch = parameters(config.model), fake_batch(config)
    trained = ("llm", "condition_projector", "dream_queries") if frozen else ("condition_projector", "unet")

    def gradients(chunks):
        loss = dataclasses.replace(config.loss, image_chunks=chunks)

        def total(some):
            tokens, images = losses.loss_sums(
                Model(PIXEL, params | some), loss, IDS, batch, jax.random.key(0), stop_decoder_grad=frozen
            )
            return images + 0 * tokens

        return jax.jit(jax.value_and_grad(total))({name: params[name] for name in trained})

    (once, expected), (chunked, ours) = gradients(1), gradients(4)
    np.testing.assert_allclose(chunked, once, rtol=1e-5)
    for path, leaf in leaves(expected).items():
        assert np.linalg.norm(leaf) > 0 or path in ("llm/head/kernel",), path
        np.testing.assert_allclose(
            leaves(ours)[path], leaf, rtol=1e-3, atol=1e-4 * np.abs(leaf).max() + 1e-7, err_msg=path
        )
