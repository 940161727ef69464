"""FLOPs of a step by formula: what the model needs, whatever a program computes twice, pads or leaves empty.

A multiply-add counts 2. Only matrix products and convolutions count. The backward pass costs a product as much again as
the forward pass for the gradient of its input, and once more for that of its weights where they train. Axes as in
DESIGN's legend.
"""

import dataclasses
from collections.abc import Iterator

from dreamjax.config import ClipConfig, LlamaConfig, RunConfig, UNetConfig, VaeConfig
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
        return self.weights + self.scores

    def backward(self, trained: bool) -> float:
        """Of the gradient to the input.

        With that to the weights where they are `trained`. A product of two inputs has two gradients.
        """
        return self.weights * (2 if trained else 1) + self.scores * 2


def linear(rows: float, inputs: int, outputs: int) -> Work:
    """A matrix of weights applied to so many rows."""
    return Work(weights=2.0 * rows * inputs * outputs)


def attention(queries: float, keys: float, width: int) -> Work:
    """Scores and mixture of all heads, together `width` wide; causal attention has half as many keys on average."""
    return Work(scores=4.0 * queries * keys * width)


def llama_layer(config: LlamaConfig, length: int) -> Work:
    """One decoder layer over a row that holds one document."""
    kv = config.kv_heads * (config.width // config.heads)
    projections = linear(length, config.width, 2 * config.width + 2 * kv)
    return (
        projections
        + attention(length, (length + 1) / 2, config.width)
        + linear(length, config.width, 3 * config.ffn_width)
    )


def clip_image(config: ClipConfig) -> Work:
    """One picture up to the selected hidden state."""
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
    """(work, whether it reads the condition itself) of the layers in order, for one picture."""
    side, first, time = config.sample_size, config.block_channels[0], 4 * config.block_channels[0]
    yield linear(1, first, time) + linear(1, time, time) + conv(side, config.in_channels, first), False
    skips, width = [first], first

    def block(level: int, inputs: int, with_transformer: bool):
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
    """The U-Net's forward pass for one picture."""
    return sum((work for work, _ in unet_layers(config, queries)), Work())


def unet_behind_condition(config: UNetConfig, queries: int) -> Work:
    """What of it stands behind the first layer that reads the condition.

    A gradient to the condition goes through no more.
    """
    layers = list(unet_layers(config, queries))
    first = next((i for i, (_, reads) in enumerate(layers) if reads), len(layers))
    return sum((work for work, _ in layers[first:]), Work())


def vae_encoder_image(config: VaeConfig, size: int) -> Work:
    """The VAE's encoder for one picture of `size` pixels a side."""
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
    rows, inputs, targets = shape.groups * shape.rows, shape.groups * shape.inputs, shape.groups * shape.targets
    encoded = bool(config.data.train[0].encoded)

    def both(work, part):
        return work.forward + work.backward(part in trained)

    targets = targets if config.loss.image_weight else 0
    work = {"llm": rows * both(llama_layer(model.llm, shape.length) * model.llm.layers, "llm")}
    if config.loss.lm_weight:
        work["head"] = rows * both(linear(shape.length, model.llm.width, model.llm.vocab_size), "llm")
    if inputs:
        clip = clip_image(model.clip)
        work["clip"] = inputs * (clip.forward + (clip.backward(True) if "clip" in trained else 0)) * (not encoded)
        projector = linear(model.clip.patches, model.clip.width, model.llm.width)
        if model.visual_projector == "mlp":
            projector += linear(model.clip.patches, model.llm.width, model.llm.width)
        work["visual_projector"] = inputs * (
            projector.forward
            + projector.weights * ("visual_projector" in trained)
            + projector.weights * ("clip" in trained)
        )
    if targets:
        work["condition_projector"] = targets * both(
            linear(model.dream_queries, model.llm.width, model.unet.context_width), "condition_projector"
        )
        unet = unet_image(model.unet, model.dream_queries)
        backward = (
            unet.backward(True)
            if "unet" in trained
            else unet_behind_condition(model.unet, model.dream_queries).backward(False)
        )
        work["unet"] = targets * (unet.forward + backward)
        if model.vae:
            vae = vae_encoder_image(model.vae, model.decoder_size)
            work["vae"] = targets * (vae.forward + (vae.backward(True) if "vae" in trained else 0)) * (not encoded)
    return work
