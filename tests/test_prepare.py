"""python -m dreamjax.prepare as a user meets it."""

import json
import pathlib
import subprocess
import sys

import pytest
from made_data import pairs, told, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.sources import open_source

ROOT = pathlib.Path(__file__).parents[1]


def prepare(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dreamjax.prepare", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_pairs_in_parallel_with_tokens(tmp_path, shapes_tokenizer):
    write_tar(tmp_path / "a.tar", [*pairs(range(9)), ("bad.jpg", b"x"), ("bad.txt", "bad"), *pairs([10])])
    shapes_tokenizer.save(tmp_path / "tokenizer")
    flags = (f"--source=webdataset:{tmp_path}/a.tar", f"--out={tmp_path}/out", f"--tokenizer={tmp_path}/tokenizer")
    done = prepare(*flags, "--workers=2", "--per_file=6", "--max_characters=9")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["documents"] == 9 and facts["dropped"] == {"image in no known format": 1, "caption too long": 1}
    assert facts["tokens"] > 9 and "dropped: 1 image in no" in done.stdout
    source = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [told(document) for document in source] == [[i, f"caption {i}"] for i in range(9)] and source.lengths().shape == (9, 3)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--source=tars:x", "--out=x"), "--source: 'tars:x' is not FORMAT:PATH"),
        (("--source=webdataset:nowhere.tar", "--out=x"), "nowhere.tar: there is no record to read: nowhere.tar: file missing"),
        (("--source=webdataset:nowhere.tar", "--out=x", "--max_aspect=0.5"), "max_aspect: is at least 1"),
    ],
    ids=["format", "path", "filter"],
)
def test_what_is_wrong_ends_with_one_line(arguments, named):
    done = prepare(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("dreamjax.prepare: ") and done.stderr.count("\n") == 1 and named in done.stderr, done.stderr


def test_a_command_that_only_converts_is_light():
    code = "import sys, dreamjax.prepare; heavy = {'jax', 'grain', 'torch', 'transformers', 'tensorflow_datasets'} & set(sys.modules); assert not heavy, heavy"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
