"""The training step: loss, gradients of the trainable tree, update; and the step that measures held-out losses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreamjax.config import LossConfig, RunConfig
from dreamjax.document.batch import Batch
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import ROWS, TPU_OPTIONS
from dreamjax.training import losses, optimizer
from dreamjax.training.losses import SpecialIds
from dreamjax.training.losses.chunks import to_strided_chunks
from dreamjax.training.state import State

Array = jax.Array
TIMESTEP_BINS = 4  # parts of the schedule for which held-out losses are reported


def gradients(
    config: RunConfig,
    ids: SpecialIds,
    trainable: dict,
    frozen: dict,
    batch: Batch,
    key: Array | losses.Samples,
):
    """((loss, lm_loss, image_loss), gradients) of a global batch; `accumulate` microbatches add up to the same numbers
    as one.

    `key` is the step's; without microbatches it may be the samples for all slots, to repeat recorded ones. Microbatches
    are strided chunks of the groups, so that each keeps the batch's sharding.
    """
    counts = losses.count(batch)
    stop_decoder_grad = not {"unet", "vae"} & set(trainable)

    def loss(trainable, batch):
        model = Model(config.model, optimizer.merge(trainable, frozen))
        tokens, images = losses.loss_sums(model, config.loss, ids, batch, key, stop_decoder_grad=stop_decoder_grad)
        lm, image = tokens / counts.tokens, images / counts.images
        lm_weight, image_weight = config.loss.weights
        return lm_weight * lm + image_weight * image, (lm, image)

    grad = jax.value_and_grad(loss, has_aux=True)
    if config.accumulate == 1:
        (total, (lm, image)), grads = grad(trainable, batch)
        return (total, lm, image), grads

    def add(carry, microbatch):
        (total, (lm, image)), grads = grad(trainable, microbatch)
        return jax.tree.map(jnp.add, carry, ((total, lm, image), grads)), None

    microbatches = jax.tree.map(lambda x: to_strided_chunks(x, config.accumulate), batch)
    zeros = ((jnp.float32(0),) * 3, jax.tree.map(jnp.zeros_like, trainable))
    return jax.lax.scan(add, zeros, microbatches)[0]


def make_train_step(config: RunConfig, ids: SpecialIds) -> Callable:
    """`train_step(state, frozen, batch) -> (state, metrics)`, to be jitted with the state donated.

    A step whose loss or gradient is not finite changes nothing but the step count; its metrics say so.
    """
    optimiser = optimizer.optimiser(config.optim, config.total_steps)
    rate = optimizer.schedule(config.optim, config.total_steps)

    def train_step(state: State, frozen: dict, batch: Batch) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, lm, image), grads = gradients(config, ids, state.trainable, frozen, batch, key)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, moments = optimiser.update(grads, state.optimiser, state.trainable)
        new = State(state.step, optax.apply_updates(state.trainable, updates), moments, state.average)
        if state.average is not None and config.optim.ema_decay is not None:
            new = new._replace(average=average(config.optim.ema_decay, state.step, state.average, new.trainable))
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        metrics = {
            "loss": loss,
            "lm_loss": lm,
            "image_loss": image,
            "grad_norm": grad_norm,
            "learning_rate": rate(state.step),
            "finite": finite,
            "tokens": jnp.sum(batch.segments > 0),
            "pictures": jnp.sum(batch.target_valid),
            "documents": jnp.sum((batch.segments > 0) & (batch.positions == 0)),
        }
        return new._replace(step=state.step + 1), metrics

    return train_step


def jit_train_step(config: RunConfig, ids: SpecialIds, shardings: tuple[State, dict], mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted `make_train_step` for a mesh, whose devices may be absent; `shardings` are those of `state.shardings`.

    The old state is donated. To be lowered under `jax.set_mesh(mesh)`.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return jax.jit(
        make_train_step(config, ids),
        donate_argnums=0,
        in_shardings=(*shardings, NamedSharding(mesh, ROWS)),
        out_shardings=(shardings[0], NamedSharding(mesh, P())),
        compiler_options=TPU_OPTIONS if on_tpu else None,
    )


def average(decay: float, step: Array, old: dict, new: dict) -> dict:
    """Exponential moving average whose decay rises from 1/10 to `decay`, so that the first steps are soon forgotten."""
    share = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a * share + b * (1 - share), old, new)


def make_eval_step(config: RunConfig, ids: SpecialIds) -> Callable:
    """`eval_step(trainable, frozen, batch, index) -> sums` of one held-out batch, with samples that depend on
    `index` alone.

    Sums: lm_loss and tokens; image_loss and pictures as [TIMESTEP_BINS] by timestep; the timesteps of
    a batch's slots are spread evenly over the schedule.
    """
    timesteps = config.model.diffusion.timesteps

    def eval_step(trainable: dict, frozen: dict, batch: Batch, index: Array) -> dict:
        model = Model(config.model, optimizer.merge(trainable, frozen))
        hidden = dreamllm.hidden_states(model, batch)

        sums: dict[str, Array] = {
            "lm_loss": losses.batch_cross_entropy(model, config.loss, batch, hidden),
            "tokens": jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32),
        }
        if slots := batch.target_start.size:
            plain = LossConfig()  # held-out losses do not depend on the run's options
            key = jax.random.fold_in(jax.random.key(0), index)
            samples = losses.sample(config.model, plain, key, jnp.arange(slots))
            # The last slots of a group are often empty: they must not always have the latest timesteps.
            order = jax.random.permutation(key, slots)
            samples = samples._replace(timesteps=(2 * order + 1) * timesteps // (2 * slots))
            states = losses.condition_states(model, plain, ids, batch, hidden, samples)
            errors = losses.denoising_loss(model, plain, losses.flatten_slots(batch.target_images), states, samples)
            valid = jnp.asarray(batch.target_valid).reshape(-1).astype(jnp.float32)
            bins = jax.nn.one_hot(samples.timesteps * TIMESTEP_BINS // timesteps, TIMESTEP_BINS)
            sums |= {"image_loss": (errors * valid) @ bins, "pictures": valid @ bins}
        return sums

    return eval_step
