"""The model put together: what goes into the LLM, what is read out of it, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_model import IDS, LATENT, PIXEL, parameters, relative_error

from dreamjax.compile_tpu import hlo
from dreamjax.config import MeshConfig, dreamllm_7b
from dreamjax.document.batch import Batch, Shape, empty_batch, place
from dreamjax.document.tokenize import TokenSequence
from dreamjax.errors import ConfigError
from dreamjax.models import dreamllm
from dreamjax.models.clip import normalise
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.mesh import ROWS, constrain_rows, make_mesh

PARAMS = parameters(LATENT)
MODEL = Model(LATENT, PARAMS)
QUERIES, PATCHES, WIDTH = LATENT.dream_queries, LATENT.clip.patches, LATENT.llm.width

hidden_states = jax.jit(lambda batch: dreamllm.hidden_states(MODEL, batch))
embed_images = jax.jit(lambda images: dreamllm.embed_images(MODEL, images))


def document(
    length: int, inputs: tuple[int, ...], targets: tuple[int, ...], seed: int
) -> tuple[TokenSequence, list, list]:
    """A row of random tokens with pictures at the given positions, and the pictures."""
    rng = np.random.default_rng(seed)
    images = [list(rng.integers(256, size=(len(slots), 8, 8, 3), dtype=np.uint8)) for slots in (inputs, targets)]

    def parts(slots):
        return tuple((at, part) for part, at in enumerate(slots))

    return TokenSequence(
        rng.integers(3, 60, length).astype(np.int32), np.ones(length, bool), parts(inputs), parts(targets), False
    ), *images


DOCUMENTS = (
    document(16, inputs=(6, 11), targets=(2,), seed=1),
    document(9, inputs=(), targets=(3,), seed=2),
    document(14, inputs=(8,), targets=(4,), seed=3),
)


def batch_of(documents, rows: int = 1, length: int = 25, where: tuple[tuple[int, int], ...] | None = None) -> Batch:
    """Documents in a batch of two groups; where[i] = (group, row) of document i, a group each if None."""
    batch = empty_batch(
        Shape(
            max(2, len(documents)) if where is None else 2,
            rows,
            length,
            inputs=3,
            targets=3,
            encoder_size=8,
            decoder_size=8,
        )
    )
    for i, one in enumerate(documents):
        place(batch, (i, 0) if where is None else where[i], *one)
    return batch


def test_splice_writes_valid_slots_and_nothing_else():
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(3, 20, 4)).astype(np.float32)
    features = rng.normal(size=(3, 3, 5, 4)).astype(np.float32)
    start = np.array([[0, 5, 15], [11, 2, 0], [1, 1, 9]], np.int32)
    valid = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]], bool)
    expected = embeds.copy()
    for g in range(3):
        for slot in range(3):
            if valid[g, slot]:
                expected[g, start[g, slot] : start[g, slot] + 5] = features[g, slot]
    np.testing.assert_array_equal(dreamllm.splice(embeds, features, start, valid), expected)
    np.testing.assert_array_equal(dreamllm.splice(embeds, features, start, np.zeros_like(valid)), embeds)


def test_features_stay_with_their_groups_on_a_mesh():
    """As in stage I, where the projector learns.

    Without constraints XLA gathers all groups' features on every device.
    """
    mesh, (groups, slots, patches, width) = make_mesh(MeshConfig(2, 4, 1)), (8, 3, 16, 32)

    def held(spec, *shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    by_rows = functools.partial(held, ROWS)

    def loss(projector, table, tokens, features, start, valid):
        return jnp.sum(constrain_rows(dreamllm.splice(table[tokens], features @ projector, start, valid)) ** 2)

    arguments = (
        held(P("fsdp", None), width, width),
        held(P(None, "fsdp"), 50, width),
        by_rows(groups, 128, dtype=jnp.int32),
        by_rows(groups, slots, patches, width),
        by_rows(groups, slots, dtype=jnp.int32),
        by_rows(groups, slots, dtype=bool),
    )
    with jax.set_mesh(mesh):
        module = hlo.parse(jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text())
    found = [
        hlo.collective_of(module, name, one, mesh.size) for name, body in module.computations.items() for one in body
    ]
    gathers = [one.bytes for one in found if one and one.kind == "all-gather"]
    assert gathers and max(gathers) < 4 * groups * slots * patches * width


def test_read_out_takes_the_positions_of_the_queries():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 10, WIDTH)).astype(np.float32)  # two groups of two rows
    batch = empty_batch(Shape(2, 2, 10, 0, 3, 1, 1))._replace(
        target_start=np.array([[0, 17, 5], [7, 12, 10]], np.int32)
    )
    flat = hidden.reshape(2, 20, WIDTH)
    expected = [flat[g, at : at + QUERIES] for g in range(2) for at in batch.target_start[g]]
    np.testing.assert_array_equal(dreamllm.read_out(MODEL, hidden, batch), np.stack(expected))


def test_the_llm_reads_tokens_patches_and_queries():
    batch = batch_of(DOCUMENTS, rows=2, where=((0, 0), (0, 0), (1, 1)))
    table = PARAMS["llm"]["embed"]["embedding"]
    expected = np.array(table[batch.tokens])
    for g in range(2):
        flat = expected[g].reshape(-1, WIDTH)
        for at, image in zip(
            batch.input_start[g][batch.input_valid[g]], batch.input_images[g][batch.input_valid[g]], strict=True
        ):
            flat[at : at + PATCHES] = embed_images(image[None])[0]
        for at in batch.target_start[g][batch.target_valid[g]]:
            flat[at : at + QUERIES] = PARAMS["dream_queries"]
    read = jax.jit(lambda batch: dreamllm.embed_batch(MODEL, batch))(batch)
    assert relative_error(read, expected.reshape(4, 25, WIDTH)) < 1e-6
    assert batch.input_valid.sum() == batch.target_valid.sum() == 3


def test_an_image_becomes_its_patches_projected():
    images = np.stack([DOCUMENTS[0][1][0], DOCUMENTS[2][1][0]])
    states = MODEL.apply("clip", normalise(images, LATENT.clip))  # the selected state
    projector = PARAMS["visual_projector"]["linear"]
    expected = states[:, 1:] @ projector["kernel"] + projector["bias"]
    assert expected.shape == (2, PATCHES, WIDTH) and relative_error(embed_images(images), expected) < 1e-6


def test_documents_in_one_row_equal_the_documents_alone():
    packed = hidden_states(batch_of(DOCUMENTS, rows=2, where=((0, 0), (0, 0), (0, 1))))[:2].reshape(-1, WIDTH)
    alone = hidden_states(batch_of(DOCUMENTS))
    for number, start in enumerate((0, 16, 25)):
        length = len(DOCUMENTS[number][0].tokens)
        assert relative_error(packed[start : start + length], alone[number, :length]) < 5e-6, number


def test_an_image_changes_what_follows_it_in_its_document_alone():
    first, *rest = DOCUMENTS
    row, (one, two), targets = first
    before, after = (
        hidden_states(batch_of((changed, *rest), rows=2, where=((0, 0), (0, 0), (0, 1))))
        for changed in (first, (row, [one, 255 - two], targets))
    )
    np.testing.assert_array_equal(before[0, :11], after[0, :11])
    assert np.all(np.linalg.norm(before[0, 11:16] - after[0, 11:16], axis=-1) > 1e-3)
    np.testing.assert_array_equal(before[0, 16:], after[0, 16:])
    np.testing.assert_array_equal(before[1:], after[1:])


def test_the_unconditional_condition_is_a_row_without_context():
    tokens = np.array([IDS.bos, IDS.dream_start, *[5] * QUERIES, 63], np.int32)
    row = TokenSequence(tokens, np.zeros(len(tokens), bool), (), ((2, 0),), False)
    batch = batch_of([(row, [], [None])])
    expected = dreamllm.read_out(MODEL, hidden_states(batch), batch)[0]
    empty = dreamllm.unconditional(MODEL, IDS.bos, IDS.dream_start)
    assert empty.shape == (QUERIES, WIDTH) and relative_error(empty, expected) < 5e-6
    assert relative_error(dreamllm.unconditional(MODEL, IDS.bos, 5), expected) > 1e-2


def test_the_official_unconditional_condition_is_a_row_without_queries():
    tokens = np.array([IDS.bos, IDS.dream_start, *[IDS.im_patch] * QUERIES], np.int32)
    row = TokenSequence(tokens, np.zeros(len(tokens), bool), (), (), False)
    batch = batch_of([(row, [], [])])
    expected = hidden_states(batch)[0, 2 : 2 + QUERIES]
    official = dreamllm.unconditional(MODEL, IDS.bos, IDS.dream_start, IDS.im_patch)
    assert relative_error(official, expected) < 5e-6
    assert relative_error(dreamllm.unconditional(MODEL, IDS.bos, IDS.dream_start), expected) > 1e-2


def test_images_to_latents_and_back():
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    pixel = Model(PIXEL, {})
    units = dreamllm.encode_latents(pixel, images, None)
    assert float(units.min()) >= -1 and float(units.max()) <= 1
    np.testing.assert_array_equal(dreamllm.decode_latents(pixel, units), images)
    mean, logvar, decoded = MODEL.apply("vae", units)
    latents = dreamllm.encode_latents(MODEL, images, None)
    np.testing.assert_allclose(latents, 0.18215 * mean, rtol=1e-5)
    noise = np.random.default_rng(1).normal(size=mean.shape).astype(np.float32)
    drawn = dreamllm.encode_latents(MODEL, images, noise)
    np.testing.assert_allclose(drawn, 0.18215 * (mean + np.exp(logvar / 2) * noise), rtol=1e-4, atol=1e-5)
    expected = np.clip((decoded + 1) * 127.5, 0, 255)
    assert np.max(np.abs(dreamllm.decode_latents(MODEL, latents) - expected)) < 0.501


def test_a_part_that_the_config_lacks_has_no_parameters():
    config = dreamllm_7b()
    llm_alone = type(config)(llm=config.llm)
    assert set(jax.eval_shape(lambda: dreamllm.init(llm_alone, jax.random.key(0)))) == {"llm"}


@pytest.mark.parametrize(
    "part, count",
    {
        "llm": 6_738_415_616 + 65_536,
        "clip": 303_179_776,
        "unet": 865_910_724,
        "vae": 83_653_863,
        "visual_projector": 4_198_400,
        "condition_projector": 4_194_304,
        "dream_queries": 262_144,
    }.items(),
)
def test_counts_at_the_real_sizes(part, count, real_shapes):
    assert sum(leaf.size for leaf in jax.tree.leaves(real_shapes[part])) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(real_shapes[part])} == {jnp.dtype(jnp.float32)}


@pytest.fixture(scope="module")
def real_shapes():
    return jax.eval_shape(lambda: dreamllm.init(dreamllm_7b(), jax.random.key(0)))


def test_one_trace_serves_all_models_of_a_configuration():
    traces = []

    @jax.jit
    def mean_of(model):
        traces.append(model.config)
        return sum(jnp.mean(leaf) for leaf in jax.tree.leaves(model.params))

    config = type(LATENT)(llm=LATENT.llm)
    for scale in (1.0, 2.0):
        mean_of(Model(config, {"llm": {"scale": np.full(3, scale)}}))
    same_settings = dataclasses.replace(config)
    mean_of(Model(same_settings, {"llm": {"scale": np.zeros(3)}}))
    assert len(traces) == 1
    mean_of(Model(dataclasses.replace(config, dtype="bfloat16"), {"llm": {"scale": np.zeros(3)}}))
    assert len(traces) == 2


def test_the_gradient_of_a_model_is_a_model():
    model = Model(LATENT, {"llm": {"scale": jnp.arange(3.0)}})
    gradient = jax.grad(lambda model: jnp.sum(model.params["llm"]["scale"] ** 2))(model)
    assert isinstance(gradient, Model) and gradient.config == LATENT
    np.testing.assert_array_equal(gradient.params["llm"]["scale"], [0.0, 2.0, 4.0])


@pytest.mark.parametrize("part", ["clip", "visual_projector", "unet", "vae", "condition_projector", "clip_text"])
def test_a_part_that_the_config_lacks_is_named(part):
    model = Model(type(LATENT)(llm=LATENT.llm), {})
    with pytest.raises(ConfigError, match="^model: has no (clip|unet|vae|clip_text)$"):
        getattr(model, part)


def test_a_model_is_shown_in_a_line():
    shown = repr(MODEL)
    assert len(shown) < 200 and "unet" in shown and "float32" in shown
