"""Runs the frozen encoders over pictures once, instead of in every step: python -m dreamjax.precompute
--config=experiments/X.py[:arg] --model=DIR

Every source of the config whose `encoded` names a folder gets it filled: CLIP's features of each picture, and the
moments of its latents and of its mirror image's. DIR is the model folder or workdir that the run's encoders come from.
A picture takes 0.75 MiB with the 7B model's encoders. Called again after an interruption, it goes on.
"""

from absl import flags
from ml_collections import config_flags

from dreamjax import cli
from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.data.features.encode import load_encoders, make_encode, write
from dreamjax.data.registry import open_source
from dreamjax.errors import ConfigError
from dreamjax.training.initialize import encoders_of

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file of the run that will read the pictures; --config.key=value overrides."
)
MODEL = flags.DEFINE_string("model", None, "Model folder or workdir that holds the encoders.")
BATCH = flags.DEFINE_integer("batch", 32, "Pictures that are encoded together.")


def main() -> int:
    """Fills the folders that the config names."""
    if CONFIG.value is None or MODEL.value is None:
        raise ConfigError("--config and --model: both are needed")
    if BATCH.value < 1:
        raise ConfigError(f"--batch: must be at least 1, is {BATCH.value}")
    config = from_dict(RunConfig, CONFIG.value)
    sources = [source for source in (*config.data.train, *config.data.eval) if source.encoded]
    if not sources:
        raise ConfigError("config.data: no source has a folder under `encoded`")
    params = load_encoders(config.model, MODEL.value)
    encode = make_encode(config.model, params, BATCH.value)
    for source in sources:
        write(open_source(source, config.seed), source.encoded, config.model, encode, BATCH.value, encoders_of(params))
    return 0


if __name__ == "__main__":
    cli.run("dreamjax.precompute", main)
