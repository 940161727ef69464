"""What a run leaves on disk: round trips to the bit, other meshes, the average, frozen parameters, taking over from another run."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from small_model import CLIP, LLM, leaves

from dreamjax.config import DataConfig, InitFrom, MeshConfig, ModelConfig, OptimConfig, RunConfig, SourceConfig
from dreamjax.models import dreamllm
from dreamjax.schema import ConfigError
from dreamjax.sharding import make_mesh
from dreamjax.training import checkpoint, optim
from dreamjax.training.state import State, init, shardings

# A model that sees and does not draw: the fewest parameters with a part to freeze.
CONFIG = RunConfig(
    model=ModelConfig(llm=LLM, clip=CLIP),
    data=DataConfig(train=(SourceConfig("shapes"),), length=32, seen_slots=2, dreamed_slots=0),
    optim=OptimConfig(trainable=("^(llm|visual_projector)/",), frozen=("^clip/",), ema_decay=0.9),
)


@dataclasses.dataclass
class Run:
    """A run in a folder, opened as `train.py` opens it."""

    config: RunConfig
    folder: epath.Path
    mesh: jax.sharding.Mesh

    def __post_init__(self):
        checkpoint.prepare_workdir(self.folder, self.config)
        parts = dreamllm.build(self.config.model)
        shapes = jax.eval_shape(lambda: init(self.config, parts))
        self.where = shardings(*shapes, self.mesh)
        self.manager = checkpoint.open_manager(self.folder, self.config.checkpoints_kept)
        self.state, self.frozen, self.meta = checkpoint.start(self.config, parts, self.folder, self.manager, shapes, self.where)

    def save(self, step: int, loss: float | None = None):
        """Saves the state as that of another step, with values that tell its arrays apart."""
        shift = lambda tree, by: jax.tree.map(lambda leaf: leaf + jnp.asarray(by * step, leaf.dtype), tree)
        state = self.state
        state = State(jnp.int32(step), shift(state.trainable, 1.0), shift(state.optimiser, 2), shift(state.average, 3.0) if state.average else None)
        self.state = jax.device_put(state, self.where[0])
        checkpoint.save(self.manager, self.state, self.meta | {"seconds": 1.5}, loss)
        self.manager.wait_until_finished()


def mesh(*sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


def same_bytes(ours, theirs) -> bool:
    ours, theirs = leaves(ours), leaves(theirs)
    return ours.keys() == theirs.keys() and all(ours[path].tobytes() == theirs[path].tobytes() and ours[path].dtype == theirs[path].dtype for path in ours)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run on 8 devices with three checkpoints, the second of them the best, of which the newest and the best are kept."""
    run = Run(dataclasses.replace(CONFIG, checkpoints_kept=1), epath.Path(tmp_path_factory.mktemp("run")), mesh(2, 2, 2))
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
    assert same_bytes(last, optim.merge(run.state.average, run.frozen))
    best = checkpoint.load_params(run.folder, "best")
    np.testing.assert_allclose(best["llm"]["norm"]["scale"], last["llm"]["norm"]["scale"] - 9.0)  # `save` added 3 times 3 last
    assert same_bytes(best["clip"], last["clip"])


def test_load_params_without_an_average_gives_the_weights(tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(trainable=(".",)), model=ModelConfig(llm=LLM), data=dataclasses.replace(CONFIG.data, seen_slots=0))
    run = Run(config, epath.Path(tmp_path), mesh(1, 1, 1))
    assert run.meta["frozen"] is None and not (run.folder / "frozen").exists()
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        checkpoint.load_params(run.folder)
    run.save(1)
    assert same_bytes(checkpoint.load_params(run.folder), run.state.trainable)
    with pytest.raises(ConfigError, match="no checkpoint has a held-back loss"):
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
    with pytest.raises(ConfigError, match="copy/frozen: is not what this run began with"):
        Run(run.config, copy, run.mesh)


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": dataclasses.replace(CONFIG.model, dtype="bfloat16")}, {"batch_size": 16}])
def test_a_folder_of_another_run_is_refused(run, change):
    with pytest.raises(ConfigError, match=f"holds a run with other values of config.{next(iter(change))};"):
        checkpoint.prepare_workdir(run.folder, dataclasses.replace(run.config, **change))
    assert checkpoint.read_config(run.folder) == run.config


