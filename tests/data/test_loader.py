"""Batches by number: the same on any number of hosts, after any resumption, with or without a broken picture."""

import dataclasses
import io
import itertools

import numpy as np
import PIL.Image
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamjax.config import SourceConfig
from dreamjax.config.run import MODES
from dreamjax.data.pipeline import loader as loader_module
from dreamjax.data.pipeline import packing
from dreamjax.data.pipeline import plan as plan_module
from dreamjax.data.pipeline.loader import Loader
from dreamjax.data.pipeline.reader import Reader, split_of
from dreamjax.data.sources.shapes import Shapes
from dreamjax.document import Document, Image, Text
from dreamjax.document.batch import Batch
from dreamjax.errors import BadImage, BadRecord, SourceError

COUNT = 50  # documents of the small sources here: three batches and a bit


class Listed:
    """Documents in a list; a BadRecord among them is raised. The key is the id up to a slash."""

    skipped = (BadRecord("stories.jsonl:3", "bad JSON"),)

    def __init__(self, documents):
        self.documents = list(documents)
        self.fingerprint = f"listed-{len(self.documents)}-{abs(hash(tuple(map(repr, self.documents))))}"

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        if isinstance(self.documents[index], BadRecord):
            raise self.documents[index]
        return self.documents[index]

    def key(self, index):
        return self.documents[index].id.partition("/")[0]


def first_epoch(loader):
    """Its batches, the last one perhaps partly empty."""
    return [loader.load_first_epoch(number) for number in itertools.takewhile(loader.has, itertools.count())]


def epoch_groups(loader):
    return sum(1 for _ in itertools.takewhile(loader.plan.has, itertools.count()))


@pytest.fixture
def make(monkeypatch, quickstart, shapes_tokenizer):
    """make(documents, seed, **changes of the data configuration) -> a Loader of batches of eight rows of 128 tokens."""

    def make_loader(documents=None, seed=0, folder=None, source=None, **changes):
        documents = Shapes("train", 0, COUNT) if documents is None else Listed(documents)
        monkeypatch.setattr(loader_module, "open_source", lambda config, seed: documents)
        data = dataclasses.replace(quickstart.data, **({"length": 128, "input_slots": 6, "target_slots": 4} | changes))
        config = dataclasses.replace(quickstart, batch_size=8, seed=seed, data=data)
        return Loader(config, (source or SourceConfig("shapes", "here"),), shapes_tokenizer, folder)

    return make_loader


def assert_equal(one: Batch, other: Batch):
    for name, ours, theirs in zip(Batch._fields, one, other, strict=True):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), name


def left_right(value):
    """A picture whose left half tells which it is, so that its mirror image differs."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = value
    return pixels


def numbered(count, broken=()):
    """Documents whose word and pictures tell their number; pictures of the broken ones do not open."""

    def image(i):
        return Image(b"no picture" if i in broken else left_right(i + 1))

    return [Document((Text("red " * (i + 1)), image(i), Text("The end."), image(i)), id=f"d{i}") for i in range(count)]


@pytest.mark.parametrize("rows_per_group", [1, 2])
def test_any_number_of_hosts_sees_the_same_batches(make, rows_per_group):
    loader = make(rows_per_group=rows_per_group)
    for number in (0, 3, 7):
        whole = loader.load(number)
        for hosts in (1, 2, 4):
            count = loader.config.groups // hosts
            shares = [loader.load(number, range(host * count, (host + 1) * count)) for host in range(hosts)]
            assert_equal(
                whole.batch,
                Batch(*(np.concatenate(fields) for fields in zip(*(share.batch for share in shares), strict=True))),
            )
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
    groups = (1, 3)  # of a host whose devices are no neighbours in the mesh
    host = [loaded.batch for loaded in loader.batches(1, 3, groups)]
    assert_equal(host[1], loader.load(2, groups).batch)
    assert_equal(host[1], Batch(*(field[[1, 3]] for field in loader.load(2).batch)))


def test_epochs_follow_without_a_gap(make):
    loader = make()
    batches = [loader.load(number) for number in range(12)]
    assert all(loaded.batch.segments[:, 0, 0].all() for loaded in batches)  # no group is empty
    names = [name for loaded in batches for name in loaded.documents]
    epochs = [names[start : start + COUNT] for start in (0, COUNT, 2 * COUNT)]
    everything = sorted(f"shapes-train-0-{i}" for i in range(COUNT))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epoch_groups(loader) % 8, "the test needs a batch with groups of two epochs"


def test_the_row_is_the_documents(make, shapes_tokenizer):
    """Each segment reads as its document, and each slot shows that document's picture at that document's place."""
    loader = make(numbered(20))
    length, model = loader.shape.length, loader.config.model
    inputs = 0
    for batch in (one.batch for one in first_epoch(loader)):
        for g in range(8):
            owners = {}
            for segment in range(1, batch.segments[g, 0].max() + 1):
                where = batch.segments[g, 0] == segment
                words = shapes_tokenizer.decode_continuation(batch.tokens[g, 0][where])
                owners[segment] = words.count("red") - 1
                assert words == " " + "red " * (owners[segment] + 1) + " The end."
                assert batch.positions[g, 0][where].tolist() == list(range(where.sum()))
                assert not batch.loss_mask[g, 0][where][0]
            for images, starts, valid, size in (
                (batch.input_images, batch.input_start, batch.input_valid, model.clip.patches),
                (batch.target_images, batch.target_start, batch.target_valid, model.dream_queries),
            ):
                for image, start in zip(images[g][valid[g]], starts[g][valid[g]], strict=True):
                    assert (
                        start < length and (batch.tokens[g, 0, start : start + size] == shapes_tokenizer.im_patch).all()
                    )
                    assert np.array_equal(image, left_right(owners[batch.segments[g, 0, start]] + 1))
                    inputs += 1
    assert inputs == 20 * 4  # two pictures a document, seen and dreamed


def shown(batch, g):
    """The numbers of a group's dreamed pictures."""
    return sorted(batch.target_images[g][batch.target_valid[g]][:, 0, 0, 0].tolist())


