"""Stage III, supervised fine-tuning, at the paper's sizes: as stage II, on instructions.

python -m dreamjax.train --config=experiments/stage3_sft.py:v4-128,data=FOLDER,init=RUN --workdir=DIR
python -m dreamjax.train --config=experiments/stage3_sft.py:v6e-128 --dry_run
python -m dreamjax.compile --config=experiments/stage3_sft.py:v4-64 --topology=v4:4x4x4

FOLDER holds llava_instruct/ (JSON and images), instruct_mmc4/ and instruct_blip_laion/; common/paper.py explains the
argument.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.experiments.common import paper


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    words = paper.read(arg)
    chats, documents, drawn = (
        c.SourceConfig("llava", "llava_instruct"),
        c.SourceConfig("instruct", "instruct_mmc4"),
        c.SourceConfig("instruct", "instruct_blip_laion"),
    )
    # LLaVA's chats have no target images, and the answers of Instruct-BLIP-LAION are images.
    sources = {"comprehension": (chats, documents), "creation": (documents, drawn), "joint": (chats, documents, drawn)}[
        words.mode
    ]
    stage = paper.Stage(sources=sources, inputs=4, targets=2, learning_rate=4e-5, image_weight=10.0, steps=2000)
    config = paper.run(words, stage)
    config.data.template = "vicuna_v1.1"
    return config
