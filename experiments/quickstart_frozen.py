"""The quickstart as the real recipe does it: an image encoder and a U-Net trained before, both frozen.

python -m dreamjax.train --config=experiments/quickstart_frozen.py:runs/quickstart --workdir=runs/quickstart_frozen

The argument is the run whose encoder and U-Net are taken over, runs/quickstart if there is none; LLM, projectors and
dream queries begin anew and train.
"""

import ml_collections

from dreamjax import config as c
from dreamjax.config import arguments
from dreamjax.experiments import quickstart


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    run = arguments.read(arg, paths=("init",)).get("init", "runs/quickstart")
    config = quickstart.get_config()
    config.optim.trainable = (r"^llm/", r"^(visual|condition)_projector/", r"^dream_queries$")
    config.optim.frozen = (r"^(clip|unet)/",)
    config.init_from = (c.to_dict(c.InitFrom(run, r"^(clip|unet)/")),)
    return config
