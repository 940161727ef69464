"""Every setting of a model and of a run, as frozen dataclasses.

`experiments/*.py` build an `ml_collections.ConfigDict`; `from_dict` turns it into a `RunConfig` and rejects what it does
not know. A setting that would change the numbers and that no code implements must not exist here.
"""

import dataclasses
import re
import types
import typing

class ConfigError(ValueError):
    """A setting that cannot be right; the message begins with its key."""


class RunStopped(RuntimeError):
    """A run that cannot go on; the message says why and, in training, at which step."""


def _require(condition: bool, key: str, reason: str):
    if not condition:
        raise ConfigError(f"{key}: {reason}")


# ----------------------------------------------------------------------------------------------------------------------
# Model


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA decoder; the defaults are LLaMA/Vicuna-7B with the eight added tokens."""

    vocab_size: int = 32008
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    ffn_width: int = 11008
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    remat: str = "none"  # none | full | dots: what the backward pass recomputes of each layer

    def __post_init__(self):
        _require(self.width % self.heads == 0, "width", f"{self.width} is not a multiple of heads = {self.heads}")
        _require(self.heads % self.kv_heads == 0, "kv_heads", f"{self.kv_heads} does not divide heads = {self.heads}")
        _require((self.width // self.heads) % 2 == 0, "heads", "RoPE rotates pairs: width / heads must be even")
        _require(self.remat in ("none", "full", "dots"), "remat", f"{self.remat!r} is none of none, full, dots")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """A CLIP vision transformer; the defaults are ViT-L/14 at 224 pixels."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    ffn_width: int = 4096
    layer_norm_eps: float = 1e-5
    activation: str = "quick_gelu"  # quick_gelu | gelu
    select_layer: int = -2  # index into the layers + 1 hidden states whose patches the LLM sees

    def __post_init__(self):
        _require(self.image_size % self.patch_size == 0, "patch_size", f"{self.patch_size} does not divide image_size = {self.image_size}")
        _require(self.width % self.heads == 0, "width", f"{self.width} is not a multiple of heads = {self.heads}")
        _require(self.activation in ("quick_gelu", "gelu"), "activation", f"{self.activation!r} is neither quick_gelu nor gelu")
        within = -self.layers - 1 <= self.select_layer <= self.layers
        _require(within, "select_layer", f"{self.select_layer} is outside the {self.layers + 1} hidden states")

    @property
    def patches(self) -> int:
        """P, the number of patches of one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A Stable Diffusion U-Net; the defaults are SD 2.1-base."""

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention: tuple[bool, ...] = (True, True, True, False)  # per down block; the up blocks mirror it
    heads: tuple[int, ...] = (5, 10, 20, 20)  # attention heads per down block
    context_width: int = 1024
    norm_groups: int = 32
    linear_projection: bool = True  # transformer in/out projections: linear (SD 2.x) or 1x1 convolutions (SD 1.x)

    def __post_init__(self):
        for name in ("cross_attention", "heads"):
            _require(len(getattr(self, name)) == len(self.block_channels), name, f"needs one entry per block, {len(self.block_channels)}")
        for channels, heads in zip(self.block_channels, self.heads):
            _require(channels % self.norm_groups == 0, "norm_groups", f"{self.norm_groups} does not divide {channels} channels")
            _require(channels % heads == 0, "heads", f"{heads} does not divide {channels} channels")
        _require(self.sample_size % 2 ** (len(self.block_channels) - 1) == 0, "sample_size", f"{self.sample_size} cannot be halved {len(self.block_channels) - 1} times")


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """A Stable Diffusion AutoencoderKL; the defaults are SD 2.1-base."""

    image_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self):
        for channels in self.block_channels:
            _require(channels % self.norm_groups == 0, "norm_groups", f"{self.norm_groups} does not divide {channels} channels")

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.block_channels) - 1)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule a U-Net was trained with; the defaults are SD 2.1-base's."""

    timesteps: int = 1000
    beta_schedule: str = "scaled_linear"  # linear | scaled_linear | squaredcos_cap_v2
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "epsilon"  # epsilon | v_prediction
    steps_offset: int = 1  # added to the sampler's "leading" timesteps

    def __post_init__(self):
        known = ("linear", "scaled_linear", "squaredcos_cap_v2")
        _require(self.beta_schedule in known, "beta_schedule", f"{self.beta_schedule!r} is none of {', '.join(known)}")
        _require(self.prediction in ("epsilon", "v_prediction"), "prediction", f"{self.prediction!r} is neither epsilon nor v_prediction")
        _require(self.timesteps > 0, "timesteps", "must be positive")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of a model. A part that is None is absent; `vae` None with a U-Net means diffusion in pixels."""

    llm: LlamaConfig
    clip: ClipConfig | None = None
    unet: UNetConfig | None = None
    vae: VaeConfig | None = None
    diffusion: DiffusionConfig = DiffusionConfig()
    visual_projector: str = "linear"  # linear | mlp (two layers, GELU)
    dream_queries: int = 64
    dtype: str = "float32"  # compute: float32 | bfloat16; parameters being trained stay float32

    def __post_init__(self):
        _require(self.visual_projector in ("linear", "mlp"), "visual_projector", f"{self.visual_projector!r} is neither linear nor mlp")
        _require(self.dtype in ("float32", "bfloat16"), "dtype", f"{self.dtype!r} is neither float32 nor bfloat16")
        _require(self.dream_queries > 0, "dream_queries", "must be positive")
        _require(self.vae is None or self.unet is not None, "vae", "a VAE without a U-Net draws nothing")
        if self.unet and self.vae:
            channels = self.vae.latent_channels
            _require(self.unet.in_channels == channels, "unet.in_channels", f"{self.unet.in_channels} is not the VAE's latent_channels = {channels}")

    @property
    def decoder_size(self) -> int:
        """Side in pixels of the pictures that the model draws."""
        return self.unet.sample_size * (self.vae.downsampling if self.vae else 1)


def dreamllm_7b() -> ModelConfig:
    """Vicuna-7B, CLIP ViT-L/14 at 224 pixels and Stable Diffusion 2.1-base, as in the paper (Sec. 3)."""
    return ModelConfig(
        llm=LlamaConfig(remat="full"), clip=ClipConfig(), unet=UNetConfig(), vae=VaeConfig(), dtype="bfloat16"
    )


def tiny(vocab_size: int = 512) -> ModelConfig:
    """A model of the same shape that runs anywhere: 16-pixel pictures, diffusion in pixels."""
    return ModelConfig(
        llm=LlamaConfig(vocab_size=vocab_size, width=64, layers=2, heads=4, kv_heads=4, ffn_width=128, max_positions=512),
        clip=ClipConfig(image_size=16, patch_size=4, width=32, layers=2, heads=4, ffn_width=64, select_layer=-1),
        unet=UNetConfig(
            sample_size=16, in_channels=3, out_channels=3, block_channels=(16, 32), layers_per_block=1,
            cross_attention=(False, True), heads=(2, 4), context_width=32, norm_groups=8,
        ),
        diffusion=DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction"),
        dream_queries=4,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Run


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1, which takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        _require(all(s > 0 or s == -1 for s in sizes) and sizes.count(-1) <= 1, "mesh", f"{sizes}: each is positive, one may be -1")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where documents come from: a format of `data/sources`, a path where it needs one, and a split."""

    format: str  # shapes | storybook
    path: str = ""
    split: str = "train"  # train | eval


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Documents and the static shapes of their rows."""

    train: tuple[SourceConfig, ...]
    eval: tuple[SourceConfig, ...] = ()
    tokenizer: str = ""  # a sentencepiece model; empty: one is trained on the documents' own text
    tokenizer_vocab: int = 512  # pieces of a tokenizer trained here, without the added tokens
    template: str = "plain"  # chat template for parts with roles, see rows.TEMPLATES
    length: int = 2048  # L, tokens per row
    rows_per_group: int = 1  # R
    seen_slots: int = 6  # N, pictures seen per group
    dreamed_slots: int = 6  # M, pictures dreamed per group
    flip: bool = False  # mirror dreamed pictures at random
    max_bad_share: float = 0.01  # share of broken records above which a run stops
    threads: int = 2  # that decode pictures ahead of the step

    def __post_init__(self):
        _require(len(self.train) > 0, "train", "needs at least one source")
        _require(self.length > 2, "length", "must be at least 3")
        _require(self.rows_per_group > 0, "rows_per_group", "must be positive")
        _require(self.seen_slots >= 0 and self.dreamed_slots >= 0, "seen_slots", "slots cannot be negative")
        _require(0 <= self.max_bad_share <= 1, "max_bad_share", "is a share between 0 and 1")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The fused loss (paper eq. 1, 4, 6) and the official code's options."""

    lm_weight: float = 1.0
    image_weight: float = 10.0
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023)
    noise_offset: float = 0.0  # a per-channel shift of the noise, also in its target
    input_perturbation: float = 0.0  # extra noise in the U-Net's input only
    condition_dropout: float = 0.0  # share of pictures trained on the unconditional condition
    ce_chunk: int = 256  # positions per row whose logits exist at one time

    def __post_init__(self):
        _require(0 <= self.condition_dropout < 1, "condition_dropout", "is a share in [0, 1)")
        _require(self.ce_chunk > 0, "ce_chunk", "must be positive")
        _require(self.lm_weight >= 0 and self.image_weight >= 0, "lm_weight", "weights cannot be negative")


