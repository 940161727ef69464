"""A host by itself, for test_processes: prints the digest of every group of its batches, as JSON.

python loader_process.py FOLDER WORKERS START STOP HOSTS HOST [HOST ...]
"""

import hashlib
import json
import sys

from absl import flags

from dreamjax.config import DataConfig, OptimConfig, RunConfig, SourceConfig, tiny
from dreamjax.data.loader import Loader
from dreamjax.tokenizer import Tokenizer


def run_config(folder: str, workers: int) -> RunConfig:
    """Stories and their pages, mixed by size, some with pictures that do not open; four groups of two rows."""
    sources = (SourceConfig("storybook", folder), SourceConfig("storybook_pages", folder, size=20, mode="creation_only"))
    data = DataConfig(sources, length=128, rows_per_group=2, seen_slots=6, dreamed_slots=8, flip=True, workers=workers)
    return RunConfig(model=tiny(), data=data, optim=OptimConfig(trainable=(".",)), batch_size=8, seed=3)


def digests(loaded) -> list[str]:
    """One for each group of a batch, over the bytes of all its fields."""
    groups = zip(*loaded.batch)
    return [hashlib.sha256(b"".join(field.tobytes() for field in group)).hexdigest() for group in groups]


def main(folder: str, *numbers: str):
    workers, start, stop, hosts, *mine = map(int, numbers)
    config = run_config(folder, workers)
    tokenizer = Tokenizer.load(f"{folder}/tokenizer")
    for host in mine:
        count = config.groups // hosts
        own = range(host * count, (host + 1) * count)
        loader = Loader(config, config.data.train, tokenizer)
        for number, loaded in enumerate(loader.batches(start, stop, own), start):
            skipped = sorted(map(str, loaded.skipped))
            print(json.dumps({"host": host, "batch": number, "groups": digests(loaded), "documents": loaded.documents, "skipped": skipped}), flush=True)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    main(*sys.argv[1:])
