"""A tokenizer that is not the LLM's own is refused, by what is missing.

Padding of the vocabulary is named and counted.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from dreamjax.config import LlamaConfig
from dreamjax.config.model import ModelConfig
from dreamjax.convert import assemble, detect, importer, vocabulary
from dreamjax.convert.foreign_config import ForeignConfig
from dreamjax.convert.formats import llama
from dreamjax.convert.mapping import to_foreign
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

MODEL = train_tokenizer(["a red circle jumps up"], 300)
PIECES = Tokenizer.from_model(MODEL).piece_count
NEXT_64 = -(-PIECES // 64) * 64  # the multiple of 64 behind them
IDS = {"bos_token_id": 1, "eos_token_id": 2}


def folder_of(tmp_path: pathlib.Path, **files: dict) -> pathlib.Path:
    """A tokenizer's folder, with JSON files by their stems."""
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    for stem, values in files.items():
        (tmp_path / f"{stem}.json").write_text(json.dumps(values))
    return tmp_path


def check(folder: pathlib.Path, rows: int, text_only: bool = True, **config) -> tuple[str, ...]:
    added = vocabulary.listed(folder)
    tokenizer = detect.read_tokenizer(folder, rows, text_only)
    return vocabulary.check(
        tokenizer, folder, added, ForeignConfig({"vocab_size": rows, **IDS, **config}, "llm/config.json")
    )


@pytest.mark.parametrize(
    "stem, values",
    [
        ("added_tokens", {"<a>": PIECES, "<b>": PIECES + 1}),
        (
            "tokenizer_config",
            {
                "added_tokens_decoder": {
                    str(PIECES + 1): {"content": "<b>"},
                    str(PIECES): {"content": "<a>"},
                    "1": {"content": "<s>"},
                }
            },
        ),
        (
            "tokenizer",
            {
                "added_tokens": [
                    {"id": PIECES, "content": "<a>"},
                    {"id": PIECES + 1, "content": "<b>"},
                    {"id": 0, "content": "<unk>"},
                ]
            },
        ),
    ],
)
def test_a_token_for_every_row(tmp_path, stem, values):
    """The model's pieces, and what any of the files that transformers writes adds to them."""
    folder = folder_of(tmp_path, **{stem: values})
    assert check(folder, PIECES + 2) == () and check(folder_of(tmp_path), PIECES + 2) == ()
    with pytest.raises(
        ConfigError,
        match=f"has {PIECES} pieces and 2 added tokens, and llm/config.json says vocab_size {PIECES + 11}: 9 rows",
    ):
        check(folder, PIECES + 11)


def test_padding_is_counted(tmp_path):
    folder = folder_of(tmp_path)
    assert check(folder, PIECES) == ()
    assert check(folder, NEXT_64) == (
        f"rows {PIECES} to {NEXT_64 - 1} of the vocabulary are padding ({NEXT_64 - PIECES})",
    )
    (note,) = check(folder, NEXT_64, text_only=False)
    assert note.endswith(
        "of which the added tokens [PAD], <im_patch>, <im_start>, <im_end>, <dream_start>, <dream_end>, "
        "<image>, <dream> take theirs as they are"
    )


@pytest.mark.parametrize("rows", [PIECES + 1 + (PIECES + 1) % 2, NEXT_64 + 256, 49152])
def test_rows_that_pad_nothing_are_refused(tmp_path, rows):
    with pytest.raises(
        ConfigError, match=rf"says vocab_size {rows}: \d+ rows, the first {PIECES}, would have no token"
    ):
        check(folder_of(tmp_path), rows)


def test_a_vocabulary_that_is_larger_than_the_model_is_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match=f"has {PIECES} pieces, and llm/config.json says vocab_size {PIECES - 1}: it is another model's tokenizer",
    ):
        check(folder_of(tmp_path), PIECES - 1)


@pytest.mark.parametrize(
    "number, message",
    [
        (PIECES + 9, f"'<a>' has the id {PIECES + 9}, and llm/config.json says vocab_size {PIECES}"),
        (5, "'<a>' has the id 5, which is '<0x02>' in its"),
        (-1, "needs a name and an id from 0 on, not '<a>' and -1"),
        ("7", "needs a name and an id from 0 on, not '<a>' and '7'"),
        (True, "not '<a>' and True"),
    ],
)
def test_an_added_token_without_a_row_is_refused(tmp_path, number, message):
    with pytest.raises(ConfigError, match=message):
        check(folder_of(tmp_path, added_tokens={"<a>": number}), PIECES)


