"""Any source to ArrayRecord files.

File by file in parallel processes, each whole or absent, so that an interrupted run goes on.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tqdm
from array_record.python import array_record_module

from dreamjax.config.aliases import current_names
from dreamjax.data.prepare.filters import WANTED_OTHERWISE, Filters, keep
from dreamjax.data.source import Source
from dreamjax.data.sources.array_record import DROPPED, LENGTHS, SETTINGS, SUFFIX, WRITER_OPTIONS, encode
from dreamjax.data.sources.records import Unusable, bad_record, parse_json, require
from dreamjax.data.storage import files, processes
from dreamjax.document import Document, Image, Text
from dreamjax.document.tokenize import Slots, tokenize_document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import BadImage, BadRecord, ConfigError, RunStopped

NAMED = 3  # dropped records that a message names
_OUR_NAME = re.compile(r"documents-\d+-of-\d+(\.array_record|\.json)(\..*)?")
_OUR_TABLES = "|".join(map(re.escape, (SETTINGS, DROPPED, LENGTHS)))
_OUR_REMAINS = re.compile(rf"(documents-\d+-of-\d+\.(array_record|json)|{_OUR_TABLES})\.[0-9a-f]+\.tmp")


def check_out(out: str, source: str):
    """Raises ConfigError where the output would lie among the source's files.

    It would be read as one of them, or --overwrite would remove them.
    """
    if not out.isprintable():
        raise ConfigError(
            f"--out: {out!r} is no name for a folder: it has characters that do not print, or is not UTF-8"
        )
    if "://" not in out and os.path.exists(out) and not os.path.isdir(out):
        raise ConfigError(f"--out: {out} is a file; give a folder")

    def resolved(path: str) -> str:
        return path.rstrip("/") if "://" in path else os.path.realpath(os.path.expanduser(path))

    if resolved(out) in (resolved(source), resolved(os.path.dirname(source))):
        raise ConfigError(f"--out: {out} is the folder of --source; give another one")


@dataclasses.dataclass(frozen=True)
class Job:
    """The source and the settings of a prepared set. `per_file` records of the source go to one file, in order."""

    source: Source
    out: str
    filters: Filters = Filters()
    tokenizer: Tokenizer | None = None  # to count tokens with
    template: str = "plain"
    per_file: int = 1000
    max_bad_share: float = 1.0  # of broken records, above which writing stops
    command: str = ""  # that does it, for whoever finds it unfinished

    def __len__(self) -> int:
        """Files."""
        return -(-len(self.source) // self.per_file)

    def path(self, number: int) -> str:
        """The file's name without its ending."""
        return files.join(self.out, f"documents-{number:05d}-of-{len(self):05d}")

    def settings(self) -> dict:
        """All that the files depend on."""
        model = hashlib.sha256(self.tokenizer.model).hexdigest()[:16] if self.tokenizer else None
        facts = {
            "source": self.source.fingerprint,
            "records": len(self.source),
            "per_file": self.per_file,
            "tokenizer": model,
            "template": self.template,
        }
        return json.loads(json.dumps(facts | {"filters": dataclasses.asdict(self.filters)}))


def overwrite(job: Job, workers: int) -> dict:
    """As `write`, without what an earlier run has written."""
    _clear(job.out)
    return write(job, workers)


def write(job: Job, workers: int) -> dict:
    """Writes what is not there yet; returns statistics over all files.

    Raises ConfigError where the folder holds files of other settings, RunStopped where a worker died, too many records
    are broken, or none can be used.
    """
    files.make_folder(job.out)
    _claim(job)
    there = set(files.names_in(job.out))
    for name in there:
        if _OUR_REMAINS.fullmatch(name):  # of a run that was killed
            files.remove(files.join(job.out, name))
    missing = [
        number
        for number in range(len(job))
        if not {os.path.basename(job.path(number)) + end for end in (SUFFIX, ".json")} <= there
    ]
    done = sorted(set(range(len(job))) - set(missing))
    dropped = Dropped()
    dropped.add(job.source.skipped)
    with tqdm.tqdm(total=len(job.source), desc="preparing", unit="record", unit_scale=True, disable=None) as bar:
        for number in itertools.chain(done, _written(job, missing, workers)):
            dropped.add(BadRecord(*record) for record in _facts(job, number)["dropped"])
            if dropped.broken > job.max_bad_share * (len(job.source) + dropped.broken):  # as training counts them
                share = (
                    f"{dropped.broken} of {len(job.source)} records are broken, more than --max_bad_share = "
                    f"{job.max_bad_share:.2%}"
                )
                raise RunStopped(
                    f"{share}: {dropped.format_summary()}; mend them and begin anew with --overwrite, or raise "
                    "--max_bad_share"
                )
            bar.update(len(_records(job, number)))
    facts = _collect(job)
    if not facts["documents"]:
        raise RunStopped(
            f"none of {len(job.source)} records can be used: {dropped.format_summary()}; mend them and begin "
            "anew with --overwrite"
        )
    return facts


