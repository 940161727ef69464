"""FLOPs of a step by formula: those that the model needs, without recomputation, padding or empty slots.

A multiply-add counts 2. Only matrix products and convolutions count. The backward pass costs a product as much again as
the forward pass for the gradient of its input, and once more for that of its weights where they train. The axis
letters are those of docs/architecture.md.
"""

import dataclasses
from collections.abc import Iterator

from dreamjax.config import ClipConfig, LlamaConfig, RunConfig, UNetConfig, VaeConfig
from dreamjax.config.validation import require_present
from dreamjax.document.batch import shape_of


@dataclasses.dataclass(frozen=True)
class Work:
    """Forward FLOPs, those with weights and those of attention scores and mixtures, which have none."""

    weights: float = 0.0
    scores: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.weights + other.weights, self.scores + other.scores)

    def __mul__(self, times: float) -> "Work":
        return Work(self.weights * times, self.scores * times)

    @property
    def forward(self) -> float:
        """All FLOPs of the forward pass."""
        return self.weights + self.scores

    def backward(self, trained: bool) -> float:
        """FLOPs of the gradients of the inputs, and of the weights where they are `trained`."""
        return self.weights * (2 if trained else 1) + self.scores * 2


def linear(rows: float, inputs: int, outputs: int) -> Work:
    """A matrix of weights applied to so many rows."""
    return Work(weights=2.0 * rows * inputs * outputs)


def attention(queries: float, keys: float, width: int) -> Work:
    """Scores and mixture of all heads, together `width` wide; causal attention has half as many keys on average."""
    return Work(scores=4.0 * queries * keys * width)


