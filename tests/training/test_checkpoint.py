"""What a run leaves on disk: round trips to the bit, other meshes, the average, frozen parameters."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from small_model import LLM
from small_run import CONFIG, Run, mesh, same_bytes

from dreamjax.config import MeshConfig, ModelConfig, OptimConfig, SourceConfig
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, optimizer
from dreamjax.training.initialize import prepare_workdir, with_data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run on 8 devices with three checkpoints, the second of them the best, of which the newest and the best are
    kept.
    """
    run = Run(
        dataclasses.replace(CONFIG, checkpoints_kept=1), epath.Path(tmp_path_factory.mktemp("run")), mesh(2, 2, 2)
    )
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        run.save(step, loss)
    return run


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 4), (1, 1, 1)])
def test_a_restored_state_is_the_saved_one_on_any_mesh(run, sizes):
    again = Run(run.config, run.folder, mesh(*sizes))
    assert int(again.state.step) == 3 and again.meta == run.meta | {"seconds": 1.5}
    assert same_bytes(again.state._asdict(), run.state._asdict()) and same_bytes(again.frozen, run.frozen)
    assert not same_bytes(again.state.average, again.state.trainable)
    for leaf, where in zip(jax.tree.leaves((again.state, again.frozen)), jax.tree.leaves(again.where), strict=True):
        assert leaf.sharding == where


def test_the_newest_and_the_best_checkpoints_are_kept(run):
    assert sorted(path.name for path in (run.folder / "checkpoints").glob("*")) == ["2", "3"]
    assert checkpoint.last_step(run.folder) == 3 and checkpoint.best_step(run.folder) == 2


def test_a_run_that_goes_on_still_knows_the_best(run, tmp_path):
    again = Run(run.config, epath.Path(shutil.copytree(run.folder, tmp_path / "copy")), mesh(1, 1, 1))
    again.save(4, 5.0)
    assert sorted(path.name for path in (again.folder / "checkpoints").glob("*")) == ["2", "4"]


def test_load_params_gives_the_average_of_the_newest_or_the_best(run):
    last = checkpoint.load_params(run.folder)
    assert same_bytes(last, optimizer.merge(run.state.average, run.frozen))
    best = checkpoint.load_params(run.folder, "best")
    np.testing.assert_allclose(
        best["llm"]["norm"]["scale"], last["llm"]["norm"]["scale"] - 9.0
    )  # `save` added 3 times 3 last
    assert same_bytes(best["clip"], last["clip"])


def test_load_params_without_an_average_gives_the_weights(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        optim=OptimConfig(trainable=(".",)),
        model=ModelConfig(llm=LLM),
        data=dataclasses.replace(CONFIG.data, input_slots=0),
    )
    run = Run(config, epath.Path(tmp_path), mesh(1, 1, 1))
    assert run.meta["frozen"] is None and not (run.folder / "frozen").exists()
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        checkpoint.load_params(run.folder)
    run.save(1)
    assert same_bytes(checkpoint.load_params(run.folder), run.state.trainable)
    with pytest.raises(ConfigError, match="no checkpoint has a held-out loss"):
        checkpoint.load_params(run.folder, "best")
    with pytest.raises(ConfigError, match="neither a training workdir nor a model folder"):
        checkpoint.load_params(run.folder / "nothing")


def test_frozen_parameters_are_written_once_and_checked(run, tmp_path):
    assert run.meta["frozen"]["checksum"] == checkpoint.checksum(run.frozen)
    assert not list((run.folder / "checkpoints").glob("*/state/*clip*"))
    copy = epath.Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy / "frozen").rmtree()
    changed = jax.tree.map(lambda leaf: leaf + 0, run.frozen)
    changed["clip"]["layers"]["mlp"]["fc1"]["bias"] = changed["clip"]["layers"]["mlp"]["fc1"]["bias"].at[1, 5].add(1e-3)
    checkpoint.save_tree(copy / "frozen", changed)
    with pytest.raises(ConfigError, match="copy/frozen: array clip/layers/mlp/fc1/bias is damaged"):
        Run(run.config, copy, run.mesh)


OTHER_ROWS = dataclasses.replace(CONFIG.data, length=24)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": OTHER_ROWS},
        {"model": dataclasses.replace(CONFIG.model, dtype="bfloat16")},
        {"batch_size": 16},
    ],
)
def test_a_folder_of_another_run_is_refused(run, change):
    with pytest.raises(ConfigError, match=f"holds a run with other values of config.{next(iter(change))}[. ]"):
        prepare_workdir(run.folder, dataclasses.replace(run.config, **change))
    assert checkpoint.read_config(run.folder) == run.config


def test_settings_that_do_not_change_the_numbers_may_change(run):
    loading = dataclasses.replace(
        CONFIG.data, workers=3, threads=5, max_bad_share=0.5, eval=(SourceConfig("shapes", split="eval"),)
    )
    for change in (
        {"log_every": 3, "mesh": MeshConfig(1, 8, 1), "checkpoints_kept": 5},
        {"data": loading},
        {"data": OTHER_ROWS, "allow_changed_data": True},
    ):
        other = dataclasses.replace(run.config, **change)
        prepare_workdir(run.folder, other)
        assert checkpoint.read_config(run.folder) == other
        checkpoint.write_config(run.folder, run.config)


def test_other_documents_are_refused_unless_allowed(run):
    began = with_data(run.meta, "these", run.config, run.folder)
    assert with_data(began, "these", run.config, run.folder) == began == run.meta | {"data": "these"}
    with pytest.raises(
        ConfigError, match=r"--workdir: .* holds a run whose documents were others .* --config.allow_changed_data=True"
    ):
        with_data(began, "those", run.config, run.folder)
    assert (
        with_data(began, "those", dataclasses.replace(run.config, allow_changed_data=True), run.folder)["data"]
        == "those"
    )


# ----------------------------------------------------------------------------------------------------------------------
# The checksum


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_checksum_changes_with_every_byte(dtype):
    values = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    before = checkpoint.checksum({"a": values})
    for byte in range(values.nbytes):
        changed = bytearray(values.tobytes())
        changed[byte] ^= 1 << byte % 8
        assert checkpoint.checksum({"a": np.frombuffer(bytes(changed), dtype).reshape(2, 3)}) != before, byte
    assert checkpoint.checksum({"a": -values}) != before


def test_the_checksum_changes_with_order_names_and_places():
    one, two = np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)
    trees = [
        {"a": one, "b": two},
        {"a": two, "b": one},
        {"a": one, "c": two},
        {"a": one[::-1], "b": two},
        {"a": one},
        {"a": np.concatenate([one, two])},
    ]
    assert len({checkpoint.checksum(tree) for tree in trees}) == len(trees)


def test_the_checksum_does_not_depend_on_the_sharding():
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    alone = checkpoint.checksum({"a": values})
    for spec in (PartitionSpec("fsdp", "tensor"), PartitionSpec(None, ("data", "tensor")), PartitionSpec()):
        assert checkpoint.checksum({"a": jax.device_put(values, NamedSharding(mesh(2, 2, 2), spec))}) == alone, spec
