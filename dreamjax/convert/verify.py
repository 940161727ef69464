"""Verification of an imported model: the outputs of each part against torch's with the source's own weights.

The torch module is built from the source's configuration file and tensors alone, the JAX module from the model folder.
Inputs are random. Both compute in float32, then in bfloat16; errors are relative to torch in float32, torch's own error
in bfloat16 included.

torch runs first and is freed, then the JAX parameters are in memory in their stored dtype. torch's LLM has one layer at
a time in memory, other parts are complete in float32: so the peak is the JAX LLM (14 GB for 7 billion parameters in
half precision).
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.convert import detect, exporter, finite, torch_reference
from dreamjax.convert.assemble import RawPart, materialise
from dreamjax.convert.tensors import require_torch
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model

TOLERANCE = 1e-4  # on the relative error in float32
TIMES, MORE = 3, 1e-3  # bfloat16 tolerance: TIMES x torch's own error in bfloat16 + MORE
TOKENS = 24  # of texts


def verify(folder: epath.Path, sources: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """One row for each part and output: part, output, float32, bfloat16, torch_bfloat16 (relative errors against torch
    in float32), not_finite, ok.

    float32 and bfloat16 are errors of the JAX module; not_finite: {parameter: number of NaN or infinite weights}; ok:
    both errors are within the tolerances above. ConfigError where the sources hold no part
    of the model, or torch is missing.
    """
    opened = exporter.open_model(folder)
    require_torch(epath.Path(sources[0]))
    raw_parts = {part: raw_part for source in sources for part, raw_part in detect.read(source).raw_parts.items()}
    parts = [
        part
        for part in ("llm", "clip", "text_encoder", "clip_text", "unet", "vae")
        if part in raw_parts and getattr(opened.card.model, part)
    ]
    if not parts:
        raise ConfigError(f"--source: {', '.join(sources)}: none holds a part of {folder}")
    rows = []
    for part in parts:
        leaves = {
            path: leaf
            for path, leaf in opened.leaves.items()
            if path.split("/")[0] in (part, "clip" if part == "clip_text" else part)
        }
        rows += compare(part, opened.card.model, leaves, raw_parts, np.random.default_rng(seed))
        gc.collect()
    return rows


def format_summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, with the tolerances."""
    lines = [f"{'part':14s}{'output':18s}{'float32':>12s}{'bfloat16':>12s}{'torch bf16':>12s}"]
    for row in rows:
        errors = "".join(f"{row[key]:12.2e}" for key in ("float32", "bfloat16", "torch_bfloat16"))
        lines.append(f"{row['part']:14s}{row['output']:18s}{errors}{'' if row['ok'] else '  differs'}")
    lines += dict.fromkeys(
        f"{row['part']:14s}{finite.format_summary(row['not_finite'])}" for row in rows if row["not_finite"]
    )
    wrong = sum(not row["ok"] for row in rows)
    limits = f"the tolerances are {TOLERANCE:g} in float32, and in bfloat16 {TIMES} x torch's own + {MORE:g}"
    return "\n".join([*lines, f"{wrong} of {len(rows)} differ; {limits}" if wrong else f"all the same; {limits}"])