@dataclasses.dataclass(frozen=True)
class LrRule:
    """A factor on the learning rate of the parameters whose path the pattern finds."""

    pattern: str
    factor: float


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
        _require(self.schedule in ("cosine", "linear", "constant"), "schedule", f"{self.schedule!r} is none of cosine, linear, constant")
        _require(0 <= self.warmup_share <= 1, "warmup_share", "is a share between 0 and 1")
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "lies between 0 and 1")
        _require(self.learning_rate > 0, "learning_rate", "must be positive")
        _require(self.clip_norm > 0, "clip_norm", "must be positive")
        for pattern in self.trainable + self.frozen + tuple(rule.pattern for rule in self.lr_rules):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"trainable/frozen/lr_rules: {pattern!r} is no regular expression: {error}") from None


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Parameters taken from an earlier run before the first step: those whose path the pattern finds."""

    path: str
    pattern: str = "."


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run: what `python -m dreamjax.train` does."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    loss: LossConfig = LossConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: tuple[InitFrom, ...] = ()
    seed: int = 0
    total_steps: int = 1000
    batch_size: int = 8  # rows over all hosts
    accumulate: int = 1  # microbatches per step
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoints_kept: int = 2  # the newest ones; the best by held-back loss is kept besides
    eval_every: int = 0  # 0: never
    eval_batches: int = 4
    sample_every: int = 0  # 0: never
    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    skip_nonfinite: bool = False

    def __post_init__(self):
        for name in ("total_steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "checkpoints_kept"):
            _require(getattr(self, name) > 0, name, f"must be positive, is {getattr(self, name)}")
        for name in ("eval_every", "sample_every", "eval_batches", "sample_tokens", "seed"):
            _require(getattr(self, name) >= 0, name, f"cannot be negative, is {getattr(self, name)}")
        rows, context = self.data.rows_per_group, self.model.llm.max_positions
        divides = self.batch_size % (rows * self.accumulate) == 0
        _require(divides, "batch_size", f"{self.batch_size} rows is not a multiple of data.rows_per_group x accumulate = {rows} x {self.accumulate}")
        _require(self.data.length <= context, "data.length", f"{self.data.length} exceeds model.llm.max_positions = {context}")
        _require(not self.data.seen_slots or self.model.clip is not None, "data.seen_slots", "pictures cannot be seen without model.clip")
        _require(not self.data.dreamed_slots or self.model.unet is not None, "data.dreamed_slots", "pictures cannot be dreamed without model.unet")
        _require(self.eval_every == 0 or self.data.eval, "eval_every", "needs a source under data.eval")

    @property
    def groups(self) -> int:
        """G, groups of rows per step."""
        return self.batch_size // self.data.rows_per_group


# ----------------------------------------------------------------------------------------------------------------------
# From and to plain dicts


def from_dict(cls, values: typing.Mapping, path: str = "config"):
    """Builds the dataclass `cls` from nested mappings (a ConfigDict, parsed JSON).

    A ConfigError names the key that is unknown, missing, of the wrong type or out of range.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{path}.{unknown[0]}: unknown key; {path} has {', '.join(hints)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    for name in sorted(required - set(values)):
        raise ConfigError(f"{path}.{name}: is missing")
    converted = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def _convert(hint, value, path: str):
    if typing.get_origin(hint) is types.UnionType:  # X | None
        return None if value is None else _convert(typing.get_args(hint)[0], value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not hasattr(value, "items"):
            raise ConfigError(f"{path}: needs the keys of {hint.__name__}, not {value!r}")
        return from_dict(hint, dict(value.items()), path)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{path}: needs a list, not {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: needs {hint.__name__}, not {value!r}")
    return value


def to_dict(config) -> dict:
    """The inverse of `from_dict`: nested dicts and lists, fit for JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config
