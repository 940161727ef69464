"""The tokenizer's promises about free text; tests/parity has recorded ids and texts of the official one."""

import json
import os
import pathlib
import pickle

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamjax.data.pipeline.vocabulary import open_tokenizer
from dreamjax.document.tokenizer import ADDED_TOKENS, SPACE, Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError

SHARED = pathlib.Path(__file__).parents[3] / "shared"
DATA = pathlib.Path(os.environ.get("DREAMJAX_DATA", SHARED / "data"))

CORPUS = ["a small red circle.", 'The dog\'s 2 cats, 34 of them, said: "no!"', "two\nlines", "café"] * 3
MODEL = train_tokenizer(CORPUS, 400)
LEGACY = Tokenizer.from_model(MODEL)
MODERN = Tokenizer.from_model(MODEL, legacy=False)
BOTH = pytest.mark.parametrize("tokenizer", [LEGACY, MODERN], ids=["legacy", "modern"])

relaxed = settings(deadline=None, derandomize=True)
texts = st.text(st.characters(exclude_characters=SPACE, exclude_categories=["Cs"]), max_size=40)
texts_with_specials = st.lists(st.one_of(texts, st.sampled_from([*ADDED_TOKENS, "<s>", "</s>", "<unk>"]))).map("".join)


# ----------------------------------------------------------------------------------------------------------------------
# The real one


def test_real_llama():
    file = DATA / "tokenizers" / "llama_tokenizer.model"
    if not file.exists():
        pytest.skip(f"{file} is not there (DREAMJAX_DATA)")
    tokenizer = Tokenizer.from_model(file)
    ids = [15043, 3186, 29892, 529, 2492, 29958, 16814, 16405]
    assert tokenizer.encode("Hello world, <img> DreamJAX") == ids
    assert tokenizer.decode(ids) == "Hello world, <img> DreamJAX"
    assert (tokenizer.size, tokenizer.pad, tokenizer.im_patch, tokenizer.dream_end) == (32008, 32000, 32001, 32005)


# ----------------------------------------------------------------------------------------------------------------------
# Ids and text


@BOTH
@relaxed
@given(text=texts_with_specials)
def test_plain_text_never_gets_a_special_id(tokenizer, text):
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@BOTH
def test_special_strings_get_their_ids_only_on_request(tokenizer):
    names = [*ADDED_TOKENS, "<s>", "</s>", "<unk>"]
    assert tokenizer.encode("".join(names), special=True) == [tokenizer.special[name] for name in names]
    assert tokenizer.decode(tokenizer.encode("a<im_start>b</s>")) == "a<im_start>b</s>"


@BOTH
@relaxed
@given(text=texts_with_specials)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_continuation(ids) == (" " + text if text else "")
    if tokenizer is MODERN or not text.startswith(" "):  # the official legacy decode takes one leading space too many
        assert tokenizer.decode(ids) == text


@BOTH
def test_continuation_keeps_its_leading_space(tokenizer):
    ids = tokenizer.encode("a red circle")
    parts = [tokenizer.decode_continuation([i]) for i in ids]
    assert "".join(parts) == " a red circle"
    assert tokenizer.decode_continuation([tokenizer.dream_start, *ids, tokenizer.eos]) == " a red circle"


@BOTH
@relaxed
@given(text=texts_with_specials)
def test_offsets_follow_the_text(tokenizer, text):
    ids, starts = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert starts == sorted(starts) and len(starts) == len(ids)
    ends = [*starts[1:], len(text)]
    for i, (piece, start, end) in enumerate(zip(tokenizer.pieces(ids), starts, ends, strict=False)):
        if i > 0 and not piece.startswith("<0x"):
            assert text[start:end] == piece.replace(SPACE, " ")


@BOTH
def test_offsets_of_bytes_and_of_the_first_space(tokenizer):
    ids, starts = tokenizer.encode_with_offsets("日 a")
    assert tokenizer.pieces(ids) == [SPACE, "<0xE6>", "<0x97>", "<0xA5>", SPACE + "a"]
    assert starts == [0, 0, 0, 0, 1]


def test_lone_surrogates_count_as_one_character():
    assert LEGACY.encode("a\ud800b") == LEGACY.encode("a\ufffdb")
    assert LEGACY.encode_with_offsets("\ud800b")[1][-1] == 1


def test_unknown_ids_are_named():
    for call in (LEGACY.pieces, LEGACY.decode, LEGACY.decode_continuation):
        with pytest.raises(ValueError, match=f"{LEGACY.size} is the id of no token"):
            call([LEGACY.bos, LEGACY.size])


