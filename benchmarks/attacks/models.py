"""Hostile story.json, settings, config.json of other libraries and safetensors files."""

import functools
import json
import random

import numpy as np
import PIL.Image
import safetensors.numpy
from etils import epath

from benchmarks.attacks.case import Case
from benchmarks.attacks.world import World, mutate, mutate_bytes, to_json
from dreamjax.config import ModelConfig, RunConfig
from dreamjax.config.validation import from_dict, to_dict
from dreamjax.convert import detect, tensors
from dreamjax.document import Document, Image, image_io
from dreamjax.sampling import output_folder
from dreamjax.sampling.options import Options

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "lm_head.weight": (40, 16),
    "model.norm.weight": (16,),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    **{f"model.layers.0.self_attn.{n}_proj.weight": (16, 16) for n in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": (24, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 24),
}
RUN = {
    "model": {
        "llm": {
            "vocab_size": 320,
            "width": 32,
            "layers": 1,
            "heads": 2,
            "kv_heads": 2,
            "ffn_width": 48,
            "max_positions": 128,
        }
    },
    "data": {"train": [{"format": "pairs", "path": "x"}], "length": 64, "input_slots": 0, "target_slots": 0},
    "total_steps": 5,
    "batch_size": 2,
    "optim": {"trainable": ["^llm/"], "learning_rate": 1e-3},
}


def story(rng: random.Random, world: World) -> Case:
    """A folder that sample wrote, its story.json mutated."""
    image = PIL.Image.new("RGB", (16, 16), (10, 20, 30))
    prompt = Document.of(["Once", Image(image), "a goat"])
    output_folder.write(epath.Path(world.case), prompt, Document.of(["went home.", Image(image)]), 3, Options())
    path = world.case / "story.json"
    record = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2, 4])):
        record = mutate(rng, record, world)
    data = to_json(record)
    path.write_bytes(mutate_bytes(rng, data) if rng.random() < 0.2 else data)
    return Case("story.json", read=functools.partial(_read_story, world))


def _read_story(world: World) -> bytes:
    prompt = output_folder.asked(epath.Path(world.case)).prompt
    images = [image_io.to_png(part.pil()) for part in prompt.parts if isinstance(part, Image)]
    return b"".join([repr(prompt.to_json()["parts"]).encode(errors="backslashreplace"), *images])


def settings(rng: random.Random, world: World) -> Case:
    """A run's or a model's settings from JSON, as a checkpoint's config.json has them."""
    cls, values = rng.choice([(RunConfig, RUN), (ModelConfig, RUN["model"])])
    values = json.loads(json.dumps(to_dict(from_dict(cls, values)))) if rng.random() < 0.7 else values
    for _ in range(rng.choice([1, 1, 2])):
        values = mutate(rng, values, world)
    (world.case / "config.json").write_bytes(to_json(values))
    return Case(
        f"settings: {cls.__name__}",
        read=lambda: repr(from_dict(cls, tensors.read_json(world.case / "config.json"))).encode(
            errors="backslashreplace"
        ),
    )


def foreign(rng: random.Random, world: World) -> Case:
    """A LLaMA folder of transformers whose config.json, index or weights are mutated."""
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
    config = mutate(rng, LLAMA, world) if rng.random() < 0.5 else LLAMA
    data = to_json(config)
    (world.case / "config.json").write_bytes(mutate_bytes(rng, data) if rng.random() < 0.1 else data)
    weights = safetensors.numpy.save(arrays, {"format": "pt"})
    size = int.from_bytes(weights[:8], "little")
    kind = rng.choice(["whole", "header", "length", "mutated", "index"])
    if kind == "header":
        header = to_json(mutate(rng, json.loads(weights[8 : 8 + size]), world))
        weights = len(header).to_bytes(8, "little") + header + weights[8 + size :]
    elif kind == "length":
        weights = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little") + weights[8:]
    elif kind == "mutated":
        weights = mutate_bytes(rng, weights)
    name = "model.safetensors"
    if kind == "index":
        name = "model-00001-of-00001.safetensors"
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(SHAPES, name)}
        (world.case / "model.safetensors.index.json").write_bytes(to_json(mutate(rng, index, world)))
    (world.case / name).write_bytes(weights)
    return Case(f"llama: {kind}", read=functools.partial(_read_foreign, world))


def _read_foreign(world: World) -> bytes:
    found = detect.read(world.case)
    return b"".join(
        np.asarray(leaf.read(tuple(slice(None) for _ in leaf.shape))).tobytes() for leaf in found.leaves.values()
    )
