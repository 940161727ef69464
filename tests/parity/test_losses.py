"""The denoising loss in every recorded variant, with the recorded draws: what the U-Net is given, what it says, and the
totals.

The official training code's unconditional branch leaves the dream queries out; the recorded variants with condition
dropout are compared with `unconditional="official"`, and a test says how the default differs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.bundles import Bundle, channels_first, forward_batch, open_bundle
from parity.forward import forward
from parity.vmloss import BATCH, Variant, draws_of, variants
from small_model import relative_error

from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.training.losses import denoising


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
    """The dreamed pictures of a recorded batch: hidden states at their queries, moments and latents."""

    hidden: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    latents: np.ndarray


@pytest.fixture(scope="module")
def image_arrays(bundle) -> dict[str, ImageFolder]:
    """{batch: its pictures}; batches without any are left out."""
    opened = open_bundle(bundle)
    model = opened.model

    @jax.jit
    def encode(images, noise):
        mean, logvar = model.apply("vae", dreamllm.to_unit(images), method="encode")
        return mean, jnp.exp(0.5 * logvar), dreamllm.encode_latents(model, images, noise)

    found = {}
    for file in {variant.file for variant in variants(opened)}:
        batch = forward_batch(opened, file)
        valid = np.flatnonzero(batch.target_valid)
        if len(valid):
            hidden = dreamllm.read_out(model, jnp.asarray(forward(opened)[file]["last_hidden"]), batch)
            posterior = draws_of(opened, variants(opened)[0].loss, len(valid)).posterior
            filled = np.zeros((batch.target_valid.size, *posterior.shape[1:]), np.float32)
            filled[valid] = posterior
            images = batch.target_images.reshape(-1, *batch.target_images.shape[2:])
            found[file] = ImageFolder(*(np.asarray(array)[valid] for array in (hidden, *encode(images, filled))))
    return found


@pytest.fixture(scope="module")
def unconditional(bundle) -> dict[str, jax.Array]:
    """The unconditional hidden states [Q, D] in both forms, and what the LLM reads in the official one."""
    opened = open_bundle(bundle)
    ids = opened.ids

    @jax.jit
    def run():
        given = (opened.model, ids.bos, ids.dream_start)
        official = (*given, ids.im_patch)
        return {
            "queries": dreamllm.unconditional(*given),
            "official": dreamllm.unconditional(*official),
            "read": dreamllm.embed_unconditional(*official),
        }

    return run()


@pytest.fixture(scope="module")
def ours(bundle, image_arrays, unconditional) -> dict[str, dict]:
    """{variant.

    What happens to its pictures}. The U-Net runs once over the pictures of all variants, which differ in its inputs
    alone.
    """
    opened = open_bundle(bundle)
    steps = {}
    for variant in (variant for variant in variants(opened) if variant.file in image_arrays):
        given = image_arrays[variant.file]
        draws = draws_of(opened, variant.loss, len(given.latents))
        noisy, target = denoising.corrupt(variant.diffusion, variant.loss, given.latents, draws)
        hidden = denoising.drop_condition(given.hidden, unconditional["official"], draws)
        context = dreamllm.condition(opened.model, hidden)
        steps[variant.name] = {
            "variant": variant,
            "draws": draws,
            "noisy": noisy,
            "target": target,
            "context": context,
            "hidden": given.hidden,
        }
    denoise = jax.jit(lambda *inputs: dreamllm.denoise(opened.model, *inputs))

    def together(pick):
        return jnp.concatenate([pick(step) for step in steps.values()])

    said = denoise(
        together(lambda step: step["noisy"]),
        together(lambda step: step["draws"].timesteps),
        together(lambda step: step["context"]),
    )
    ends = np.cumsum([len(step["noisy"]) for step in steps.values()])
    for step, prediction in zip(steps.values(), jnp.split(said, ends[:-1]), strict=False):
        variant, step["prediction"] = step["variant"], prediction
        step["errors"] = denoising.weighted_errors(
            variant.diffusion, variant.loss, prediction, step["target"], step["draws"]
        )
    return steps


def test_what_the_unet_is_given_and_says(bundle, ours, image_arrays, unconditional):
    opened = open_bundle(bundle)
    recorded = opened.arrays("vmloss")
    first = image_arrays[BATCH]
    arrays = {
        "vae_mean": channels_first(first.mean),
        "vae_std": channels_first(first.std),
        "latents": channels_first(first.latents),
    }
    for name, step in ours.items():
        made = {
            "noisy_latents": channels_first(step["noisy"]),
            "unet_context": step["context"],
            "unet_pred": channels_first(step["prediction"]),
            "encoder_hidden_states": step["hidden"],
            "u_encoder_hidden_states": jnp.broadcast_to(unconditional["official"], step["hidden"].shape),
            "u_inputs_embeds": with_what_follows(opened, unconditional["read"]),
        }
        arrays |= {f"{name}/{key}": array for key, array in made.items() if f"{name}/{key}" in recorded}
    opened.compare("vmloss", "test_losses", arrays)


def with_what_follows(bundle: Bundle, read: jax.Array) -> jax.Array:
    """The official unconditional row goes on with <dream_end> </s>, which change nothing before them and which ours
    leaves out.
    """
    after = dreamllm.embed(bundle.model, jnp.array([[bundle.tokenizer.dream_end, bundle.tokenizer.eos]]))
    return jnp.concatenate([read, after], axis=1)


def totals(bundle: Bundle, variant: Variant, errors) -> dict[str, np.ndarray]:
    lm, image = forward(bundle)[variant.file]["lm_loss"], 0.0 if errors is None else np.mean(errors)
    lm_weight, image_weight = variant.loss.weights
    return {"total": lm_weight * lm + image_weight * image, "lm_loss": lm, "vm_loss": image}


def test_total_losses(bundle, ours):
    opened = open_bundle(bundle)
    for variant in variants(opened):
        made = totals(opened, variant, ours[variant.name]["errors"] if variant.name in ours else None)
        opened.check(
            {
                f"vmloss/{variant.name}/{name}": (value, np.float32(variant.recorded[name]))
                for name, value in made.items()
            }
        )


def test_image_errors_are_these_steps(bundle, ours, image_arrays, unconditional):
    """The function that training calls, on the variant with all options, gives the same errors."""
    opened = open_bundle(bundle)
    variant = max(
        (variant for variant in variants(opened) if variant.name in ours),
        key=lambda variant: len(variant.recorded["config"]),
    )
    batch = forward_batch(opened, variant.file)
    images = batch.target_images[batch.target_valid]
    config = dataclasses.replace(opened.model.config, diffusion=variant.diffusion)
    model = Model(config, opened.model.params)
    draws = ours[variant.name]["draws"]
    hidden = jnp.asarray(image_arrays[variant.file].hidden)

    @jax.jit
    def run(images, hidden, empty, draws):
        states = denoising.drop_condition(hidden, empty, draws)
        return denoising.denoising_loss(model, variant.loss, images, states, draws)

    assert relative_error(run(images, hidden, unconditional["official"], draws), ours[variant.name]["errors"]) < 1e-5


def test_the_default_unconditional_condition_is_not_the_official_one(unconditional):
    """What guidance uses is trained by default; the official training condition is another one."""
    assert relative_error(unconditional["queries"], unconditional["official"]) > 0.01
