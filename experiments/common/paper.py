"""What the experiments at the paper's sizes share: Vicuna-7B, CLIP ViT-L/14 and Stable Diffusion 2.1-base on named
machines.

The argument of stage1_align, stage2_igpt and stage3_sft is a list of words with commas between, each of which acts or
is an error:

    v4-16 | v4-64 | v4-128 | v5p-64 | v5e-256 | v6e-128 | gpu-8    the machine, by chips (a cloud's v4-128 has 64);
        default v4-128
    comprehension | creation | joint                                what is learned; default joint
    data=FOLDER    init=FOLDER                                      the data; the run or the model folder that it begins
                   with

Comprehension alone dreams no picture and has no image loss; creation alone shows no picture to the encoder and has no
language loss (the paper's comparison of joint learning with either). What nothing would train is frozen then. A path
alone is the data's. Rows are packed, so that a row of 2,048 tokens holds several documents, and have picture slots for
as many pictures as such documents bring (`python -m benchmarks.packing_fill`). A chip has the same rows on every pod of
its kind, so the batch grows with the pod; config.batch_size and config.accumulate change that.
"""

import dataclasses

import ml_collections

from dreamjax import config as c
from dreamjax.compile_tpu.topology import PICTURE_TILE
from dreamjax.config import arguments


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine.

    Its topology for `python -m dreamjax.compile`, its mesh, rows on a chip, and what its memory allows.
    """

    topology: str
    data: int
    fsdp: int
    rows: int = 4
    remat: str = "attention"  # LlamaConfig.remat where the LLM learns
    images: int = 16  # that a chip denoises at once, at most

    @property
    def chips(self) -> int:
        return self.data * self.fsdp


# The parameters of the LLM with their moments lie over as many chips as memory needs; further chips repeat them. Over
# 32 chips a v4 has room to keep what attention takes and gives. Never over all of a TPU slice: its compiler then
# reduces gradients whole, in the layer scan. Nor over more chips than the LLM has heads: the gradient of attention's
# output kernel comes by head, and in smaller parts is reduced whole.
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
    """What a run learns.

    Which losses, how its data are shown (SourceConfig.mode), and which parts train besides the LLM.
    """

    comprehends: bool
    creates: bool
    view: str
    supervised: tuple[str, ...]
    idle: tuple[str, ...] = ()  # that nothing would train


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
    """The words of an argument; ConfigError names one that means nothing, or contradicts another."""
    words = arguments.read(arg, {"machine": tuple(TARGETS), "mode": tuple(MODES)}, ("data", "init"))
    init = (c.InitFrom(words["init"]),) if "init" in words else ()
    return Words(TARGETS[words.get("machine", "v4-128")], words.get("mode", "joint"), words.get("data", ""), init)


LLM, ENCODERS = r"^llm/", r"^(clip|unet|vae)/"


def slots(per_row: int, rows: int) -> int:
    """Picture slots of a group of rows, in whole tiles of a TPU."""
    return -(-per_row * rows // PICTURE_TILE) * PICTURE_TILE


def parts(images: int, most: int) -> int:
    """In how many equal parts of whole tiles, the fewest, so many pictures are denoised where at most `most` are at
    once.
    """
    return next(
        (n for n in range(1, images // PICTURE_TILE + 1) if images % (n * PICTURE_TILE) == 0 and images <= n * most),
        1,
    )


def run(
    words: Words,
    sources: tuple[c.SourceConfig, ...],
    *,
    inputs: int,
    targets: int,
    learning_rate: float,
    image_weight: float,
    steps: int,
    train_llm: bool,
) -> ml_collections.ConfigDict:
    """A run on a target, of what its mode learns.

    `seen` and `dreamed` are the pictures of a row, in slots that the rows of a chip share.
    """
    target, mode, model = words.target, MODES[words.mode], c.dreamllm_7b()
    input_slots, target_slots = (
        slots(inputs * mode.comprehends, target.rows),
        slots(targets * mode.creates, target.rows),
    )
    supervised, frozen = ((LLM,), ()) if train_llm else ((), (LLM,))
    remat = (
        target.remat if train_llm else "attention"
    )  # a frozen LLM leaves room for what attention takes and gives on any pod
    shown = [source if source.mode != "joint" else dataclasses.replace(source, mode=mode.view) for source in sources]
    config = c.RunConfig(
        model=dataclasses.replace(model, llm=dataclasses.replace(model.llm, remat=remat)),
        data=c.DataConfig(
            train=tuple(
                dataclasses.replace(source, path=f"{words.data}/{source.path}" if words.data else source.path)
                for source in shown
            ),
            length=2048,
            rows_per_group=target.rows,
            input_slots=input_slots,
            target_slots=target_slots,
            flip=True,
        ),
        optim=c.OptimConfig(
            trainable=(*supervised, *mode.supervised),
            frozen=(ENCODERS, *frozen, *mode.idle),
            learning_rate=learning_rate,
        ),
        loss=c.LossConfig(
            lm_weight=float(mode.comprehends),
            image_weight=image_weight * mode.creates,
            image_chunks=parts(target_slots, target.images),
        ),
        init_from=words.init,
        # U-Net, VAE and CLIP take 2.3 GiB of each chip, whole; split, they would have to be gathered for each picture.
        mesh=c.MeshConfig(target.data, target.fsdp, 1),
        whole=(ENCODERS,),
        total_steps=steps,
        batch_size=target.rows * target.chips,
        checkpoint_every=200,
    )
    return ml_collections.ConfigDict(c.to_dict(config))
