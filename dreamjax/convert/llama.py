"""transformers' LlamaForCausalLM: names of its tensors and keys of its config.json."""

from dreamjax.config import LlamaConfig
from dreamjax.convert.names import Table
from dreamjax.convert.settings import Settings
from dreamjax.schema import ConfigError

NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
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
    "head/kernel": "lm_head.weight",
}
OLD = ((r"^(?!model\.|lm_head\.)", "model."),)  # a LlamaModel saved without its head around it
LEFT = (r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$",)


def table(config: LlamaConfig) -> Table:
    """The names of one model; with tied embeddings a head in the file is the embedding once more."""
    return Table(NAMES, config.layers, OLD, LEFT + ((r"^lm_head\.weight$",) if config.tie_embeddings else ()))


def read_config(settings: Settings) -> LlamaConfig:
    """A config.json of model type llama (or dreamllm), with transformers' defaults for what it leaves out."""
    settings.require({
        "model_type": ("llama", "dreamllm"), "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (),
        "quantization_config": (),
    })
    heads, width = settings.whole("num_attention_heads", 32), settings.whole("hidden_size", 4096)
    settings.require({"head_dim": (width // heads,)})
    rope_theta = settings.number("rope_theta", 10000.0)
    if settings.get("rope_parameters"):  # where transformers 5 keeps it
        rope = settings.inner("rope_parameters")
        rope.require({"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1.0,)})
        rope_theta = rope.number("rope_theta", rope_theta)
    try:
        return LlamaConfig(
            vocab_size=settings.whole("vocab_size", 32000), width=width, layers=settings.whole("num_hidden_layers", 32), heads=heads,
            kv_heads=settings.whole("num_key_value_heads", heads), ffn_width=settings.whole("intermediate_size", 11008),
            max_positions=settings.whole("max_position_embeddings", 2048), rope_theta=rope_theta,
            rms_norm_eps=settings.number("rms_norm_eps", 1e-6), tie_embeddings=bool(settings.get("tie_word_embeddings", False)),
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"{settings.where}: {error}") from None


def write_config(config: LlamaConfig, dtype: str, special: dict[str, int]) -> dict:
    """The config.json that `read_config` reads; `special` has the ids bos, eos, pad."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.width,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn_width, "hidden_act": "silu", "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta, "rope_scaling": None, "rms_norm_eps": config.rms_norm_eps, "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings, "torch_dtype": dtype, "use_cache": True, "initializer_range": 0.02,
        **{f"{name}_token_id": number for name, number in special.items()},
    }  # fmt: skip
