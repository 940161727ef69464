"""The recorded batches through the model, once in a session: several test modules look at the results."""

import dataclasses
import functools

import jax
import numpy as np
from parity.bundles import FORWARD, Bundle, forward_batch

from dreamjax.models import dreamllm
from dreamjax.models.llama import Llama
from dreamjax.training import losses


@functools.cache
def forward(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """{file.

    Our arrays by their recorded names, and the language loss} for every forward_*.npz; all rows of the batch, pads
    included. One program serves all.
    """
    model, weights = bundle.model, bundle.model.params["llm"]
    first = Llama(dataclasses.replace(model.llm.config, layers=1), model.dtype)
    first_params = weights | {"layers": jax.tree.map(lambda leaf: leaf[:1], weights["layers"])}

    @jax.jit
    def run(batch):
        def flat(x):
            return x.reshape(-1, x.shape[-1])

        embeds = dreamllm.embed_batch(model, batch)
        layer1, _ = first.apply(
            {"params": first_params}, embeds, flat(batch.positions), flat(batch.segments), method="residual"
        )
        hidden = dreamllm.hidden_states(model, batch)
        logits = model.apply("llm", hidden, method="logits")
        lm_loss = (
            losses.cross_entropy_sum(model, hidden, flat(batch.tokens), flat(batch.loss_mask), chunk=32)
            / losses.count(batch).tokens
        )
        return {
            "inputs_embeds": embeds,
            "hidden_layer1": layer1,
            "last_hidden": hidden,
            "logits": logits,
            "lm_loss": lm_loss,
        }

    return {file: jax.device_get(run(forward_batch(bundle, file))) for file in bundle.files(FORWARD)}
