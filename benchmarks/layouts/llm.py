"""LLaMA and Vicuna as transformers saves them today and saved them before, and llama2.c's files."""

import functools
import pathlib
import struct
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
import transformers

from benchmarks.layouts import configs
from benchmarks.layouts.common import (
    BF16,
    HALF,
    Layout,
    Written,
    converted,
    drawn,
    of_other_frameworks,
    processor,
    save_bin,
    save_safetensors,
    with_tokenizer,
    write_json,
)  # fmt: skip


@functools.cache
def llama(
    added: int = 0, kv_heads: int = 4, theta: float = 10000.0, tied: bool = False, eps: float = 1e-6
) -> transformers.LlamaForCausalLM:
    """A LLaMA with `added` rows behind its vocabulary."""
    changes = {"num_key_value_heads": kv_heads, "rope_theta": theta, "tie_word_embeddings": tied, "rms_norm_eps": eps}
    sizes = {"vocab_size": processor().get_piece_size() + added, **configs.LLAMA}
    return drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes})), 0)


def as_today(folder: pathlib.Path, shard: str = "1GB", dtype: torch.dtype = torch.float32, **how) -> Written:
    """save_pretrained."""
    module = transformers.LlamaForCausalLM(llama(**how).config)
    module.load_state_dict(llama(**how).state_dict())
    module.to(dtype).save_pretrained(folder / "llama", max_shard_size=shard)
    return with_tokenizer(folder / "llama")


