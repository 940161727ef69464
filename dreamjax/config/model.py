"""Every setting of a model, part by part, as frozen dataclasses, and two presets of sizes."""

import dataclasses
import math

from dreamjax.config.validation import require, require_positive

ATTENTION = ("auto", "xla", "splash", "cudnn")


MOST = 2**24  # of any size: no model has more, and what is computed from sizes stays within 64 bits
LAYERS = 1000  # of transformer layers
BLOCKS = 32  # of a network that halves its resolution with each
LAYERS_PER_BLOCK = 100


def require_sizes(config, *names: str, most: int = MOST, or_zero: bool = False):
    """Requires that the named fields are positive, or zero where that is allowed, and no larger than any model has
    them.
    """
    require_positive(config, *names, or_zero=or_zero)
    for name in names:
        require(getattr(config, name) <= most, name, f"is above {most}, which no model has")


def require_blocks(config):
    """Requires `block_channels` of a network that `norm_groups` divides."""
    require(
        0 < len(config.block_channels) <= BLOCKS,
        "block_channels",
        f"needs 1 to {BLOCKS} blocks, not {len(config.block_channels)}",
    )
    for channels in config.block_channels:
        require(0 < channels <= MOST, "block_channels", f"needs positive numbers up to {MOST}")
        require(
            channels % config.norm_groups == 0,
            "norm_groups",
            f"{config.norm_groups} does not divide {channels} channels",
        )


