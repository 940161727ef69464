"""transformers' LlamaForCausalLM: names of its tensors and keys of its config.json."""

import dataclasses

import numpy as np

from dreamjax.config import LlamaConfig
from dreamjax.config.model import LAYERS
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.mapping import Table, current_name
from dreamjax.convert.tensors import Tensor, Tensors
from dreamjax.errors import ConfigError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

NAMES = {
    "embed/embedding": EMBEDDING,
    "layers/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layers/attention/q/kernel": "model.layers.{i}.self_attn.q_proj.weight",
    "layers/attention/k/kernel": "model.layers.{i}.self_attn.k_proj.weight",
    "layers/attention/v/kernel": "model.layers.{i}.self_attn.v_proj.weight",
    "layers/attention/o/kernel": "model.layers.{i}.self_attn.o_proj.weight",
    "layers/mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers/mlp/gate/kernel": "model.layers.{i}.mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "model.layers.{i}.mlp.up_proj.weight",
    "layers/mlp/down/kernel": "model.layers.{i}.mlp.down_proj.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": HEAD,
}
OLD_NAMES = ((r"^(?!model\.|lm_head\.)", "model."),)  # a LlamaModel saved without its head around it
ROWS = 4096  # of a matrix that are read at once
IGNORED = (r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$",)


def table(config: LlamaConfig) -> Table:
    """The names of one model; with tied embeddings a head in the file is the embedding once more."""
    return Table(NAMES, config.layers, OLD_NAMES, IGNORED + ((r"^lm_head\.weight$",) if config.tie_embeddings else ()))


def read_config(settings: ForeignConfig) -> LlamaConfig:
    """A config.json of model type llama (or dreamllm), with transformers' defaults for missing keys."""
    settings.require(
        {
            "model_type": ("llama", "dreamllm"),
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_scaling": (),
            "quantization_config": (),
        }
    )
    heads, width = settings.integer("num_attention_heads", 32), settings.integer("hidden_size", 4096)
    settings.require({"head_dim": (width // heads,)})
    rope_theta = settings.number("rope_theta", 10000.0)
    if settings.get("rope_parameters"):  # where transformers 5 keeps it
        rope = settings.section("rope_parameters")
        rope.require({"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1.0,)})
        rope_theta = rope.number("rope_theta", rope_theta)
    try:
        return LlamaConfig(
            vocab_size=settings.integer("vocab_size", 32000),
            width=width,
            layers=settings.integer("num_hidden_layers", 32, most=LAYERS),
            heads=heads,
            kv_heads=settings.integer("num_key_value_heads", heads),
            ffn_width=settings.integer("intermediate_size", 11008),
            max_positions=settings.integer("max_position_embeddings", 2048),
            rope_theta=rope_theta,
            rms_norm_eps=settings.number("rms_norm_eps", 1e-6),
            tie_embeddings=settings.flag("tie_word_embeddings", False),
        )
    except ConfigError as error:
        raise ConfigError(f"{settings.location}: {error}") from None


def resolve_head(config: LlamaConfig, tensors: Tensors, location: str) -> tuple[LlamaConfig, Tensors, tuple[str, ...]]:
    """(configuration, tensors, notes) with tie_word_embeddings resolved from the tensors, as transformers 5 loads them.

    A head that differs from the embedding is a parameter of its own, even if config.json sets tie_word_embeddings; a
    tied model may store its one matrix under either name. ConfigError where an untied model has no head, which
    transformers would initialise at random.
    """
    by_name = {current_name(table(config), name): name for name in tensors}
    embedding, head = by_name.get(EMBEDDING), by_name.get(HEAD)
    if not config.tie_embeddings:
        if embedding and not head:
            raise ConfigError(
                f"{location}: has no {HEAD}, and config.json does not set tie_word_embeddings: true, which "
                "it needs where the embedding is the head"
            )
        return config, tensors, ()
    if head is not None and embedding is None:
        return config, {**tensors, EMBEDDING: tensors[head]._replace(name=EMBEDDING)}, ()
    if head is None or embedding is None or _equal(tensors[embedding], tensors[head]):
        return config, tensors, ()
    note = f"{HEAD} differs from {EMBEDDING}, so they are not tied (config.json says tie_word_embeddings: true)"
    return dataclasses.replace(config, tie_embeddings=False), tensors, (note,)


def _equal(a: Tensor, b: Tensor) -> bool:
    """True where two matrices are equal; a few rows at a time are in memory."""
    if a.shape != b.shape or len(a.shape) != 2:
        return False
    parts = [(slice(begin, min(begin + ROWS, a.shape[0])), slice(None)) for begin in range(0, a.shape[0], ROWS)]
    return all(np.array_equal(a.read(part), b.read(part)) for part in parts)


def write_config(config: LlamaConfig, dtype: str, special: dict[str, int]) -> dict:
    """The config.json that `read_config` reads; `special` has the ids bos, eos, pad."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "initializer_range": 0.02,
        **{f"{name}_token_id": number for name, number in special.items()},
    }
