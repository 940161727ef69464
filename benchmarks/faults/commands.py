"""The commands that the campaign disturbs, on the smallest model and data, each with what it writes."""

import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = pathlib.Path(__file__).parent / "experiment.py"
LIMIT = 600  # seconds in which any of them ends


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m dreamjax.MODULE` with arguments, run in a folder in which it writes `out`.

    `{made}` stands for the folder of reference.py.
    """

    name: str
    out: str
    arguments: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The name under which kills are counted: exports of all formats have one."""
        return self.name.split()[0]

    def home(self, made: pathlib.Path) -> pathlib.Path:
        """The folder of its undisturbed output."""
        return made / self.name.replace(" ", "-")

    def line(self, made: pathlib.Path, *more: str) -> list[str]:
        return [sys.executable, "-m", *(argument.replace("{made}", str(made)) for argument in self.arguments), *more]


MODEL, FOLDERS, TWIN = "{made}/export-params/model", "{made}/export-huggingface/folders", "{made}/train/run"
TRAIN = Command("train", "run", ("dreamjax.train", f"--config={EXPERIMENT}:{{made}}/stories", "--workdir=run"))
PREPARE = Command(
    "prepare", "prepared",
    (
        "dreamjax.prepare", "--source=webdataset:{made}/pairs.tar", "--out=prepared", f"--tokenizer={MODEL}/tokenizer",
        "--per_file=20", "--workers=2", "--cache=index", "--max_bad_share=0.5",
    ),
)  # fmt: skip
EVALUATE = Command(
    "evaluate",
    "evaluated",
    (
        "dreamjax.evaluate",
        f"--model={MODEL}",
        "--task=vqav2",
        "--data={made}/vqav2",
        "--out=evaluated",
        "--batch_size=4",
    ),
)
EXPORTED = tuple(f"{FOLDERS}/{name}" for name in ("llm", "clip", "joints"))  # a Hugging Face export of this model
IMPORT = Command(
    "import",
    "imported",
    ("dreamjax.convert", "import", *(f"--source={folder}" for folder in EXPORTED), "--out=imported"),
)
EXPORT_MODEL = Command("export params", "model", ("dreamjax.convert", "export", f"--model={TWIN}", "--out=model"))
EXPORT_FOLDERS = Command(
    "export huggingface",
    "folders",
    ("dreamjax.convert", "export", f"--model={TWIN}", "--format=huggingface", "--out=folders"),
)
TWO_HOSTS = Command(
    "hosts", "run", (*TRAIN.arguments, "--config.total_steps=60", "--heartbeat=5")
)  # each of them runs it
COMMANDS = (
    TRAIN,
    EXPORT_MODEL,
    EXPORT_FOLDERS,
    PREPARE,
    EVALUATE,
    IMPORT,
)  # each needs only what those before it have made


def environment(out: pathlib.Path, **more: str) -> dict[str, str]:
    """That of every command: on CPU, quick to compile, and what was compiled once is not compiled again."""
    inherited = {name: value for name, value in os.environ.items() if name != "NPROC" and not name.startswith("JAX_")}
    settings = {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    return inherited | settings | more


@dataclasses.dataclass
class Started:
    """A running command and the files of what it prints."""

    process: subprocess.Popen
    printed: pathlib.Path

    def stderr(self) -> str:
        return self.printed.with_suffix(".stderr").read_text(errors="replace")

    def last_line(self) -> str:
        """Its last line of output."""
        return (self.stderr().strip().splitlines() or ["(nothing)"])[-1][:300]

    def finish(self) -> int:
        return self.process.wait(LIMIT)


def start(line: list[str], home: pathlib.Path, printed: pathlib.Path, environ: dict[str, str]) -> Started:
    """Starts a command in a folder, in a group of processes of its own.

    Where Linux's setpriv is there, it ends with the campaign.
    """
    line = ["setpriv", "--pdeathsig", "KILL", *line] if shutil.which("setpriv") else line
    home.mkdir(parents=True, exist_ok=True)
    printed.parent.mkdir(parents=True, exist_ok=True)
    with open(printed.with_suffix(".stdout"), "wb") as stdout, open(printed.with_suffix(".stderr"), "wb") as stderr:
        process = subprocess.Popen(line, cwd=home, env=environ, stdout=stdout, stderr=stderr, start_new_session=True)
    return Started(process, printed)


def start_hosts(
    line: list[str], home: pathlib.Path, printed: pathlib.Path, environ: dict[str, str], count: int = 2
) -> list[Started]:
    """Starts a command on several hosts: processes that meet on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def place(host):
        return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(host)}

    return [
        start(line, home, printed.with_name(f"{printed.name}-host-{host}"), environ | place(host))
        for host in range(count)
    ]


def has_traceback(text: str) -> bool:
    """True if a command ended with more than the one line that a user can act on."""
    return (
        "Traceback (most recent call last)" in text
        or "*** Check failure stack trace" in text
        or "Fatal Python error" in text
    )
