"""Where a process stands among its hosts, as flags and environment say it; and which groups of a batch are whose."""

import logging
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import NamedSharding

from dreamjax.config import MeshConfig
from dreamjax.errors import ConfigError, RunStopped
from dreamjax.parallel import multihost
from dreamjax.parallel.mesh import ROWS, make_mesh
from dreamjax.parallel.multihost import Place, find_place, own_groups

PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.mark.parametrize(
    "environ, flags, place",
    [
        ({}, {}, None),
        (PLAIN, {}, Place("deactivate", "10.0.0.1:8476", 4, 3)),
        (PLAIN, {"coordinator": "a:1", "hosts": 2, "host": 0}, Place("deactivate", "a:1", 2, 0)),
        (PLAIN | SLURM, {}, Place("deactivate", "10.0.0.1:8476", 4, 3)),
        (PLAIN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, {}, None),
        (SLURM, {}, Place("slurm", None, 16, 9, (1,))),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "5"}, {}, Place("slurm", None, 16, 9, ())),
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, {}, Place("slurm", None, 2, 1, ())),
        (SLURM | {"SLURM_NTASKS": "1"}, {}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, {}, None),  # in the batch script, which is no step
        ({}, {"on_tpu": True}, Place(None)),
    ],
)
def test_who_takes_part(environ, flags, place):
    assert find_place(environ, **flags) == place


@pytest.mark.parametrize(
    "environ, flags, named",
    [
        ({"JAX_NUM_PROCESSES": "4"}, {}, "JAX_COORDINATOR_ADDRESS: is missing"),
        ({}, {"coordinator": "a:1", "host": 0}, "--hosts: is missing"),
        (PLAIN | {"JAX_PROCESS_ID": "4"}, {}, "JAX_PROCESS_ID: is 4"),
        (PLAIN | {"JAX_NUM_PROCESSES": "four"}, {}, "JAX_NUM_PROCESSES: 'four' is no count"),
        ({}, {"coordinator": "a", "hosts": 2, "host": 0}, "--coordinator: 'a' is no address"),
    ],
)
def test_what_is_wrong_is_named(environ, flags, named):
    with pytest.raises(ConfigError, match=named):
        find_place(environ, **flags)


def test_what_background_threads_log_comes_not_behind_the_last_line(monkeypatch, caplog):
    def main():
        raise RuntimeError("Gloo all-reduce failed: Connection reset by peer")

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost.atexit, "register", lambda *_: None)
    try:
        with pytest.raises(RunStopped, match="host 0 of 1: lost another host"):
            multihost.multihost_main(main)()
        logging.getLogger("absl").error("cannot schedule new futures after shutdown")
        assert not caplog.records
    finally:
        logging.disable(logging.NOTSET)


def test_the_groups_of_a_host_are_those_on_its_devices():
    rows = NamedSharding(make_mesh(MeshConfig(2, 2, 2)), ROWS)
    assert own_groups(rows, 8) == tuple(range(8))

    class OneHost:  # that has the first and the last of four shards of rows
        def addressable_devices_indices_map(self, shape):
            held = rows.devices_indices_map(shape)
            return {device: index for device, index in held.items() if index[0].start in (None, 0, 6)}

    assert own_groups(OneHost(), 8) == (0, 1, 6, 7) and jax.device_count() == 8


def test_a_host_that_finds_nobody_says_so_in_time():
    flags = (
        "--config=experiments/quickstart.py",
        "--dry_run",
        "--coordinator=127.0.0.1:9",
        "--hosts=2",
        "--host=1",
        "--connect_timeout=1",
    )
    root, environment = pathlib.Path(__file__).parents[2], os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "dreamjax.train", *flags],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "dreamjax.train: host 1 of 2: nobody answers at 127.0.0.1:9 within 1 s"
    ), done.stderr