def test_images_that_a_source_left_out_are_told(make):
    documents = numbered(4)
    assert "left out" not in make(documents).format_summary()
    documents[1] = dataclasses.replace(
        documents[1], left_out=(BadImage("x", "not downloaded"), BadImage("y", "image missing"))
    )
    assert "1 broken, 2 images left out (missing, " in make(documents).format_summary()


def test_a_broken_image_costs_itself_alone(make):
    """A document with others goes on without it, one whose pictures are all broken is left out.

    No slot shows another document's.
    """
    documents = numbered(20, broken=(3, 11))
    image = documents[3].parts[1]
    documents[5] = dataclasses.replace(documents[5], parts=(Text("red "), image, *documents[5].parts[1:]))
    broken = make(documents)
    loaded = first_epoch(broken)
    assert {name for one in loaded for name in one.documents} == {f"d{i}" for i in range(20) if i not in (3, 11)}
    skipped = sorted((record.name, record.reason) for one in loaded for record in one.skipped)
    assert skipped == [(name, "image in no known format") for name in ("d11", "d11", "d3", "d3", "d5")]
    inputs = []
    for one in loaded:
        for g in range(8):
            inputs += shown(one.batch, g)
            for start, valid in (
                (one.batch.input_start, one.batch.input_valid),
                (one.batch.target_start, one.batch.target_valid),
            ):
                assert (one.batch.tokens[g, 0][start[g][valid[g]]] == broken.readers[0].tokenizer.im_patch).all()
    assert sorted(inputs) == sorted(2 * [i + 1 for i in range(20) if i not in (3, 11)])


def test_what_cannot_do_without_its_image_is_left_out(make):
    broken = Image(b"no picture")
    answer = (
        Image(left_right(1), is_target=False, role="user"),
        dataclasses.replace(broken, role="user"),
        Text("red?", role="user"),
        Text("red.", role="assistant"),
    )
    pair = Document((broken, Text("red circle.")), id="pair", kind="pair")
    documents = [
        Document(answer, id="answer"),
        pair,
        Document((broken, Text("red.")), id="alone"),
        Document((Text("red."),), id="sound"),
    ]
    loaded = first_epoch(make(documents))
    assert [name for one in loaded for name in one.documents] == ["sound"]
    assert sorted(record.name for one in loaded for record in one.skipped) == ["alone", "answer", "pair"]
    assert sum(int(one.batch.input_valid.sum() + one.batch.target_valid.sum()) for one in loaded) == 0


def test_a_document_without_its_broken_image_takes_no_more_than_was_planned(make):
    """What a limit left out may have room now, but its row was promised to others."""
    parts = (Text("red"), Image(b"no picture"), *[Text("red circle."), Image(left_right(7))] * 9)
    sound = make([Document((Text("red"), Image(left_right(7)), *parts[2:]), id="long")])
    planned = sound.plan.group(0)[0].lengths
    (one,) = first_epoch(make([Document(parts, id="long")]))
    assert one.documents == ("long",) and int((one.batch.segments > 0).sum()) <= planned[0]
    assert 0 < one.batch.input_valid.sum() <= planned[1] and 0 < one.batch.target_valid.sum() <= planned[2]