def test_settings_that_do_not_change_the_numbers_may_change(run, tmp_path):
    folder = epath.Path(tmp_path)
    checkpoint.prepare_workdir(folder, run.config)
    other = dataclasses.replace(run.config, log_every=3, mesh=MeshConfig(1, 8, 1), checkpoints_kept=5)
    checkpoint.prepare_workdir(folder, other)
    assert checkpoint.read_config(folder) == other


# ----------------------------------------------------------------------------------------------------------------------
# From another run


def taking(run: Run, pattern: str, **changes) -> RunConfig:
    return dataclasses.replace(CONFIG, seed=1, init_from=(InitFrom(str(run.folder), pattern),), **changes)


def test_take_over_moves_what_the_pattern_names(run, tmp_path):
    config = taking(run, "^llm/(layers|norm)/")
    taken = Run(config, epath.Path(tmp_path / "taken"), mesh(1, 8, 1))
    fresh = Run(dataclasses.replace(config, init_from=()), epath.Path(tmp_path / "fresh"), mesh(1, 1, 1))
    average = leaves(run.state.average)
    assert same_bytes(taken.state.average, taken.state.trainable) and same_bytes(taken.state.optimiser, fresh.state.optimiser) and int(taken.state.step) == 0
    for path, leaf in leaves(taken.state.trainable).items():
        moved = path.startswith(("llm/layers/", "llm/norm/"))
        np.testing.assert_array_equal(leaf, (average if moved else leaves(fresh.state.trainable))[path], err_msg=path)
    assert same_bytes(taken.frozen, fresh.frozen)
    for leaf, where in zip(jax.tree.leaves(taken.state.trainable), jax.tree.leaves(taken.where[0].trainable), strict=True):
        assert leaf.sharding == where


def test_take_over_reaches_frozen_parameters_too(run, tmp_path):
    taken = Run(taking(run, "^clip/"), epath.Path(tmp_path), mesh(1, 1, 1))
    assert same_bytes(taken.frozen, run.frozen) and taken.meta["frozen"]["checksum"] == run.meta["frozen"]["checksum"]


@pytest.mark.parametrize(
    "pattern, changes, message",
    [
        ("^unet/", {}, r"config.init_from\[0\].pattern: '\^unet/' matches no parameter"),
        ("^llm/", {"model": dataclasses.replace(CONFIG.model, llm=dataclasses.replace(LLM, vocab_size=72))}, r"has \(64, 32\) for llm/embed/embedding \(72, 32\)"),
        ("^visual", {"model": dataclasses.replace(CONFIG.model, visual_projector="mlp")}, "has nothing for visual_projector/fc1/bias"),
    ],
)
def test_take_over_names_what_does_not_fit(run, tmp_path, pattern, changes, message):
    config = taking(run, pattern, **changes)
    params = jax.eval_shape(lambda: dreamllm.init(dreamllm.build(config.model), jax.random.key(0)))
    with pytest.raises(ConfigError, match=message):
        checkpoint.take_over(config, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params))


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
    trees = [{"a": one, "b": two}, {"a": two, "b": one}, {"a": one, "c": two}, {"a": one[::-1], "b": two}, {"a": one}, {"a": np.concatenate([one, two])}]
    assert len({checkpoint.checksum(tree) for tree in trees}) == len(trees)


def test_the_checksum_does_not_depend_on_the_sharding():
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    alone = checkpoint.checksum({"a": values})
    for spec in (PartitionSpec("fsdp", "tensor"), PartitionSpec(None, ("data", "tensor")), PartitionSpec()):
        assert checkpoint.checksum({"a": jax.device_put(values, NamedSharding(mesh(2, 2, 2), spec))}) == alone, spec
