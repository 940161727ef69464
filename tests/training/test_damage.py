"""Checkpoints and model folders that are damaged, unfinished or the best by a loss that is no number.

The right one is taken, or one line says what is wrong.
"""

import dataclasses
import json
import math
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from small_run import CONFIG, Run, mesh, same_bytes

from dreamjax.config import InitFrom
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, checksums, model_folder, weight_transfer
from dreamjax.training.state import State


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run of two checkpoints, the first of them the best."""
    run = Run(CONFIG, epath.Path(tmp_path_factory.mktemp("run")), mesh(1, 1, 1))
    run.save(1, 1.0)
    run.first = run.state
    run.save(2, 2.0)
    return run


@pytest.fixture
def copy(run, tmp_path) -> epath.Path:
    return epath.Path(shutil.copytree(run.folder, tmp_path / "copy"))


def files(folder) -> list[pathlib.Path]:
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())


def flip(file: pathlib.Path, bit: int):
    data = bytearray(file.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    file.write_bytes(data)


def change_one_bit(path: epath.Path, tree: dict, name: str):
    """Writes arrays over those at a path, one bit of one of them another, as a flipped bit does that the format does
    not notice.
    """
    leaves, structure = jax.tree.flatten(tree)
    changed = [np.array(leaf) for leaf in leaves]
    changed[list(checkpoint.flatten(tree)).index(name)].view(np.uint8).reshape(-1)[5] ^= 1
    checkpoint.save_tree(path, jax.tree.unflatten(structure, changed), overwrite=True)


def tiny_state(step: int) -> State:
    """A state that costs nothing to write."""
    return State(jnp.int32(step), {"a": jnp.full((3,), float(step))}, (), None)


def tiny_run(folder: epath.Path, losses: list[float | None], kept: int) -> ocp.CheckpointManager:
    manager = checkpoint.open_manager(folder, kept)
    for step, loss in enumerate(losses, 1):
        checkpoint.save(manager, tiny_state(step), {"frozen": None}, loss)
        manager.wait_until_finished()
    return manager


# ----------------------------------------------------------------------------------------------------------------------
# Which checkpoint


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, bad):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0, 1.0, bad, 2.5], kept=1)
    assert checkpoint.steps(folder) == [2, 4] and checkpoint.best_step(folder) == 2
    again = checkpoint.open_manager(folder, 1)
    checkpoint.save(again, tiny_state(5), {"frozen": None}, bad)
    again.wait_until_finished()
    assert checkpoint.steps(folder) == [2, 5] and checkpoint.best_step(folder) == 2
    shutil.rmtree(folder / "checkpoints" / "2")
    with pytest.raises(ConfigError, match="no checkpoint has a held-out loss that is a number"):
        checkpoint.best_step(folder)


def begin_in_place(folder: epath.Path, step: int):
    """What a save that writes in place, as Orbax does in a bucket, leaves when it is stopped midway."""
    in_place = ocp.options.AtomicityOptions(ocp.options.AtomicityMode.COMMIT_FILE)
    manager = ocp.CheckpointManager(
        folder / "checkpoints",
        options=ocp.CheckpointManagerOptions(atomicity_options=in_place, best_fn=lambda metrics: 0.0),
    )
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(tiny_state(step)._asdict()), meta=ocp.args.JsonSave({"no": object()})
    )
    with pytest.raises(TypeError):
        manager.save(step, args=args, metrics={checkpoint.BEST: 0.5})
        manager.wait_until_finished()
    assert (folder / "checkpoints" / str(step) / "state").exists()


def test_a_checkpoint_that_is_being_written_in_place_is_none(tmp_path):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0, 1.0, 3.0], kept=9)
    begin_in_place(folder, 4)
    assert (
        checkpoint.steps(folder) == [1, 2, 3]
        and checkpoint.last_step(folder) == 3
        and checkpoint.best_step(folder) == 2
    )
    manager = checkpoint.open_manager(folder, 9)
    state, _ = checkpoint.restore(manager, tiny_state(0))
    assert int(state.step) == 3
    checkpoint.save(manager, tiny_state(4), {"frozen": None}, 0.5)  # over what is left of the other
    manager.wait_until_finished()
    assert checkpoint.last_step(folder) == checkpoint.best_step(folder) == 4


def test_what_a_save_to_a_disk_leaves_when_it_is_killed_is_none(tmp_path):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0, 1.0], kept=9)
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1700000000"):
        shutil.copytree(folder / "checkpoints" / "1", folder / "checkpoints" / name)
    (folder / "checkpoints" / "notes.txt").write_text("mine")
    assert checkpoint.steps(folder) == [1, 2] and checkpoint.best_step(folder) == 2
    checkpoint.open_manager(folder, 9).close()


def test_a_checkpoint_of_an_orbax_that_left_no_mark_counts(tmp_path):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0], kept=9)
    (folder / "checkpoints" / "1" / "commit_success.txt").unlink()
    assert checkpoint.steps(folder) == [1]


# ----------------------------------------------------------------------------------------------------------------------
# Damage


def flips(folder, seed: int, count: int):
    """Goes through flips of single bits in the files below a folder, each file as likely as any other, and mends
    each again.
    """
    rng, places = random.Random(seed), [file for file in files(folder) if file.stat().st_size]
    for _ in range(count):
        file = rng.choice(places)
        before, bit = file.read_bytes(), rng.randrange(2**20)
        flip(file, bit)
        yield file, bit
        file.write_bytes(before)


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_a_checkpoint_gives_the_same_or_one_line(tmp_path, seed):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0], kept=9).close()
    for file, bit in flips(folder, seed, 20):
        try:
            manager = checkpoint.open_manager(folder, 9)
            state, meta = checkpoint.restore(manager, tiny_state(0))
            assert same_bytes(state._asdict(), tiny_state(1)._asdict()) and meta == {"frozen": None}, (file, bit)
            assert checkpoint.heldout_loss(folder, 1) == 2.0
        except ConfigError as error:
            assert (
                str(error).startswith(f"{folder}/checkpoints/1: ")
                and "\n" not in str(error)
                and "--set_aside=1" in str(error)
            ), (file, bit)


def test_a_flipped_bit_in_a_model_folder_gives_the_same_or_one_line(folder):
    for file, bit in flips(folder, 0, 30):
        try:
            assert same_bytes(load(folder), ARRAYS), (file, bit)
        except ConfigError as error:
            assert str(error).startswith(str(folder)) and "\n" not in str(error), (file, bit)


def test_a_run_goes_on_without_its_damaged_checkpoint(run, copy):
    def resume():
        return Run(CONFIG, copy, run.mesh)

    change_one_bit(copy / "checkpoints" / "2" / "state", run.state._asdict(), "trainable/llm/norm/scale")
    with pytest.raises(ConfigError) as caught:
        resume()
    advice = "the same command with --set_aside=2 renames that folder to 2.set_aside and goes on from step 1"
    assert (
        str(caught.value)
        == f"{copy}/checkpoints/2: array trainable/llm/norm/scale is damaged (its checksum differs from what "
        f"was written); {advice}"
    )
    checkpoint.set_aside(copy, 2)
    again = resume()
    assert int(again.state.step) == 1 and same_bytes(again.state._asdict(), run.first._asdict())
    again.save(2)
    checkpoint.set_aside(copy, 2)  # the same command once more
    assert checkpoint.steps(copy) == [1, 2] and int(resume().state.step) == 2
    with pytest.raises(ConfigError, match="--set_aside: .* has no checkpoint 7; it has 1, 2"):
        checkpoint.set_aside(copy, 7)


def test_a_damaged_loss_is_named_before_the_run_begins(tmp_path):
    folder = epath.Path(tmp_path)
    tiny_run(folder, [2.0], kept=9).close()
    file = folder / "checkpoints" / "1" / "metrics" / "metrics"
    for damaged in (file.read_text()[:-1], file.read_text().replace("2", "3"), "[]", ""):
        file.write_text(damaged)
        with pytest.raises(
            ConfigError, match="checkpoints/1: .*--set_aside=1 .* begins anew, as there is no other checkpoint"
        ):
            checkpoint.open_manager(folder, 9)
        with pytest.raises(ConfigError, match="checkpoints/1: "):
            checkpoint.best_step(folder)


def test_checksums_can_be_left_out(run, copy):
    change_one_bit(copy / "checkpoints" / "2" / "state", run.state._asdict(), "average/llm/norm/scale")
    with pytest.raises(ConfigError, match="copy/checkpoints/2/state: array average/llm/norm/scale is damaged"):
        checkpoint.load_params(copy)
    assert not same_bytes(checkpoint.load_params(copy, verify=False), checkpoint.load_params(run.folder))


def test_what_is_read_without_a_damaged_checkpoint_is_named(run, copy):
    change_one_bit(copy / "checkpoints" / "2" / "state", run.state._asdict(), "average/llm/norm/scale")
    with pytest.raises(ConfigError) as caught:
        checkpoint.load_params(copy)
    assert str(caught.value).endswith(
        f"; once {copy}/checkpoints/2 is moved out of {copy}/checkpoints, another one is read (1)"
    )
    (copy / "checkpoints" / "2").rename(copy / "2")
    assert same_bytes(checkpoint.load_params(copy)["llm"]["norm"], run.first.average["llm"]["norm"])


def test_a_checkpoint_from_before_checksums_loads(run, copy):
    for step in (1, 2):
        shutil.rmtree(copy / "checkpoints" / str(step) / "checksums")
        meta = copy / "checkpoints" / str(step) / "meta" / "metadata"
        values = json.loads(meta.read_text())
        del values["frozen"]["checksums"]
        meta.write_text(json.dumps(values))
    again = Run(CONFIG, copy, run.mesh)
    assert same_bytes(again.state._asdict(), run.state._asdict()) and same_bytes(again.frozen, run.frozen)
    assert (
        same_bytes(checkpoint.load_params(copy, "best"), checkpoint.load_params(run.folder, "best"))
        and checkpoint.stored_checksums(copy, 2) == {}
    )


def test_only_what_is_taken_over_is_checked(run, copy):
    change_one_bit(copy / "frozen", run.frozen, "clip/pre_layernorm/scale")
    params = {"llm": run.state.average["llm"], **run.frozen}

    def taken(pattern):
        return weight_transfer.transfer(
            dataclasses.replace(CONFIG, init_from=(InitFrom(str(copy), pattern),)), params, None
        )[0]

    assert same_bytes(taken("^llm/")["llm"], run.state.average["llm"])
    with pytest.raises(ConfigError, match="copy/frozen: array clip/pre_layernorm/scale is damaged"):
        taken("^clip/")


# ----------------------------------------------------------------------------------------------------------------------
# Model folders


ARRAYS = {
    "a/kernel": jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) / 7,
    "a/half": jnp.arange(512, dtype=jnp.bfloat16),
    "b": jnp.float32(3),
    "c": jnp.arange(9, dtype=jnp.int32),
    "d": jnp.float16([1, 2]),
    "e": jnp.bool_([True, False]),
}


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    folder = epath.Path(tmp_path)
    model_folder.save_leaves(
        folder / "params", {path: leaf.nbytes for path, leaf in ARRAYS.items()}, lambda path: jnp.array(ARRAYS[path])
    )
    return folder


def load(folder: epath.Path, dtype=None) -> dict:
    wanted = {path: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype) for path, leaf in ARRAYS.items()}
    expected = model_folder.read_checksums(folder)
    return checkpoint.flatten(
        checkpoint.load_tree(model_folder.params_path(folder), checkpoint.unflatten(wanted), expected=expected)
    )


def test_a_model_folder_keeps_a_checksum_of_each_array(folder):
    assert model_folder.read_checksums(folder) == checksums.checksums(ARRAYS)
    assert same_bytes(load(folder), ARRAYS)
    cast = load(folder, jnp.bfloat16)
    assert same_bytes(cast, {path: leaf.astype(jnp.bfloat16) for path, leaf in ARRAYS.items()})
    change_one_bit(folder / "params" / "state", checkpoint.unflatten(ARRAYS), "a/kernel")
    with pytest.raises(ConfigError, match="params/state: array a/kernel is damaged"):
        load(folder)
    with pytest.raises(ConfigError, match="params: array a/kernel is damaged"):
        read = model_folder.reader(folder, model_folder.stored(folder))
        [read(path) for path in ARRAYS]
    (folder / model_folder.CHECKSUMS).unlink()  # one from before they were kept
    assert load(folder).keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"b": 3}', '{"b": "float31 00000000"}', '{"b": "float32 0000"}', "\x00", "[" * 10**5]
)
def test_damaged_checksums_are_named(folder, text):
    (folder / model_folder.CHECKSUMS).write_text(text)
    with pytest.raises(ConfigError, match="checksums.json: cannot be read|array a/half and 4 more|array .* damaged"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "5", '"model"', "null", "[" * 10**5, "\x00"])
def test_a_config_that_is_none_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json: (is no JSON|holds no settings)"):
        model_folder.read_card(epath.Path(tmp_path))


ENTRY = {
    "path": "../../../etc",
    "step": 3,
    "pattern": ".",
    "parameters": ["llm/norm/scale"],
    "checksum": None,
    "origins": [],
    "fresh": [],
}


def test_paths_in_a_record_of_origins_are_told_and_not_opened(tmp_path):
    folder = epath.Path(tmp_path / "model")
    (folder / "params").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / weight_transfer.ORIGINS_FILE).write_text("opened")
    for path in ("../elsewhere", str(elsewhere), "/dev/zero", "https://example.org/model"):
        (folder / weight_transfer.ORIGINS_FILE).write_text(
            json.dumps({"origins": [ENTRY | {"path": path}], "fresh": []})
        )
        assert weight_transfer.format_summary(weight_transfer.origins_of(folder)).startswith(
            f"from {path} at step 3: llm (1 parameter)"
        )


RECORDS = [
    [],
    3,
    None,
    {},
    *({"origins": origins, "fresh": []} for origins in (3, [3], [{}], [ENTRY | {"parameters": 3}])),
]


@pytest.mark.parametrize("text", ["", "\x00", "[" * 10**5, *map(json.dumps, RECORDS)])
def test_a_record_of_origins_that_is_none_is_named(tmp_path, text):
    (tmp_path / "params").mkdir()
    (tmp_path / weight_transfer.ORIGINS_FILE).write_text(text)
    with pytest.raises(ConfigError, match="origins.json: cannot be read"):
        weight_transfer.origins_of(epath.Path(tmp_path))


# ----------------------------------------------------------------------------------------------------------------------
# The checksum of an array


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8, np.bool_, np.float64])
def test_every_bit_of_an_array_counts(dtype):
    values = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(dtype)
    before = checksums.checksums({"a": values})
    for bit in range(0, values.nbytes * 8, 1 if dtype != np.bool_ else 8):
        changed = bytearray(values.tobytes())
        changed[bit // 8] ^= 1 << bit % 8
        assert checksums.checksums({"a": np.frombuffer(bytes(changed), dtype).reshape(3, 5)}) != before, bit


def test_large_arrays_are_hashed_in_blocks_of_any_shape():
    values = np.random.default_rng(0).integers(0, 2**32, 3 * 70001, dtype=np.uint32)
    word = values ^ np.arange(values.size, dtype=np.uint32) * np.uint32(2654435761)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ (word >> np.uint32(shift))) * np.uint32(factor)
    expected = f"uint32 {int(word.sum(dtype=np.uint64)) % 2**32:08x}"
    for shape in ((-1,), (3, 70001), (70001, 3), (3, 1, 70001), (70001, 1, 3, 1)):
        assert checksums.checksums({"a": values.reshape(shape)}) == {"a": expected}, shape
