"""Outputs of torch: classes of transformers and diffusers with a source's own configuration and weights."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.convert import tables
from dreamjax.convert.assemble import RawPart, shapes_of
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, llama
from dreamjax.convert.mapping import Table, current_name
from dreamjax.convert.tensors import Tensor, Tensors
from dreamjax.errors import ConfigError

Outputs = dict[str, np.ndarray]  # float32, channels-last


def module_outputs(
    part: str, model: ModelConfig, raw_parts: dict[str, RawPart], inputs: dict
) -> tuple[Outputs, Outputs]:
    """(float32 outputs, bfloat16 outputs) of the torch class with the source's weights."""
    import torch

    module = torch_module(part, model, raw_parts).eval()
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    by_dtype = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            _cast(module, dtype)
            cast_tensors = {
                name: value.to(dtype) if value.is_floating_point() else value.long() for name, value in tensors.items()
            }
            outputs = _run_torch(
                part, model, module, {name: _channels_first(value) for name, value in cast_tensors.items()}
            )
            by_dtype.append({name: _channels_last(value.float()).numpy() for name, value in outputs.items()})
    return by_dtype[0], by_dtype[1]


def llm_outputs(part: str, model: ModelConfig, raw_parts: dict[str, RawPart], inputs: dict) -> tuple[Outputs, Outputs]:
    """(float32 outputs, bfloat16 outputs) of an LLM, computed in a module of one layer at a time to save memory."""
    import torch

    table = tables.of(part, model, shapes_of(model))
    named = {current_name(table, name): tensor for name, tensor in raw_parts[part].tensors.items()}

    def within(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}

    first = {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith("model.layers.") or name.startswith("model.layers.0.")
    }
    module = _load_llm({**raw_parts[part].config, "num_hidden_layers": 1}, first).eval()
    body, norm, by_dtype = module.model, module.model.norm, []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            body.norm = norm
            _cast(module, dtype)
            body.norm = torch.nn.Identity()  # a layer's output is the next one's input
            x = body.embed_tokens(torch.tensor(inputs["tokens"]).long())
            for i in range(table.layers):
                _fill(body.layers[0], within(f"model.layers.{i}."), table)
                x = body(inputs_embeds=x, use_cache=False).last_hidden_state
            hidden = norm(x)
            by_dtype.append({"hidden": hidden.float().numpy(), "logits": module.lm_head(hidden).float().numpy()})
    return by_dtype[0], by_dtype[1]


def _cast(module, dtype):
    """Casts the parameters; buffers, the angles of rotary positions, keep their dtype."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _channels_first(value):
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value


def _channels_last(value):
    return value.permute(0, 2, 3, 1) if value.ndim == 4 else value


def _run_torch(part: str, model: ModelConfig, module, inputs: dict) -> dict:
    match part:
        case "clip":
            outputs = module(pixel_values=inputs["pixels"], output_hidden_states=True)
            return {
                "hidden": outputs.hidden_states[require_present(model.clip, part).select_layer],
                "pooled": outputs.pooler_output,
            }
        case "text_encoder":
            outputs = module(input_ids=inputs["tokens"])
            return {"hidden": outputs.last_hidden_state, "pooled": outputs.pooler_output}
        case "clip_text":
            side = module.config.vision_config.image_size
            pixels = inputs["pixels"] if model.clip else inputs["pixels"].new_zeros(2, 3, side, side)
            outputs = module(input_ids=inputs["tokens"], pixel_values=pixels)
            return {"text": outputs.text_embeds} | ({"scores": outputs.logits_per_image} if model.clip else {})
        case "unet":
            return {"prediction": module(inputs["latents"], inputs["timesteps"], inputs["context"]).sample}
    posterior = module.encode(inputs["images"]).latent_dist
    return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": module.decode(inputs["latents"]).sample}


def torch_module(part: str, model: ModelConfig, raw_parts: dict[str, RawPart]):
    """The class of transformers or diffusers with the source's own configuration and its tensors in float32."""
    import diffusers
    import transformers

    config = raw_parts[part].config
    tensors = (
        {**raw_parts["clip"].tensors, **raw_parts[part].tensors} if part == "clip_text" else raw_parts[part].tensors
    )
    if part == "llm":
        names = llama.table(require_present(model.llm, part))
        return _load_llm(config, {current_name(names, name): tensor for name, tensor in tensors.items()})
    foreign = ForeignConfig(config, part)
    constructors: dict[str, Callable[[], Any]] = {
        "clip": lambda: transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**clip.tower(foreign, "vision_config").values)
        ),
        "text_encoder": lambda: transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**clip.tower(foreign, "text_config").values)
        ),
        "clip_text": lambda: transformers.CLIPModel(transformers.CLIPConfig(**config)),
        "unet": lambda: diffusers.UNet2DConditionModel.from_config(config),
        "vae": lambda: diffusers.AutoencoderKL.from_config(config),
    }
    module = constructors[part]().float()
    _fill(module, tensors, tables.of(part, model, shapes_of(model)))
    return module


def _load_llm(config: dict, tensors: Tensors):
    """LlamaForCausalLM in float32 as transformers itself loads it, so that it decides whether the head is the
    embedding.
    """
    import torch
    import transformers

    llama_config = {
        key: value
        for key, value in config.items()
        if key not in ("model_type", "architectures", "plugins_init_kwargs", "plugins_type", "torch_dtype", "dtype")
    }
    state = {
        name: torch.from_numpy(_read_tensor(tensor))
        for name, tensor in tensors.items()
        if not any(re.search(pattern, name) for pattern in llama.IGNORED)
    }
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(
        None, config=transformers.LlamaConfig(**llama_config), state_dict=state, output_loading_info=True
    )
    module, report = loaded  # a pair with output_loading_info, which the stubs do not say
    if report["missing_keys"]:
        raise ConfigError(f"LlamaForCausalLM: the source has nothing for {sorted(report['missing_keys'])[0]}")
    return module


def _read_tensor(tensor: Tensor) -> np.ndarray:
    return np.array(
        tensor.read((slice(None),) * len(tensor.shape)), np.float32
    )  # a copy: torch warns of read-only arrays


def _fill(module, tensors: Tensors, table: Table):
    """Copies the source's tensors into a torch module; ConfigError where one of its parameters gets none."""
    import torch

    state = module.state_dict()
    unfilled = {name for name, _ in module.named_parameters()}
    for name, tensor in tensors.items():
        # Names have the towers' prefixes in some versions of transformers alone.
        spellings = (
            name,
            *(new.removeprefix(p) for new in [current_name(table, name)] for p in ("", "vision_model.", "text_model.")),
        )
        target = next((spelling for spelling in spellings if spelling in state), None)
        if target is None:
            continue
        with torch.no_grad():
            state[target].copy_(torch.from_numpy(_read_tensor(tensor)).reshape(state[target].shape))
        unfilled.discard(target)
    if unfilled:
        raise ConfigError(f"{type(module).__name__}: the source has nothing for {sorted(unfilled)[0]}")
