"""From run to run.

What patterns and tokens name is taken over to the bit, from several origins, and the record knows all of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from small_model import LATENT, leaves, parameters
from small_run import CONFIG, Run, mesh, same_bytes

from dreamjax.config import DataConfig, InitFrom, ModelConfig, OptimConfig, RunConfig, SourceConfig
from dreamjax.data.pipeline.vocabulary import open_tokenizer
from dreamjax.document.tokenizer import ADDED_TOKENS, Tokenizer
from dreamjax.document.tokenizer_training import train_tokenizer
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, model_folder, weight_transfer
from dreamjax.training.model_folder import LoadedFile, ModelCard, Origin
from dreamjax.training.state import init

# ----------------------------------------------------------------------------------------------------------------------
# From a workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose parameters come from nowhere, with a checkpoint at step 3 and a better one at step 2."""
    run = Run(CONFIG, epath.Path(tmp_path_factory.mktemp("run")), mesh(1, 1, 1))
    for step, loss in ((2, 1.0), (3, 2.0)):
        run.save(step, loss)
    return run


@pytest.fixture(scope="module")
def taken(run, tmp_path_factory) -> Run:
    """A run on another mesh that begins with some of the first one's parameters."""
    config = dataclasses.replace(CONFIG, seed=1, init_from=(InitFrom(str(run.folder), "^(llm/(layers|norm)|clip)/"),))
    return Run(config, epath.Path(tmp_path_factory.mktemp("taken")), mesh(1, 8, 1))


