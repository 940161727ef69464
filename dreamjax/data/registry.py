"""The formats of documents by name: one file per format in sources/.

Adding a format: write its file, then add its case to `open_source`.
"""

from dreamjax.config import SourceConfig
from dreamjax.data.source import SPLITS, Source
from dreamjax.errors import ConfigError

WITH_SPLITS = ("shapes", "storybook", "storybook_pages")  # formats whose sources hold a part back themselves
FORMATS = (
    *WITH_SPLITS,
    "webdataset",
    "pairs",
    "mmc4",
    "obelics",
    "llava",
    "instruct",
    "array_record",
    "parquet",
    "tfds",
)


def open_source(config: SourceConfig, seed: int = 0) -> Source:
    """The source that `config` names; `seed` matters only where documents are generated.

    Raises ConfigError for an unknown format or split, SourceError where nothing can be read at the path.
    """
    if config.split not in SPLITS:
        raise ConfigError(f"data.split: {config.split!r} is none of {', '.join(SPLITS)}")
    if config.eval_share and config.format in WITH_SPLITS:
        raise ConfigError(f"data.eval_share: {config.format} has splits of its own; leave it at 0")
    if (
        config.split != "train"
        and not config.eval_share
        and config.format in FORMATS
        and config.format not in WITH_SPLITS
    ):
        raise ConfigError(
            f"data.split: {config.format} has no part that is held back; set eval_share, to the same "
            "share in both splits, or give other files as the split train"
        )
    # Imported by case: a format's libraries are needed only by those who read it.
    from dreamjax.data.storage.unpack import Cache

    cache = Cache(config.cache, config.max_growth, config.max_unpacked)
    match config.format:
        case "shapes":
            from dreamjax.data.sources.shapes import LENGTHS, Shapes

            return Shapes(config.split, seed, LENGTHS[config.split])
        case "storybook":
            from dreamjax.data.sources.storybook import Storybook

            return Storybook(config.path, config.split, config.allow_outside)
        case "storybook_pages":
            from dreamjax.data.sources.storybook import StorybookPages

            return StorybookPages(config.path, config.split, config.allow_outside)
        case "webdataset":
            from dreamjax.data.sources.webdataset import open_webdataset

            return open_webdataset(
                config.path, config.text_key, config.image_key, config.min_similarity, cache, config.drop_first_answer
            )
        case "pairs":
            from dreamjax.data.sources.pairs import open_pairs

            return open_pairs(
                config.path,
                config.images,
                config.text_key,
                config.image_key,
                config.min_similarity,
                cache,
                config.allow_outside,
            )
        case "mmc4":
            from dreamjax.data.sources.mmc4 import open_mmc4

            return open_mmc4(config.path, config.images, config.min_similarity, cache, config.allow_outside)
        case "obelics":
            from dreamjax.data.sources.obelics import open_obelics

            return open_obelics(config.path, config.images, cache, config.allow_outside)
        case "llava":
            from dreamjax.data.sources.llava import open_llava

            return open_llava(config.path, config.images, cache, config.allow_outside, config.drop_first_answer)
        case "instruct":
            from dreamjax.data.sources.instruct import open_instruct

            return open_instruct(config.path, config.images, config.min_similarity, cache, config.allow_outside)
        case "array_record":
            from dreamjax.data.sources.array_record import open_array_record

            return open_array_record(config.path, config.cache)
        case "parquet":
            from dreamjax.data.sources.parquet import open_parquet

            return open_parquet(
                config.path,
                config.images,
                config.text_key,
                config.image_key,
                config.min_similarity,
                config.allow_outside,
                config.drop_first_answer,
            )
        case "tfds":
            from dreamjax.data.sources.tfds import open_tfds

            return open_tfds(config.path, config.text_key, config.image_key)
        case unknown:
            raise ConfigError(f"data.format: {unknown!r} is unknown; formats are {', '.join(FORMATS)}")
