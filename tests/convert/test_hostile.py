"""Files of others with values of other types, absurd sizes, damage and traps.

Each ends in one line that names the file.
"""

import functools
import json
import os
import pathlib
import pickle
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hostile_values import POINTER, VALUES, mutations, one_line
from safetensors.numpy import save
from small_model import CLIP, LLM, UNET, VAE

from dreamjax.config import ClipTextConfig, DiffusionConfig, LlamaConfig, ModelConfig
from dreamjax.convert import assemble, detect, importer, tensors
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import clip, clip_text, huggingface, llama, official, stable_diffusion
from dreamjax.convert.mapping import to_foreign
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

TEXT = ClipTextConfig(vocab_size=20, positions=6, width=16, layers=2, heads=2, ffn_width=24)
PLUGINS = {
    "clip_vision_embedding": {
        "clip_vision_model_name_or_path": "openai/clip-vit-large-patch14",
        "embed_hidden_size": LLM.width,
        "select_layer": -2,
    },
    "stable_diffusion_head": {
        "diffusion_name_or_path": "stabilityai/stable-diffusion-2-1-base",
        "embed_hidden_size": LLM.width,
        "resolution": 512,
    },
    "dream_embedding": {"num_dream_queries": 4, "embed_hidden_size": LLM.width},
}
LLAMA = llama.write_config(LLM, "float32", {"bos": 1, "eos": 2, "pad": 0})
CLIP_BOTH = {"projection_dim": 8, "text_config": clip_text.write_config(TEXT), "vision_config": clip.write_config(CLIP)}
SEEN = {
    "rope_parameters": {"rope_theta": 1e4},
    "head_dim": None,
    "text_config_dict": None,
    "vision_config_dict": None,
}  # keys that not every file has
CONFIGS: dict[str, tuple[dict, Callable]] = {
    "llama": (LLAMA | SEEN, llama.read_config),
    "clip": (CLIP_BOTH | SEEN, clip.read_config),
    "clip_text": (CLIP_BOTH | SEEN, clip_text.read_config),
    "processor": (clip.write_processor(CLIP), lambda settings: clip.read_processor(settings, CLIP)),
    "unet": (stable_diffusion.write_unet(UNET), stable_diffusion.read_unet),
    "vae": (stable_diffusion.write_vae(VAE, 8), stable_diffusion.read_vae),
    "scheduler": (stable_diffusion.write_schedule(DiffusionConfig()), stable_diffusion.read_schedule),
    "official": (
        LLAMA | {"model_type": "dreamllm", "plugins_init_kwargs": PLUGINS},
        lambda settings: official.read_model(pathlib.Path("release"), settings),
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_other_types_and_sizes_is_read_or_named(kind):
    """What is read has sizes that a computer can count with, and is a setting of ours."""
    values, read = CONFIGS[kind]
    read(ForeignConfig(values, "config.json"))
    refused = 0
    for mutated in mutations(values):
        try:
            read(ForeignConfig(mutated, "config.json"))
        except ConfigError as error:
            one_line(error)
            refused += 1
    assert refused > 5 * len(values)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b"[1]", b"5", b"null", b'"a"', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", POINTER],
    ids=range(10),
)
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json"]
)
def test_a_file_that_holds_no_object_is_named(folder, file, text):
    (folder / file).write_bytes(text)
    with pytest.raises(ConfigError) as refused:
        importer.make_plan([str(folder)])
    one_line(refused.value, str(folder / file), *(["run git lfs pull"] if text == POINTER else []))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A LLaMA with its tokenizer."""
    write(tmp_path / "llm")
    return tmp_path / "llm"


@functools.cache
def contents() -> dict[str, bytes]:
    model = train_tokenizer(["a red circle"], 300)
    config = LlamaConfig(
        vocab_size=Tokenizer.from_model(model).piece_count,
        width=8,
        layers=1,
        heads=2,
        kv_heads=2,
        ffn_width=8,
        max_positions=16,
    )
    shapes = assemble.part_shapes(assemble.shapes_of(ModelConfig(llm=config)), "llm")
    weights = {
        name: value
        for path, shape in shapes.items()
        for name, value in to_foreign(llama.table(config), path, np.zeros(shape, np.float32))
    }
    settings = llama.write_config(config, "float32", {"bos": 1, "eos": 2, "pad": 0})
    return {"config.json": json.dumps(settings).encode(), "tokenizer.model": model, "model.safetensors": save(weights)}


def write(folder: pathlib.Path):
    folder.mkdir()
    for name, content in contents().items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1000},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**24},
        {"vocab_size": 2**24},
        {"vocab_size": 10**12},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 2**24},
        {"max_position_embeddings": 0},
        {"rope_theta": float("nan")},
        {"rms_norm_eps": -1},
        {"model_type": 5},
        {"model_type": ["llama"]},
        {"model_type": None, "architectures": 5},
        {"model_type": None, "architectures": [["LlamaForCausalLM"]]},
        {"_class_name": ["UNet2DConditionModel"], "model_type": {}},
        {"plugins_init_kwargs": 5},
        {"plugins_init_kwargs": {}, "special_tokens2ids_dict": [1]},
    ],
    ids=str,
)
def test_a_folder_whose_config_is_absurd_is_refused(folder, change):
    """The whole way to the tensors."""
    (folder / "config.json").write_text(json.dumps(json.loads(contents()["config.json"]) | change))
    with pytest.raises(ConfigError) as refused:
        importer.make_plan([str(folder)])
    one_line(refused.value, str(folder))


@pytest.mark.parametrize("values", VALUES, ids=range(len(VALUES)))
def test_joints_of_other_types_are_refused(folder, values):
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": huggingface.JOINTS_TYPE,
                "visual_projector": values,
                "dream_queries": values,
                "template": values,
            }
        )
    )
    with pytest.raises(ConfigError) as refused:
        importer.make_plan([str(folder)])
    one_line(refused.value, str(folder))


# ----------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        5,
        [],
        ["a"],
        {},
        {"a": 5},
        {"a": None},
        {"a": ["model.safetensors"]},
        {"a": ""},
        {"a": "\0"},
        {"a": "."},
        {"a": "missing.safetensors"},
        {"a": "/etc/hostname"},
        {"a": "../other.safetensors"},
        {"a": "x/../../other.safetensors"},
        {"a": "link.safetensors"},
        {"a": "https://x/y.safetensors"},
    ],
    ids=str,
)
def test_an_index_names_files_of_its_folder(folder, weight_map):
    os.rename(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "link.safetensors").symlink_to(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError) as refused:
        detect.read(folder)
    one_line(refused.value, str(folder / "model.safetensors.index.json"))


def test_the_hubs_cache_has_links_to_its_blobs(folder):
    (folder.parent / "blobs").mkdir()
    os.rename(folder / "model.safetensors", folder.parent / "blobs" / "4d7a")
    (folder / "part.safetensors").symlink_to("../blobs/4d7a")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    assert detect.read(folder).leaves


def test_a_tensor_in_two_shards_is_refused(folder):
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(contents()["model.safetensors"])
    os.remove(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ConfigError, match="is in a.safetensors and again in b.safetensors"):
        detect.read(folder)


def header(tensors_of: dict | bytes, body: int = 64, length: int | None = None) -> bytes:
    text = tensors_of if isinstance(tensors_of, bytes) else json.dumps(tensors_of).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


def entry(dtype="F32", shape=(4, 4), at=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


HEADERS = {
    "nothing": b"",
    "two bytes": b"\1\2",
    "length 0": header({"a": entry()}, length=0),
    "length 2^60": header({"a": entry()}, length=2**60),
    "length 2^64 - 1": header({"a": entry()}, length=2**64 - 1),
    "one byte more": header({"a": entry()}, length=len(json.dumps({"a": entry()})) + 1),
    "truncated": header({"a": entry()}, 63),
    "longer": header({"a": entry()}, 65),
    "behind the end": header({"a": entry(at=(64, 128))}),
    "overlapping": header({"a": entry(shape=(8,), at=(0, 32)), "b": entry(shape=(8,), at=(16, 48))}, 48),
    "backwards": header({"a": entry(at=(64, 0))}),
    "negative": header({"a": entry(shape=(-4, -4))}),
    "another size": header({"a": entry(shape=(4, 5))}),
    "2^80 entries": header({"a": entry(shape=(2**40, 2**40))}),
    "no such type": header({"a": entry("F33")}),
    "a number for the type": header({"a": entry(5)}),
    "float8": header({"a": entry("F8_E4M3", (64,))}),
    "nested": header(b'{"a":' + b"[" * 200_000),
    "a list": header([1]),
    "null": header(b"null"),
    "no UTF-8": header(b'{"\xff": 1}'),
    "twice": header(
        b'{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, "a": {"dtype": "F32", "shape": '
        b'[8], "data_offsets": [32, 64]}}'
    ),
    "Git LFS": POINTER,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_damaged_safetensors_file_is_named(tmp_path, kind):
    file = tmp_path / "model.safetensors"
    file.write_bytes(HEADERS[kind])
    with pytest.raises(ConfigError) as refused:
        tensors.open_file(file)
    one_line(refused.value, str(file), *(["run git lfs pull"] if kind == "Git LFS" else []))


class Runs:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("it-ran"),)


def pickles() -> dict[str, object]:
    torch = pytest.importorskip("torch")
    zeros = torch.zeros(4, 4)
    return {
        "code": {"a": Runs()},
        "a list": [zeros],
        "a tensor alone": zeros,
        "numbers for names": {1: zeros},
        "nested": {"state_dict": {"a": zeros}},
        "no tensor": {"a": None},
        "sparse": {"a": zeros.to_sparse()},
        "complex": {"a": zeros.to(torch.complex64)},
        "no memory": {"a": torch.zeros(3, device="meta")},
        "float8": {"a": zeros.to(torch.float8_e4m3fn)},
    }


def test_a_pickle_of_anything_else_is_named_and_runs_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    for value in pickles().values():
        for zipped in (True, False):
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            with pytest.raises(ConfigError) as refused:
                tensors.open_file(file)
            one_line(refused.value, str(file))
    for content in (b"", b"hello", pickle.dumps(Runs()), file.read_bytes()[:100], POINTER):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            tensors.open_file(file)
        one_line(refused.value, str(file))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("file", ["tokenizer.model", "model.safetensors"])
def test_a_pointer_of_git_lfs_in_place_of_a_file(folder, file):
    (folder / file).write_bytes(POINTER)
    with pytest.raises(
        ConfigError, match=f"{file}: is a Git LFS pointer, not the file itself: run git lfs pull in its folder"
    ):
        importer.make_plan([str(folder)])


def test_a_source_that_is_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "model.bin").write_bytes(POINTER)
    with pytest.raises(ConfigError, match="model.bin: is a Git LFS pointer"):
        importer.make_plan([str(tmp_path / "model.bin")])