def test_a_pattern_moves_what_it_names(run, taken):
    fresh = leaves(jax.jit(lambda: init(taken.config))()[0].trainable)
    average = leaves(run.state.average)
    assert same_bytes(taken.state.average, taken.state.trainable) and int(taken.state.step) == 0
    for path, leaf in leaves(taken.state.trainable).items():
        if path.startswith(("llm/layers/", "llm/norm/")):
            np.testing.assert_array_equal(leaf, average[path], err_msg=path)
        else:
            np.testing.assert_allclose(leaf, fresh[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert same_bytes(taken.frozen, run.frozen) and taken.meta["frozen"]["checksum"] == run.meta["frozen"]["checksum"]
    for leaf, where in zip(
        jax.tree.leaves(taken.state.trainable), jax.tree.leaves(taken.where[0].trainable), strict=True
    ):
        assert leaf.sharding == where
    assert (
        {*taken.meta["origins"][0]["parameters"], *taken.meta["fresh"]}
        == set(average) | set(leaves(run.frozen))
        == set(run.meta["fresh"])
    )
    assert set(taken.meta["fresh"]) == {
        "llm/embed/embedding",
        "llm/head/kernel",
        "visual_projector/linear/bias",
        "visual_projector/linear/kernel",
    }


@pytest.fixture(scope="module")
def saved(taken) -> Run:
    """That run with a checkpoint at step 5."""
    taken.save(5)
    return taken


def test_the_chain_of_origins_is_in_every_checkpoint(run, saved, tmp_path):
    third = dataclasses.replace(
        CONFIG, init_from=(InitFrom(str(saved.folder), "^llm/"), InitFrom(str(run.folder), "^visual", which="best"))
    )
    third = Run(third, epath.Path(tmp_path), mesh(1, 1, 1))
    third.save(1)
    run.folder.rename(run.folder.parent / "moved")  # the record needs no earlier folder
    try:
        record = weight_transfer.origins_of(third.folder)
    finally:
        (run.folder.parent / "moved").rename(run.folder)
    assert (record["path"], record["step"]) == (str(third.folder), 1)
    assert [(origin["path"], origin["step"], origin["pattern"]) for origin in record["origins"]] == [
        (str(saved.folder), 5, "^llm/"),
        (str(run.folder), 2, "^visual"),
    ]
    assert all(name.startswith("clip/") for name in record["fresh"])
    first, second = record["origins"]
    assert (first["origins"][0]["path"], first["origins"][0]["step"]) == (str(run.folder), 3) and first["origins"][0][
        "origins"
    ] == second["origins"] == []
    llm = leaves(checkpoint.load_params(saved.folder)["llm"])
    assert first["parameters"] == [f"llm/{path}" for path in llm]
    assert first["checksum"] == checkpoint.checksum({f"llm/{path}": leaf for path, leaf in llm.items()})
    words = weight_transfer.format_summary(record).splitlines()
    assert words[0].startswith(
        f"from {saved.folder} at step 5: llm (12 parameters) (pattern ^llm/, checksum {first['checksum']}"
    )
    assert words[1].startswith(f"  from {run.folder} at step 3: clip (") and words[2].startswith(
        "    initialised in that run: clip ("
    )
    assert words[3].startswith(
        "  initialised in that run: llm (2 parameters), visual_projector (2 parameters)"
    ) and words[-1].startswith("initialised: clip (")


@pytest.mark.parametrize(
    "origins, model, message",
    [
        ((("first", "^unet/"),), LATENT, r"config.init_from\[0\]: .*/first has nothing for unet/conv_in/bias \(8,\)"),
        ((("first", "^vae/"),), None, r"config.init_from\[0\].pattern: '\^vae/' matches no parameter"),
        (
            (("first", "^visual"),),
            "mlp",
            r"config.init_from\[0\]: .* has nothing for visual_projector/fc1/bias \(32,\)",
        ),
        (
            (("first", "^llm/"), ("first", "norm/scale$")),
            None,
            r"init_from\[0\] and config.init_from\[1\]: .* both match llm/layers/attention_norm/scale",
        ),
        ((("first", "^llm/"),), 56, r"has \(64, 32\) for llm/embed/embedding \(56, 32\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, origins, model, message):
    make_folder(tmp_path / "first", CONFIG.model, parameters(CONFIG.model))
    changed = {
        None: CONFIG.model,
        LATENT: LATENT,
        "mlp": dataclasses.replace(CONFIG.model, visual_projector="mlp"),
        56: dataclasses.replace(CONFIG.model, llm=dataclasses.replace(CONFIG.model.llm, vocab_size=56)),
    }[model]
    config = dataclasses.replace(
        CONFIG, model=changed, init_from=tuple(InitFrom(str(tmp_path / name), pattern) for name, pattern in origins)
    )
    with pytest.raises(ConfigError, match=message):
        weight_transfer.transfer(config, on_device(parameters(changed)), None)


# ----------------------------------------------------------------------------------------------------------------------
# Rows of tokens

PIECES = train_tokenizer(["a red circle"], 300)
OURS = Tokenizer.from_model(PIECES)
COUNT = OURS.size - len(ADDED_TOKENS)
# As in the official release: the same tokens under other ids.
OTHER = Tokenizer.from_model(PIECES, {token: COUNT + i for i, token in enumerate(reversed(ADDED_TOKENS))})
MODEL = dataclasses.replace(LATENT, llm=dataclasses.replace(LATENT.llm, vocab_size=OURS.size))
BARE = ModelConfig(llm=dataclasses.replace(MODEL.llm, vocab_size=COUNT))
DATA = DataConfig(train=(SourceConfig("shapes"),), length=32, input_slots=2, target_slots=2)


def on_device(params: dict) -> dict:
    return jax.tree.map(jnp.asarray, params)


def make_folder(folder, model: ModelConfig, params: dict, tokenizer: Tokenizer | None = None) -> str:
    """A model folder, as `convert export` writes them."""
    folder = epath.Path(folder)
    model_folder.write_card(folder, ModelCard(model))
    checkpoint.save_tree(folder / "params", on_device(params))
    if tokenizer:
        tokenizer.save(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A language model without the added tokens, and two whole runs that trained them, one with other ids."""
    root = tmp_path_factory.mktemp("origins")
    return {
        "bare": make_folder(root / "bare", BARE, parameters(BARE, 1), OURS),
        "sees": make_folder(root / "sees", MODEL, parameters(MODEL, 2), OURS),
        "draws": make_folder(root / "draws", MODEL, parameters(MODEL, 3), OTHER),
    }


def hand_over(*origins: InitFrom, tokenizer: Tokenizer = OURS) -> tuple[dict, dict]:
    """(leaves, record) of a run of MODEL that begins as parameters(MODEL) and takes over from the origins."""
    config = RunConfig(model=MODEL, data=DATA, optim=OptimConfig(trainable=(".",)), init_from=origins)
    params, record = weight_transfer.transfer(config, on_device(parameters(MODEL)), tokenizer)
    return leaves(params), record


def row(params: dict, path: str, tokenizer: Tokenizer, token: str) -> np.ndarray:
    return np.take(params[path], dict(tokenizer.added)[token], weight_transfer.VOCABULARY[path])


FRESH, SEES, DRAWS = leaves(parameters(MODEL)), leaves(parameters(MODEL, 2)), leaves(parameters(MODEL, 3))
SEEN_TOKENS, DREAMED_TOKENS = (
    ("<im_start>", "<im_end>", "<im_patch>", "<image>"),
    ("<dream_start>", "<dream_end>", "<dream>"),
)


def test_rows_of_tokens_come_with_what_was_trained_behind_them(folders):
    got, record = hand_over(
        InitFrom(folders["bare"], "^llm/"),
        InitFrom(folders["sees"], "^(visual_projector|clip)/"),
        InitFrom(folders["draws"], "^(dream_queries$|condition_projector/)"),
    )
    bare = leaves(parameters(BARE, 1))
    for path, axis in weight_transfer.VOCABULARY.items():
        np.testing.assert_array_equal(np.take(got[path], range(COUNT), axis), bare[path])
        for token in SEEN_TOKENS:
            np.testing.assert_array_equal(row(got, path, OURS, token), row(SEES, path, OURS, token), err_msg=token)
        for token in DREAMED_TOKENS:
            np.testing.assert_array_equal(row(got, path, OURS, token), row(DRAWS, path, OTHER, token), err_msg=token)
        np.testing.assert_array_equal(row(got, path, OURS, "[PAD]"), row(FRESH, path, OURS, "[PAD]"))
    for path, theirs in {
        "dream_queries": DRAWS,
        "visual_projector/linear/bias": SEES,
        "unet/conv_in/bias": FRESH,
        "llm/norm/scale": bare,
    }.items():
        np.testing.assert_array_equal(got[path], theirs[path])
    by_bare, by_sees, by_draws = (origin["parameters"] for origin in record["origins"])
    assert by_bare == list(bare)
    assert [name for name in by_sees if name.endswith(">")] == [
        f"{path}/{token}" for path in weight_transfer.VOCABULARY for token in OURS.special if token in SEEN_TOKENS
    ]
    assert {"dream_queries", "condition_projector/linear/kernel", "llm/head/kernel/<dream_start>"} <= set(
        by_draws
    ) and len(by_draws) == 8
    assert [name for name in record["fresh"] if name.startswith("llm/")] == [
        "llm/embed/embedding/[PAD]",
        "llm/head/kernel/[PAD]",
    ]
    assert "initialised: unet (" in weight_transfer.format_summary(
        record
    ) and "llm/head/kernel/[PAD]" in weight_transfer.format_summary(record)


def test_a_token_s_name_in_a_pattern_decides(folders):
    got, record = hand_over(
        InitFrom(folders["sees"], "^(llm|visual_projector)/"), InitFrom(folders["draws"], "<im_|^dream_queries$")
    )
    for token in ("<im_start>", "<im_end>", "<im_patch>", *DREAMED_TOKENS):
        np.testing.assert_array_equal(
            row(got, "llm/embed/embedding", OURS, token), row(DRAWS, "llm/embed/embedding", OTHER, token), err_msg=token
        )
    for token in ("<image>", "[PAD]"):
        np.testing.assert_array_equal(
            row(got, "llm/embed/embedding", OURS, token), row(SEES, "llm/embed/embedding", OURS, token), err_msg=token
        )
    assert not [name for name in record["fresh"] if name.startswith("llm/")]
    with pytest.raises(ConfigError, match="'<im_start>' and '<im_' both match the row of <im_start>"):
        hand_over(InitFrom(folders["sees"], "<im_start>"), InitFrom(folders["draws"], "<im_"))


def test_one_origin_gives_all_its_rows_by_the_tokens_names(folders):
    got, record = hand_over(InitFrom(folders["draws"]))
    for path in weight_transfer.VOCABULARY:
        for token in ADDED_TOKENS:
            np.testing.assert_array_equal(row(got, path, OURS, token), row(DRAWS, path, OTHER, token), err_msg=token)
    assert record["fresh"] == [] and record["origins"][0]["parameters"] == list(DRAWS)
    same, _ = hand_over(InitFrom(folders["draws"], "^llm/"), tokenizer=OTHER)
    assert all(np.array_equal(same[path], (DRAWS if path.startswith("llm/") else FRESH)[path]) for path in same)


def test_rows_by_which_a_vocabulary_grew_are_fresh_or_the_mean(folders):
    fresh, record = hand_over(InitFrom(folders["bare"], "^llm/"))
    mean, _ = hand_over(InitFrom(folders["bare"], "^llm/", new_rows="mean"))
    bare = leaves(parameters(BARE, 1))
    for path, axis in weight_transfer.VOCABULARY.items():

        def new(params, path=path, axis=axis):
            return np.take(params[path], range(COUNT, OURS.size), axis)

        np.testing.assert_array_equal(new(fresh), new(FRESH))
        np.testing.assert_allclose(
            new(mean), np.broadcast_to(bare[path].mean(axis, keepdims=True), new(mean).shape), rtol=1e-4, atol=1e-6
        )
        assert [name for name in record["fresh"] if name.startswith(f"{path}/")] == [
            f"{path}/{token}" for token in ADDED_TOKENS
        ]


def test_without_a_tokenizer_rows_are_told_by_their_number(tmp_path):
    grown = dataclasses.replace(CONFIG.model, llm=dataclasses.replace(CONFIG.model.llm, vocab_size=72))
    config = dataclasses.replace(
        CONFIG,
        model=grown,
        init_from=(InitFrom(make_folder(tmp_path, CONFIG.model, parameters(CONFIG.model, 1)), "^llm/"),),
    )
    before, after = leaves(parameters(CONFIG.model, 1)), leaves(parameters(grown))
    params, record = weight_transfer.transfer(config, on_device(parameters(grown)), None)
    expected = np.concatenate([before["llm/embed/embedding"], after["llm/embed/embedding"][64:]])
    np.testing.assert_array_equal(params["llm"]["embed"]["embedding"], expected)
    assert record["fresh"][-4:-2] == [
        "llm/embed/embedding/[64:72]",
        "llm/head/kernel/[64:72]",
    ] and "[64:72]" in weight_transfer.format_summary(record)


def test_rows_of_another_tokenizer_are_refused_and_its_own_is_the_default(folders, tmp_path):
    other = Tokenizer.from_model(train_tokenizer(["a red zirzle"], 300))
    assert other.model != OURS.model and other.size <= OURS.size
    with pytest.raises(
        ConfigError, match="belong to other tokens than this run's; set config.data.tokenizer to .*bare/tokenizer"
    ):
        hand_over(InitFrom(folders["bare"], "^llm/"), tokenizer=other)
    config = RunConfig(
        model=MODEL,
        data=DATA,
        optim=OptimConfig(trainable=(".",)),
        init_from=(InitFrom(folders["sees"], "^clip/"), InitFrom(folders["draws"], "^llm/")),
    )
    assert open_tokenizer(config, epath.Path(tmp_path / "a")) == OTHER == Tokenizer.load(tmp_path / "a" / "tokenizer")
    named = dataclasses.replace(config, data=dataclasses.replace(DATA, tokenizer=folders["sees"] + "/tokenizer"))
    assert open_tokenizer(named, epath.Path(tmp_path / "b")) == OURS


def test_a_model_folder_says_which_run_it_was(run, saved, tmp_path):
    folder = epath.Path(make_folder(tmp_path, CONFIG.model, parameters(CONFIG.model)))
    unknown = weight_transfer.origins_of(folder)
    assert (
        unknown == {"path": str(folder), "step": None, "origins": None, "fresh": None}
        and weight_transfer.format_summary(unknown) == ""
    )
    weight_transfer.write_origins(folder, saved.folder, "last")
    record = weight_transfer.origins_of(folder)
    assert record["fresh"] == []
    (origin,) = record["origins"]
    assert (origin["path"], origin["step"], origin["parameters"]) == (str(saved.folder), 5, None)
    assert origin["origins"] == weight_transfer.origins_of(saved.folder)["origins"] and origin["origins"][0][
        "path"
    ] == str(run.folder)
    assert weight_transfer.format_summary(record).startswith(f"from {saved.folder} at step 5: everything (")


def test_an_imported_model_says_which_files_it_was(tmp_path):
    origin = Origin("vicuna", "llama", ("llm",), (LoadedFile("model.safetensors", 7, "f00d"),))
    folder = epath.Path(make_folder(tmp_path, CONFIG.model, parameters(CONFIG.model)))
    model_folder.write_card(folder, ModelCard(CONFIG.model, origins=(origin,), fresh=("visual_projector/linear/bias",)))
    record = weight_transfer.origins_of(folder)
    assert record["origins"][0]["files"] == ({"name": "model.safetensors", "size": 7, "sha256": "f00d"},)
    words = weight_transfer.format_summary(record).splitlines()
    assert words[0] == "from vicuna: llm (format llama)" and words[1].split() == ["f00d", "7", "model.safetensors"]
    assert words[2:] == ["initialised: visual_projector (1 parameter)"]