@dataclasses.dataclass
class Dropped:
    """The records that were left out so far."""

    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    first: list[BadRecord] = dataclasses.field(default_factory=list)

    def add(self, records: Iterable[BadRecord]):
        for record in records:
            self.reasons[record.reason] += 1
            if len(self.first) < NAMED:
                self.first.append(record)

    @property
    def broken(self) -> int:
        """Number of records left out for more than the user's wishes."""
        return sum(count for reason, count in self.reasons.items() if reason not in WANTED_OTHERWISE)

    def format_summary(self) -> str:
        """Counts by reason, and the first records."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{counts}; the first: {'; '.join(map(str, self.first))}"


def _clear(folder: str):
    """Removes what an earlier run has written, the settings last: they say whose the files are."""
    names = files.names_in(folder)
    if SETTINGS not in names and any(name.endswith(SUFFIX) for name in names):
        raise ConfigError(
            f"--overwrite: {folder} holds ArrayRecord files that are not of this command; give another folder"
        )
    written = [name for name in names if _OUR_NAME.fullmatch(name) or name == LENGTHS]
    for name in (DROPPED, *written, SETTINGS):  # without the first it counts as unfinished
        files.remove(files.join(folder, name))


def _claim(job: Job):
    """Marks the folder with the settings, or compares them with those it was begun with."""
    path = files.join(job.out, SETTINGS)
    settings = job.settings()
    if files.exists(path):
        begun = _json(path)
        if isinstance(begun.get("filters"), dict):
            begun["filters"] = current_names(Filters, begun["filters"])
        other = [key for key in settings if begun.get(key) != settings[key]]
        if other:
            raise ConfigError(
                f"--out: {job.out} holds documents prepared with another {other[0]}; begin anew with "
                "--overwrite, or give another folder"
            )
        return
    if any(name.endswith(SUFFIX) for name in files.names_in(job.out)):
        raise ConfigError(f"--out: {job.out} holds ArrayRecord files of something else; give another folder")
    with files.atomic_file(path) as file:
        file.write(json.dumps(settings | {"command": job.command}, indent=1).encode())


def _json(path: str, check: Callable[[dict], None] = lambda content: None) -> dict:
    """An object that this command has written; `check` raises Unusable where it is another one."""
    try:
        content = parse_json(files.read_bytes(path))
        check(content)
        return content
    except Unusable as error:
        raise ConfigError(f"{path}: is damaged ({': '.join(error.args)}); begin anew with --overwrite") from None


def _facts(job: Job, number: int) -> dict:
    """The statistics of one file."""
    return _json(job.path(number) + ".json", _check_facts)


def _check_facts(facts: dict):
    for name in ("counts", "left_out"):
        for key in require(facts, name, dict):
            require(facts[name], key, int, f"{name}.")
    for name, kind in (("dropped", str), ("lengths", int)):
        for row in require(facts, name, list, of=list):
            if len(require({name: row}, name, list, of=kind)) != 3:
                raise Unusable("wrong type", f"{name} has {len(row)} entries in a row, not 3")


def _records(job: Job, number: int) -> range:
    return range(number * job.per_file, min((number + 1) * job.per_file, len(job.source)))


def _written(job: Job, missing: list[int], workers: int) -> Iterator[int]:
    """Numbers of files, as they are finished."""
    if min(workers, len(missing)) < 2:
        for number in missing:
            write_file(job, number)
            yield number
        return
    pool = processes.pool(min(workers, len(missing)), _start, job)
    try:
        for future in concurrent.futures.as_completed([pool.submit(_work, number) for number in missing]):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise RunStopped(
            "a worker died, perhaps for want of memory; run again with fewer workers: the finished files "
            f"in {job.out} are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_job: Job  # of a worker process


def _start(job: Job):
    global _job
    _job = job


def _work(number: int) -> int:
    write_file(_job, number)
    return number


# ----------------------------------------------------------------------------------------------------------------------
# One file


def write_file(job: Job, number: int):
    """Writes one file of documents, and behind it, as the sign that it is whole, its statistics."""
    counts: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    dropped, lengths = [], []
    with files.atomic_path(job.path(number) + SUFFIX) as temporary:
        writer = array_record_module.ArrayRecordWriter(temporary, WRITER_OPTIONS)
        try:
            for index in _records(job, number):
                try:
                    document, bad_images = _usable(job, index)
                except BadRecord as error:
                    dropped.append([error.name, error.reason, error.detail])
                    continue
                writer.write(encode(document, job.source.key(index)))
                left_out.update(error.reason for error in bad_images)
                lengths.append(_lengths(document, job))
                counts += _counts(document)
        finally:
            writer.close()
    facts = {"counts": counts, "dropped": dropped, "left_out": left_out, "lengths": lengths}
    with files.atomic_file(job.path(number) + ".json") as file:
        file.write(json.dumps(facts).encode())


def _usable(job: Job, index: int) -> tuple[Document, list[BadImage]]:
    document = job.source[index]
    with bad_record(document.id or job.source.key(index)):
        return keep(document, job.filters)


def _counts(document: Document) -> collections.Counter:
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    images = [part.source for part in document.parts if isinstance(part, Image)]
    image_bytes = sum(len(source) for source in images if isinstance(source, bytes))  # all, since they were read in
    return collections.Counter(
        documents=1, images=len(images), characters=sum(map(len, texts)), image_bytes=image_bytes
    )


def _lengths(document: Document, job: Job) -> tuple[int, int, int]:
    """Tokens without the slots' own, which depend on the model, input and target images."""
    if job.tokenizer is None:
        return 0, 0, 0
    row = tokenize_document(document, job.tokenizer, Slots(0, 0), job.template)
    return len(row.tokens), len(row.inputs), len(row.targets)


