"""Hosts and workers as real processes.

The same global batches to the byte, whoever makes them and wherever a run resumes.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import made_data
import pytest
from data import loader_process

from dreamjax.data.pipeline.loader import Loader
from dreamjax.data.sources.storybook import Storybook
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer

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
    assert any(one.skipped for one in made) and not loader.plan.has(BATCHES * 4 - 1), (
        "the test needs broken pictures and a second epoch"
    )
    return {
        number: (loader_process.digests(one), list(one.documents), sorted(map(str, one.skipped)))
        for number, one in enumerate(made)
    }


GRID = tuple(itertools.product((1, 2, 4), (0, 1, 2)))  # hosts, workers of each
STAGES = (
    (2, 0, 0, 2),
    (4, 0, 2, 4),
    (1, 2, 4, 6),
)  # hosts, workers, first batch, one past the last: a run that is resumed twice


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """{journey: batches as in `whole`, put together from all hosts}."""
    out = tmp_path_factory.mktemp("hosts")
    journeys = [(*cell, 0, BATCHES) for cell in GRID] + list(STAGES)
    told = [
        dict(zip(("hosts", "workers", "start", "stop"), journey, strict=True), out=str(out / str(i)))
        for i, journey in enumerate(journeys)
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(pathlib.Path(loader_process.__file__)), str(folder), json.dumps(told)]
    assert subprocess.run(command, env=environment, cwd=ROOT, timeout=600).returncode == 0
    return {journey: together(f"{out}/{i}", journey[0]) for i, journey in enumerate(journeys)}


def together(name: str, hosts: int) -> dict:
    """The batches of all hosts of a journey."""
    shares = [{line["batch"]: line for line in map(json.loads, open(f"{name}.{host}"))} for host in range(hosts)]

    def collected(number, what):
        return [one for share in shares for one in share[number][what]]

    return {
        number: (collected(number, "groups"), collected(number, "documents"), sorted(collected(number, "skipped")))
        for number in shares[0]
    }


@pytest.mark.parametrize("hosts, workers", GRID)
def test_any_hosts_with_any_workers_see_the_same_batches(made, whole, hosts, workers):
    assert made[hosts, workers, 0, BATCHES] == whole


def test_a_run_that_goes_on_with_other_hosts(made, whole):
    assert {number: batch for stage in STAGES for number, batch in made[stage].items()} == whole
