"""The settings of a run: mesh, data, losses, optimiser, and what a run begins from.

`experiments/*.py` build an `ml_collections.ConfigDict`; `from_dict` turns it into a `RunConfig` and rejects what it
does not know. A setting that would change the numbers and that no code implements must not exist here.
"""

import dataclasses
import math

from dreamjax.config.aliases import renamed
from dreamjax.config.model import ModelConfig
from dreamjax.config.validation import require, require_pattern, require_positive, require_seed

MODES = ("joint", "comprehension_only", "creation_only")
LABELS = ("all", "official")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1, which takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size > 0 or size == -1, name, f"must be positive, or -1 for what is left, is {size}")
            require(size > 0 or list(sizes.values()).count(-1) == 1, name, f"one axis may be -1, not more: {sizes}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of documents: a format of `data/sources`, a path where it needs one, and a split.

    Formats: shapes (the embedded generator), storybook, storybook_pages, webdataset (tar files), pairs, mmc4, obelics,
    llava, instruct (JSON with a folder of pictures), array_record (what `prepare` writes), tfds, parquet. Their files
    in `data/sources` say what a path is and what the records look like. A path that names several files may hold `*`
    and ranges such as {00000..00099}, or be the folder they lie in; it may be in a bucket (gs://).
    """

    format: str
    path: str = ""
    split: str = "train"  # train | eval
    images: str = ""  # folder of the pictures that JSON names; empty: where the JSON lies
    text_key: str = ""  # key or column of the text; empty: what is usual in the format
    image_key: str = ""  # key or column of the picture; empty: what is usual in the format
    allow_outside: bool = False  # records may name pictures outside that folder: by absolute names, "..", or links
    drop_first_answer: bool = False  # leave out what an assistant says before any user, as LLaVA's code does
    min_similarity: float | None = (
        None  # leave out pictures whose CLIP similarity to their text is lower; None: 0.25 for mmc4, else none
    )
    # folder for indexes of the files, which the hosts of a run may share; empty: the user's cache, ~/.cache/dreamjax
    cache: str = ""
    max_growth: float = 200.0  # times its size that a compressed file may unpack to; more is taken for an attack
    max_unpacked: float = 256.0  # GiB that it may unpack to
    # folder of what the frozen encoders made of its pictures (python -m dreamjax.precompute); empty: they run in every
    # step
    encoded: str = ""
    mode: str = "joint"  # one of MODES, see data/pipeline/task_view.py
    labels: str = "all"  # all | official: <dream_start> is not in the loss of conversations
    # of the documents, by their keys, that are the eval split; 0: all are of either (shapes and storybook have splits
    # of their own)
    eval_share: float = 0.0
    size: int = 0  # documents that an epoch shows; 0: all, once
    weight: float = 0.0  # share of an epoch's documents, in proportion to the others'; 0: by size

    def __post_init__(self):
        require(
            self.mode in MODES,
            "mode",
            f"{self.mode!r} is none of {', '.join(MODES)}",
        )
        require(self.labels in LABELS, "labels", f"{self.labels!r} is neither {' nor '.join(LABELS)}")
        require_positive(self, "size", "weight", or_zero=True)
        require_positive(self, "max_growth", "max_unpacked")
        require(0 <= self.eval_share < 1, "eval_share", "is a share in [0, 1)")
        require(
            self.min_similarity is None or math.isfinite(self.min_similarity),
            "min_similarity",
            f"must be finite, is {self.min_similarity}",
        )


@renamed({"seen_slots": "input_slots", "dreamed_slots": "target_slots"})
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Documents and the static shapes of their rows."""

    train: tuple[SourceConfig, ...]
    eval: tuple[SourceConfig, ...] = ()
    # a sentencepiece model or a tokenizer's folder; empty: that of the embedding's origin in init_from, else one
    # trained on the documents' text
    tokenizer: str = ""
    tokenizer_vocab: int = 512  # pieces of a tokenizer trained here, without the added tokens
    template: str = "plain"  # chat template for parts with roles, see templates.TEMPLATES
    length: int = 2048  # L, tokens per row
    rows_per_group: int = 1  # R
    input_slots: int = 6  # N, input images per group
    target_slots: int = 6  # M, target images per group
    flip: bool = False  # mirror target images at random
    draft: bool = False  # decode large JPEGs at a part of their size: faster, and pixels differ a little
    max_bad_share: float = 0.01  # share of broken records above which a run stops
    threads: int = 2  # that decode pictures ahead of the step, in each process
    workers: int = 0  # processes that do so; 0: this one alone

    def __post_init__(self):
        require(len(self.train) > 0, "train", "needs at least one source")
        require(
            len({bool(source.encoded) for source in self.train}) == 1,
            "train",
            "the pictures of all sources are encoded, or of none",
        )
        require(self.length > 2, "length", "must be at least 3")
        require_positive(self, "rows_per_group", "tokenizer_vocab", "threads")
        require_positive(self, "input_slots", "target_slots", "workers", or_zero=True)
        require(0 <= self.max_bad_share <= 1, "max_bad_share", "is a share between 0 and 1")


@renamed({"picture_chunks": "image_chunks"})
@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The fused loss (paper eq.

    1, 4, 6) and the official code's options. Where two behaviours are named, the first is right.
    """

    lm_weight: float = 1.0
    image_weight: float = 10.0
    weight_norm: str = (
        "none"  # none | l1 | l2: divides the loss by that norm of the two weights (official loss_scale_schedule)
    )
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023)
    noise_offset: float = 0.0  # a per-channel shift of the noise, also in its target
    input_perturbation: float = 0.0  # extra noise in the U-Net's input only
    late_timesteps: float = (
        0.0  # share of pictures whose timestep is drawn from the noisiest eighth alone, where the condition says most
    )
    condition_dropout: float = 0.0  # share of pictures trained on the unconditional condition
    # queries: the condition that guidance uses | official: of <im_patch> tokens in the queries' places, which inference
    # never sees
    unconditional: str = "queries"
    ce_chunk: int = 256  # positions per row whose logits exist at one time
    image_chunks: int = (
        1  # parts that a step's target images are denoised in, one after the other: more take less memory
    )

    def __post_init__(self):
        require(0 <= self.condition_dropout < 1, "condition_dropout", "is a share in [0, 1)")
        require(0 <= self.late_timesteps <= 1, "late_timesteps", "is a share between 0 and 1")
        require(
            self.weight_norm in ("none", "l1", "l2"), "weight_norm", f"{self.weight_norm!r} is none of none, l1, l2"
        )
        require(
            self.unconditional in ("queries", "official"),
            "unconditional",
            f"{self.unconditional!r} is neither queries nor official",
        )
        require_positive(self, "ce_chunk", "image_chunks", *(("snr_gamma",) if self.snr_gamma is not None else ()))
        require_positive(self, "lm_weight", "image_weight", "noise_offset", "input_perturbation", or_zero=True)
        require(
            self.weight_norm == "none" or self.lm_weight + self.image_weight > 0,
            "weight_norm",
            "two weights of zero have no norm",
        )

    @property
    def weights(self) -> tuple[float, float]:
        """Factors of the language loss and the image loss."""
        norm = {
            "none": 1.0,
            "l1": self.lm_weight + self.image_weight,
            "l2": math.hypot(self.lm_weight, self.image_weight),
        }[self.weight_norm]
        return self.lm_weight / norm, self.image_weight / norm


@dataclasses.dataclass(frozen=True)
class LrRule:
    """A factor on the learning rate of the parameters whose path the pattern finds."""

    pattern: str
    factor: float

    def __post_init__(self):
        require_pattern(self.pattern, "pattern")
        require_positive(self, "factor", or_zero=True)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and what it touches. Patterns are searched in paths like `llm/layers/mlp/up/kernel`."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    learning_rate: float = 2e-5
    schedule: str = "cosine"  # cosine | linear | constant, after the warm-up
    warmup_share: float = 0.003
    final_share: float = 0.0  # of the peak learning rate, reached at the last step
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float | None = None  # exponential moving average of the trained weights, used for sampling
    lr_rules: tuple[LrRule, ...] = ()

    def __post_init__(self):
        require(
            self.schedule in ("cosine", "linear", "constant"),
            "schedule",
            f"{self.schedule!r} is none of cosine, linear, constant",
        )
        for name in ("warmup_share", "final_share"):
            require(0 <= getattr(self, name) <= 1, name, "is a share between 0 and 1")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, name, f"lies in [0, 1), is {getattr(self, name)}")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "lies between 0 and 1")
        require_positive(self, "learning_rate", "clip_norm", "eps")
        require_positive(self, "weight_decay", or_zero=True)
        for name in ("trainable", "frozen"):
            for pattern in getattr(self, name):
                require_pattern(pattern, name)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Parameters taken from an earlier run or a model folder before the first step: those whose path the pattern finds.

    A pattern also finds added tokens by name, as `<dream_` does, and takes their rows of embedding and head. See
    training/weight_transfer.py.
    """

    path: str
    pattern: str = "."
    which: str = "last"  # last | best (lowest held-out loss): the checkpoint of a workdir
    new_rows: str = (
        "fresh"  # fresh (drawn like the run's own) | mean (of the old): rows by which the vocabulary has grown
    )

    def __post_init__(self):
        require_pattern(self.pattern, "pattern")
        require(self.which in ("last", "best"), "which", f"{self.which!r} is neither last nor best")
        require(self.new_rows in ("fresh", "mean"), "new_rows", f"{self.new_rows!r} is neither fresh nor mean")


@renamed({"whole": "replicated"})
@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run: what `python -m dreamjax.train` does."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    loss: LossConfig = LossConfig()
    mesh: MeshConfig = MeshConfig()
    # patterns of frozen parameters to replicate instead of shard: trades HBM for fewer all-gathers
    replicated: tuple[str, ...] = ()
    init_from: tuple[InitFrom, ...] = ()
    seed: int = 0
    total_steps: int = 1000
    batch_size: int = 8  # rows over all hosts
    accumulate: int = 1  # microbatches per step
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoints_kept: int = 2  # the newest ones; the best by held-out loss is kept besides
    eval_every: int = 0  # 0: never
    eval_batches: int = 4
    sample_every: int = 0  # 0: never
    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    profile_from: int = 0  # the first step of a trace under profile/ in the workdir; 0: none
    profile_to: int = 0  # its last step
    skip_nonfinite: bool = False
    allow_changed_data: bool = False  # a run may go on with other documents or rows than it began with
    # a run may go on to a higher total_steps though its learning rate depends on that; with schedule="constant" it may
    # anyway
    allow_longer: bool = False

    def __post_init__(self):
        require_positive(
            self, "total_steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "checkpoints_kept"
        )
        require_positive(
            self,
            "eval_every",
            "sample_every",
            "eval_batches",
            "sample_tokens",
            "profile_from",
            "profile_to",
            or_zero=True,
        )
        require_seed("seed", self.seed)
        require(
            0 <= self.profile_from <= self.profile_to or not self.profile_from,
            "profile_to",
            f"{self.profile_to} is before profile_from = {self.profile_from}",
        )
        for pattern in self.replicated:
            require_pattern(pattern, "replicated")
        require(self.model.llm is not None, "model.llm", "is what a run trains around; it cannot be absent")
        rows, context = self.data.rows_per_group, self.model.llm.max_positions
        divides = self.batch_size % (rows * self.accumulate) == 0
        require(
            divides,
            "batch_size",
            f"{self.batch_size} rows is not a multiple of data.rows_per_group x accumulate = {rows} x "
            f"{self.accumulate}",
        )
        require(
            self.data.length <= context,
            "data.length",
            f"{self.data.length} exceeds model.llm.max_positions = {context}",
        )
        slots, chunks = self.groups * self.data.target_slots, self.accumulate * self.loss.image_chunks
        require(
            slots % chunks == 0,
            "loss.image_chunks",
            f"{slots} target image slots a step are not a multiple of accumulate x loss.image_chunks = {chunks}",
        )
        require(
            not self.data.input_slots or self.model.clip is not None,
            "data.input_slots",
            "input images need model.clip",
        )
        require(
            not self.data.target_slots or self.model.unet is not None,
            "data.target_slots",
            "target images need model.unet",
        )
        pixels = self.model.unet is not None and self.model.vae is None
        require(
            not (pixels and any(source.encoded for source in (*self.data.train, *self.data.eval))),
            "data.train",
            "encoded images are for models with a VAE",
        )
        require(self.eval_every == 0 or self.data.eval, "eval_every", "needs a source under data.eval")

    @property
    def groups(self) -> int:
        """G, groups of rows per step."""
        return self.batch_size // self.data.rows_per_group