def test_an_id_of_thousands_of_digits_is_named(tmp_path):
    with pytest.raises(ConfigError, match="needs a name and an id from 0 on, not '<a>' and '999"):
        vocabulary.listed(
            folder_of(tmp_path, tokenizer_config={"added_tokens_decoder": {"9" * 5000: {"content": "<a>"}}})
        )


def test_a_token_right_behind_the_rows_gets_one_or_is_left_out(tmp_path):
    """As folders of Alpaca's kind have [PAD]."""
    assert check(folder_of(tmp_path, added_tokens={"[PAD]": PIECES}), PIECES) == ()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"bos_token_id": 0}, r"bos_token_id: is 0, but 1 \('<s>'\) in the tokenizer of"),
        ({"eos_token_id": PIECES}, "eos_token_id: is"),
        ({"eos_token_id": [3, 4]}, r"eos_token_id: is \[3, 4\], but 2"),
        ({"unk_token_id": 3}, "unk_token_id"),
        ({"pad_token_id": 10**6}, "pad_token_id: is 1000000"),
        ({"pad_token_id": -2}, "from -1 to"),
        ({"eos_token_id": "2"}, "eos_token_id: needs a whole number, not '2'"),
        ({"bos_token_id": True}, "not True"),
        ({"pad_token_id": 1.5}, "not 1.5"),
    ],
)
def test_special_ids_of_another_tokenizer_are_refused(tmp_path, config, message):
    with pytest.raises(ConfigError, match=f"^llm/config.json: .*{message}"):
        check(folder_of(tmp_path), PIECES, **config)


def test_special_ids_that_are_several_missing_or_none(tmp_path):
    assert check(folder_of(tmp_path), PIECES, bos_token_id=None, eos_token_id=[2, 5], pad_token_id=-1) == ()


@pytest.mark.parametrize("stem", ["tokenizer_config", "special_tokens_map"])
def test_a_text_that_ends_with_another_token_is_refused(tmp_path, stem):
    assert (
        check(
            folder_of(tmp_path, **{stem: {"eos_token": {"content": "</s>"}, "bos_token": "", "unk_token": None}}),
            PIECES,
        )
        == ()
    )
    with pytest.raises(
        ConfigError, match=f"{stem}.json: eos_token: is '<.im_end.>', but '</s>' in the sentencepiece model beside it"
    ):
        check(folder_of(tmp_path, **{stem: {"eos_token": "<|im_end|>"}}), PIECES)


def test_an_import_refuses_and_a_padded_one_says_so(tmp_path):
    """The whole way, with weights: 300 rows too many, then those of padding to a multiple of 64."""
    rng = np.random.default_rng(0)
    for rows in (PIECES + 300, NEXT_64):
        config = LlamaConfig(vocab_size=rows, width=8, layers=1, heads=2, kv_heads=2, ffn_width=8, max_positions=16)
        shapes = assemble.part_shapes(assemble.shapes_of(ModelConfig(llm=config)), "llm")
        tensors = {
            name: value
            for path, shape in shapes.items()
            for name, value in to_foreign(llama.table(config), path, rng.normal(size=shape).astype(np.float32))
        }
        save_file(tensors, folder_of(tmp_path) / "model.safetensors")
        (tmp_path / "config.json").write_text(
            json.dumps(llama.write_config(config, "float32", {"bos": 1, "eos": 2, "pad": 0}))
        )
        if rows == NEXT_64:
            assert importer.make_plan([str(tmp_path)]).notes == (
                f"rows {PIECES} to {rows - 1} of the vocabulary are padding ({rows - PIECES})",
            )
            continue
        with pytest.raises(ConfigError, match="300 rows, the first .* would have no token"):
            importer.make_plan([str(tmp_path)])


@pytest.mark.parametrize(
    "config, said",
    [
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
            r"model_type 'mistral', architectures \['MistralForCausalLM'\]",
        ),
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name 'FluxTransformer2DModel'"),
        ({"architectures": 5}, "architectures 5"),
        ({}, None),
    ],
)
def test_a_folder_in_no_known_layout_says_what_it_saw(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    says = f" \\(it says {said}\\)" if said else ""
    with pytest.raises(
        ConfigError,
        match=f"is a folder in no known layout{says}; known are .*; of model types dreamllm_joints, llama, "
        "clip,.* dreamllm$",
    ):
        detect.read(tmp_path)
