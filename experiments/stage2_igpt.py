"""Stage II, I-GPT pretraining, at the paper's sizes: Vicuna-7B, CLIP ViT-L/14 and Stable Diffusion 2.1-base.

python -m dreamjax.train --config=experiments/stage2_igpt.py:v4-128,data=FOLDER,init=RUN --workdir=DIR
python -m dreamjax.train --config=experiments/stage2_igpt.py:creation --dry_run
python -m dreamjax.compile --config=experiments/stage2_igpt.py:v4-128 --topology=v4:4x4x8

The LLM, both projectors and the dream queries train; CLIP, U-Net and VAE stay frozen (paper Sec. 3.2, appendix table of
the official configuration). FOLDER holds mmc4/ and blip_laion/; common/paper.py explains the argument.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.experiments.common import paper


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    sources = (c.SourceConfig("mmc4", "mmc4"), c.SourceConfig("webdataset", "blip_laion"))
    stage = paper.Stage(sources=sources, inputs=5, targets=5, learning_rate=2e-5, image_weight=10.0, steps=2000)
    return paper.run(paper.read(arg), stage)
