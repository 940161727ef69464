"""Coloured shapes that act: the default model, trained from nothing in minutes on two CPU cores.

python -m dreamjax.train --config=experiments/quickstart.py --workdir=runs/quickstart

There is no pretrained CLIP or Stable Diffusion to freeze here, so every part trains: the LLM, the image encoder, the
projectors, the dream queries and a U-Net that denoises 16-pixel images without a VAE.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.config import arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arguments.read(arg)
    model = c.ModelConfig(
        llm=c.LlamaConfig(vocab_size=520, width=96, layers=3, heads=4, kv_heads=4, ffn_width=256, max_positions=256),
        clip=c.ClipConfig(image_size=16, patch_size=8, width=64, layers=2, heads=4, ffn_width=128, select_layer=-1),
        unet=c.UNetConfig(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_channels=(32, 64),
            layers_per_block=1,
            cross_attention=(False, True),
            heads=(2, 4),
            context_width=64,
            norm_groups=8,
        ),
        diffusion=c.DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction"),
        dream_queries=4,
    )
    run = c.RunConfig(
        model=model,
        data=c.DataConfig(
            train=(c.SourceConfig("shapes"),),
            eval=(c.SourceConfig("shapes", split="eval"),),
            length=160,
            input_slots=8,
            target_slots=4,
        ),
        optim=c.OptimConfig(
            # Nothing would train these: the LLM sees hidden states from before CLIP's post layer norm, and a bias that
            # all keys share changes no softmax, so that its gradient is rounding alone.
            trainable=(r"^(?!clip/(post_layernorm|layers/attention/k/bias))",),
            frozen=(r"^clip/(post_layernorm|layers/attention/k/bias)",),
            learning_rate=8e-4,
            lr_rules=(c.LrRule(r"^unet/", 2.5),),
            warmup_share=0.02,
            final_share=0.05,
            ema_decay=0.995,
        ),
        loss=c.LossConfig(image_weight=10.0, condition_dropout=0.1),
        total_steps=2600,
        batch_size=8,
        log_every=20,
        checkpoint_every=650,
        eval_every=650,
    )
    return ml_collections.ConfigDict(c.to_dict(run))
