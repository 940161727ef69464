"""AdamW with a learning-rate schedule, and the split of parameters into trainable and frozen by regular expressions."""

import re

import jax
import optax

from dreamjax.config import OptimConfig
from dreamjax.errors import ConfigError
from dreamjax.parallel.param_sharding import path_of


def schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up over `warmup_share` of the steps, then the decay to `final_share`."""
    peak, warmup = config.learning_rate, round(config.warmup_share * total_steps)
    decay_steps = max(total_steps - warmup, 1)
    match config.schedule:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_share)
        case "linear":
            decay = optax.linear_schedule(peak, peak * config.final_share, decay_steps)
        case "constant":
            decay = optax.constant_schedule(peak)
    # The rate of the first step is not zero: step n of the warm-up has (n + 1) / warmup of the peak.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def depends_on_total(config: OptimConfig, before: int, after: int, done: int) -> bool:
    """True if the learning rates after step `done` differ between runs of `before` and of `after` steps."""
    warmups = [round(config.warmup_share * total) for total in (before, after)]
    return config.schedule != "constant" or (warmups[0] != warmups[1] and max(warmups) > done)


def optimiser(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Gradient clipping by the global norm, AdamW, and the learning-rate factor of each parameter's rule (the first
    that matches).
    """

    def scale_by_rule(updates, params):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, update: update * lr_factor(config, path_of(path)), updates)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule(config, total_steps)),
        optax.stateless(scale_by_rule) if config.lr_rules else optax.identity(),
    )


def lr_factor(config: OptimConfig, path: str) -> float:
    """The factor on the learning rate of the parameter at `path`."""
    return next((rule.factor for rule in config.lr_rules if re.search(rule.pattern, path)), 1.0)


def is_trainable(config: OptimConfig, path: str) -> bool:
    """True if the parameter at `path` trains; ConfigError where no pattern or both lists match it."""
    trains, frozen = (any(re.search(p, path) for p in patterns) for patterns in (config.trainable, config.frozen))
    if trains == frozen:
        which = (
            "both optim.trainable and optim.frozen match"
            if trains
            else "neither optim.trainable nor optim.frozen matches"
        )
        raise ConfigError(f"{which} the parameter {path}")
    return trains


def split(config: OptimConfig, params: dict) -> tuple[dict, dict]:
    """(trainable, frozen) nested dicts; together they hold each leaf of `params` once."""
    trainable: dict = {}
    frozen: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = path_of(path).split("/")
        tree = trainable if is_trainable(config, "/".join(names)) else frozen
        for name in names[:-1]:
            tree = tree.setdefault(name, {})
        tree[names[-1]] = leaf
    return trainable, frozen


def merge(first: dict, second: dict) -> dict:
    """One nested dict from two that share no leaf: the inverse of `split`."""
    merged = dict(first)
    for name, value in second.items():
        merged[name] = merge(first[name], value) if name in first else value
    return merged
