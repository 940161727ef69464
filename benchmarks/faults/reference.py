"""The undisturbed outputs that the campaign compares with.

Small made data, and the output of every command that nothing disturbed; of training the twin of all runs.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import tarfile
import time

import numpy as np
import PIL.Image
from tqdm import tqdm

from benchmarks.faults import commands, watch
from benchmarks.faults.commands import COMMANDS, TRAIN, TWO_HOSTS, Command
from dreamjax.filesystem import atomic

READY = "ready.json"
KEEP_ALL = (
    "--config.checkpoint_every=1",
    "--config.checkpoints_kept=1000",
)  # of the twins: runs are compared at whatever step they have saved


@dataclasses.dataclass(frozen=True)
class Reference:
    """A folder with the data, the undisturbed outputs, and how each command went."""

    made: pathlib.Path
    seen: dict[str, watch.Watched]  # by command

    @property
    def environment(self) -> dict[str, str]:
        return commands.environment(self.made)


def make(made: pathlib.Path) -> Reference:
    """Makes the data and runs every command to its end.

    Those whose times are used twice, since the first time they compile.
    """
    shutil.rmtree(made, ignore_errors=True)
    write_stories(made / "stories")
    write_pairs(made / "pairs.tar")
    write_questions(made / "vqav2")
    seen = {}
    for command in tqdm(COMMANDS, unit="command", desc="undisturbed", disable=None):
        if command is not TRAIN:
            undisturbed(command, made)
            shutil.rmtree(command.home(made))
        seen[command.name] = undisturbed(command, made)
    seen[TWO_HOSTS.name] = undisturbed_hosts(made)
    ready = {"code": code(), "seen": {name: dataclasses.asdict(one) for name, one in seen.items()}}
    atomic.write_text(made / READY, json.dumps(ready, indent=1))
    return Reference(made, seen)


def opened(made: pathlib.Path) -> Reference:
    """The outputs of an earlier call, made anew if it was interrupted or the program has changed since."""
    ready = json.loads((made / READY).read_text()) if (made / READY).exists() else {}
    if ready.get("code") != code():
        return make(made)
    return Reference(made, {name: watch.Watched(**values) for name, values in ready["seen"].items()})


def code() -> str:
    """A hash of the program's source."""
    digest = hashlib.sha256()
    for path in (*sorted((commands.ROOT / "dreamjax").rglob("*.py")), commands.EXPERIMENT, pathlib.Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def undisturbed(command: Command, made: pathlib.Path) -> watch.Watched:
    """Runs a command to its end; RuntimeError where it does not end well."""
    home, began = command.home(made), time.monotonic()
    more = KEEP_ALL if command is TRAIN else ()
    started = commands.start(command.line(made, *more), home, made / "printed" / home.name, commands.environment(made))
    seen = watch.watched(started.process, home, began)
    if started.process.returncode:
        raise RuntimeError(
            f"{command.name} ended with {started.process.returncode}, undisturbed: {started.stderr()[-2000:]}"
        )
    return seen


def undisturbed_hosts(made: pathlib.Path) -> watch.Watched:
    """Trains the twin of runs of two hosts."""
    home, began = TWO_HOSTS.home(made), time.monotonic()
    hosts = commands.start_hosts(
        TWO_HOSTS.line(made, *KEEP_ALL), home, made / "printed" / home.name, commands.environment(made)
    )
    seen = watch.watched(hosts[0].process, home, began)
    for host in hosts:
        if host.finish():
            raise RuntimeError(f"a host ended with {host.process.returncode}, undisturbed: {host.stderr()[-2000:]}")
    return seen


# ----------------------------------------------------------------------------------------------------------------------
# Data


def noise(seed: int, size: tuple[int, int] = (12, 16), kind: str = "PNG") -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def write_stories(folder: pathlib.Path, count: int = 24):
    """A storybook whose stories have one to three pages."""
    folder.mkdir(parents=True)
    records = []
    for story in range(count):
        pages = [
            {"text": "a red goat " * (1 + (story + page) % 3), "image": f"{story}_{page}.png"}
            for page in range(1 + story % 3)
        ]
        for page, values in enumerate(pages):
            (folder / values["image"]).write_bytes(noise(story * 3 + page))
        records.append({"id": f"story {story}", "title": f"Goat {story}", "pages": pages})
    (folder / "stories.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_pairs(path: pathlib.Path, count: int = 400):
    """A tar of pictures and captions; every ninth picture is broken."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            image = noise(number, (48, 64)) if number % 9 else b"broken"
            for name, data in (
                (f"{number:09d}.png", image),
                (f"{number:09d}.txt", f"a goat, number {number}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_questions(folder: pathlib.Path, count: int = 40):
    """VQAv2's own files."""
    (folder / "val2014").mkdir(parents=True)
    asked = [
        {"image_id": number, "question": f"What colour is goat {number}?", "question_id": 10 * number}
        for number in range(1, count + 1)
    ]
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    marked = [{"question_id": row["question_id"], "image_id": row["image_id"], "answers": answers} for row in asked]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": marked}))
    for row in asked:
        (folder / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg").write_bytes(
            noise(row["image_id"], kind="JPEG")
        )
