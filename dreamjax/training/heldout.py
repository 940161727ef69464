"""Held-out losses: of each source, of images by timestep, always with the same random samples."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from dreamjax.config import RunConfig
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import State
from dreamjax.training.step import make_eval_step


def make_heldout(
    config: RunConfig, ids: SpecialIds, batches: Mapping[str, Callable[[], Iterable]]
) -> Callable[[State, dict], dict]:
    """`measure(state, frozen) -> {name: loss}`; `batches[source]()` yields the device batches of a held-out source.

    Names are eval_SOURCE_lm_loss, eval_SOURCE_image_loss, eval_SOURCE_image_loss_tK for quarter K of the timesteps, and
    eval_loss: the run's weighted loss, mean over sources. Averaged weights are measured where the run keeps them.
    """
    step = jax.jit(make_eval_step(config, ids))

    def measure(state: State, frozen: dict) -> dict:
        weights = state.trainable if state.average is None else state.average
        results, totals = {}, []
        for source, open_batches in batches.items():
            sums = [
                jax.device_get(step(weights, frozen, batch, np.uint32(index)))
                for index, batch in enumerate(open_batches())
            ]
            sums = jax.tree.map(lambda *values: np.sum(values, axis=0), *sums)
            lm = float(sums["lm_loss"] / max(sums["tokens"], 1))
            results[f"eval_{source}_lm_loss"] = lm
            lm_weight, image_weight = config.loss.weights
            total = lm_weight * lm
            if np.sum(sums.get("pictures", 0)) > 0:
                image = float(sums["image_loss"].sum() / sums["pictures"].sum())
                results[f"eval_{source}_image_loss"] = image
                for k, (error, images) in enumerate(zip(sums["image_loss"], sums["pictures"], strict=True)):
                    if images:
                        results[f"eval_{source}_image_loss_t{k}"] = float(error / images)
                total += image_weight * image
            totals.append(total)
        return results | {"eval_loss": float(np.mean(totals))}

    return measure