def test_held_back_batches_show_each_document_once_and_end_in_padding(make):
    loader = make()
    batches = first_epoch(loader)
    assert sorted(name for loaded in batches for name in loaded.documents) == sorted(
        f"shapes-train-0-{i}" for i in range(COUNT)
    )
    last = len(batches) * 8 - epoch_groups(loader)
    assert (
        0 < last < 8
        and not batches[-1].batch.segments[-last:].any()
        and batches[-1].batch.segments[:-last].any(axis=(1, 2)).all()
    )
    beyond = loader.load_first_epoch(len(batches))
    assert not any(field.any() for field in beyond.batch) and beyond.documents == ()
    shares = [loader.load_first_epoch(len(batches) - 1, range(2 * host, 2 * host + 2)).batch for host in range(4)]
    assert_equal(batches[-1].batch, Batch(*(np.concatenate(fields) for fields in zip(*shares, strict=True))))


def test_draws_are_keyed_by_the_image(make):
    """Its own number for each dreamed picture of an epoch, the same in every epoch, whatever shares its batch."""
    loader = make(numbered(20))
    inputs = []
    for number in range(2 * epoch_groups(loader) // 8):
        batch = loader.load(number).batch
        inputs += zip(
            batch.target_draw[batch.target_valid].tolist(),
            batch.target_images[batch.target_valid][:, 0, 0, 0].tolist(),
            strict=True,
        )
    assert len(set(inputs)) == 40 and {draw // 256 + 1 for draw, _ in inputs} == {value for _, value in inputs}
    assert all(draw // 256 + 1 == value for draw, value in inputs)


def test_only_target_images_are_mirrored_and_always_the_same_ones(make):
    flipped, plain = make(numbered(20), flip=True), make(numbered(20))
    mirrored = []
    for number in range(len(first_epoch(plain))):
        ours, again, theirs = (loader.load(number).batch for loader in (flipped, flipped, plain))
        assert_equal(ours, again)
        assert np.array_equal(ours.input_images, theirs.input_images)
        for image, straight in zip(
            ours.target_images[ours.target_valid], theirs.target_images[theirs.target_valid], strict=True
        ):
            mirrored.append(not np.array_equal(image, straight))
            assert np.array_equal(image, straight[:, ::-1] if mirrored[-1] else straight)
    assert 0.2 < np.mean(mirrored) < 0.8


def test_drafts_of_large_jpegs_are_close_to_the_whole_images(make):
    """Decoded small they are other pixels, but nearly the same; rows and everything else stay."""
    x, y = np.meshgrid(np.arange(640), np.arange(640))
    waves = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 11), (x + y) / 6], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(waves).save(jpeg := io.BytesIO(), "JPEG", quality=90)
    documents = [Document((Text("red"), Image(jpeg.getvalue())), id=f"d{i}") for i in range(4)]
    whole, draft = (make(documents, draft=draft).load(0).batch for draft in (False, True))
    for name, ours, theirs in zip(Batch._fields, whole, draft, strict=True):
        if name in ("input_images", "target_images"):
            difference = np.abs(ours.astype(int) - theirs)
            assert 0 < difference.max() and difference.mean() < 2, name
        else:
            assert np.array_equal(ours, theirs), name


def test_what_is_cut_and_left_out_is_counted(make):
    image = Image(left_right(9))
    long = Document((Text("red circle."), image, *[Text("red circle."), image] * 9), id="long")
    unlearned = Document((Text("red", supervised=False),), id="unlearned")
    loader = make(
        [
            long,
            Document((Text("red " * 200),), id="too long"),
            unlearned,
            BadRecord("here:4", "bad JSON"),
            Document((Text("red."),), id="short"),
        ]
    )
    lengths = loader.plan.lengths[0].entries
    assert (lengths[:, 0] > 0).tolist() == [True, True, False, False, True]
    assert 0 < lengths[0, 1] <= 6 and 0 < lengths[0, 2] <= 4 and lengths[1].tolist() == [128, 0, 0]
    assert (loader.counts.truncated, loader.unnamed) == (2, 0) and [str(record) for record in loader.skipped] == [
        "stories.jsonl:3: bad JSON",
        "here:4: bad JSON",
    ]
    words = loader.format_summary()
    assert (
        "5 documents" in words
        and "2 truncated, 2 broken" in words
        and f"{loader.plan.fill()['tokens']:.1%} of tokens" in words
    )


def test_splits_go_by_keys(make):
    documents = [Document((Text("red " * (i % 5 + 1)),), id=f"series {i // 4}/{i}") for i in range(80)]
    names = {}
    for split in ("train", "eval"):
        loader = make(documents, source=SourceConfig("shapes", "here", split, eval_share=0.3))
        names[split] = {name for one in first_epoch(loader) for name in one.documents}
        assert loader.documents == len(names[split])
    assert not names["train"] & names["eval"] and len(names["train"] | names["eval"]) == 80
    series = {split: {name.partition("/")[0] for name in found} for split, found in names.items()}
    assert not series["train"] & series["eval"] and 2 <= len(series["eval"]) <= 10
    assert abs(np.mean([split_of(str(i), 0.3) == "eval" for i in range(4000)]) - 0.3) < 0.03


def test_pairs_show_either_side_by_a_coin(make, shapes_tokenizer):
    pairs = [
        Document((Image(left_right(i + 1)), Text("red " * (i % 7 + 1))), id=f"d{i}", kind="pair") for i in range(60)
    ]
    loader = make(pairs)
    sides, batch_of = {}, [loader.load(number).batch for number in range(4)]
    for number, batch in enumerate(batch_of):
        for valid, images in ((batch.input_valid, batch.input_images), (batch.target_valid, batch.target_images)):
            for value in images[valid][:, 0, 0, 0].tolist():
                sides.setdefault(value, []).append(valid is batch.input_valid)
        assert (batch.loss_mask.sum() > 0) == batch.input_valid.any(), number
    assert 0.3 < np.mean([side[0] for side in sides.values()]) < 0.7
    assert any(len(set(side)) == 2 for side in sides.values()) or max(map(len, sides.values())) == 1
    for mode, inputs in (("comprehension_only", True), ("creation_only", False)):
        batches = [one.batch for one in first_epoch(make(pairs, source=SourceConfig("shapes", "here", mode=mode)))]
        assert all(batch.target_valid.any() != inputs and batch.input_valid.any() == inputs for batch in batches)
        assert sum(int(batch.input_valid.sum() + batch.target_valid.sum()) for batch in batches) == 60


def test_lengths_are_found_once(make, tmp_path, monkeypatch):
    documents = numbered(20)
    before = make(documents, folder=epath.Path(tmp_path)).load(1)
    measured, measure = [], Reader.measure
    monkeypatch.setattr(Reader, "measure", lambda self, index: measured.append(index) or measure(self, index))
    again = make(documents, folder=epath.Path(tmp_path))
    assert_equal(before.batch, again.load(1).batch)
    assert not measured and sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]
    make(documents, folder=epath.Path(tmp_path), length=120)  # where rows are shorter, lengths are others
    assert measured == list(range(20))


