"""FLOPs by formula: equal to hand arithmetic at the paper's sizes, and to what XLA counts of small models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dreamjax.compile_tpu import flops
from dreamjax.config import UNetConfig, VaeConfig, dreamllm_7b
from dreamjax.models.unet import UNet
from dreamjax.models.vae import AutoencoderKL

PAPER = dreamllm_7b()


def test_a_layer_of_the_paper_by_hand():
    layer = flops.llama_layer(PAPER.llm, 2048)
    assert layer.weights == 2 * 2048 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert layer.scores == 2 * 2 * 4096 * 2048 * 2049 / 2
    assert layer.backward(True) == 2 * layer.forward
    assert layer.backward(False) == layer.weights + 2 * layer.scores


def counted(module, arguments, **how) -> float:
    """What XLA counts of a module's forward pass, element-wise operations included."""
    params = jax.eval_shape(
        lambda *args: module.init(jax.random.key(0), *args), *arguments[: 3 if "method" not in how else 1]
    )
    return (
        jax.jit(lambda params, *args: module.apply(params, *args, **how))
        .lower(params, *arguments)
        .cost_analysis()["flops"]
    )


def leaf(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("linear", [True, False])
def test_a_unet_as_xla_counts_it(linear):
    config = UNetConfig(
        sample_size=16,
        block_channels=(128, 256),
        layers_per_block=1,
        cross_attention=(True, False),
        heads=(2, 4),
        context_width=64,
        norm_groups=8,
        linear_projection=linear,
    )
    ours = flops.unet_image(config, 8).forward
    xla = counted(UNet(config), (leaf(1, 16, 16, 4), leaf(1, dtype=jnp.int32), leaf(1, 8, 64)))
    assert ours < xla < 1.02 * ours
    behind = flops.unet_after_condition(config, 8)
    assert 0.5 * ours < behind.forward < ours


def test_a_vae_encoder_as_xla_counts_it():
    config = VaeConfig(block_channels=(64, 128), layers_per_block=1, norm_groups=8)
    ours = flops.vae_encoder_image(config, 32).forward
    xla = counted(AutoencoderKL(config), (leaf(1, 32, 32, 3),), method="encode")
    assert ours < xla < 1.03 * ours


def test_a_document_of_the_paper():
    """The hand count of a row of 2,048 tokens with 3 pictures is 93 TFLOP, of which the LLM takes 91 %."""
    import dreamjax.experiments.stage2_igpt as experiment
    from dreamjax.config import RunConfig
    from dreamjax.config.validation import from_dict

    config = from_dict(RunConfig, experiment.get_config())
    images = dict.fromkeys(("input_slots", "target_slots"), 3 * config.data.rows_per_group)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **images),
        loss=dataclasses.replace(config.loss, image_chunks=1),
    )
    work = flops.step_flops(config, {"llm", "visual_projector", "condition_projector", "dream_queries"})
    per_row = {name: value / config.batch_size / 1e12 for name, value in work.items()}
    assert 92 < sum(per_row.values()) < 94
    assert 0.90 < (per_row["llm"] + per_row["head"]) / sum(per_row.values()) < 0.92
    frozen = flops.step_flops(config, {"visual_projector", "condition_projector", "dream_queries"})
    assert frozen["llm"] < 0.7 * work["llm"]
    encoded = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train=tuple(dataclasses.replace(s, encoded="x") for s in config.data.train)
        ),
    )
    assert flops.step_flops(encoded, set())["vae"] == 0
