"""Stage I, alignment, at the paper's sizes: the projectors and the dream queries train, everything else is frozen.

python -m dreamjax.train --config=experiments/stage1_align.py:v4-128,comprehension,data=FOLDER,init=MODEL --workdir=DIR
python -m dreamjax.train --config=experiments/stage1_align.py:v4-128,creation --dry_run
python -m dreamjax.compile --config=experiments/stage1_align.py:v4-16,joint --topology=v4:2x2x4

Comprehension trains captions through the visual projector, creation images through the dream queries and the condition
projector, joint both at once (paper Sec. 3.2). FOLDER holds llava_pretrain/ (JSON and images) and
blip_laion/ (WebDataset tars); common/paper.py explains the argument.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.experiments.common import paper

# Input and target images of a row, as many as fit its tokens.
IMAGES = {"comprehension": (7, 0), "creation": (0, 24), "joint": (7, 9)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    words = paper.read(arg)
    sources = [c.SourceConfig("webdataset", "blip_laion")]
    if words.mode != "creation":
        sources.append(c.SourceConfig("llava", "llava_pretrain", mode="comprehension_only"))
    inputs, targets = IMAGES[words.mode]
    stage = paper.Stage(
        sources=tuple(sources),
        inputs=inputs,
        targets=targets,
        learning_rate=2e-3,
        image_weight=1.0,
        steps=5000,
        train_llm=False,
    )
    return paper.run(words, stage)