# ----------------------------------------------------------------------------------------------------------------------
# All files


def _collect(job: Job) -> dict:
    """Adds up the files' statistics; writes the lengths of all documents and the list of what was dropped."""
    counts: collections.Counter[str] = collections.Counter()
    dropped: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    lengths = []
    with files.atomic_file(files.join(job.out, DROPPED)) as log:
        for record in job.source.skipped:
            _log(log, dropped, record.name, record.reason, record.detail)
        for number in range(len(job)):
            facts = _facts(job, number)
            counts.update(facts["counts"])
            left_out.update(facts["left_out"])
            for record in facts["dropped"]:
                _log(log, dropped, *record)
            lengths.append(np.array(facts["lengths"], np.int32).reshape(-1, 3))
    stacked = np.concatenate(lengths)
    if job.tokenizer is not None:
        with files.atomic_file(files.join(job.out, LENGTHS)) as file:
            np.save(file, stacked)
    names = ("documents", "images", "characters", "image_bytes")
    tokens = {"tokens": int(stacked[:, 0].sum())} if job.tokenizer is not None else {}
    return (
        {name: counts[name] for name in names}
        | tokens
        | {
            "files": len(job),
            "dropped": dict(dropped.most_common()),
            "images_left_out": dict(left_out.most_common()),
            "out": job.out,
        }
    )


def _log(log, dropped: collections.Counter, name: str, reason: str, detail: str):
    dropped[reason] += 1
    log.write(json.dumps({"record": name, "reason": reason, "detail": detail}).encode() + b"\n")


def format_summary(facts: dict) -> str:
    """The statistics for a person."""
    size = f"{facts['image_bytes'] / 2**20:,.1f} MiB of pictures"
    lines = [
        f"documents  {facts['documents']:12,d}",
        f"images     {facts['images']:12,d}   {size}",
        f"characters {facts['characters']:12,d}",
    ]
    if "tokens" in facts:
        lines.append(f"tokens     {facts['tokens']:12,d}   without the slots of the pictures")
    for title, reasons in (("dropped", facts["dropped"]), ("images left out", facts["images_left_out"])):
        lines += [f"{title}: {count:,d} {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)