def require_attention(config):
    """Requires a known name under `attention`."""
    require(config.attention in ATTENTION, "attention", f"{config.attention!r} is none of {', '.join(ATTENTION)}")


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
    # none | full | attention | dots: what the backward pass recomputes of each layer: all, all but attention, all but
    # products
    remat: str = "none"
    # auto (by platform and shape) | xla | splash | cudnn: forced wherever it can be used, see models/attention.py
    attention: str = "auto"

    def __post_init__(self):
        require_sizes(self, "vocab_size", "width", "heads", "kv_heads", "ffn_width", "max_positions")
        require_sizes(self, "layers", most=LAYERS)
        require_positive(self, "rope_theta", "rms_norm_eps")
        require(self.width % self.heads == 0, "width", f"{self.width} is not a multiple of heads = {self.heads}")
        require(self.heads % self.kv_heads == 0, "kv_heads", f"{self.kv_heads} does not divide heads = {self.heads}")
        require((self.width // self.heads) % 2 == 0, "heads", "RoPE rotates pairs: width / heads must be even")
        require(
            self.remat in ("none", "full", "attention", "dots"),
            "remat",
            f"{self.remat!r} is none of none, full, attention, dots",
        )
        require_attention(self)


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
    image_mean: tuple[float, ...] = (
        0.48145466,
        0.4578275,
        0.40821073,
    )  # of red, green, blue in CLIP's training pictures, full brightness is 1
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        require_sizes(self, "image_size", "patch_size", "width", "heads", "ffn_width")
        require_sizes(self, "layers", most=LAYERS)
        require_positive(self, "layer_norm_eps")
        require(
            self.image_size % self.patch_size == 0,
            "patch_size",
            f"{self.patch_size} does not divide image_size = {self.image_size}",
        )
        require(self.width % self.heads == 0, "width", f"{self.width} is not a multiple of heads = {self.heads}")
        require(
            self.activation in ("quick_gelu", "gelu"),
            "activation",
            f"{self.activation!r} is neither quick_gelu nor gelu",
        )
        for name in ("image_mean", "image_std"):
            require(
                len(getattr(self, name)) == 3 and all(map(math.isfinite, getattr(self, name))),
                name,
                "needs three numbers: red, green, blue",
            )
        require(min(self.image_std) > 0, "image_std", f"needs numbers above zero, not {self.image_std}")
        within = -self.layers - 1 <= self.select_layer <= self.layers
        require(within, "select_layer", f"{self.select_layer} is outside the {self.layers + 1} hidden states")

    @property
    def patches(self) -> int:
        """P, the number of patches of one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """A CLIP text transformer; the defaults are CLIP ViT-L/14's, which is Stable Diffusion 1.x's text encoder."""

    vocab_size: int = 49408
    positions: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    layer_norm_eps: float = 1e-5
    activation: str = "quick_gelu"  # quick_gelu | gelu
    end_token: int | None = (
        None  # whose first position is pooled; None: the highest id's, which is the same in CLIP's vocabulary
    )
    projection_width: int = 0  # of the space that texts and pictures share; 0: hidden states alone
    vision_width: int = 0  # of the picture encoder that is projected into it

    def __post_init__(self):
        require_sizes(self, "vocab_size", "positions", "width", "heads", "ffn_width")
        require_sizes(self, "layers", most=LAYERS)
        require_positive(self, "layer_norm_eps")
        require_sizes(self, "projection_width", "vision_width", or_zero=True)
        require(self.width % self.heads == 0, "width", f"{self.width} is not a multiple of heads = {self.heads}")
        require(
            self.activation in ("quick_gelu", "gelu"),
            "activation",
            f"{self.activation!r} is neither quick_gelu nor gelu",
        )
        require(
            (self.projection_width == 0) == (self.vision_width == 0),
            "vision_width",
            "and projection_width belong together",
        )


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
    attention: str = "auto"  # of positions among each other, as in LlamaConfig

    def __post_init__(self):
        require_sizes(self, "sample_size", "in_channels", "out_channels", "context_width", "norm_groups")
        require_sizes(self, "layers_per_block", most=LAYERS_PER_BLOCK)
        require_attention(self)
        require_blocks(self)
        for name in ("cross_attention", "heads"):
            require(
                len(getattr(self, name)) == len(self.block_channels),
                name,
                f"needs one entry per block, {len(self.block_channels)}",
            )
        for channels, heads in zip(self.block_channels, self.heads, strict=True):
            require(heads > 0 and channels % heads == 0, "heads", f"{heads} does not divide {channels} channels")
        require(
            self.sample_size % 2 ** (len(self.block_channels) - 1) == 0,
            "sample_size",
            f"{self.sample_size} cannot be halved {len(self.block_channels) - 1} times",
        )


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
        require_sizes(self, "image_channels", "latent_channels", "norm_groups")
        require_sizes(self, "layers_per_block", most=LAYERS_PER_BLOCK)
        require_positive(self, "scaling_factor")
        require_blocks(self)

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
    set_alpha_to_one: bool = False  # DDIM's last step leads to the clean picture; False: to the schedule's first entry

    def __post_init__(self):
        known = ("linear", "scaled_linear", "squaredcos_cap_v2")
        require(self.beta_schedule in known, "beta_schedule", f"{self.beta_schedule!r} is none of {', '.join(known)}")
        require(
            self.prediction in ("epsilon", "v_prediction"),
            "prediction",
            f"{self.prediction!r} is neither epsilon nor v_prediction",
        )
        require_sizes(self, "timesteps")
        require_positive(self, "beta_start", "beta_end")
        require_sizes(self, "steps_offset", or_zero=True)
        for name in ("beta_start", "beta_end"):
            require(getattr(self, name) < 1, name, f"is a share of variance below 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of a model. A part that is None is absent; `vae` None with a U-Net means diffusion in pixels."""

    llm: LlamaConfig | None = None
    clip: ClipConfig | None = None
    unet: UNetConfig | None = None
    vae: VaeConfig | None = None
    text_encoder: ClipTextConfig | None = None  # Stable Diffusion's own, for it as a baseline
    clip_text: ClipTextConfig | None = None  # CLIP's text tower with both projections, for ranking
    diffusion: DiffusionConfig = DiffusionConfig()
    visual_projector: str = "linear"  # linear | mlp (two layers, GELU)
    dream_queries: int = 64
    dtype: str = "float32"  # compute: float32 | bfloat16; parameters being trained stay float32

    def __post_init__(self):
        require(
            self.visual_projector in ("linear", "mlp"),
            "visual_projector",
            f"{self.visual_projector!r} is neither linear nor mlp",
        )
        require(self.dtype in ("float32", "bfloat16"), "dtype", f"{self.dtype!r} is neither float32 nor bfloat16")
        require_sizes(self, "dream_queries")
        require(self.vae is None or self.unet is not None, "vae", "a VAE without a U-Net draws nothing")
        require(
            self.clip_text is None or self.clip_text.projection_width > 0,
            "clip_text.projection_width",
            "ranking needs the projections",
        )
        if self.unet and self.vae:
            channels = self.vae.latent_channels
            require(
                self.unet.in_channels == channels,
                "unet.in_channels",
                f"{self.unet.in_channels} is not the VAE's latent_channels = {channels}",
            )

    @property
    def decoder_size(self) -> int:
        """Side in pixels of the images that the model draws; ValueError without a U-Net."""
        if self.unet is None:
            raise ValueError("a model without a U-Net draws no images")
        return self.unet.sample_size * (self.vae.downsampling if self.vae else 1)


def dreamllm_7b() -> ModelConfig:
    """Vicuna-7B, CLIP ViT-L/14 at 224 pixels and Stable Diffusion 2.1-base, as in the paper (Sec. 3)."""
    return ModelConfig(
        llm=LlamaConfig(remat="full"), clip=ClipConfig(), unet=UNetConfig(), vae=VaeConfig(), dtype="bfloat16"
    )


def tiny(vocab_size: int = 512) -> ModelConfig:
    """A model of the same shape that runs anywhere: 16-pixel pictures, diffusion in pixels."""
    return ModelConfig(
        llm=LlamaConfig(
            vocab_size=vocab_size, width=64, layers=2, heads=4, kv_heads=4, ffn_width=128, max_positions=512
        ),
        clip=ClipConfig(image_size=16, patch_size=4, width=32, layers=2, heads=4, ffn_width=64, select_layer=-1),
        unet=UNetConfig(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_channels=(16, 32),
            layers_per_block=1,
            cross_attention=(False, True),
            heads=(2, 4),
            context_width=32,
            norm_groups=8,
        ),
        diffusion=DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction="v_prediction"),
        dream_queries=4,
    )
