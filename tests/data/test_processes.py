"""Hosts and workers as real processes: the same global batches to the byte, whoever makes them and wherever a run resumes."""

import json
import os
import pathlib
import subprocess
import sys

import made_data
import pytest
from data import loader_process

from dreamjax.data.loader import Loader
from dreamjax.data.sources.storybook import Storybook
from dreamjax.tokenizer import Tokenizer, train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
BATCHES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A storybook of 40 stories with a tokenizer; the pictures of some are broken."""
    folder = made_data.write_stories(tmp_path_factory.mktemp("stories"), 40, 4, (20, 24))
    for s in range(5, 40, 13):
        (folder / f"{s}_0.png").write_bytes(b"no picture")
    Tokenizer.from_model(train_tokenizer(Storybook(folder).texts(), 300)).save(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """{batch: lines as of one host} made in this process, without workers."""
    config = loader_process.run_config(str(folder), 0)
    loader = Loader(config, config.data.train, Tokenizer.load(folder / "tokenizer"))
    made = [loader.load(number) for number in range(BATCHES)]
    assert any(one.skipped for one in made) and not loader.plan.has(BATCHES * 4 - 1), "the test needs broken pictures and a second epoch"
    return {number: (loader_process.digests(one), list(one.documents), sorted(map(str, one.skipped))) for number, one in enumerate(made)}


def host_processes(folder, hosts, start, shares):
    """{batch: the same, put together from all hosts}; `shares` is (workers, hosts of that process) of each process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = lambda workers, mine: [sys.executable, str(pathlib.Path(loader_process.__file__)), str(folder), *map(str, (workers, start, BATCHES, hosts, *mine))]
    running = [subprocess.Popen(command(*share), env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) for share in shares]
    lines = [json.loads(line) for process in running for line in process.communicate(timeout=300)[0].splitlines() if line.startswith("{")]
    assert [process.returncode for process in running] == [0] * len(running)
    together = {}
    for line in sorted(lines, key=lambda line: (line["batch"], line["host"])):
        groups, documents, skipped = together.setdefault(line["batch"], ([], [], []))
        groups += line["groups"]
        documents += line["documents"]
        skipped += line["skipped"]
    return {number: (groups, documents, sorted(skipped)) for number, (groups, documents, skipped) in together.items()}


def test_two_hosts_with_and_without_workers(folder, whole):
    assert host_processes(folder, hosts=2, start=0, shares=[(1, [0]), (0, [1])]) == whole


def test_a_resumption_by_four_hosts(folder, whole):
    resumed = host_processes(folder, hosts=4, start=3, shares=[(2, [0]), (0, [1, 2, 3])])
    assert resumed == {number: made for number, made in whole.items() if number >= 3}
