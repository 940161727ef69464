"""The table of pods.

Its rows are runs that exist, those that are compared do the same on each chip, and what fails says so.
"""

import importlib

import pytest

from benchmarks import pod_table
from dreamjax.compile_tpu import topology
from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict


def config_of(row: tuple[str, ...]) -> RunConfig:
    """The config that the arguments of a row give."""
    file, _, arg = row[0].removeprefix("--config=").partition(":")
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(arg)
    for override in row[2:]:
        key, value = override.removeprefix("--config.").split("=")
        config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    return from_dict(RunConfig, config)


@pytest.mark.parametrize("name", pod_table.rows())
def test_a_row_is_a_run_on_its_slice(name):
    row = pod_table.rows()[name]
    assert (pod_table.ROOT / row[0].removeprefix("--config=").partition(":")[0]).exists()
    slice_ = topology.parse(row[1].removeprefix("--topology="))
    config = config_of(row)
    assert slice_.chips == config.mesh.data * config.mesh.fsdp == int(name.split(" as ")[0].rpartition("-")[2])


def test_compared_rows_do_the_same_on_each_chip():
    configs = [config_of(pod_table.rows()[name]) for name in pod_table.ALIKE]
    on_a_chip = {
        (one.mesh.fsdp, one.model, one.data, one.loss, one.batch_size / (one.mesh.data * one.mesh.fsdp))
        for one in configs
    }
    assert len(on_a_chip) == 1 and len({one.mesh.data for one in configs}) == 3


def test_the_table_in_words():
    largest = {"kind": "all-gather", "gib": 0.24}
    row = {
        "chips": 16,
        "hbm_peak_gib": 20.0,
        "hbm_share": 0.625,
        "step_seconds_estimate": 2.0,
        "mfu_estimate": 0.5,
        "largest_collective": largest,
        "checks": {"windowed_einsum_loops": [], "gathers_of_activations": ["1 gather"]},
        "compile_seconds": 300.0,
        "collective_gib": 40.0,
    }
    assert (
        pod_table.format_summary("II", row)
        == "| II | 20.0 GiB | 62% | 2.00 s | 50.0% | all-gather, 0.24 GiB | gathers_of_activations | 300 s |"
    )
    assert "does not fit" in pod_table.format_summary("II", row | {"step_seconds_estimate": None})
    assert pod_table.format_summary("II", {"error": "no such chip"}).startswith("| II | no such chip |")
    reports = dict.fromkeys(pod_table.ALIKE, row) | {
        pod_table.ALIKE[2]: row | {"chips": 128, "step_seconds_estimate": 2.1}
    }
    assert pod_table.compared(reports).splitlines()[:2] == [
        "The same work on each of 16, 16, 128 chips:",
        "2.00, 2.00, 2.10 seconds a step (up to 5.0% more)",
    ]
    assert pod_table.compared({name: reports[name] for name in pod_table.ALIKE[:2]}) == ""
