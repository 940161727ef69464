"""Weights of transformers' LLaMA and CLIP as our parameter trees, for parity tests.

Each tensor is used once, each leaf is filled.
"""

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# Our path -> the torch name; {i} is the layer, which we stack.
LLAMA = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layers/mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    **{f"layers/attention/{n}/kernel": f"model.layers.{{i}}.self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"layers/mlp/{n}/kernel": f"model.layers.{{i}}.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
}

CLIP = {
    "class_embedding": "embeddings.class_embedding",
    "patch_embedding/kernel": "embeddings.patch_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
}
for _ours, _theirs in {
    "pre_layernorm": "pre_layrnorm",
    "post_layernorm": "post_layernorm",
    "layers/layer_norm1": "encoder.layers.{i}.layer_norm1",
    "layers/layer_norm2": "encoder.layers.{i}.layer_norm2",
}.items():
    CLIP |= {f"{_ours}/scale": f"{_theirs}.weight", f"{_ours}/bias": f"{_theirs}.bias"}
for _ours, _theirs in {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/o": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}.items():
    CLIP |= {
        f"layers/{_ours}/kernel": f"encoder.layers.{{i}}.{_theirs}.weight",
        f"layers/{_ours}/bias": f"encoder.layers.{{i}}.{_theirs}.bias",
    }


def randomise(model, seed: int, scale: float = 0.2):
    """Adds noise to every weight of a torch module, so that no norm, bias or scale is at its neutral start."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def llama_params(model, module) -> dict:
    """{"params": tree} for our `Llama` from a LlamaForCausalLM."""
    state = dict(model.state_dict())
    names = dict(LLAMA)
    if module.config.tie_embeddings:
        # Tied weights appear under both names.
        np.testing.assert_array_equal(state.pop("lm_head.weight"), state["model.embed_tokens.weight"])
        del names["head/kernel"]
    return _fill(module, state, names)


def clip_params(model, module) -> dict:
    """{"params": tree} for our `ClipVision` from a CLIPVisionModel, whose names have a prefix in some versions."""
    return _fill(
        module, {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}, CLIP
    )


def _fill(module, state: dict, names: dict) -> dict:
    shapes = jax.eval_shape(lambda key: module.init(key, method="init_all"), jax.random.key(0))
    expected = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    assert set(expected) == set(names), f"leaves differ: {sorted(set(expected) ^ set(names))}"
    left = {name: value.numpy() for name, value in state.items()}
    filled = {}
    for path, name in names.items():
        if "{i}" in name:
            filled[path] = np.stack([_leaf(path, left.pop(name.format(i=i))) for i in range(module.config.layers)])
        else:
            filled[path] = _leaf(path, left.pop(name))
        assert filled[path].shape == expected[path], f"{path}: {filled[path].shape}, expected {expected[path]}"
    assert not left, f"tensors unused: {sorted(left)}"
    return {"params": unflatten_dict(filled, sep="/")}


def _leaf(path: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps [out, in] and [out, in, height, width], we keep [in, out] and [height, width, in, out]."""
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
