"""The formats of documents by name: a table of functions, each imported when it is asked for.

A format's function is open_X(config: SourceConfig, seed: int) -> Source; it raises SourceError where nothing can be
read at the path. To add a format here, write its file in sources/ and its line in OPENERS. Another package adds one by
an entry point:

    [project.entry-points."dreamjax.sources"]
    my_format = "my_package.my_module:open_my_format"
"""

import importlib
import importlib.metadata
from collections.abc import Callable

from dreamjax.config import SourceConfig
from dreamjax.data.source import SPLITS, Source
from dreamjax.errors import ConfigError

GROUP = "dreamjax.sources"  # of entry points
OPENERS = {
    "shapes": "shapes:open_shapes",
    "storybook": "storybook:open_storybook",
    "storybook_pages": "storybook:open_storybook_pages",
    "webdataset": "webdataset:open_webdataset",
    "pairs": "pairs:open_pairs",
    "mmc4": "mmc4:open_mmc4",
    "obelics": "obelics:open_obelics",
    "llava": "llava:open_llava",
    "instruct": "instruct:open_instruct",
    "array_record": "array_record:open_array_record",
    "parquet": "parquet:open_parquet",
    "tfds": "tfds:open_tfds",
}  # in dreamjax.data.sources
FORMATS = tuple(OPENERS)
WITH_SPLITS = ("shapes", "storybook", "storybook_pages")  # formats that hold a part out themselves

Opener = Callable[[SourceConfig, int], Source]


def open_source(config: SourceConfig, seed: int = 0) -> Source:
    """The source that `config` names; `seed` matters only where documents are generated.

    Raises ConfigError for an unknown format or split, SourceError where nothing can be read at the path.
    """
    opener = find_opener(config.format)
    _check_split(config)
    return opener(config, seed)


def formats() -> tuple[str, ...]:
    """Names of all formats, those of other packages last."""
    return FORMATS + tuple(sorted(point.name for point in _entry_points() if point.name not in OPENERS))


def find_opener(name: str) -> Opener:
    """The function that opens sources of a format; ConfigError where there is none."""
    if name in OPENERS:
        module, _, function = OPENERS[name].partition(":")
        return getattr(importlib.import_module(f"dreamjax.data.sources.{module}"), function)
    for point in _entry_points():
        if point.name == name:
            return point.load()
    raise ConfigError(f"data.format: {name!r} is unknown; formats are {', '.join(formats())}")


def _entry_points() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=GROUP)


def _check_split(config: SourceConfig):
    """Raises ConfigError for a split that a format of this package does not have."""
    if config.split not in SPLITS:
        raise ConfigError(f"data.split: {config.split!r} is none of {', '.join(SPLITS)}")
    if config.format in WITH_SPLITS:
        if config.eval_share:
            raise ConfigError(f"data.eval_share: {config.format} has splits of its own; leave it at 0")
    elif config.format in OPENERS and config.split != "train" and not config.eval_share:
        raise ConfigError(
            f"data.split: {config.format} has no part that is held out; set eval_share, to the same "
            "share in both splits, or give other files as the split train"
        )
