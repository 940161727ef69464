"""The training step.

Fused loss, gradients of the trainable tree, update; and the step that measures held-back losses.
"""

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
from dreamjax.training.state import State

Array = jax.Array
TIMESTEP_BINS = 4  # quarters of the schedule that held-back losses are reported for


def gradients(
    config: RunConfig,
    ids: SpecialIds,
    trainable: dict,
    frozen: dict,
    batch: Batch,
    key: Array | losses.Draws,
):
    """((loss, lm_loss, image_loss), gradients) of a global batch; `accumulate` microbatches add up to the same numbers
    as one.

    `key` is the step's. Draws for all slots may stand in its place, without microbatches, to repeat recorded ones.

    Groups are dealt to the microbatches in turn, so that each microbatch is spread over the mesh as the batch is.
    """
    counts = losses.count(batch)
    decoder_is_frozen = not {"unet", "vae"} & set(trainable)

    def loss(trainable, batch):
        model = Model(config.model, optimizer.merge(trainable, frozen))
        tokens, images = losses.loss_sums(model, config.loss, ids, batch, key, decoder_is_frozen)
        lm, image = tokens / counts.tokens, images / counts.images
        lm_weight, image_weight = config.loss.weights
        return lm_weight * lm + image_weight * image, (lm, image)

    grad = jax.value_and_grad(loss, has_aux=True)
    if config.accumulate == 1:
        (total, (lm, image)), grads = grad(trainable, batch)
        return (total, lm, image), grads

    def add(carry, micro):
        (total, (lm, image)), grads = grad(trainable, micro)
        return jax.tree.map(jnp.add, carry, ((total, lm, image), grads)), None

    def to_strided_chunks(x):
        return losses.to_strided_chunks(x, config.accumulate)

    zeros = ((jnp.float32(0),) * 3, jax.tree.map(jnp.zeros_like, trainable))
    return jax.lax.scan(add, zeros, jax.tree.map(to_strided_chunks, batch))[0]


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
        if state.average is not None:
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


def jit_train_step(config: RunConfig, ids: SpecialIds, where: tuple[State, dict], mesh: Mesh):
    """The program of `make_train_step` for a mesh, whose devices need not be at hand; `where` as `state.shardings`
    gives it.

    The old state is donated. To be lowered under `jax.set_mesh(mesh)`.
    """
    rows = NamedSharding(mesh, ROWS)
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return jax.jit(
        make_train_step(config, ids),
        donate_argnums=0,
        in_shardings=(*where, Batch(*[rows] * len(Batch._fields))),
        out_shardings=(where[0], NamedSharding(mesh, P())),
        compiler_options=TPU_OPTIONS if on_tpu else None,
    )


def average(decay: float, step: Array, old: dict, new: dict) -> dict:
    """Exponential moving average whose decay rises from 1/10 to `decay`, so that the first steps do not linger."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a * decay + b * (1 - decay), old, new)


def make_eval_step(config: RunConfig, ids: SpecialIds) -> Callable:
    """`eval_step(trainable, frozen, batch, index) -> sums` of one held-back batch, with draws that depend on `index`
    alone.

    Sums: lm_loss and tokens; image_loss and pictures as [TIMESTEP_BINS] by the timestep drawn, which runs evenly
    through the schedule over the slots of a batch.
    """
    timesteps = config.model.diffusion.timesteps

    def eval_step(trainable: dict, frozen: dict, batch: Batch, index: Array) -> dict:
        model = Model(config.model, optimizer.merge(trainable, frozen))
        hidden = dreamllm.hidden_states(model, batch)

        def flat(x):
            return x.reshape(hidden.shape[:2])

        chunk = min(config.loss.ce_chunk, hidden.shape[1])
        sums = {
            "lm_loss": losses.cross_entropy_sum(model, hidden, flat(batch.tokens), flat(batch.loss_mask), chunk),
            "tokens": jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32),
        }
        if slots := batch.target_start.size:
            plain = LossConfig()  # held-back losses do not depend on the run's options
            key = jax.random.fold_in(jax.random.key(0), index)
            draws = losses.draw(config.model, plain, key, jnp.arange(slots))
            shares = jax.random.permutation(
                key, slots
            )  # the last slots of a group are often empty: they must not be the latest timesteps
            draws = draws._replace(timesteps=(2 * shares + 1) * timesteps // (2 * slots))
            errors = losses.batch_image_errors(model, plain, ids, batch, hidden, draws)
            valid = batch.target_valid.reshape(-1).astype(jnp.float32)
            bins = jax.nn.one_hot(draws.timesteps * TIMESTEP_BINS // timesteps, TIMESTEP_BINS)
            sums |= {"image_loss": (errors * valid) @ bins, "pictures": valid @ bins}
        return sums

    return eval_step
