"""Hosts as processes of their own, for test_processes: each writes the digest of every group of its batches, as JSON.

python loader_process.py FOLDER JOURNEYS, a JSON list of {out, hosts, workers, start, stop}
"""

import hashlib
import itertools
import json
import multiprocessing
import sys

from absl import flags

from dreamjax.config import DataConfig, OptimConfig, RunConfig, SourceConfig, tiny
from dreamjax.data.pipeline.loader import Loader
from dreamjax.document.tokenizer import Tokenizer


def run_config(folder: str, workers: int) -> RunConfig:
    """Stories and their pages, mixed by size, some with pictures that do not open; four groups of two rows."""
    sources = (
        SourceConfig("storybook", folder),
        SourceConfig("storybook_pages", folder, size=20, mode="creation_only"),
    )
    data = DataConfig(sources, length=128, rows_per_group=2, input_slots=6, target_slots=8, flip=True, workers=workers)
    return RunConfig(model=tiny(), data=data, optim=OptimConfig(trainable=(".",)), batch_size=8, seed=3)


def digests(loaded) -> list[str]:
    """One for each group of a batch, over the bytes of all its fields."""
    groups = zip(*loaded.batch, strict=True)
    return [hashlib.sha256(b"".join(field.tobytes() for field in group)).hexdigest() for group in groups]


def host(folder: str, journey: dict, number: int):
    """One host of a journey: a line for each of its batches, in a file of its own."""
    config = run_config(folder, journey["workers"])
    count = config.groups // journey["hosts"]
    loader = Loader(config, config.data.train, Tokenizer.load(f"{folder}/tokenizer"))
    with open(f"{journey['out']}.{number}", "w") as file:
        loaded = loader.batches(journey["start"], journey["stop"], range(number * count, (number + 1) * count))
        for batch, one in enumerate(loaded, journey["start"]):
            line = {
                "batch": batch,
                "groups": digests(one),
                "documents": one.documents,
                "skipped": sorted(map(str, one.skipped)),
            }
            file.write(json.dumps(line) + "\n")


def main(folder: str, journeys: str):
    """Each host of each journey is a process, two at a time, that starts from this one's imports."""
    fork = multiprocessing.get_context("fork")
    waiting = [
        fork.Process(target=host, args=(folder, journey, number))
        for journey in json.loads(journeys)
        for number in range(journey["hosts"])
    ]
    for process, earlier in itertools.zip_longest(waiting, [None, None, *waiting]):
        if earlier:
            earlier.join()
        if process:
            process.start()
    sys.exit(any(process.exitcode for process in waiting))


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    main(*sys.argv[1:])