def test_a_run_that_is_resumed_again_counts_on(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_module, "BLOCK", 8)
    folder = epath.Path(tmp_path)
    straight = make(numbered(40)).load(30)
    first = make(numbered(40), folder=folder)
    (one,) = first.batches(30, 31)
    assert_equal(one.batch, straight.batch)
    assert [path.name for path in tmp_path.glob("*.groups.np*")] == [f"{first.fingerprint}.groups.npz"]
    again, planned = make(numbered(40), folder=folder), []
    monkeypatch.setattr(plan_module, "pack", lambda *args: planned.append(args) or packing.pack(*args))
    (one,) = again.batches(30, 31)
    assert_equal(one.batch, straight.batch)
    assert 0 < len(planned) <= 4 < len(first.plan.ends)
    (kept,) = tmp_path.glob("*.groups.npz")
    data = kept.read_bytes()
    for damage in (b"", b"garbage", data[:-30], data[:70] + b"\1" + data[71:], None):
        kept.unlink() if damage is None else kept.write_bytes(damage)
        capsys.readouterr()
        (one,) = make(numbered(40), folder=folder).batches(30, 31)
        assert_equal(one.batch, straight.batch)
        told = capsys.readouterr().err
        assert (
            told.startswith(f"{kept}: damaged (") and told.endswith("), counted anew\n") and told.count("\n") == 1
        ) or damage is None
        assert kept.read_bytes() == data


def test_documents_that_changed_after_they_were_measured(make):
    loader = make(numbered(20))
    changed = [
        dataclasses.replace(document, parts=(Text("red circle."), *document.parts))
        for document in loader.readers[0].source.documents
    ]
    loader.readers[0].source.documents[:] = changed
    with pytest.raises(SourceError, match=r"d\d+: is another document than when lengths were measured; delete \w+\.\*"):
        loader.load(0)


