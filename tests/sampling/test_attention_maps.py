"""Maps of the dream queries against the attention weights that diffusers' layers compute, and their figure."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest
from small_model import LATENT, parameters

from dreamjax.models.dreamllm import Model
from dreamjax.models.unet import UNet
from dreamjax.sampling import attention_maps, denoise, text_to_image
from dreamjax.sampling.options import Options

UNET = dataclasses.replace(LATENT.unet, cross_attention=(True, False))
CONFIG = dataclasses.replace(LATENT, unet=UNET)


def test_weights_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch_weights import randomize, to_params

    torch.set_num_threads(1)
    theirs = UNet2DConditionModel(
        sample_size=4,
        in_channels=8,
        out_channels=8,
        block_out_channels=UNET.block_channels,
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        attention_head_dim=UNET.heads,
        cross_attention_dim=UNET.context_width,
        norm_num_groups=2,
        use_linear_projection=True,
    )
    randomize(theirs)
    found = {}

    class Watching:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                attn.head_to_batch_dim(part)
                for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
            )
            weights = attn.get_attention_scores(q, k)
            if encoder_hidden_states is not None:
                found[attn] = weights.reshape(len(context), attn.heads, *weights.shape[1:]).mean(1).detach().numpy()
            return attn.to_out[0](attn.batch_to_head_dim(weights @ v))

    theirs.set_attn_processor(Watching())
    rng = np.random.default_rng(0)
    x, context = (
        rng.normal(size=(2, 4, 6, 8)).astype(np.float32),
        rng.normal(size=(2, 3, UNET.context_width)).astype(np.float32),
    )
    theirs(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor([500, 500]), torch.tensor(context))
    names = {module: name for name, module in theirs.named_modules()}
    shapes = jax.eval_shape(UNet(UNET).init, jax.random.key(0), x, np.zeros(2, np.int32), context)["params"]
    params = {"unet": to_params(theirs.state_dict(), shapes)}
    ours = attention_maps._maps_at(Model(CONFIG, params), context, x, np.int32(500))
    assert len(ours) == len(found) == 4  # one down, two up, one in the middle
    for module, weights in found.items():
        name = names[module].replace("down_blocks.", "down_blocks_").replace("up_blocks.", "up_blocks_")
        mine = ours[
            name.replace("attentions.", "attentions_")
            .replace("transformer_blocks.", "transformer_blocks_")
            .replace(".", "/")
        ]
        np.testing.assert_allclose(mine, weights, atol=2e-6)


def test_maps_are_shares_by_side_and_the_image_is_the_one_that_is_drawn():
    model, options = (
        Model(CONFIG, parameters(CONFIG)),
        Options(num_steps=2, guidance_scale=2.0, height=8, width=12),
    )
    hidden = np.random.default_rng(1).normal(size=(2, 3, 32)).astype(np.float32)
    conditions = denoise.Conditions(hidden, hidden[0])
    keys = text_to_image.image_keys(np.arange(2, dtype=np.uint32))
    latents, maps = attention_maps.attention_maps(model, conditions, keys, options)
    assert {side: values.shape for side, values in maps.items()} == {(4, 6): (2, 3, 4, 6), (2, 3): (2, 3, 2, 3)}
    for values in maps.values():
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
        assert values.std() > 1e-3
    *_, last = denoise.denoising_steps(model, conditions, denoise.Noise(keys), options)
    np.testing.assert_allclose(latents, last.progress.x, atol=1e-5)


def test_the_figure_has_a_tile_for_each_query():
    maps = np.zeros((64, 4, 4), np.float32)
    maps[9, 2, 1] = 1.0
    sheet = np.asarray(attention_maps.figure(PIL.Image.new("RGB", (8, 8), "grey"), maps))
    step = attention_maps.TILE + attention_maps.MARGIN
    assert sheet.shape == (8 * step + attention_maps.MARGIN,) * 2 + (3,)

    def tile(n):
        return sheet[attention_maps.MARGIN + n // 8 * step :, attention_maps.MARGIN + n % 8 * step :][
            : attention_maps.TILE, : attention_maps.TILE
        ]

    warm = tile(9)[..., 0].astype(int)
    assert np.unravel_index(warm.argmax(), warm.shape)[0] // 24 == 2 and warm.max() > tile(8)[..., 0].max() + 80
