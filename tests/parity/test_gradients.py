"""Gradients of the total loss by every recorded parameter, and the norm of all of them, through the training step's
own function.
"""

import jax
import numpy as np
import optax
import pytest
from parity.bundles import GRADS, Bundle, forward_batch, open_bundle
from parity.vmloss import Variant, draws_of, for_slots, variants
from small_model import leaves

from dreamjax.config import DataConfig, OptimConfig, RunConfig, SourceConfig
from dreamjax.training import optimizer, step

TRAINABLE = (r"^llm/", r"^(visual|condition)_projector/", r"^dream_queries$")  # CLIP, U-Net and VAE are frozen
OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "llm/embed/embedding",
    "model.norm.weight": "llm/norm/scale",
    "lm_head.weight": "llm/head/kernel",
    "model.dream_embedding.dream_queries": "dream_queries",
    "stable_diffusion_head.projector.projector.weight": "condition_projector/linear/kernel",
}
VISUAL = {
    "weight": "linear/kernel",
    "bias": "linear/bias",
    "0.weight": "fc1/kernel",
    "0.bias": "fc1/bias",
    "2.weight": "fc2/kernel",
    "2.bias": "fc2/bias",
}
NORMS = {"input_layernorm": "attention_norm/scale", "post_attention_layernorm": "mlp_norm/scale"}


def official(name: str, grads: dict[str, np.ndarray]) -> np.ndarray:
    """Our gradient of the parameter that the official code calls `name`, in its layout.

    Without a head of its own the embedding's is the head's.
    """
    if name == "lm_head.weight" and "llm/head/kernel" not in grads:
        name = "model.embed_tokens.weight"
    if name.startswith("model.layers."):
        layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        kind, _, projection = module.partition(".")
        path = (
            NORMS[kind]
            if kind in NORMS
            else f"{'attention' if kind == 'self_attn' else 'mlp'}/{projection.removesuffix('_proj')}/kernel"
        )
        path, array = f"llm/layers/{path}", grads[f"llm/layers/{path}"][int(layer)]
    else:
        visual = name.removeprefix("model.clip_vision_embedding.projector.projector.")
        path = OUTSIDE_LAYERS.get(name) or f"visual_projector/{VISUAL[visual]}"
        array = grads[path]
    array = array.T if path.endswith("kernel") else array
    return array[None] if path == "dream_queries" else array


def run_config(bundle: Bundle, variant: Variant, length: int) -> RunConfig:
    data = DataConfig(train=(SourceConfig("shapes"),), length=length, input_slots=0, target_slots=0)
    return RunConfig(
        model=bundle.model.config, data=data, optim=OptimConfig(TRAINABLE, (r"^(clip|unet|vae)/",)), loss=variant.loss
    )


@pytest.fixture(scope="module")
def ours(bundle) -> dict[str, dict[str, np.ndarray]]:
    """{variant: our gradients by path}, of the variants whose gradients or their norm are recorded; one program for all
    of them.

    It has condition dropout; what drops nothing has a mask of zeros, and a batch without pictures of a kind has no
    valid slot.
    """
    opened = open_bundle(bundle)
    found = {variant.name: variant for variant in variants(opened)}
    names = sorted({*(file.removeprefix("grads_") for file in opened.files(GRADS)), *norms(opened)})
    if not names:
        pytest.skip(f"{bundle.name} has no recorded gradients")
    options = [variant for name, variant in found.items() if name in names and variant.loss.condition_dropout]
    general = (options or [found[names[0]]])[0]
    batches = {name: forward_batch(opened, found[name].file) for name in names}
    config = run_config(opened, general, batches[names[0]].tokens.shape[-1])
    trainable, frozen = optimizer.split(config.optim, opened.model.params)

    @jax.jit
    def run(trainable, batch, draws):
        return step.gradients(config, opened.ids, trainable, frozen, batch, draws)[1]

    grads = {}
    for name, batch in batches.items():
        draws = draws_of(opened, general.loss, int(batch.target_valid.sum()))
        if draws.drop is not None and not found[name].loss.condition_dropout:
            draws = draws._replace(drop=np.zeros_like(draws.drop))
        grads[name] = leaves(
            run(trainable, batch, jax.tree.map(lambda x, valid=batch.target_valid: for_slots(x, valid), draws))
        )
    return {name: as_torch(opened, one) for name, one in grads.items()}


def norms(bundle: Bundle) -> dict[str, float]:
    """{variant: the recorded norm of all gradients}."""
    return {
        name: record["trainable_grad_norm"]
        for name, record in bundle.record("vmloss").items()
        if "trainable_grad_norm" in record
    }


def as_torch(bundle: Bundle, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torch's Embedding learns nothing for the row that it is told is padding, here config.json's pad_token_id; ours
    learns every row.

    Where the embedding is the head as well, the head's part of that row is learned, and no recorded row reads that
    token.
    """
    padding = bundle.settings.get("pad_token_id")
    if padding is not None and not bundle.model.config.llm.tie_embeddings:
        grads["llm/embed/embedding"] = np.array(grads["llm/embed/embedding"])
        grads["llm/embed/embedding"][padding] = 0
    return grads


def test_gradients(bundle, ours):
    opened = open_bundle(bundle)
    for file in opened.files(GRADS):
        grads = ours[file.removeprefix("grads_")]
        opened.compare(file, "test_gradients", {name: official(name, grads) for name in opened.arrays(file)})


def test_the_global_norm(bundle, ours):
    opened = open_bundle(bundle)
    opened.check(
        {
            f"vmloss/{name}/trainable_grad_norm": (optax.global_norm(ours[name]), np.float32(norm))
            for name, norm in norms(opened).items()
        }
    )
