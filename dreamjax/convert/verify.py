"""Our numbers against torch's: each part of a model folder beside the class of transformers or diffusers with the
source's own weights.

The torch side is built from the source's configuration file and tensors alone; ours comes from the model folder. Inputs
are random. Both compute in float32, then in bfloat16, where the error is that of ours against torch's float32 beside
torch's own.

Torch goes first and is freed, then ours stands in memory in the dtype that it is stored in. Torch's LLM has one layer
at a time in memory, its other parts are whole in float32: so the most that is held is our LLM (14 GB for 7 billion
parameters in half precision).
"""

import dataclasses
import functools
import gc
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dreamjax.config import ModelConfig
from dreamjax.convert import detect, exporter, finite, tables
from dreamjax.convert.assemble import Raw, materialise, shapes_of
from dreamjax.convert.formats import clip, llama
from dreamjax.convert.mapping import Table, renamed
from dreamjax.convert.settings import Settings
from dreamjax.convert.tensors import Tensor, Tensors, require_torch
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm

TOLERANCE = 1e-4  # of the relative error in float32
TIMES, MORE = 3, 1e-3  # in bfloat16 it may be so many times torch's own in bfloat16, and this more
TOKENS = 24  # of texts


def verify(folder: epath.Path, given: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """One row for each part and output: part, output, float32, bfloat16, torch_bfloat16 (relative errors against torch
    in float32), not_finite, ok.

    float32 and bfloat16 are ours; not_finite: {parameter: weights of ours that are NaN or infinite}; ok: both within
    the limits above. ConfigError where the sources hold no part that the model has, or torch is missing.
    """
    opened = exporter.open_model(folder)
    require_torch(epath.Path(given[0]))
    raw = {part: one for source in given for part, one in detect.read(source).raw.items()}
    parts = [
        part
        for part in ("llm", "clip", "text_encoder", "clip_text", "unet", "vae")
        if part in raw and getattr(opened.card.model, part)
    ]
    if not parts:
        raise ConfigError(f"--source: {', '.join(given)}: none holds a part of {folder}")
    rows = []
    for part in parts:
        leaves = {
            path: leaf
            for path, leaf in opened.leaves.items()
            if path.split("/")[0] in (part, "clip" if part == "clip_text" else part)
        }
        rows += compare(part, opened.card.model, leaves, raw, np.random.default_rng(seed))
        gc.collect()
    return rows


def format_summary(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [f"{'part':14s}{'output':18s}{'float32':>12s}{'bfloat16':>12s}{'torch bf16':>12s}"]
    for row in rows:
        errors = "".join(f"{row[key]:12.2e}" for key in ("float32", "bfloat16", "torch_bfloat16"))
        lines.append(f"{row['part']:14s}{row['output']:18s}{errors}{'' if row['ok'] else '  differs'}")
    lines += dict.fromkeys(
        f"{row['part']:14s}{finite.format_summary(row['not_finite'])}" for row in rows if row["not_finite"]
    )
    wrong = sum(not row["ok"] for row in rows)
    limits = f"the limits are {TOLERANCE:g} in float32, and in bfloat16 {TIMES} x torch's own + {MORE:g}"
    return "\n".join([*lines, f"{wrong} of {len(rows)} differ; {limits}" if wrong else f"all the same; {limits}"])


def compare(
    part: str, model: ModelConfig, leaves: dict, raw: dict[str, Raw], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The rows of one part: our `leaves` against the source's own tensors."""
    inputs = _inputs(part, model, raw, rng)
    expected, rounded = (torch_llm if part == "llm" else _torch_outputs)(part, model, raw, inputs)
    gc.collect()
    watched, counts = finite.counted(leaves)
    params = materialise(watched, dtype=None)
    ours = {
        dtype: jax.device_get(_our_program(part, _alone(part, model), dtype)(params, inputs))
        for dtype in ("float32", "bfloat16")
    }
    jax.tree.map(lambda leaf: leaf.delete(), params)
    rows = []
    for output, value in expected.items():
        errors = {
            "float32": ours["float32"][output],
            "bfloat16": ours["bfloat16"][output],
            "torch_bfloat16": rounded[output],
        }
        if output == "logits":  # where ours has rows for added tokens
            errors = {name: other[..., : value.shape[-1]] for name, other in errors.items()}
        errors = {name: relative_error(other, value) for name, other in errors.items()}
        ok = errors["float32"] <= TOLERANCE and errors["bfloat16"] <= TIMES * errors["torch_bfloat16"] + MORE
        rows.append({"part": part, "output": output, **errors, "not_finite": counts, "ok": ok})
    return rows


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _alone(part: str, model: ModelConfig) -> ModelConfig:
    """The model as far as a part computes, so that models with the same part share its program."""
    needed = {"clip_text": ("clip_text", "clip"), "vae": ("vae", "unet")}.get(part, (part,))
    return ModelConfig(**{name: getattr(model, name) for name in needed})


def _inputs(part: str, model: ModelConfig, raw: Mapping[str, Raw], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs; pictures and feature maps channels-last."""

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    def tokens(vocabulary, length):
        return rng.integers(0, vocabulary, (2, length)).astype(np.int32)

    match part:
        case "llm":
            known = min(
                model.llm.vocab_size, raw["llm"].config.get("vocab_size", model.llm.vocab_size)
            )  # the source has no added tokens
            return {"tokens": tokens(known, min(TOKENS, model.llm.max_positions))}
        case "clip":
            return {"pixels": normal(2, model.clip.image_size, model.clip.image_size, 3)}
        case "text_encoder":
            return {"tokens": tokens(model.text_encoder.vocab_size, model.text_encoder.positions)}
        case "clip_text":
            side = model.clip.image_size if model.clip else 1
            return {
                "tokens": tokens(model.clip_text.vocab_size, model.clip_text.positions),
                "pixels": normal(2, side, side, 3),
            }
        case "unet":
            side, channels = model.unet.sample_size, model.unet.in_channels
            timesteps = rng.integers(0, model.diffusion.timesteps, 2).astype(np.int32)
            return {
                "latents": normal(2, side, side, channels),
                "timesteps": timesteps,
                "context": normal(2, 7, model.unet.context_width),
            }
    side, factor = 8 * model.vae.downsampling, model.vae.downsampling
    return {
        "images": normal(1, side, side, model.vae.image_channels),
        "latents": normal(1, side // factor, side // factor, model.vae.latent_channels),
    }


@functools.lru_cache(maxsize=32)
def _our_program(part: str, model: ModelConfig, dtype: str) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """The compiled function from (parameters, inputs) to outputs in float32, of a model that computes in `dtype`."""
    parts = dreamllm.build(dataclasses.replace(model, dtype=dtype))

    def run(params: dict, inputs: dict) -> dict[str, jax.Array]:
        module, own = getattr(parts, part), {"params": params[part]}
        match part:
            case "llm":
                embeds = module.apply(own, inputs["tokens"], method="embed")
                hidden, _ = module.apply(own, embeds, jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2]))
                return {"hidden": hidden, "logits": module.apply(own, hidden, method="logits")}
            case "clip":
                return {
                    "hidden": module.apply(own, inputs["pixels"]),
                    "pooled": module.apply(own, inputs["pixels"], method="pooled"),
                }
            case "text_encoder":
                return {
                    "hidden": module.apply(own, inputs["tokens"]),
                    "pooled": module.apply(own, inputs["tokens"], method="pooled"),
                }
            case "clip_text":
                found = {"text": module.apply(own, inputs["tokens"], method="embed_text")}
                if parts.clip:
                    pooled = parts.clip.apply({"params": params["clip"]}, inputs["pixels"], method="pooled")
                    found["scores"] = module.apply(own, inputs["tokens"], pooled, method="scores")
                return found
            case "unet":
                return {"prediction": module.apply(own, inputs["latents"], inputs["timesteps"], inputs["context"])}
        mean, logvar = module.apply(own, inputs["images"], method="encode")
        return {"mean": mean, "logvar": logvar, "decoded": module.apply(own, inputs["latents"], method="decode")}

    return jax.jit(lambda params, inputs: jax.tree.map(lambda value: value.astype(jnp.float32), run(params, inputs)))


# ----------------------------------------------------------------------------------------------------------------------
# torch


def _torch_outputs(part: str, model: ModelConfig, raw: dict[str, Raw], inputs: dict) -> tuple[dict, dict]:
    """(outputs in float32, outputs in bfloat16) of the torch class with the source's weights."""
    import torch

    module = torch_module(part, model, raw).eval()
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    found = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            _cast(module, dtype)
            cast = {
                name: value.to(dtype) if value.is_floating_point() else value.long() for name, value in given.items()
            }
            outputs = _run_torch(part, model, module, {name: _channels_first(value) for name, value in cast.items()})
            found.append({name: _channels_last(value.float()).numpy() for name, value in outputs.items()})
    return found[0], found[1]


def torch_llm(part: str, model: ModelConfig, raw: dict[str, Raw], inputs: dict) -> tuple[dict, dict]:
    """The same of an LLM, in a module of one layer that gets the weights of each in turn."""
    import torch

    table = tables.of(part, model, shapes_of(model))
    named = {renamed(table, name): tensor for name, tensor in raw[part].tensors.items()}

    def within(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}

    first = {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith("model.layers.") or name.startswith("model.layers.0.")
    }
    module = _load_llm({**raw[part].config, "num_hidden_layers": 1}, first).eval()
    body, norm, found = module.model, module.model.norm, []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            body.norm = norm
            _cast(module, dtype)
            body.norm = torch.nn.Identity()  # what a layer gives goes into the next as it is
            x = body.embed_tokens(torch.tensor(inputs["tokens"]).long())
            for i in range(table.layers):
                _fill(body.layers[0], within(f"model.layers.{i}."), table)
                x = body(inputs_embeds=x, use_cache=False).last_hidden_state
            hidden = norm(x)
            found.append({"hidden": hidden.float().numpy(), "logits": module.lm_head(hidden).float().numpy()})
    return found[0], found[1]


def _cast(module, dtype):
    """Its parameters in another dtype; buffers, the angles of rotary positions, stay as they are made."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _channels_first(value):
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value


def _channels_last(value):
    return value.permute(0, 2, 3, 1) if value.ndim == 4 else value


def _run_torch(part: str, model: ModelConfig, module, inputs: dict) -> dict:
    match part:
        case "clip":
            found = module(pixel_values=inputs["pixels"], output_hidden_states=True)
            return {"hidden": found.hidden_states[model.clip.select_layer], "pooled": found.pooler_output}
        case "text_encoder":
            found = module(input_ids=inputs["tokens"])
            return {"hidden": found.last_hidden_state, "pooled": found.pooler_output}
        case "clip_text":
            side = module.config.vision_config.image_size
            pixels = inputs["pixels"] if model.clip else inputs["pixels"].new_zeros(2, 3, side, side)
            found = module(input_ids=inputs["tokens"], pixel_values=pixels)
            return {"text": found.text_embeds} | ({"scores": found.logits_per_image} if model.clip else {})
        case "unet":
            return {"prediction": module(inputs["latents"], inputs["timesteps"], inputs["context"]).sample}
    posterior = module.encode(inputs["images"]).latent_dist
    return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": module.decode(inputs["latents"]).sample}


def torch_module(part: str, model: ModelConfig, raw: dict[str, Raw]):
    """The class of transformers or diffusers, as the source's own configuration says, with the source's tensors in
    float32.
    """
    import diffusers
    import transformers

    config = raw[part].config
    tensors = {**raw["clip"].tensors, **raw[part].tensors} if part == "clip_text" else raw[part].tensors
    match part:
        case "llm":
            return _load_llm(
                config, {renamed(llama.table(model.llm), name): tensor for name, tensor in tensors.items()}
            )
        case "clip":

            def make():
                return transformers.CLIPVisionModel(
                    transformers.CLIPVisionConfig(**clip.tower(Settings(config, part), "vision_config").values)
                )
        case "text_encoder":

            def make():
                return transformers.CLIPTextModel(
                    transformers.CLIPTextConfig(**clip.tower(Settings(config, part), "text_config").values)
                )
        case "clip_text":

            def make():
                return transformers.CLIPModel(transformers.CLIPConfig(**config))
        case "unet":

            def make():
                return diffusers.UNet2DConditionModel.from_config(config)
        case _:

            def make():
                return diffusers.AutoencoderKL.from_config(config)

    module = make().float()
    _fill(module, tensors, tables.of(part, model, shapes_of(model)))
    return module


def _load_llm(config: dict, tensors: Tensors):
    """LlamaForCausalLM in float32 as transformers itself loads it, so that it decides whether the head is the
    embedding.
    """
    import torch
    import transformers

    own = {
        key: value
        for key, value in config.items()
        if key not in ("model_type", "architectures", "plugins_init_kwargs", "plugins_type", "torch_dtype", "dtype")
    }
    state = {
        name: torch.from_numpy(_read_whole(tensor))
        for name, tensor in tensors.items()
        if not any(re.search(pattern, name) for pattern in llama.LEFT)
    }
    module, report = transformers.LlamaForCausalLM.from_pretrained(
        None, config=transformers.LlamaConfig(**own), state_dict=state, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ConfigError(f"LlamaForCausalLM: the source has nothing for {sorted(report['missing_keys'])[0]}")
    return module


def _read_whole(tensor: Tensor) -> np.ndarray:
    return np.array(
        tensor.read((slice(None),) * len(tensor.shape)), np.float32
    )  # a copy: torch warns of arrays that it may not write to


def _fill(module, tensors: Tensors, table: Table):
    """Copies the source's tensors into a torch module; ConfigError where one of its parameters gets none."""
    import torch

    state = module.state_dict()
    left = {name for name, _ in module.named_parameters()}
    for name, tensor in tensors.items():
        # Some versions of transformers have the towers' prefixes in their names and some have not.
        spelled = (
            name,
            *(new.removeprefix(p) for new in [renamed(table, name)] for p in ("", "vision_model.", "text_model.")),
        )
        found = next((one for one in spelled if one in state), None)
        if found is None:
            continue
        with torch.no_grad():
            state[found].copy_(torch.from_numpy(_read_whole(tensor)).reshape(state[found].shape))
        left.discard(found)
    if left:
        raise ConfigError(f"{type(module).__name__}: the source has nothing for {sorted(left)[0]}")
