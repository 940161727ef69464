"""Batches by number: the same on any number of hosts, after any resumption, with or without a broken picture."""

import dataclasses

import numpy as np
import pytest

from dreamjax.batch import Batch
from dreamjax.config import SourceConfig
from dreamjax.data import loader as loader_module
from dreamjax.data.loader import Concatenation, Loader
from dreamjax.data.sources import SourceError
from dreamjax.data.sources.shapes import Shapes
from dreamjax.document import Document, Image, Text

COUNT = 50  # documents of the small sources here: three batches and a bit


@pytest.fixture
def make(monkeypatch, quickstart, shapes_tokenizer):
    """make(documents, seed, **changes of the data configuration) -> a Loader of batches of eight rows of 128 tokens."""

    class Listed(list):
        skipped = ("stories.jsonl:3: is not JSON",)

    def make_loader(documents=None, seed=0, **changes):
        source = Shapes("train", 0, COUNT) if documents is None else Listed(documents)
        monkeypatch.setattr(loader_module, "open_source", lambda config, seed: source)
        data = dataclasses.replace(quickstart.data, **({"length": 128, "seen_slots": 6, "dreamed_slots": 4} | changes))
        config = dataclasses.replace(quickstart, batch_size=8, seed=seed, data=data)
        return Loader(config, (SourceConfig("shapes", "here"),), shapes_tokenizer)

    return make_loader


def assert_equal(one: Batch, other: Batch):
    for name, ours, theirs in zip(Batch._fields, one, other):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), name