def compare(
    part: str, model: ModelConfig, leaves: dict, raw_parts: dict[str, RawPart], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The rows of one part: the model's `leaves` against the source's tensors."""
    inputs = _inputs(part, model, raw_parts, rng)
    expected, rounded = (torch_reference.llm_outputs if part == "llm" else torch_reference.module_outputs)(
        part, model, raw_parts, inputs
    )
    gc.collect()
    counting, counts = finite.counted(leaves)
    params = materialise(counting, dtype=None)
    computed = {
        dtype: jax.device_get(_jitted(part, _submodel(part, model), dtype)(params, inputs))
        for dtype in ("float32", "bfloat16")
    }
    jax.tree.map(lambda leaf: leaf.delete(), params)
    rows = []
    for output, value in expected.items():
        errors = {
            "float32": computed["float32"][output],
            "bfloat16": computed["bfloat16"][output],
            "torch_bfloat16": rounded[output],
        }
        if output == "logits":  # the model may have rows for added tokens
            errors = {name: other[..., : value.shape[-1]] for name, other in errors.items()}
        errors = {name: relative_error(other, value) for name, other in errors.items()}
        ok = errors["float32"] <= TOLERANCE and errors["bfloat16"] <= TIMES * errors["torch_bfloat16"] + MORE
        rows.append({"part": part, "output": output, **errors, "not_finite": counts, "ok": ok})
    return rows


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of `theirs`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _submodel(part: str, model: ModelConfig) -> ModelConfig:
    """The model reduced to what one part needs, so that models with the same part share a compiled function."""
    needed = {"clip_text": ("clip_text", "clip"), "vae": ("vae", "unet")}.get(part, (part,))
    return ModelConfig(**{name: getattr(model, name) for name in needed})


def _inputs(
    part: str, model: ModelConfig, raw_parts: Mapping[str, RawPart], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random inputs; images and feature maps are channels-last."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def tokens(vocabulary: int, length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, (2, length)).astype(np.int32)

    def pixels() -> np.ndarray:
        side = model.clip.image_size if model.clip else 1
        return normal(2, side, side, 3)

    match part:
        case "llm":
            llm = require_present(model.llm, part)
            # The source has no added tokens.
            vocabulary = min(llm.vocab_size, raw_parts[part].config.get("vocab_size", llm.vocab_size))
            return {"tokens": tokens(vocabulary, min(TOKENS, llm.max_positions))}
        case "clip":
            return {"pixels": pixels()}
        case "text_encoder":
            text_encoder = require_present(model.text_encoder, part)
            return {"tokens": tokens(text_encoder.vocab_size, text_encoder.positions)}
        case "clip_text":
            clip_text = require_present(model.clip_text, part)
            return {"tokens": tokens(clip_text.vocab_size, clip_text.positions), "pixels": pixels()}
        case "unet":
            unet = require_present(model.unet, part)
            timesteps = rng.integers(0, model.diffusion.timesteps, 2).astype(np.int32)
            return {
                "latents": normal(2, unet.sample_size, unet.sample_size, unet.in_channels),
                "timesteps": timesteps,
                "context": normal(2, 7, unet.context_width),
            }
    vae = require_present(model.vae, part)
    side = 8 * vae.downsampling
    return {"images": normal(1, side, side, vae.image_channels), "latents": normal(1, 8, 8, vae.latent_channels)}


@functools.lru_cache(maxsize=32)
def _jitted(part: str, model: ModelConfig, dtype: str) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """The compiled function from (parameters, inputs) to outputs in float32, for compute dtype `dtype`."""
    config = dataclasses.replace(model, dtype=dtype)

    def run(params: dict, inputs: dict) -> dict[str, jax.Array]:
        apply = functools.partial(Model(config, params).apply, part)
        match part:
            case "llm":
                embeds = apply(inputs["tokens"], method="embed")
                hidden, _ = apply(embeds, jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2]))
                return {"hidden": hidden, "logits": apply(hidden, method="logits")}
            case "clip":
                return {
                    "hidden": apply(inputs["pixels"]),
                    "pooled": apply(inputs["pixels"], method="pooled"),
                }
            case "text_encoder":
                return {
                    "hidden": apply(inputs["tokens"]),
                    "pooled": apply(inputs["tokens"], method="pooled"),
                }
            case "clip_text":
                outputs = {"text": apply(inputs["tokens"], method="embed_text")}
                if config.clip:
                    pooled = Model(config, params).apply("clip", inputs["pixels"], method="pooled")
                    outputs["scores"] = apply(inputs["tokens"], pooled, method="scores")
                return outputs
            case "unet":
                return {"prediction": apply(inputs["latents"], inputs["timesteps"], inputs["context"])}
        mean, logvar = apply(inputs["images"], method="encode")
        return {"mean": mean, "logvar": logvar, "decoded": apply(inputs["latents"], method="decode")}

    return jax.jit(lambda params, inputs: jax.tree.map(lambda value: value.astype(jnp.float32), run(params, inputs)))
