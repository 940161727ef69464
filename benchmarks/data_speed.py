"""Speed from documents to rows, beside the webdataset package: nice -n 19 python benchmarks/data_speed.py [--pairs=N]
[--records=N]

On one core and in one process, from the same pictures: each path reads a pair, decodes the JPEG and resizes it for the
encoder (224) and the decoder (512); the paths of DreamJAX read in random order and make the token row as well, while
webdataset reads in the order of the tar and leaves the caption a string. Rounds alternate, and the best of each path
counts. Then the time to index a tar and the memory while its records are read once each. Prints one table, and JSON on
the last line.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import platform
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import webdataset

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from dreamjax.config import SourceConfig  # noqa: E402
from dreamjax.data.prepare import writer  # noqa: E402
from dreamjax.data.prepare.filters import Filters  # noqa: E402
from dreamjax.data.registry import open_source  # noqa: E402
from dreamjax.data.source import Source  # noqa: E402
from dreamjax.document import Image, image_io
from dreamjax.document.tokenize import Slots, tokenize_document  # noqa: E402
from dreamjax.document.tokenizer import Tokenizer  # noqa: E402
from dreamjax.document.tokenizer_training import train_tokenizer  # noqa: E402

ENCODER, DECODER = 224, 512
SLOTS = Slots(64, 256)
WORDS = (
    "a photo of the red green blue small large cat dog house river boat child with under near on some old "
    "new bright dark".split()
)


def make_image(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG with as many bytes per pixel as a photograph has: coarse and fine noise over each other."""
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)).resize(
        (width, height), PIL.Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tar(path: pathlib.Path, count: int, photographs: list[bytes]):
    """Pairs as img2dataset writes them; the pictures repeat."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            caption = " ".join(rng.choice(WORDS, 12))
            for kind, data in (
                ("jpg", photographs[number % len(photographs)]),
                ("json", json.dumps({"caption": caption}).encode()),
                ("txt", caption.encode()),
            ):
                info = tarfile.TarInfo(f"{number:09d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


# ----------------------------------------------------------------------------------------------------------------------
# Paths: each yields (arrays of a pair, its tokens or caption)


def with_webdataset(path: pathlib.Path) -> Iterator:
    pipeline = (
        webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "txt")
    )
    for image, caption in pipeline:
        yield image_io.for_encoder(image, ENCODER), image_io.for_decoder(image, DECODER), caption


def with_dreamjax(source: Source, tokenizer: Tokenizer, draft: int = 0) -> Iterator:
    for index in np.random.default_rng(1).permutation(len(source)):
        document = source[int(index)]
        row = tokenize_document(document, tokenizer, SLOTS)
        image = next(part for part in document.parts if isinstance(part, Image)).pil(draft)
        yield image_io.for_encoder(image, ENCODER), image_io.for_decoder(image, DECODER), row


def best_times(paths: dict[str, Callable[[], Iterator]], rounds: int) -> dict[str, float]:
    """Seconds of each path's fastest round, in CPU time of this process: what other programs take does not count."""
    best = dict.fromkeys(paths, float("inf"))
    for _ in range(rounds):
        for name, path in paths.items():
            start = time.process_time()
            for _ in path():
                pass
            best[name] = min(best[name], time.process_time() - start)
    return best


# ----------------------------------------------------------------------------------------------------------------------
# Index and memory


def own_memory() -> float:
    """MiB of this process that no file backs."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


def index_and_memory(folder: pathlib.Path, records: int, tokenizer: Tokenizer) -> dict:
    """Of a tar with small pictures.

    Seconds to index it, and memory while every record becomes a row once, in random order.
    """
    write_tar(folder / "many.tar", records, [make_image(np.random.default_rng(0), 64, 64)])
    start, wall = time.process_time(), time.perf_counter()
    source = open_source(SourceConfig("webdataset", str(folder / "many.tar"), cache=str(folder / "many")))
    seconds = time.process_time() - start, time.perf_counter() - wall
    memory = []
    for done, _ in enumerate(with_rows(source, tokenizer), start=1):
        if done % (records // 10) == 0:
            memory.append(round(own_memory(), 1))
    per = 100_000 / records
    return {
        "index_cpu_seconds_per_100k": round(seconds[0] * per, 2),
        "index_seconds_per_100k": round(seconds[1] * per, 2),
        "memory_mib_by_tenths": memory,
    }


def with_rows(source: Source, tokenizer: Tokenizer) -> Iterator:
    for index in np.random.default_rng(1).permutation(len(source)):
        document = source[int(index)]
        yield tokenize_document(document, tokenizer, SLOTS), np.asarray(document.parts[0].pil())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="pairs of the timed paths")
    parser.add_argument(
        "--width", type=int, default=768, help="pixels of their pictures; the height is three quarters of it"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--records", type=int, default=100_000, help="records of the tar that is indexed and read for memory"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rng = np.random.default_rng(0)
        photographs = [make_image(rng, args.width, args.width * 3 // 4) for _ in range(20)]
        write_tar(folder / "pairs.tar", args.pairs, photographs)
        tar = open_source(SourceConfig("webdataset", str(folder / "pairs.tar"), cache=str(folder / "cache")))
        tokenizer = Tokenizer.from_model(train_tokenizer(tar.texts(), 300))
        writer.write(writer.Job(tar, str(folder / "records"), Filters(decode=False)), workers=1)
        records = open_source(SourceConfig("array_record", str(folder / "records")))
        paths = {
            "webdataset": lambda: with_webdataset(folder / "pairs.tar"),
            "tar": lambda: with_dreamjax(tar, tokenizer),
            "array_record": lambda: with_dreamjax(records, tokenizer),
            "tar, drafts": lambda: with_dreamjax(tar, tokenizer, 2 * DECODER),
        }
        times = best_times(paths, args.rounds)
        facts = {"documents_per_second": {name: round(args.pairs / seconds, 1) for name, seconds in times.items()}}
        facts |= index_and_memory(folder, args.records, tokenizer)
    facts |= {
        "date": str(datetime.date.today()),
        "python": platform.python_version(),
        "cpu": cpu(),
        "pairs": args.pairs,
        "records": args.records,
    }
    facts["jpeg"] = (
        f"{args.width} x {args.width * 3 // 4}, {np.mean([len(data) for data in photographs]) / 1024:.0f} KiB"
    )
    print(f"{args.pairs} pairs, {facts['jpeg']}; one core of {facts['cpu']}, {facts['date']}")
    print(f"{'path':16s} {'documents/s':>12s} {'images/s':>12s} {'of webdataset':>14s}")
    for name, speed in facts["documents_per_second"].items():
        print(f"{name:16s} {speed:12.1f} {2 * speed:12.1f} {speed / facts['documents_per_second']['webdataset']:14.2f}")
    print(f"index            {facts['index_cpu_seconds_per_100k']:.2f} s CPU per 100,000 records of three members")
    memory = facts["memory_mib_by_tenths"]
    print(
        f"memory           {memory[0]:.1f} MiB after a tenth of {args.records:,d} records, "
        f"{memory[-1]:.1f} MiB after all"
    )
    print(json.dumps(facts))


def cpu() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{(names or [platform.processor() or 'an unknown processor'])[0]} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    main()
