"""The recorded variants of the loss as ours: settings, batches, draws."""

import dataclasses

import numpy as np
from parity.bundles import Bundle, channels_last

from dreamjax.config import DiffusionConfig, LossConfig
from dreamjax.training.losses import Samples

WEIGHT_NORMS = {"none": "none", "l1_norm": "l1", "l2_norm": "l2"}  # official loss_scale_schedule: ours
HEAD = (
    "snr_gamma",
    "noise_offset",
    "input_perturbation",
    "drop_prob",
)  # settings of the release's head, which a variant may set otherwise
SETTINGS = {"prediction_type", "pt", "sched", *HEAD}
BATCH, BATCHES = (
    "forward_joint",
    {"comprehension": "forward_comprehension", "creation": "forward_creation"},
)  # of all variants but these
DRAWS = ("timesteps", "noise", "eps_vae", "offset_noise", "pert_noise", "drop_mask")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recorded way to compute the loss."""

    name: str
    file: str  # its batch
    loss: LossConfig  # with the official condition dropout, where there is any
    diffusion: DiffusionConfig
    recorded: dict  # totals


def own_loss(bundle: Bundle) -> LossConfig:
    """The loss that a release is set to."""
    return _loss(bundle, {})


def _loss(bundle: Bundle, changes: dict) -> LossConfig:
    head = bundle.settings["plugins_init_kwargs"]["stable_diffusion_head"]
    of = {key: head.get(key) for key in HEAD} | changes
    return LossConfig(
        lm_weight=bundle.settings.get("loss_weight_lm", 1.0),
        image_weight=bundle.settings.get("loss_weight_vm", 10.0),
        weight_norm=WEIGHT_NORMS[changes.get("sched", bundle.settings.get("loss_scale_schedule", "none"))],
        snr_gamma=of["snr_gamma"],
        noise_offset=of["noise_offset"] or 0.0,
        input_perturbation=of["input_perturbation"] or 0.0,
        condition_dropout=0.5 if of["drop_prob"] else 0.0,
        unconditional="official",  # which pictures, the recorded mask says
    )


def variants(bundle: Bundle) -> list[Variant]:
    """All variants of a bundle; a setting that is not known here is an error."""
    found, own = [], bundle.model.config.diffusion
    for name, recorded in bundle.record("vmloss").items():
        settings = recorded["config"]
        assert set(settings) <= SETTINGS, f"{name}: settings that these tests do not know: {set(settings) - SETTINGS}"
        prediction = settings.get("prediction_type") or settings.get("pt") or own.prediction
        found.append(
            Variant(
                name,
                BATCHES.get(name, BATCH),
                _loss(bundle, settings),
                dataclasses.replace(own, prediction=prediction),
                recorded,
            )
        )
    return found


def draws_of(bundle: Bundle, loss: LossConfig, count: int) -> Samples:
    """The recorded draws of the first `count` pictures, those that the loss asks for."""
    timesteps, noise, posterior, offset, perturbation, drop = (bundle.arrays("vmloss")[name][:count] for name in DRAWS)
    return Samples(
        timesteps=timesteps.astype(np.int32),
        noise=channels_last(noise),
        posterior=channels_last(posterior),
        offset=channels_last(offset) if loss.noise_offset else None,
        perturbation=channels_last(perturbation) if loss.input_perturbation else None,
        drop=drop == 1 if loss.condition_dropout else None,
    )


def for_slots(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Values of the valid pictures [n, ...] at their places among all slots, [G M, ...]; zeros elsewhere."""
    filled = np.zeros((valid.size, *values.shape[1:]), values.dtype)
    filled[np.flatnonzero(valid)] = values
    return filled
