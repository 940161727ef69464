"""Commands in processes of their own, forked from one that has imported what they need.

The imports take seconds, which each would take again.
"""

import atexit
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]

# Nothing that is imported here starts a thread or touches a device. A child ends as any program does, at the end of
# this one.
SERVER = """
import json, os, runpy, sys
import dreamjax.api, dreamjax.convert.importer, dreamjax.data.pipeline.loader
import dreamjax.evaluation.tasks, dreamjax.training.checkpoint, dreamjax.training.train_logger
for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        pid, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
else:
    sys.exit()
os.environ.clear()
os.environ.update(asked["environment"])
for number, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
sys.argv = [asked["module"], *asked["arguments"]]
runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
"""


@functools.cache
def _server(environment: str) -> subprocess.Popen:
    """The process that forks, one for each environment: much of it is read when jax is imported."""
    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, env=json.loads(environment), stdin=pipe, stdout=pipe, text=True
    )
    atexit.register(server.communicate)  # which ends it
    return server


class Process:
    """`python -m MODULE` with arguments, as subprocess.Popen has it."""

    def __init__(self, module: str, arguments: list[str], environment: dict[str, str]):
        self.files = [pathlib.Path(tempfile.mkstemp(prefix="dreamjax-said-")[1]) for _ in range(2)]
        self.server = _server(json.dumps(environment, sort_keys=True))
        asked = {
            "module": module,
            "arguments": arguments,
            "environment": environment,
            "out": str(self.files[0]),
            "err": str(self.files[1]),
        }
        self.pid, self.returncode = self._ask(asked), None

    def _ask(self, asked: dict):
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """(stdout, stderr) once it has ended; it is killed where that takes longer."""
        limit = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > limit:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        said = tuple(file.read_text() for file in self.files)
        for file in self.files:
            file.unlink()
        return said
