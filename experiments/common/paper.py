"""The paper's sizes (Vicuna-7B, CLIP ViT-L/14, Stable Diffusion 2.1-base) on named machines, for its three stages.

The argument of stage1_align, stage2_igpt and stage3_sft is a list of words with commas between, each of which acts or
is an error:

    v4-16 | v4-64 | v4-128 | v5p-64 | v5e-256 | v6e-128 | gpu-8    the machine, by chips (a cloud's v4-128 has 64);
        default v4-128
    comprehension | creation | joint                                the losses that train; default joint
    data=FOLDER    init=FOLDER                                      the data; the run or the model folder that it begins
                   with

Comprehension alone has no target images and no image loss; creation alone has no input images and no language loss (the
paper's comparison of joint training with either). Modules without a gradient are frozen then. A path alone is the
data's. Rows are packed, so that a row of 2,048 tokens holds several documents, and have image slots for as many images
as such documents bring (`python -m benchmarks.packing_fill`). A chip has the same rows on every pod of its kind, so the
batch grows with the pod; config.batch_size and config.accumulate change that.
"""

import dataclasses

import ml_collections

from dreamjax import config as c
from dreamjax.compile_tpu.topology import IMAGE_TILE
from dreamjax.config import arguments


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: topology for `python -m dreamjax.compile`, mesh, rows on a chip, and what its memory allows."""

    topology: str
    data: int
    fsdp: int
    rows: int = 4
    remat: str = "attention"  # LlamaConfig.remat where the LLM trains
    images: int = 16  # denoised on a chip at once, at most

    @property
    def chips(self) -> int:
        return self.data * self.fsdp


# The parameters of the LLM with their moments lie over as many chips as memory needs; further chips repeat them. Over
# 32 chips a v4 has room to keep what attention takes and gives. Never over all of a TPU slice: its compiler then
# all-reduces full gradients in the layer scan. Nor over more chips than the LLM has heads: the gradient of attention's
# output kernel comes by head, and in smaller shards is all-reduced in full.
TARGETS = {
    "v4-16": Target("v4:2x2x4", 2, 8, rows=3, remat="full", images=8),
    "v4-64": Target("v4:4x4x4", 4, 16, rows=3, remat="full", images=8),
    "v4-128": Target("v4:4x4x8", 4, 32, rows=3, images=8),
    "v5p-64": Target("v5p:4x4x4", 4, 16, rows=8),
    "v5e-256": Target("v5e:16x16", 8, 32, rows=2, remat="full", images=8),
    "v6e-128": Target("v6e:8x16", 4, 32, rows=3, images=8),
    "gpu-8": Target("", 1, 8),
}


@dataclasses.dataclass(frozen=True)
class Mode:
    """A choice of losses, the view of the data for it (SourceConfig.mode), and what trains beside the LLM."""

    comprehends: bool
    creates: bool
    view: str
    trainable: tuple[str, ...]
    idle: tuple[str, ...] = ()  # modules without a gradient


_VISUAL, _CONDITION = (r"^visual_projector/",), (r"^condition_projector/", r"^dream_queries$")
MODES = {
    "comprehension": Mode(True, False, "comprehension_only", _VISUAL, _CONDITION),
    "creation": Mode(False, True, "creation_only", _CONDITION, _VISUAL),
    "joint": Mode(True, True, "joint", (r"^(visual|condition)_projector/", r"^dream_queries$")),
}


@dataclasses.dataclass(frozen=True)
class Words:
    """An experiment's argument, read."""

    target: Target
    mode: str
    data: str
    init: tuple[c.InitFrom, ...]


def read(arg: str) -> Words:
    """Parses an argument; ConfigError names a word that is unknown or contradicts another."""
    words = arguments.read(arg, {"machine": tuple(TARGETS), "mode": tuple(MODES)}, ("data", "init"))
    init = (c.InitFrom(words["init"]),) if "init" in words else ()
    return Words(TARGETS[words.get("machine", "v4-128")], words.get("mode", "joint"), words.get("data", ""), init)


LLM, ENCODERS = r"^llm/", r"^(clip|unet|vae)/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the paper: its data, the images of a row, and its optimisation."""

    sources: tuple[c.SourceConfig, ...]
    inputs: int  # input images of a row; the rows of a chip share their slots
    targets: int  # target images of a row
    learning_rate: float
    image_weight: float
    steps: int
    train_llm: bool = True


def slots(per_row: int, rows: int) -> int:
    """Image slots of a group of rows, rounded up to tiles of a TPU."""
    return -(-per_row * rows // IMAGE_TILE) * IMAGE_TILE


def image_chunks(images: int, most: int) -> int:
    """The smallest number of equal chunks, each of full tiles and at most `most` images, that `images` split into."""
    return next(
        (n for n in range(1, images // IMAGE_TILE + 1) if images % (n * IMAGE_TILE) == 0 and images <= n * most),
        1,
    )


def run(words: Words, stage: Stage) -> ml_collections.ConfigDict:
    """A stage on the machine that an experiment's argument names, with the losses of its mode."""
    target, mode, model = words.target, MODES[words.mode], c.dreamllm_7b()
    assert model.llm is not None
    input_slots = slots(stage.inputs * mode.comprehends, target.rows)
    target_slots = slots(stage.targets * mode.creates, target.rows)
    trainable, frozen = ((LLM,), ()) if stage.train_llm else ((), (LLM,))
    # A frozen LLM leaves room on any pod for what attention takes and gives.
    remat = target.remat if stage.train_llm else "attention"
    config = c.RunConfig(
        model=dataclasses.replace(model, llm=dataclasses.replace(model.llm, remat=remat)),
        data=c.DataConfig(
            train=tuple(_located(source, words.data, mode) for source in stage.sources),
            length=2048,
            rows_per_group=target.rows,
            input_slots=input_slots,
            target_slots=target_slots,
            flip=True,
        ),
        optim=c.OptimConfig(
            trainable=(*trainable, *mode.trainable),
            frozen=(ENCODERS, *frozen, *mode.idle),
            learning_rate=stage.learning_rate,
        ),
        loss=c.LossConfig(
            lm_weight=float(mode.comprehends),
            image_weight=stage.image_weight * mode.creates,
            image_chunks=image_chunks(target_slots, target.images),
        ),
        init_from=words.init,
        # Replicated U-Net, VAE and CLIP take 2.3 GiB of each chip; sharded, they would be gathered for each image.
        mesh=c.MeshConfig(target.data, target.fsdp, 1),
        replicated=(ENCODERS,),
        total_steps=stage.steps,
        batch_size=target.rows * target.chips,
        checkpoint_every=200,
    )
    return ml_collections.ConfigDict(c.to_dict(config))


def _located(source: c.SourceConfig, folder: str, mode: Mode) -> c.SourceConfig:
    """A source below the data's folder, in the view of a mode where the stage leaves it open."""
    path = f"{folder}/{source.path}" if folder else source.path
    return dataclasses.replace(source, path=path, mode=mode.view if source.mode == "joint" else source.mode)
