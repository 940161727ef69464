"""The experiments at the paper's sizes: every stage on every named machine, from shapes alone."""

import pytest

from dreamjax.config import RunConfig
from dreamjax.schema import from_dict
from experiments import stage1_align, stage2_igpt, stage3_sft
from experiments.common import paper

STAGES = {
    "comprehension": (stage1_align, ",comprehension"), "creation": (stage1_align, ",creation"), "joint": (stage1_align, ",joint"),
    "igpt": (stage2_igpt, ""), "sft": (stage3_sft, ""),
}


@pytest.mark.parametrize("target", paper.TARGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_run_on_every_target(stage, target):
    module, words = STAGES[stage]
    config = from_dict(RunConfig, module.get_config(f"{target}{words},data=folder"))
    machine = paper.TARGETS[target]
    assert machine.chips == int(target.split("-")[1]) == config.mesh.data * config.mesh.fsdp
    # Else a TPU's compiler reduces gradients whole in the layer scan.
    assert config.model.llm.heads % config.mesh.fsdp == 0 and (config.mesh.fsdp < machine.chips or not machine.topology)
    assert config.batch_size == machine.rows * machine.chips and all(source.path.startswith("folder/") for source in config.data.train)
    at_once, left = divmod(config.groups * config.data.dreamed_slots, config.loss.picture_chunks * machine.chips)
    assert left == 0  # every chip denoises as much as the others
    assert at_once % 8 == 0 and at_once <= machine.pictures and config.data.seen_slots % 8 == 0


def test_an_argument_that_means_nothing_is_named():
    for wrong in ("v4-12", "creations"):
        with pytest.raises(ValueError, match=f"'{wrong}' is none of v4-16, v4-64"):
            stage1_align.get_config(wrong)
    assert stage2_igpt.get_config("some/folder").data.train[0]["path"] == "some/folder/mmc4"
    assert stage2_igpt.get_config("v4-16,init=run").init_from[0]["path"] == "run"