@pytest.mark.parametrize(
    "documents",
    [
        [Document((Image(left_right(9)), Text("a red circle.")))],
        [Document(()), Document((Text("red", supervised=False),))],
    ],
)
def test_nothing_fits(make, documents):
    with pytest.raises(
        SourceError,
        match=r"shapes:here \(train\): no document fits rows of 128 tokens with 0 input images and 0 target images",
    ):
        make(documents, input_slots=0, target_slots=0)


# ----------------------------------------------------------------------------------------------------------------------
# Any documents

words = st.lists(
    st.sampled_from(["red", "circle.", "</s>", "<s>", "<im_patch>", "<dream_start>", "<image>", "\u00e9\u4e00", "\n"]),
    max_size=12,
).map(" ".join)
roles = st.sampled_from([None, None, None, "user", "assistant"])
marked = st.tuples(st.booleans(), st.booleans(), st.booleans(), roles)  # seen, dreamed, broken, role
any_parts = st.lists(st.tuples(words, st.booleans(), roles) | marked, max_size=6)


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(any_parts, st.booleans()), min_size=1, max_size=8), st.sampled_from(MODES), st.integers(1, 2))
def test_any_documents_keep_their_own_images(make, shapes_tokenizer, drawn, mode, rows):
    """Every slot that is valid lies on the placeholders of a segment that reads like the picture's document, and no
    label falls on one.
    """
    documents, number = [Document((Text("red"),), id="there is one that fits")], 0
    owner = {}
    for d, (parts, is_pair) in enumerate(drawn):
        made = []
        for part in parts:
            if len(part) == 3:
                made.append(Text(*part))
                continue
            inputs, targets, broken, role = part
            number += 1
            owner[number] = d + 1
            made.append(Image(b"broken" if broken else left_right(number), inputs, targets, role))
        pair = (
            is_pair
            and [type(part) for part in made] in ([Image, Text], [Text, Image])
            and not any(part.role for part in made)
        )
        documents.append(Document(made, id=f"d{d + 1}", kind="pair" if pair else ""))
    loader = make(
        documents,
        source=SourceConfig("shapes", "here", mode=mode),
        length=48,
        rows_per_group=rows,
        input_slots=3,
        target_slots=2,
    )
    model, special = loader.config.model, shapes_tokenizer.special_ids
    names = set()
    for one in first_epoch(loader):
        names.update(one.documents)
        batch = one.batch
        assert (
            not (batch.loss_mask & (batch.tokens == shapes_tokenizer.im_patch)).any()
            and not (batch.loss_mask & (batch.segments == 0)).any()
        )
        for g in range(len(batch.tokens)):
            tokens, segments, covered, found = batch.tokens[g].reshape(-1), batch.segments[g].reshape(-1), set(), {}
            for images, starts, valid, size, before in (
                (
                    batch.input_images,
                    batch.input_start,
                    batch.input_valid,
                    model.clip.patches,
                    shapes_tokenizer.im_start,
                ),
                (
                    batch.target_images,
                    batch.target_start,
                    batch.target_valid,
                    model.dream_queries,
                    shapes_tokenizer.dream_start,
                ),
            ):
                in_order = sorted(
                    zip(starts[g][valid[g]].tolist(), images[g][valid[g]][:, 0, 0, 0].tolist(), strict=True)
                )
                for (_, earlier), (_, later) in itertools.pairwise(in_order):
                    assert earlier < later or owner[earlier] != owner[later], (
                        "pictures of a document out of their order"
                    )
                for start, shown_ in in_order:
                    span = range(start, start + size)
                    assert (
                        (tokens[span] == shapes_tokenizer.im_patch).all()
                        and tokens[start - 1] == before
                        and not covered & set(span)
                    )
                    covered |= set(span)
                    ((row, segment),) = {(at // 48, segments[at]) for at in span}
                    found.setdefault((row, segment), set()).add(owner[shown_])
            assert covered == set(np.flatnonzero(tokens == shapes_tokenizer.im_patch).tolist())
            assert all(len(owners) == 1 for owners in found.values()), "pictures of two documents in one segment"
            for (row, segment), (which,) in found.items():
                mine = tokens.reshape(rows, 48)[row][segments.reshape(rows, 48)[row] == segment]
                said = "".join(part.text for part in documents[which].parts if isinstance(part, Text))
                read = shapes_tokenizer.decode_continuation([i for i in mine.tolist() if i not in special]).rstrip(
                    "\ufffd"
                )
                assert "".join(said.split()).startswith("".join(read.split()))
    assert names <= {document.id for document in documents} and "there is one that fits" in names
