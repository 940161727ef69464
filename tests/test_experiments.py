"""The experiments at the paper's sizes: every stage on every named machine, from shapes alone."""

import itertools

import pytest

from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.errors import ConfigError
from dreamjax.experiments import quickstart, quickstart_frozen, stage1_align, stage2_igpt, stage3_sft, storybook
from dreamjax.experiments.common import paper

STAGES = {"align": stage1_align, "igpt": stage2_igpt, "sft": stage3_sft}
SMALL = {"quickstart": quickstart, "quickstart_frozen": quickstart_frozen, "storybook": storybook}
MODES = ("comprehension", "creation", "joint")


@pytest.mark.parametrize("target", paper.TARGETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_run_on_every_target(stage, mode, target):
    config = from_dict(RunConfig, STAGES[stage].get_config(f"{target},{mode},data=folder"))
    machine = paper.TARGETS[target]
    assert machine.chips == int(target.split("-")[1]) == config.mesh.data * config.mesh.fsdp
    # Else a TPU's compiler reduces gradients whole in the layer scan.
    assert config.model.llm.heads % config.mesh.fsdp == 0 and (config.mesh.fsdp < machine.chips or not machine.topology)
    assert config.batch_size == machine.rows * machine.chips and all(
        source.path.startswith("folder/") for source in config.data.train
    )
    at_once, left = divmod(config.groups * config.data.target_slots, config.loss.image_chunks * machine.chips)
    assert left == 0  # every chip denoises as much as the others
    assert at_once % 8 == 0 and at_once <= machine.images and config.data.input_slots % 8 == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_mode_decides_losses_images_and_what_trains(stage):
    """What one side alone learns: the other's loss, pictures and parts are out."""
    for mode, weights, other in (
        ("comprehension", (True, False), r"^condition_projector/"),
        ("creation", (False, True), r"^visual_projector/"),
    ):
        config = from_dict(RunConfig, STAGES[stage].get_config(mode))
        assert (
            tuple(weight > 0 for weight in config.loss.weights)
            == weights
            == (config.data.input_slots > 0, config.data.target_slots > 0)
        )
        assert other in config.optim.frozen and other not in config.optim.trainable
        assert {source.mode for source in config.data.train} == {f"{mode}_only"}
        assert not any(source.format == "llava" for source in config.data.train) or mode == "comprehension"
    joint = from_dict(RunConfig, STAGES[stage].get_config("joint"))
    assert all(joint.loss.weights) and joint == from_dict(RunConfig, STAGES[stage].get_config())


WORDS = {
    "machine": tuple(paper.TARGETS),
    "mode": MODES,
    "data": ("data=a", "data=gs://b/a=b"),
    "init": ("init=run", "init=runs/a.b"),
}
KNOWN = {
    **dict.fromkeys(STAGES, tuple(WORDS)),
    "quickstart": (),
    "quickstart_frozen": ("init",),
    "storybook": ("data",),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_word_acts_or_is_an_error(name, tmp_path, monkeypatch):
    """That machines and modes act, the tests above show; a second word of a kind is an error, whatever it says."""
    monkeypatch.chdir(tmp_path)  # where no word is a folder's name
    experiment = (STAGES | SMALL)[name]
    for kind, word in ((kind, word) for kind, words in WORDS.items() for word in words):
        if kind not in KNOWN[name]:
            with pytest.raises(ConfigError, match="takes no argument|is none of"):
                experiment.get_config(word)
        elif kind in ("data", "init"):
            assert word.partition("=")[2] in experiment.get_config(word).to_json()
        else:
            experiment.get_config(word)
    for kind in KNOWN[name]:
        for first, second in itertools.product(WORDS[kind], repeat=2):
            with pytest.raises(ConfigError, match=f"an argument has one {kind}"):
                experiment.get_config(f"{first}, {second}")


@pytest.mark.parametrize("module", [*STAGES.values(), *SMALL.values()], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    "word",
    [
        "v4-12",
        "creations",
        "V4-16",
        "create",
        "date=x",
        "steps=3",
        "data=",
        "init= ",
        "mode=creation",
        "=x",
        "creation_only",
        "None",
    ],
)
def test_a_word_that_means_nothing_is_named_in_one_line(module, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        module.get_config(word)
    assert repr(word.strip()) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "argument, named",
    [
        ("stage2_igpt.py:creation,joint", "'joint' contradicts 'creation': an argument has one mode"),
        ("quickstart.py:x", "'x': this experiment takes no argument"),
    ],
)
def test_the_command_says_so_in_one_line(argument, named, training):
    done = training(f"--config=experiments/{argument}")
    assert done.returncode == 2 and done.stderr == f"dreamjax.train: --config: {named}\n"


def test_paths_of_arguments(tmp_path, monkeypatch):
    assert stage2_igpt.get_config("some/folder").data.train[0]["path"] == "some/folder/mmc4"
    assert stage2_igpt.get_config("v4-16,init=run").init_from[0]["path"] == "run"
    assert quickstart_frozen.get_config("runs/mine").init_from[0]["path"] == "runs/mine"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories").mkdir()
    assert (
        storybook.get_config("stories").data.train[0]["path"]
        == storybook.get_config("data=stories").data.train[0]["path"]
        == "stories"
    )
