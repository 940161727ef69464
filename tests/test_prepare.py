"""python -m dreamjax.prepare as a user meets it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import PIL.Image
import pytest
from made_data import encoded, jpeg, pairs, told, write_jsonl, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.prepare import writer
from dreamjax.data.registry import open_source
from dreamjax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]


def prepare(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dreamjax.prepare", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_pairs_in_parallel_with_tokens(tmp_path, shapes_tokenizer):
    write_tar(tmp_path / "a.tar", [*pairs(range(9)), ("bad.jpg", b"x"), ("bad.txt", "bad"), *pairs([10])])
    shapes_tokenizer.save(tmp_path / "tokenizer")
    flags = (f"--source=webdataset:{tmp_path}/a.tar", f"--out={tmp_path}/out", f"--tokenizer={tmp_path}/tokenizer")
    done = prepare(*flags, "--workers=2", "--per_file=6", "--max_characters=9", "--max_bad_share=0.1")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["documents"] == 9 and facts["dropped"] == {"image in no known format": 1, "caption too long": 1}
    assert facts["tokens"] > 9 and "dropped: 1 image in no" in done.stdout
    source = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [told(document) for document in source] == [
        [i, f"caption {i}"] for i in range(9)
    ] and source.lengths().shape == (9, 3)


def test_pairs_of_json_with_other_keys(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(jpeg(i))
    write_jsonl(tmp_path / "pairs.jsonl", [{"file": f"{i}.jpg", "title": f"number {i}"} for i in range(4)])
    keys = ("--text_key=title", "--image_key=file", f"--images={tmp_path}/pictures")
    done = prepare(
        f"--source=pairs:{tmp_path}/pairs.jsonl", *keys, f"--out={tmp_path}/out", "--workers=1", "--max_bad_share=0.3"
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["documents"] == 3 and facts["dropped"] == {"image missing": 1}
    source = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [told(document) for document in source] == [[i, f"number {i}"] for i in range(3)] and source.key(
        2
    ) == "2.jpg"


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    children = [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [one for child in children for one in descendants(child)]


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.01)


def test_killed_in_the_middle_it_ends_with_the_same_files(tmp_path):
    """kill -9 takes the command and, with it, its workers.

    Called again it goes on, and every file is that of a run in one go.
    """
    large = encoded(PIL.Image.new("RGB", (1600, 1600), "red"), "PNG")  # few bytes, much to decode
    write_tar(
        tmp_path / "a.tar",
        [
            member
            for i in range(60)
            for member in ((f"{i}.png", large if i % 7 else b"broken"), (f"{i}.txt", f"number {i}"))
        ],
    )
    writer.write(
        writer.Job(
            open_source(SourceConfig("webdataset", str(tmp_path / "a.tar"))), str(tmp_path / "whole"), per_file=3
        ),
        workers=1,
    )
    flags = (
        f"--source=webdataset:{tmp_path}/a.tar",
        f"--out={tmp_path}/out",
        "--workers=2",
        "--per_file=3",
        "--max_bad_share=0.3",
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "dreamjax.prepare", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def finished():
        return list((tmp_path / "out").glob("documents-*.json"))

    wait_until(lambda: len(finished()) >= 2)
    workers = descendants(running.pid)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(workers) >= 2 and 2 <= len(finished()) < 20, "it was not killed in the middle"
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))
    kept = {path: path.stat().st_mtime_ns for path in finished()}
    done = prepare(*flags)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["documents"] == 51 and facts["dropped"] == {"image in no known format": 9}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def contents(folder):
        return {
            path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.name != writer.SETTINGS
        }  # which has the command

    assert contents("out") == contents("whole")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--source=tars:x", "--out=x"), "--source: 'tars:x' is not FORMAT:PATH"),
        (
            ("--source=webdataset:nowhere.tar", "--out=x"),
            "nowhere.tar: there is no record to read: nowhere.tar: file missing",
        ),
        (("--source=webdataset:nowhere.tar", "--out=x", "--max_aspect=0.5"), "max_aspect: is at least 1"),
        (
            ("--source=webdataset:nowhere.tar", "--out=x", "--max_bad_share=nan"),
            "--max_bad_share: is a share between 0 and 1",
        ),
        (
            ("--source=pairs:PAIRS", "--out=OUT", "--workers=1"),
            "1 of 1 records are broken, more than --max_bad_share = 1.00%: 1 outside the folder; the first: ",
        ),
        (
            ("--source=pairs:PAIRS", "--out=OUT", "--workers=1", "--max_bad_share=1"),
            "none of 1 records can be used: 1 outside the folder; the first: ",
        ),
    ],
    ids=["format", "path", "filter", "share", "broken", "nothing"],
)
def test_what_is_wrong_ends_with_one_line(arguments, named, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"image": "/etc/passwd", "caption": "x"}])
    done = prepare(
        *(one.replace("PAIRS", f"{tmp_path}/pairs.jsonl").replace("OUT", f"{tmp_path}/out") for one in arguments)
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("dreamjax.prepare: ")
        and done.stderr.count("\n") == 1
        and named in done.stderr
    ), done.stderr


@pytest.mark.parametrize("source", ["data", "data/", "data/a.tar", "data/*.tar", "link", "."])
def test_the_output_is_no_folder_of_the_source(source, tmp_path, monkeypatch):
    """Its files would be read as the source's, and --overwrite would remove those."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path / "data" if source == "." else tmp_path)
    with pytest.raises(ConfigError, match="is the folder of --source; give another one"):
        writer.check_out(str(tmp_path / "data"), source)
    writer.check_out(str(tmp_path / "data" / "out"), source)
    (tmp_path / "file").touch()
    for out, reason in ((tmp_path / "file", "is a file; give a folder"), ("\udce9", "is no name for a folder")):
        with pytest.raises(ConfigError, match=reason):
            writer.check_out(str(out), source)


def test_a_command_that_only_converts_is_light():
    code = (
        "import sys, dreamjax.prepare; heavy = {'jax', 'grain', 'torch', 'transformers', "
        "'tensorflow_datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
