"""A command that cannot do what it was asked leaves no file behind."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = f"--config={ROOT}/experiments/quickstart.py"
CALLS = [
    ("dreamjax.prepare", "--source=webdataset:nowhere.tar", "--out=out"),
    ("dreamjax.prepare", "--source=pairs:nowhere/{0..3}.jsonl", "--out=out"),
    ("dreamjax.train", "--config=nowhere.py", "--workdir=run"),
    ("dreamjax.precompute", QUICKSTART, "--model=nowhere"),
    ("dreamjax.compile", "--config=nowhere.py", "--target=v5e-4"),
    ("dreamjax.sample", "--model=nowhere", "--out=out"),
    ("dreamjax.evaluate", "run", "--model=nowhere", "--task=shapes", "--out=out"),
    ("dreamjax.evaluate", "score", "--predictions=nowhere", "--task=vqav2", "--data=nowhere", "--out=out"),
    ("dreamjax.convert", "import", "--source=./nowhere", "--out=out"),
]

# Each call in a process of its own, forked from one that has imported what is slow to import.
FORKED = """
import json, os, runpy, sys, tempfile
import dreamjax.api, dreamjax.convert.importer, dreamjax.data.pipeline.loader
import dreamjax.data.features.encode, dreamjax.evaluation.tasks, dreamjax.compile_tpu.report
for call in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.chdir(folder)
            os.dup2(said.fileno(), 2)
            sys.argv = call
            runpy.run_module(call[0], run_name="__main__", alter_sys=True)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        left = [os.path.join(at, name) for at, folders, names in os.walk(folder) for name in folders + names]
        print(json.dumps([status, said.read(), left]), flush=True)
"""


def test_a_failing_command_leaves_nothing():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps(CALLS)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for call, line in zip(CALLS, done.stdout.splitlines(), strict=False):
        status, said, left = json.loads(line)
        assert (status, left) == (2, []) and said.startswith(f"{call[0]}: ") and said.count("\n") == 1, (
            call,
            status,
            said,
            left,
        )