def before(
    folder: pathlib.Path,
    name: str = "llama",
    dtype: torch.dtype = torch.float32,
    config: Mapping = configs.SINCE_4_31,
    buffers: bool = False,
    headless: bool = False,
    save=save_bin,
    **how,
) -> Written:
    """A folder `name` as transformers 4 and 3 left it; `buffers` are the angles that it kept among the weights."""
    tensors = converted(llama(**how).state_dict(), dtype)
    if headless:
        del tensors["lm_head.weight"]
    if buffers:
        tensors |= {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4)
            for i in range(configs.LLAMA["num_hidden_layers"])
        }
    save(tensors, folder / name)
    sizes = {"vocab_size": processor().get_piece_size(), **configs.LLAMA}
    write_json(folder / name / "config.json", {**configs.OLD_LLAMA, **sizes, **config})
    write_json(
        folder / name / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    of_other_frameworks(folder / name)
    return with_tokenizer(folder / name)


def both_kinds(folder: pathlib.Path) -> Written:
    """A safetensors file, and a .bin with other numbers: reading that would show."""
    written = as_today(folder)
    save_bin({name: value + 1 for name, value in llama().state_dict().items()}, *written.sources)
    return written


def bare(folder: pathlib.Path) -> Written:
    """A LlamaModel, whose names have no `model.` before them."""
    llama(tied=True).model.save_pretrained(folder / "llama")
    return with_tokenizer(folder / "llama")


def llama2c(folder: pathlib.Path, shared: bool) -> Written:
    """The weights of a transformers folder in the order and with the interleaved rotation of llama2.c, and its
    vocabulary.
    """
    how = {"kv_heads": 2, "eps": 1e-5, "tied": shared}
    state, config = llama(**how).state_dict(), llama(**how).config

    def stack(name):
        return torch.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(config.num_hidden_layers)])

    head = config.hidden_size // config.num_attention_heads

    def interleaved(w):
        return w.reshape(len(w), -1, 2, head // 2, config.hidden_size).transpose(2, 3)

    body = [
        state["model.embed_tokens.weight"],
        stack("input_layernorm"),
        interleaved(stack("self_attn.q_proj")),
        interleaved(stack("self_attn.k_proj")),
        stack("self_attn.v_proj"),
        stack("self_attn.o_proj"),
        stack("post_attention_layernorm"),
        stack("mlp.gate_proj"),
        stack("mlp.down_proj"),
        stack("mlp.up_proj"),
        state["model.norm.weight"],
        torch.zeros(2, config.max_position_embeddings, head // 2),
        *([] if shared else [state["lm_head.weight"]]),
    ]
    vocabulary = config.vocab_size if shared else -config.vocab_size
    sizes = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        2,
        vocabulary,
        config.max_position_embeddings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(
        struct.pack("<7i", *sizes) + b"".join(np.ascontiguousarray(part.numpy()).tobytes() for part in body)
    )
    return Written((folder / "model.bin",), llama2c_vocabulary(folder / "tok.bin"), as_today(folder, **how).sources)


def llama2c_vocabulary(file: pathlib.Path) -> pathlib.Path:
    """The pieces and scores of the vocabulary as llama2.c keeps them."""
    names = {1: "\n<s>\n", 2: "\n</s>\n"}
    pieces = [
        names.get(i, processor().id_to_piece(i).replace("\u2581", " ")).encode()
        for i in range(processor().get_piece_size())
    ]
    each = b"".join(struct.pack("<fi", processor().get_score(i), len(piece)) + piece for i, piece in enumerate(pieces))
    file.write_bytes(struct.pack("<i", max(map(len, pieces))) + each)
    return file


_V11, _V15 = "vicuna-7b-v1.1", "vicuna-7b-v1.5"
_GQA = {"kv_heads": 2, "theta": 500000.0}
_GQA_FACTS = {"model.llm.kv_heads": 2, "model.llm.rope_theta": 500000.0}
_VICUNA = {"template": "vicuna_v1.1"}
_TIED, _OLD_TIED = {"model.llm.tie_embeddings": True}, {**configs.SINCE_4_31, "tie_word_embeddings": True}
_two = partial(save_bin, shards=2)


def _safe(tensors, home):
    return save_safetensors(tensors, home / "model.safetensors")


LAYOUTS = (
    Layout("LLaMA", "model.safetensors", "llama", as_today, {"template": "plain", "model.dtype": "float32"}),
    Layout("LLaMA", "safetensors in shards with an index", "llama", partial(as_today, shard="16KB")),
    Layout("LLaMA", "pytorch_model.bin", "llama", before),
    Layout(
        "LLaMA",
        "pytorch_model.bin from before torch 1.6",
        "llama",
        partial(before, save=partial(save_bin, zipped=False)),
    ),
    Layout("LLaMA", ".bin in shards with an index", "llama", partial(before, save=_two)),
    Layout(
        "LLaMA",
        "safetensors with rotary_emb.inv_freq, config of transformers 4",
        "llama",
        partial(before, buffers=True, save=_safe),
    ),
    Layout("LLaMA", "model.safetensors beside a pytorch_model.bin (not read)", "llama", both_kinds),
    Layout(
        "LLaMA",
        "Vicuna v1.1: .bin in shards, inv_freq, few keys",
        "llama",
        partial(before, name=_V11, config={}, buffers=True, save=_two),
        _VICUNA,
    ),
    Layout(
        "LLaMA", "float16, model.safetensors", "llama-fp16", partial(as_today, dtype=HALF), {"model.dtype": "bfloat16"}
    ),
    Layout(
        "LLaMA",
        "Vicuna v1.5: float16, .bin in shards",
        "llama-fp16",
        partial(before, name=_V15, dtype=HALF, save=_two),
        _VICUNA,
    ),
    Layout(
        "LLaMA", "bfloat16, model.safetensors", "llama-bf16", partial(as_today, dtype=BF16), {"model.dtype": "bfloat16"}
    ),
    Layout("LLaMA", "bfloat16, pytorch_model.bin", "llama-bf16", partial(before, dtype=BF16)),
    Layout("LLaMA", "tied embeddings", "llama-tied", partial(as_today, tied=True), _TIED),
    Layout(
        "LLaMA",
        "tied embeddings, lm_head in the .bin",
        "llama-tied",
        partial(before, tied=True, config=_OLD_TIED),
        _TIED,
    ),
    Layout(
        "LLaMA",
        "tied embeddings, none in the .bin",
        "llama-tied",
        partial(before, tied=True, headless=True, config=_OLD_TIED),
        _TIED,
    ),
    Layout("LLaMA", "tied embeddings, LlamaModel without its head", "llama-tied", bare, _TIED),
    Layout("LLaMA", "grouped queries, other rope_theta", "llama-gqa", partial(as_today, **_GQA), _GQA_FACTS),
    Layout(
        "LLaMA",
        "grouped queries, other rope_theta, config of transformers 4",
        "llama-gqa",
        partial(before, **_GQA, config={"num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": None}),
        _GQA_FACTS,
    ),
    Layout(
        "llama2.c",
        ".bin with a classifier of its own",
        "llama2c",
        partial(llama2c, shared=False),
        {"model.llm.kv_heads": 2, "model.llm.tie_embeddings": False},
    ),
    Layout(
        "llama2.c",
        ".bin that shares the embedding",
        "llama2c-shared",
        partial(llama2c, shared=True),
        {"model.llm.kv_heads": 2, **_TIED},
    ),
)