def llama_layer(config: LlamaConfig, length: int) -> Work:
    """One decoder layer over a row with one document."""
    kv = config.kv_heads * (config.width // config.heads)
    projections = linear(length, config.width, 2 * config.width + 2 * kv)
    return (
        projections
        + attention(length, (length + 1) / 2, config.width)
        + linear(length, config.width, 3 * config.ffn_width)
    )


def clip_image(config: ClipConfig) -> Work:
    """One image up to the selected hidden state."""
    tokens, width = config.patches + 1, config.width
    layer = (
        linear(tokens, width, 4 * width)
        + attention(tokens, tokens, width)
        + linear(tokens, width, 2 * config.ffn_width)
    )
    layers = config.select_layer % (config.layers + 1)
    return linear(config.patches, 3 * config.patch_size**2, width) + layer * layers


def conv(side: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Work:
    """A convolution with a square kernel (1 or 3) whose result has so many positions a side.

    What would fall on the padding is not counted.
    """
    outside = {1: 0, 3: 2 if stride == 1 else 1}[kernel]
    return linear((kernel * side - outside) ** 2, inputs, outputs)


def _resnet(side: int, inputs: int, outputs: int, time: int = 0) -> Work:
    shortcut = conv(side, inputs, outputs, 1) if inputs != outputs else Work()
    return (
        conv(side, inputs, outputs)
        + conv(side, outputs, outputs)
        + shortcut
        + (linear(1, time, outputs) if time else Work())
    )


def _unet_transformer(config: UNetConfig, side: int, width: int, queries: int) -> tuple[Work, Work]:
    """(up to the cross-attention, from it on) of one transformer."""
    positions = side**2
    before = linear(positions, width, 5 * width) + attention(positions, positions, width)  # in, q, k, v, out
    cross = (
        linear(positions, width, 2 * width)
        + linear(queries, config.context_width, 2 * width)
        + attention(positions, queries, width)
    )
    return before, cross + linear(positions, width, 8 * width) + linear(positions, 4 * width, width) + linear(
        positions, width, width
    )


def unet_layers(config: UNetConfig, queries: int) -> Iterator[tuple[Work, bool]]:
    """(work, True where it reads the condition) of the layers in order, for one image."""
    side, first, time = config.sample_size, config.block_channels[0], 4 * config.block_channels[0]
    yield linear(1, first, time) + linear(1, time, time) + conv(side, config.in_channels, first), False
    skips, width = [first], first

    def block(level: int, inputs: int, with_transformer: bool) -> Iterator[tuple[Work, bool]]:
        channels = config.block_channels[level]
        yield _resnet(side, inputs, channels, time), False
        if with_transformer:
            before, after = _unet_transformer(config, side, channels, queries)
            yield before, False
            yield after, True

    levels = len(config.block_channels)
    for level in range(levels):
        for _ in range(config.layers_per_block):
            yield from block(level, width, config.cross_attention[level])
            width = config.block_channels[level]
            skips.append(width)
        if level < levels - 1:
            side = (side + 1) // 2
            yield conv(side, width, width, stride=2), False
            skips.append(width)
    yield from block(levels - 1, width, True)
    yield from block(levels - 1, width, False)
    for level in reversed(range(levels)):
        for _ in range(config.layers_per_block + 1):
            yield from block(level, width + skips.pop(), config.cross_attention[level])
            width = config.block_channels[level]
        if level:
            side *= 2
            yield conv(side, width, width), False
    yield conv(side, width, config.out_channels), False


def unet_image(config: UNetConfig, queries: int) -> Work:
    """The U-Net's forward pass for one image."""
    return sum((work for work, _ in unet_layers(config, queries)), Work())


def unet_after_condition(config: UNetConfig, queries: int) -> Work:
    """The part of the forward pass from the first layer that reads the condition on: all that its gradient passes."""
    layers = list(unet_layers(config, queries))
    first = next((i for i, (_, reads) in enumerate(layers) if reads), len(layers))
    return sum((work for work, _ in layers[first:]), Work())


def vae_encoder_image(config: VaeConfig, size: int) -> Work:
    """The VAE's encoder for one image of `size` pixels a side."""
    side, width = size, config.block_channels[0]
    total = conv(side, config.image_channels, width)
    for level, channels in enumerate(config.block_channels):
        for _ in range(config.layers_per_block):
            total += _resnet(side, width, channels)
            width = channels
        if level < len(config.block_channels) - 1:
            side //= 2
            total += conv(side, width, width, stride=2)
    total += _resnet(side, width, width) * 2 + linear(side**2, width, 4 * width) + attention(side**2, side**2, width)
    latents = 2 * config.latent_channels
    return total + conv(side, width, latents) + conv(side, latents, latents, 1)


def step_flops(config: RunConfig, trained: set[str]) -> dict[str, float]:
    """FLOPs of a step over all devices by part, every row full and every slot used.

    `trained` names the parts with trained weights.
    """
    model, shape = config.model, shape_of(config)
    llm = require_present(model.llm, "config.model.llm")
    rows, inputs = shape.groups * shape.rows, shape.groups * shape.inputs
    targets = shape.groups * shape.targets if config.loss.image_weight else 0
    work = {"llm": rows * _both_passes(llama_layer(llm, shape.length) * llm.layers, "llm" in trained)}
    if config.loss.lm_weight:
        work["head"] = rows * _both_passes(linear(shape.length, llm.width, llm.vocab_size), "llm" in trained)
    encoded = bool(config.data.train[0].encoded)
    if inputs:
        work |= _input_image_flops(config, llm, inputs, trained, encoded)
    if targets:
        work |= _target_image_flops(config, llm, targets, trained, encoded)
    return work


def _both_passes(work: Work, trained: bool) -> float:
    return work.forward + work.backward(trained)


def _input_image_flops(
    config: RunConfig, llm: LlamaConfig, images: int, trained: set[str], encoded: bool
) -> dict[str, float]:
    """FLOPs of CLIP, unless its outputs are `encoded` in the data, and of the visual projector."""
    clip = require_present(config.model.clip, "config.model.clip")
    encoder = clip_image(clip)
    projector = linear(clip.patches, clip.width, llm.width)
    if config.model.visual_projector == "mlp":
        projector += linear(clip.patches, llm.width, llm.width)
    gradients = ("visual_projector" in trained) + ("clip" in trained)
    return {
        "clip": images * (encoder.forward + (encoder.backward(True) if "clip" in trained else 0)) * (not encoded),
        "visual_projector": images * (projector.forward + projector.weights * gradients),
    }


def _target_image_flops(
    config: RunConfig, llm: LlamaConfig, images: int, trained: set[str], encoded: bool
) -> dict[str, float]:
    """FLOPs of the condition projector, the U-Net and the VAE's encoder, unless its outputs are `encoded`."""
    model = config.model
    unet = require_present(model.unet, "config.model.unet")
    projector = linear(model.dream_queries, llm.width, unet.context_width)
    forward = unet_image(unet, model.dream_queries)
    backward = (
        forward.backward(True) if "unet" in trained else unet_after_condition(unet, model.dream_queries).backward(False)
    )
    work = {
        "condition_projector": images * _both_passes(projector, "condition_projector" in trained),
        "unet": images * (forward.forward + backward),
    }
    if model.vae:
        vae = vae_encoder_image(model.vae, model.decoder_size)
        work["vae"] = images * (vae.forward + (vae.backward(True) if "vae" in trained else 0)) * (not encoded)
    return work
