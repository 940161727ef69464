"""Stage II, I-GPT pretraining, at the paper's sizes: Vicuna-7B, CLIP ViT-L/14 and Stable Diffusion 2.1-base.

python -m dreamjax.train --config=experiments/stage2_igpt.py:FOLDER --workdir=DIR
python -m dreamjax.train --config=experiments/stage2_igpt.py --dry_run

The LLM, both projectors and the dream queries train; CLIP, U-Net and VAE stay frozen (paper Sec. 3.3, appendix table of
the official configuration). FOLDER holds interleaved documents in the storybook format.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.schema import to_dict


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    run = c.RunConfig(
        model=c.dreamllm_7b(),
        data=c.DataConfig(train=(c.SourceConfig("storybook", arg),), length=2048, seen_slots=6, dreamed_slots=6, flip=True),
        optim=c.OptimConfig(
            trainable=(r"^llm/", r"^(visual|condition)_projector/", r"^dream_queries$"),
            frozen=(r"^(clip|unet|vae)/",),
            learning_rate=2e-5,
        ),
        loss=c.LossConfig(lm_weight=1.0, image_weight=10.0),
        mesh=c.MeshConfig(data=1, fsdp=-1, tensor=1),
        total_steps=2000, batch_size=2048, checkpoint_every=200,
    )
    return ml_collections.ConfigDict(to_dict(run))
