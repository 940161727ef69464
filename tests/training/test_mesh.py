"""A step does not depend on the mesh: gradients leaf by leaf, and the losses of twenty steps.

XLA's partitioner has given right losses with wrong gradients (by 100 %) on some meshes where a sharding constraint was
missing.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from small_model import IDS, LATENT, leaves, relative_error, run_config, start

from dreamjax.config import DataConfig, LossConfig, MeshConfig, SourceConfig
from dreamjax.document.batch import Batch, fake_batch
from dreamjax.parallel.mesh import ROWS, make_mesh
from dreamjax.parallel.param_sharding import unsharded_share
from dreamjax.training import optimizer
from dreamjax.training.state import shardings
from dreamjax.training.step import make_train_step

# Sizes at which XLA's cost model chooses partitions that were wrong without the constraints; smaller ones hide it.
MODEL = dataclasses.replace(
    LATENT,
    llm=dataclasses.replace(LATENT.llm, width=128, ffn_width=256, max_positions=128),
    clip=dataclasses.replace(LATENT.clip, image_size=16, width=64, ffn_width=128),
    unet=dataclasses.replace(
        LATENT.unet,
        sample_size=8,
        block_channels=(32, 64),
        cross_attention=(False, False),
        context_width=64,
        norm_groups=8,
    ),
    vae=dataclasses.replace(LATENT.vae, block_channels=(16, 32), norm_groups=4),
    dream_queries=8,
)
DATA = DataConfig(train=(SourceConfig("shapes"),), length=128, input_slots=2, target_slots=2)

# Without clipping Adam's first moment after the first step is the gradient times 1 - b1. A warm-up, because its very
# first steps go by the sign of a gradient alone: where that is rounding, Adam makes much of it.
STEPS = 20
CONFIG = run_config(
    MODEL,
    data=DATA,
    loss=LossConfig(condition_dropout=0.3),
    total_steps=STEPS,
    optim_changes={"clip_norm": 1e9, "warmup_share": 1.0},
)


MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))


def lowered(sizes: tuple[int, int, int]):
    """(mesh, the step lowered for it, the shardings of state and frozen parameters, of the batch)."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
    state, frozen = start(CONFIG)
    where, rows = shardings(state, frozen, mesh), NamedSharding(mesh, ROWS)
    with jax.set_mesh(mesh):
        step = jax.jit(
            make_train_step(CONFIG, IDS),
            donate_argnums=0,
            in_shardings=(*where, Batch(*[rows] * len(Batch._fields))),
            out_shardings=(where[0], None),
        )
        return mesh, step.lower(state, frozen, fake_batch(CONFIG)), where, rows


def train(mesh, step, where, rows):
    """(gradients of the first step, losses and gradient norms of all)."""
    losses, norms, gradients = [], [], {}
    (state, frozen), batch = jax.device_put(start(CONFIG), where), jax.device_put(fake_batch(CONFIG), rows)
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            state, metrics = step(state, frozen, batch)
            gradients = gradients or {
                path: moment / (1 - CONFIG.optim.b1) for path, moment in leaves(state.optimiser[1].mu).items()
            }
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    return gradients, np.array(losses), np.array(norms)


@pytest.fixture(scope="module")
def compiled():
    """(mesh, step, shardings of state and frozen parameters, of the batch) by the sizes of the mesh.

    Compiling takes most of the time here.
    """

    @functools.cache
    def program(sizes):
        mesh, step, where, rows = lowered(sizes)
        return mesh, step.compile(), where, rows

    return program


@pytest.fixture(scope="module")
def one_device(compiled):
    return train(*compiled((1, 1, 1)))


# The mesh of all three axes stands for the others by default.
@pytest.mark.parametrize(
    "sizes", [sizes if sizes == (2, 2, 2) else pytest.param(sizes, marks=pytest.mark.slow) for sizes in MESHES]
)
def test_gradients_and_losses_are_those_of_one_device(compiled, one_device, sizes):
    expected, expected_losses, expected_norms = one_device
    gradients, losses, norms = train(*compiled(sizes))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3)
    assert losses[-1] < losses[0] - 0.1
    # A bias on all keys alike changes no softmax: its gradient is 0 but for rounding.
    errors = {
        path: relative_error(gradients[path], leaf)
        for path, leaf in expected.items()
        if path != "clip/layers/attention/k/bias"
    }
    assert all(np.linalg.norm(expected[path]) > 0 for path in errors)
    assert {path: error for path, error in errors.items() if error > 1e-5} == {}


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_the_parameters_of_the_test_are_split(sizes):
    state, frozen = start(CONFIG)
    assert unsharded_share(optimizer.merge(state.trainable, frozen), make_mesh(MeshConfig(*sizes))) < 0.02