# ----------------------------------------------------------------------------------------------------------------------
# Files


@BOTH
def test_save_load_and_pickle(tokenizer, tmp_path):
    tokenizer.encode("fills the caches", special=True)
    tokenizer.save(tmp_path)
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy == tokenizer and hash(copy) == hash(tokenizer)
        assert copy.encode("a <dream> b", special=True) == tokenizer.encode("a <dream> b", special=True)


def test_default_ids_follow_the_pieces_in_order():
    first = LEGACY.size - len(ADDED_TOKENS)
    assert [LEGACY.special[name] for name in ADDED_TOKENS] == list(range(first, LEGACY.size))
    assert {LEGACY.pad, LEGACY.im_patch, LEGACY.bos, LEGACY.eos, LEGACY.unk} < LEGACY.special_ids


def test_bare_llama_folder_gets_the_tokens_and_keeps_its_own(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    assert Tokenizer.load(tmp_path) == LEGACY
    pieces = LEGACY.size - len(ADDED_TOKENS)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 2, "<own>": pieces}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.special["<own>"], tokenizer.pad) == (pieces, pieces + 1)


def test_release_without_pad_token_gets_no_new_id(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    added = {name: i for name, i in LEGACY.added if name != "[PAD]"}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad, tokenizer.size) == (tokenizer.unk, LEGACY.size)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no sentencepiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    (tmp_path / "special_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match="special_tokens.json lacks 'added'"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="id 5 is one of the sentencepiece model's"):
        Tokenizer.from_model(MODEL, {"<im_patch>": 5})
    with pytest.raises(ValueError, match="<dream_end>, <dream_start>, <im_end>, <im_start>, .PAD. missing"):
        Tokenizer.from_model(MODEL, {"<im_patch>": 500})


# ----------------------------------------------------------------------------------------------------------------------
# Training


def test_training_is_deterministic_and_quiet(capfd):
    assert train_tokenizer(iter(CORPUS), 400) == MODEL
    assert capfd.readouterr() == ("", "")


def test_training_makes_a_llama_like_model():
    assert (LEGACY.unk, LEGACY.bos, LEGACY.eos) == (0, 1, 2)
    assert LEGACY.pieces(LEGACY.encode("red 34\n")) == [SPACE + "red", SPACE, "3", "4", "<0x0A>"]


def test_training_with_a_limit_above_and_below_what_the_texts_give():
    words = train_tokenizer(["a red circle.", "a blue square."], 4096)
    assert Tokenizer.from_model(words).size < 400
    stories = (
        f"Once upon a time goat number {i} met the {'x' * (i % 7)}{i * i} of {chr(97 + i % 26) * 3}."
        for i in range(500)
    )
    assert Tokenizer.from_model(train_tokenizer(stories, 300)).size == 308


def test_training_errors():
    with pytest.raises(ValueError, match="there is no text"):
        train_tokenizer([], 400)
    with pytest.raises(ValueError, match="needs at least 263"):
        train_tokenizer(["abc"], 100)


@pytest.mark.parametrize(
    "damage",
    [
        {"added": []},
        {"added": None},
        {"added": {"<a>": 900.5}},
        {"added": {"<a>": True}},
        {"added": {"<a>": 2**31}},
        {"added": {"<a>": "9"}},
        {"legacy": "no"},
        {"legacy": None},
        {"pad": 5},
        {"pad": []},
    ],
)
def test_special_tokens_of_other_types_are_named(tmp_path, shapes_tokenizer, damage):
    shapes_tokenizer.save(tmp_path)
    file = tmp_path / "special_tokens.json"
    whole = json.loads(file.read_text())
    changed = {
        key: whole[key] | value if key == "added" and isinstance(value, dict) else value
        for key, value in damage.items()
    }
    file.write_text(json.dumps(whole | changed))
    with pytest.raises(ConfigError, match=f"{tmp_path}: special_tokens.json: "):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "special_tokens.json"])
@pytest.mark.parametrize("damage", [b"", b"hello", b"[1]", b"[" * 100_000, b"\0" * 500, b"\xff\xfe", b"{}"])
def test_a_damaged_file_is_named(tmp_path, quickstart, shapes_tokenizer, name, damage):
    shapes_tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_bytes(damage)
    with pytest.raises(ConfigError, match=f"tokenizer: {name}"):
        open_tokenizer(quickstart, epath.Path(tmp_path))