def left_right(value):
    """A picture whose left half tells which it is, so that its mirror image differs."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = value
    return pixels


def numbered(count, broken=()):
    """Documents whose word and pictures tell their number; pictures of the broken ones do not open."""
    picture = lambda i: Image(b"no picture" if i in broken else left_right(i + 1))
    return [Document((Text("red " * (i + 1)), picture(i), Text("The end."), picture(i)), id=f"d{i}") for i in range(count)]


@pytest.mark.parametrize("rows_per_group", [1, 2])
def test_any_number_of_hosts_sees_the_same_batches(make, rows_per_group):
    loader = make(rows_per_group=rows_per_group)
    for number in (0, 3, 7):
        whole = loader.load(number)
        for hosts in (1, 2, 4):
            shares = [loader.load(number, hosts, host) for host in range(hosts)]
            assert_equal(whole.batch, Batch(*(np.concatenate(fields) for fields in zip(*(share.batch for share in shares)))))
            assert whole.documents == tuple(name for share in shares for name in share.documents)


def test_another_loader_of_the_same_run_and_another_seed(make):
    batch = make().load(5).batch
    assert_equal(batch, make().load(5).batch)
    assert batch.tokens.tobytes() != make(seed=1).load(5).batch.tokens.tobytes()


def test_a_resumed_run_goes_on_with_the_same_batches(make):
    loader = make()
    for start in (0, 2, 5):
        ahead = list(loader.batches(start, 6))
        assert len(ahead) == 6 - start
        for number, loaded in enumerate(ahead, start):
            alone = loader.load(number)
            assert_equal(loaded.batch, alone.batch)
            assert loaded.documents == alone.documents
    host = [loaded.batch for loaded in loader.batches(1, 3, hosts=2, host=1)]
    assert_equal(host[1], loader.load(2, 2, 1).batch)


def test_epochs_follow_without_a_gap(make):
    loader = make()
    batches = [loader.load(number) for number in range(12)]
    assert all(loaded.batch.segments[:, 0, 0].all() for loaded in batches)  # no group is empty
    names = [name for loaded in batches for name in loaded.documents]
    epochs = [names[start : start + COUNT] for start in (0, COUNT, 2 * COUNT)]
    everything = sorted(f"shapes-train-0-{i}" for i in range(COUNT))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(loader.plan(0)) % 8, "the test needs a batch with groups of two epochs"


def test_late_epochs_are_planned_once(make, monkeypatch):
    loader, planned, plan = make(), [], loader_module.plan

    def counted(lengths, shape, seed, epoch):
        planned.append(epoch)
        return plan(lengths, shape, seed, epoch)

    monkeypatch.setattr(loader_module, "plan", counted)
    for number in range(30, 36):
        loader.load(number)
    assert max(planned) > 4 and len(planned) <= max(planned) + 2, planned


def test_the_row_is_the_documents(make, shapes_tokenizer):
    """Each segment reads as its document, and each slot shows that document's picture at that document's place."""
    loader = make(numbered(20))
    length, model = loader.shape.length, loader.config.model
    seen = 0
    for number in range(loader.epoch_batches()):
        batch = loader.load(number, endless=False).batch
        for g in range(8):
            owners = {}
            for segment in range(1, batch.segments[g, 0].max() + 1):
                where = batch.segments[g, 0] == segment
                words = shapes_tokenizer.decode_continuation(batch.tokens[g, 0][where])
                owners[segment] = words.count("red") - 1
                assert words == " " + "red " * (owners[segment] + 1) + " The end."
                assert batch.positions[g, 0][where].tolist() == list(range(where.sum()))
                assert not batch.learned[g, 0][where][0]
            for images, starts, valid, size in (
                (batch.seen_images, batch.seen_start, batch.seen_valid, model.clip.patches),
                (batch.dreamed_images, batch.dreamed_start, batch.dreamed_valid, model.dream_queries),
            ):
                for image, start in zip(images[g][valid[g]], starts[g][valid[g]]):
                    assert start < length and (batch.tokens[g, 0, start : start + size] == shapes_tokenizer.im_patch).all()
                    assert np.array_equal(image, left_right(owners[batch.segments[g, 0, start]] + 1))
                    seen += 1
    assert seen == 20 * 4  # two pictures a document, seen and dreamed


def test_a_broken_picture_costs_its_document_alone(make):
    broken, sound = make(numbered(20, broken=(3, 11))), make(numbered(20))
    loaded = [broken.load(number, endless=False) for number in range(broken.epoch_batches())]
    names = {name for one in loaded for name in one.documents}
    assert names == {f"d{i}" for i in range(20) if i not in (3, 11)}
    skipped = sorted(line for one in loaded for line in one.skipped)
    assert [line.split(":")[0] for line in skipped] == ["d11", "d3"] and all("format" in line and "\n" not in line for line in skipped)
    shown = lambda batch, g: sorted(batch.dreamed_images[g][batch.dreamed_valid[g]][:, 0, 0, 0].tolist())
    for number, one in enumerate(loaded):
        whole = sound.load(number, endless=False)
        for g in range(8):
            assert shown(one.batch, g) == [value for value in shown(whole.batch, g) if value not in (4, 12)]
            for start, valid in ((one.batch.seen_start, one.batch.seen_valid), (one.batch.dreamed_start, one.batch.dreamed_valid)):
                assert (one.batch.tokens[g, 0][start[g][valid[g]]] == broken.tokenizer.im_patch).all()


def test_held_back_batches_show_each_document_once_and_end_in_padding(make):
    loader = make()
    batches = [loader.load(number, endless=False) for number in range(loader.epoch_batches())]
    assert sorted(name for loaded in batches for name in loaded.documents) == sorted(f"shapes-train-0-{i}" for i in range(COUNT))
    last = loader.epoch_batches() * 8 - len(loader.plan(0))
    assert 0 < last < 8 and not batches[-1].batch.segments[-last:].any() and batches[-1].batch.segments[:-last].any(axis=(1, 2)).all()
    beyond = loader.load(loader.epoch_batches(), endless=False)
    assert not any(field.any() for field in beyond.batch) and beyond.documents == ()
    shares = [loader.load(len(batches) - 1, 4, host, endless=False).batch for host in range(4)]
    assert_equal(batches[-1].batch, Batch(*(np.concatenate(fields) for fields in zip(*shares))))


def test_draws_are_keyed_by_the_picture(make):
    """Its own number for each dreamed picture of an epoch, the same in every epoch, whatever shares its batch."""
    loader = make(numbered(20))
    seen = []
    for number in range(2 * loader.epoch_batches()):
        batch = loader.load(number).batch
        seen += zip(batch.dreamed_draw[batch.dreamed_valid].tolist(), batch.dreamed_images[batch.dreamed_valid][:, 0, 0, 0].tolist())
    assert len(set(seen)) == 40 and {draw // 256 + 1 for draw, _ in seen} == {value for _, value in seen}
    assert all(draw // 256 + 1 == value for draw, value in seen)


def test_only_dreamed_pictures_are_mirrored_and_always_the_same_ones(make):
    flipped, plain = make(numbered(20), flip=True), make(numbered(20))
    mirrored = []
    for number in range(flipped.epoch_batches()):
        ours, again, theirs = (loader.load(number).batch for loader in (flipped, flipped, plain))
        assert_equal(ours, again)
        assert np.array_equal(ours.seen_images, theirs.seen_images)
        for image, straight in zip(ours.dreamed_images[ours.dreamed_valid], theirs.dreamed_images[theirs.dreamed_valid]):
            mirrored.append(not np.array_equal(image, straight))
            assert np.array_equal(image, straight[:, ::-1] if mirrored[-1] else straight)
    assert 0.2 < np.mean(mirrored) < 0.8


def test_what_is_cut_and_left_out_is_counted(make):
    picture = Image(left_right(9))
    long = Document((Text("red circle."), picture, *[Text("red circle."), picture] * 9), id="long")
    loader = make([long, Document((Text("red " * 200),), id="too long"), Document((Text("red."),), id="short")])
    assert loader.cut == 2 and loader.skipped == ("stories.jsonl:3: is not JSON",)
    assert (loader.lengths[:, 0] > 0).tolist() == [True, False, True]
    assert 0 < loader.lengths[0, 1] <= 6 and 0 < loader.lengths[0, 2] <= 4
    words = loader.in_words()
    assert "3 documents" in words and "2 cut, 1 broken" in words and f"{loader.fill()['tokens']:.1%} of tokens" in words


@pytest.mark.parametrize(
    "documents", [[Document((Image(left_right(9)), Text("a red circle.")))], [Document(()), Document((Text("red", learned=False),))]]
)
def test_nothing_fits(make, documents):
    with pytest.raises(SourceError, match=r"shapes:here \(train\): no document fits rows of 128 tokens with 0 seen and 0 dreamed pictures"):
        make(documents, seen_slots=0, dreamed_slots=0)


def test_sources_one_behind_the_other():
    joined = Concatenation(["ab", "", "cde", "f"])
    assert len(joined) == 6 and "".join(joined[i] for i in range(6)) == "abcdef"
