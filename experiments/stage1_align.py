"""Stage I, alignment, at the paper's sizes: the projectors and the dream queries learn, everything else is frozen.

python -m dreamjax.train --config=experiments/stage1_align.py:v4-128,comprehension,data=FOLDER,init=MODEL --workdir=DIR
python -m dreamjax.train --config=experiments/stage1_align.py:v4-128,creation --dry_run
python -m dreamjax.compile --config=experiments/stage1_align.py:v4-16,joint --topology=v4:2x2x4

Comprehension learns captions through the visual projector, creation pictures through the dream queries and the condition
projector, joint both at once (paper Sec. 3.3). FOLDER holds llava_pretrain/ (JSON and pictures) and blip_laion/ (WebDataset
tars); common/paper.py explains the argument.
"""

from dreamjax import config as c
from experiments.common import paper

SIDES = {  # what learns; seen and dreamed pictures of a row, as many as fit its tokens; the two weights
    "comprehension": ((r"^visual_projector/",), 7, 0, (1.0, 0.0)),
    "creation": ((r"^condition_projector/", r"^dream_queries$"), 0, 24, (0.0, 1.0)),
    "joint": ((r"^(visual|condition)_projector/", r"^dream_queries$"), 7, 9, (1.0, 1.0)),
}
REST = {
    "comprehension": (r"^condition_projector/", r"^dream_queries$"), "creation": (r"^visual_projector/",), "joint": (),
}


def get_config(arg: str = ""):
    words = paper.read(arg)
    learned, seen, dreamed, weights = SIDES[words.mode]
    mode = "joint" if words.mode == "joint" else f"{words.mode}_only"
    sources = [c.SourceConfig("webdataset", "blip_laion", mode=mode)]
    if words.mode != "creation":
        sources.append(c.SourceConfig("llava", "llava_pretrain", mode="comprehension_only"))
    optim = c.OptimConfig(trainable=learned, frozen=(paper.ENCODERS, r"^llm/", *REST[words.mode]), learning_rate=2e-3)
    loss = c.LossConfig(lm_weight=weights[0], image_weight=weights[1])
    return paper.run(words, tuple(sources), seen, dreamed, optim, loss, steps=5000)
