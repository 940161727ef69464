"""Real picture stories: a small model that reads and writes pages of text with images of 64 pixels.

python -m dreamjax.train --config=experiments/storybook.py:FOLDER --workdir=runs/storybook
python -m dreamjax.evaluate --model=runs/storybook --task=storybook --data=FOLDER --out=runs/storybook/evaluation

FOLDER holds stories.jsonl and its images. Nothing here is pretrained, so every part trains. Stories teach how text and
images follow each other; single pages, twice as many an epoch, teach what a text alone says of its image.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.config import arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    folder = arguments.read(arg, paths=("data",)).get("data", "")
    model = c.ModelConfig(
        llm=c.LlamaConfig(vocab_size=2056, width=128, layers=4, heads=4, kv_heads=4, ffn_width=352, max_positions=1024),
        clip=c.ClipConfig(image_size=64, patch_size=16, width=96, layers=3, heads=4, ffn_width=256, select_layer=-1),
        unet=c.UNetConfig(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            block_channels=(8, 16, 48, 96),
            layers_per_block=1,
            cross_attention=(False, False, True, True),
            heads=(1, 2, 4, 4),
            context_width=96,
            # with a channel or two per group the norms would wash out what a condition says of the palette
            norm_groups=2,
        ),
        diffusion=c.DiffusionConfig(beta_schedule="linear", prediction="v_prediction"),
        dream_queries=8,
    )
    stories, pages = "storybook", "storybook_pages"
    run = c.RunConfig(
        model=model,
        data=c.DataConfig(
            train=(c.SourceConfig(stories, folder), c.SourceConfig(pages, folder), c.SourceConfig(pages, folder)),
            eval=(c.SourceConfig(stories, folder, "eval"), c.SourceConfig(pages, folder, "eval")),
            tokenizer_vocab=2048,
            length=1024,
            input_slots=12,
            target_slots=16,
        ),
        optim=c.OptimConfig(
            trainable=(r"^(?!clip/post_layernorm)",),
            frozen=(r"^clip/post_layernorm",),
            learning_rate=1e-3,
            warmup_share=0.03,
            final_share=0.05,
            weight_decay=0.01,
            ema_decay=0.995,
        ),
        # What a text tells of its image matters where there is much noise: half of all timesteps are sampled there, at
        # full weight (min-SNR would weigh them by nearly nothing in v prediction).
        loss=c.LossConfig(image_weight=10.0, condition_dropout=0.1, late_timesteps=0.5),
        total_steps=3000,
        batch_size=1,
        log_every=10,
        checkpoint_every=500,
        eval_every=1000,
        eval_batches=16,
        sample_every=3000,
        sample_prompts=("The elephant and the river.", "A day at school."),
        sample_tokens=128,
    )
    return ml_collections.ConfigDict(c.to_dict(run))
