"""Whether the head is the embedding is read from the tensors, as transformers 5 does it, in every layout of a LLaMA."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from benchmarks.layouts import configs, llm  # noqa: E402
from benchmarks.layouts.common import processor, save_bin, save_safetensors, with_tokenizer, write_json  # noqa: E402
from dreamjax.config import ModelConfig  # noqa: E402
from dreamjax.convert import detect, torch_reference  # noqa: E402
from dreamjax.errors import ConfigError  # noqa: E402


def ONE_FILE(tensors, home):
    return save_safetensors(tensors, home / "model.safetensors")


def SHARDS(tensors, home):
    return save_bin(tensors, home, shards=2)


DIFFERS = (
    "lm_head.weight differs from model.embed_tokens.weight, so they are not tied (config.json says "
    "tie_word_embeddings: true)"
)


def tied_folder(folder: pathlib.Path, save=ONE_FILE, change=lambda tensors: tensors, tied: bool = True) -> pathlib.Path:
    """A LLaMA that says it is tied, whose tensors are those of an untied one until `change`."""
    save(change(dict(llm.llama().state_dict())), folder / "llama")
    sizes = {"vocab_size": len(llm.llama().lm_head.weight), **configs.LLAMA}
    write_json(
        folder / "llama" / "config.json",
        {**configs.OLD_LLAMA, **configs.SINCE_4_31, **sizes, "tie_word_embeddings": tied},
    )
    return with_tokenizer(folder / "llama").sources[0]


@pytest.mark.parametrize("save", [ONE_FILE, SHARDS, save_bin], ids=["safetensors", "bin in shards", "bin"])
def test_a_head_that_differs_stays_a_head(tmp_path, save):
    found = detect.read(tied_folder(tmp_path, save))
    assert not found.fields["llm"].tie_embeddings and found.notes == (DIFFERS,)
    head = found.leaves["llm/head/kernel"]
    np.testing.assert_array_equal(head.read((slice(None), slice(None))), llm.llama().lm_head.weight.detach().numpy().T)


def test_one_number_that_differs_is_enough(tmp_path):
    def change(tensors):
        head = tensors["model.embed_tokens.weight"].clone()
        head[-1, -1] += 1e-6
        return {**tensors, "lm_head.weight": head}

    assert not detect.read(tied_folder(tmp_path, change=change)).fields["llm"].tie_embeddings


@pytest.mark.parametrize("save", [ONE_FILE, save_bin], ids=["safetensors", "bin"])
def test_the_same_matrix_twice_is_one(tmp_path, save):
    found = detect.read(
        tied_folder(
            tmp_path, save, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        )
    )
    assert found.fields["llm"].tie_embeddings and "llm/head/kernel" not in found.leaves and found.notes == ()


def test_a_tied_matrix_under_the_heads_name_alone(tmp_path):
    def change(tensors):
        del tensors["model.embed_tokens.weight"]
        return tensors

    folder = tied_folder(tmp_path, change=change)
    found = detect.read(folder)
    assert found.fields["llm"].tie_embeddings
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    np.testing.assert_array_equal(
        found.leaves["llm/embed/embedding"].read((slice(None), slice(None))),
        theirs.model.embed_tokens.weight.detach().numpy(),
    )


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    def change(tensors):
        del tensors["lm_head.weight"]
        return tensors

    with pytest.raises(
        ConfigError, match="llama: has no lm_head.weight, and config.json does not set tie_word_embeddings: true"
    ):
        detect.read(tied_folder(tmp_path, change=change, tied=False))


def test_an_official_release_likewise(tmp_path):
    home = tied_folder(tmp_path, change=lambda _: dict(llm.llama(added=8).state_dict()))
    settings = json.loads((home / "config.json").read_text()) | {
        "model_type": "dreamllm",
        "plugins_init_kwargs": {},
        "vocab_size": processor().get_piece_size() + 8,
    }
    write_json(home / "config.json", settings)
    names = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>", "<dream_start>", "<dream_end>", "<image>", "<dream>")
    write_json(home / "added_tokens.json", {name: row for row, name in enumerate(names, processor().get_piece_size())})
    found = detect.read(home)
    assert (
        found.format == "official"
        and not found.fields["llm"].tie_embeddings
        and found.notes == (DIFFERS,)
        and "llm/head/kernel" in found.leaves
    )


def test_llama2c_says_it_by_its_length(tmp_path):
    """A shared classifier has no place in the file for another one."""
    (file,) = llm.llama2c(tmp_path, shared=True).sources
    assert detect.read(file).fields["llm"].tie_embeddings
    head = llm.llama(kv_heads=2, eps=1e-5, tied=True).lm_head.weight.detach().numpy()
    file.write_bytes(file.read_bytes() + head.tobytes())
    with pytest.raises(ConfigError, match="is a file in no known layout"):
        detect.read(file)


@pytest.mark.parametrize("imported_as_tied", [False, True])
def test_verify_compares_with_what_transformers_loads(tmp_path, imported_as_tied):
    """Whatever the import made of the head."""
    folder = tied_folder(tmp_path)
    found = detect.read(folder)
    model = ModelConfig(llm=dataclasses.replace(found.fields["llm"], tie_embeddings=imported_as_tied))
    tokens = np.arange(48).reshape(2, 24)
    expected, _ = torch_reference.llm_outputs("llm", model, found.raw_parts, {"tokens": tokens})
    with torch.no_grad():
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor(tokens)).logits
    np.testing.assert_allclose(expected["logits"], theirs.numpy(), atol=1e-5)
