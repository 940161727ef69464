"""Tars read in place: every layout, any cut, and never a picture beside another document's text."""

import base64
import gzip
import os
import pathlib
import pickle
import tarfile

import pytest
from made_data import jpeg, mmc4, pairs, told, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.sources import webdataset
from dreamjax.data.storage import index
from dreamjax.document import Image
from dreamjax.errors import BadImage, BadRecord, ConfigError, SourceError

SHARED = pathlib.Path(os.environ.get("DREAMJAX_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data"))
REAL = SHARED / "webdataset"


def open_tars(path, **options):
    return open_source(SourceConfig("webdataset", str(path), **options))


def bad(source, number) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        source[number]
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def two_shards(tmp_path):
    write_tar(tmp_path / "shard-00.tar", pairs(range(5)))
    write_tar(tmp_path / "shard-01.tar", pairs(range(5, 12)))
    return tmp_path


@pytest.mark.parametrize("path", ["", "shard-*.tar", "shard-{00..01}.tar", "shard-0{0,1}.tar"])
def test_pairs_by_any_name(two_shards, path):
    source = open_tars(two_shards / path)
    assert [told(source[i]) for i in range(len(source))] == [[i, f"caption {i}"] for i in range(12)]
    assert (
        source.skipped == ()
        and source[7].kind == "pair"
        and source[7].id == f"{two_shards}/{source.key(7)}" == f"{two_shards}/shard-01.tar:000000007"
    )
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            source[outside]


def test_documents_and_sources_travel(two_shards):
    source = open_tars(two_shards)
    packed = pickle.dumps(source)
    again = pickle.loads(packed)
    assert len(packed) < 1000 and told(again[8]) == told(pickle.loads(pickle.dumps(source[8]))) == [8, "caption 8"]
    assert (
        again.fingerprint
        == source.fingerprint
        == open_tars(two_shards).fingerprint
        != open_tars(two_shards, min_similarity=0.1).fingerprint
    )


def test_where_the_caption_is(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", jpeg(1)),
            ("1.json", {"caption": "from json", "alt": " other "}),
            ("2.jpg", jpeg(2)),
            ("2.json", {"text": "too"}),
        ],
    )
    source = open_tars(tmp_path)
    assert told(source[0]) == [1, "from json"] and told(source[1]) == [2, "too"]
    chosen = open_tars(tmp_path, text_key="alt")
    assert told(chosen[0]) == [1, "other"] and bad(chosen, 1).reason == "missing key"
    write_tar(
        tmp_path / "b.tar",
        [
            ("1.png", jpeg(1)),
            ("1.txt", "usual"),
            ("1.cls", "3"),
            ("2.txt.gz", gzip.compress(b"packed")),
            ("3.txt", "bare text"),
        ],
    )
    assert told(open_tars(tmp_path / "b.tar")[0]) == [1, "usual"] and told(
        open_tars(tmp_path / "b.tar", text_key="cls")[0]
    ) == [1, "3"]
    texts = open_tars(tmp_path / "b.tar")
    assert (
        told(texts[1]) == ["packed"]
        and told(texts[2]) == ["bare text"]
        and list(texts.texts()) == ["usual", "packed", "bare text"]
    )


def test_similarity_is_asked_for_only_where_wanted(two_shards):
    source = open_tars(two_shards, min_similarity=0.07)
    assert told(source[7]) == [7, "caption 7"] and bad(source, 6).reason == "low similarity"


def test_records_that_cannot_be_used_are_named(tmp_path):
    members = [
        ("a.jpg", jpeg(0)),
        ("b.jpg", jpeg(1)),
        ("b.txt", ""),
        ("c.jpg", jpeg(2)),
        ("c.txt", b"\xff\xfe"),
        ("d.jpg", jpeg(3)),
        ("d.json", "{broken"),
        ("e.jpg", jpeg(4)),
        ("e.png", jpeg(4)),
        ("e.txt", "two"),
        ("f.jpg", jpeg(5)),
        ("f.json", {"caption": 5}),
        ("g.jpg", jpeg(6)),
        ("g.jpg", jpeg(7)),
        ("g.txt", "twice"),
        ("folder.name/h.jpg", jpeg(8)),
        ("folder.name/h.txt", "good"),
        ("README", "no record"),
        ("._x.jpg", b"not ours"),
        ("i.jpg", b"no picture"),
        ("i.txt", "opens late"),
    ]
    source = open_tars(write_tar(tmp_path / "a.tar", members))
    reasons = ["missing key", "no text", "bad UTF-8", "bad JSON", "several images", "wrong type"]
    assert [bad(source, i).reason for i in range(6)] == reasons and bad(source, 3).name == f"{tmp_path}/a.tar:d"
    assert [(record.name, record.reason) for record in source.skipped] == [(f"{tmp_path}/a.tar:g", "repeated member")]
    assert told(source[6]) == [8, "good"] and source[6].id.endswith("a.tar:folder.name/h")
    assert told(open_tars(tmp_path, image_key="png")[4]) == [4, "two"]
    with pytest.raises(BadImage, match="a.tar:i.jpg: in no format"):
        source[7].images  # noqa: B018
    assert len(source) == 8


def test_long_names_of_every_tar_format(tmp_path):
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        folder = "/".join(["deep" * 10] * (3 if kind == tarfile.USTAR_FORMAT else 9))
        (tmp_path / "content").write_text("text")
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
            for number in range(3):
                tar.add(tmp_path / "content", f"{folder}/{number}.txt")
        source = open_tars(tmp_path)
        assert len(source) == 3 and told(source[2]) == ["text"] and source.key(2).endswith(f"{folder}/2")


# ----------------------------------------------------------------------------------------------------------------------
# Interleaved documents


def interleaved(number, names, base64_of=()):
    record = mmc4(number, 3, [2, 0, 0])
    for i in base64_of:
        record["image_info"][i]["image_base64"] = base64.b64encode(jpeg(10 * number + i)).decode()
    return [(f"{number}.{name}.jpg", jpeg(10 * number + i)) for i, name in names] + [(f"{number}.json", record)]


def test_interleaved_documents_find_their_images(tmp_path):
    by_name = interleaved(1, [(i, f"1-{i}") for i in (2, 0, 1)])
    by_number = interleaved(2, [(i, i) for i in range(3)])
    inside = interleaved(3, [], base64_of=range(3))
    source = open_tars(write_tar(tmp_path / "a.tar", by_name + by_number + inside))
    for i, number in enumerate((1, 2, 3)):
        assert told(source[i]) == [
            f"Sentence 0 of {number}.",
            10 * number + 1,
            10 * number + 2,
            f"Sentence 1 of {number}. Sentence 2 of {number}.",
            10 * number,
        ]
    assert source[0].kind == ""


def test_an_image_that_is_not_there_moves_no_other(tmp_path):
    by_name = interleaved(1, [(0, "1-0"), (2, "1-2")])
    by_number = interleaved(2, [(2, 2)])
    numeric = [
        ("3.0.jpg", jpeg(30)),
        (
            "3.json",
            mmc4(3, 3, [0, 1])
            | {
                "image_info": [
                    {"image_name": name, "matched_text_index": i, "matched_sim": 1}
                    for i, name in enumerate(("5.jpg", "0.jpg"))
                ]
            },
        ),
    ]
    source = open_tars(write_tar(tmp_path / "a.tar", by_name + by_number + numeric))
    assert told(source[0])[1:] == [12, "Sentence 1 of 1. Sentence 2 of 1.", 10]
    assert told(source[1])[1:] == [22, "Sentence 1 of 2. Sentence 2 of 2."]
    assert told(source[2]) == ["Sentence 0 of 3. Sentence 1 of 3.", 30, "Sentence 2 of 3."]


def test_conversations_in_tars(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    source = open_tars(
        write_tar(
            tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", {"image": "coco/0001.jpg", "conversations": turns})]
        )
    )
    assert told(source[0]) == [1, "\nWhat?", "A cat."] and [part.role for part in source[0].parts] == [
        "user",
        "user",
        "assistant",
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Damage


def test_a_tar_cut_anywhere_gives_whole_records_or_none(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", pairs(range(4))).read_bytes()
    cut = tmp_path / "cut.tar"
    counts = []
    for size in [*range(0, len(whole) + 1, 512), *range(100, len(whole), 1300)]:
        cut.write_bytes(whole[:size])
        try:
            source = open_tars(cut, cache=str(tmp_path / f"cache-{size}"))
        except SourceError as error:
            assert "cut.tar" in str(error) and "\n" not in str(error)
            counts.append(0)
            continue
        assert [told(source[i]) for i in range(len(source))] == [[i, f"caption {i}"] for i in range(len(source))]
        counts.append(len(source))
        assert len(source) == 4 or [record.reason for record in source.skipped] == ["tar damaged"], size
    assert set(counts) == {0, 1, 2, 3, 4}


def test_a_damaged_header_ends_the_tar_and_says_so(two_shards):
    path = two_shards / "shard-01.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmember("000000008.jpg").offset
    data[header : header + 512] = os.urandom(512)
    path.write_bytes(data)
    source = open_tars(two_shards)
    assert [told(source[i])[0] for i in range(len(source))] == [0, 1, 2, 3, 4, 5, 6]
    (record,) = source.skipped
    assert record.name == str(path) and record.reason == "tar damaged" and "after 000000007" in record.detail


def test_a_shard_that_vanishes(two_shards):
    source = open_tars(two_shards / "shard-{00..01}.tar")
    late = source[6].parts[0]
    (two_shards / "shard-01.tar").unlink()
    assert bad(source, 6).reason == "file missing" and told(source[4]) == [4, "caption 4"]
    with pytest.raises(BadImage, match="000000006.jpg: .*no such file"):
        late.pil()
    again = open_tars(two_shards / "shard-{00..02}.tar")
    assert len(again) == 5 and [record.name[-12:] for record in again.skipped] == ["shard-01.tar", "shard-02.tar"]
    assert {record.reason for record in again.skipped} == {"file missing"}
    with pytest.raises(SourceError, match="no-0.tar.*there is no record"):
        open_tars(two_shards / "no-{0..1}.tar")
    with pytest.raises(SourceError, match="no such file, and no folder with files that end in .tar"):
        open_tars(two_shards / "x-*.tar")


def test_a_shard_that_changes_is_never_read_by_its_old_index(two_shards):
    source = open_tars(two_shards)
    image = source[6].parts[0]
    write_tar(two_shards / "shard-01.tar", pairs(range(7, 11)))
    assert bad(source, 6).reason == "file changed"
    with pytest.raises(BadImage, match="has changed") as caught:
        image.pil()
    assert caught.value.reason == "file changed"
    again = open_tars(two_shards)
    assert again.fingerprint != source.fingerprint and [told(again[i])[0] for i in range(len(again))] == [
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        10,
    ]


def test_what_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(SourceError, match="a.tar: there is no record to read: .*a.tar: tar damaged"):
        open_tars(tmp_path)
    with pytest.raises(ConfigError, match="webdataset has no part that is held out"):
        open_tars(tmp_path, split="eval")


# ----------------------------------------------------------------------------------------------------------------------
# The index


def test_only_what_changed_is_scanned_again(two_shards, monkeypatch):
    scanned = []
    scan = webdataset.scan_tar

    def scan_tar(path, cache):
        scanned.append(os.path.basename(path))
        if interrupt and path.endswith("01.tar"):
            raise KeyboardInterrupt
        return scan(path, cache)

    scan_tar.__qualname__ = "scan_tar"
    monkeypatch.setattr(webdataset, "scan_tar", scan_tar)
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        open_tars(two_shards)
    interrupt = False
    assert len(open_tars(two_shards)) == 12 and scanned == ["shard-00.tar", "shard-01.tar", "shard-01.tar"]
    open_tars(two_shards)
    write_tar(two_shards / "shard-02.tar", pairs(range(12, 14)))
    assert len(open_tars(two_shards)) == 14 and scanned[3:] == ["shard-02.tar"]
    left = [name for name in os.listdir(index.cache_folder()) if name.endswith(".tmp")]
    assert not left


def test_processes_make_the_same_index(two_shards, tmp_path, monkeypatch):
    alone = open_tars(two_shards, cache=str(tmp_path / "one"))
    monkeypatch.setattr(index, "PARALLEL", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = open_tars(two_shards, cache=str(tmp_path / "two"))
    assert together.fingerprint == alone.fingerprint and len(os.listdir(tmp_path / "two")) == 3
    for name in os.listdir(alone.index.folder):
        assert (
            pathlib.Path(alone.index.folder, name).read_bytes()
            == pathlib.Path(together.index.folder, name).read_bytes()
        ), name


def test_where_the_index_is_kept(two_shards, tmp_path, monkeypatch):
    """In the user's cache, not among the data; and nowhere where there is nothing to index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(SourceError, match="gone.tar: there is no record to read: .*gone.tar: file missing"):
        open_tars(two_shards / "gone.tar")
    assert not (tmp_path / "home").exists()
    assert open_tars(two_shards).index.folder.startswith(str(tmp_path / "home" / "dreamjax"))
    assert sorted(os.listdir(two_shards)) == ["home", "shard-00.tar", "shard-01.tar"]
    assert index.cache_folder(str(two_shards / "asked")) == str(two_shards / "asked")
    with pytest.raises(SourceError, match="/proc/x: cannot be made"):
        index.cache_folder("/proc/x")


def test_tars_in_a_bucket(two_shards, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    bucket = fsspec.filesystem("memory")
    for name in ("shard-00.tar", "shard-01.tar"):
        bucket.pipe_file(f"memory://tars/{name}", (two_shards / name).read_bytes())
    for path in ("memory://tars", "memory://tars/*.tar", "memory://tars/shard-{00..01}.tar"):
        source = open_tars(path, cache=str(tmp_path / "cache"))
        assert [told(source[i]) for i in range(len(source))] == [[i, f"caption {i}"] for i in range(12)]
    bucket.rm("memory://tars/shard-01.tar")
    assert bad(source, 9).reason == "file missing"
    with pytest.raises(SourceError, match="gcsfs"):
        open_tars("gs://bucket/a.tar", cache=str(tmp_path / "cache"))


# ----------------------------------------------------------------------------------------------------------------------
# Tars of others


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"{REAL} is absent: set DREAMJAX_DATA to the folder that holds webdataset/"
)
def test_real_tars(tmp_path):
    counts = {"tendata.tar": 100, "mpdata.tar": 100, "testgz.tar": 1000, "sample.tgz": 90}
    sources = {
        name: open_tars(REAL / name, cache=str(tmp_path), text_key="" if name == "testgz.tar" else "cls")
        for name in counts
    }
    assert {name: len(source) for name, source in sources.items()} == counts
    assert {bad(sources[name], i).reason for name in ("tendata.tar", "mpdata.tar") for i in range(100)} == {
        "missing key"
    }
    assert (
        sum(len(text) for text in sources["testgz.tar"].texts()) > 1_000_000
        and len(list(sources["testgz.tar"].texts())) == 1000
    )
    for i in range(90):
        image, label = sources["sample.tgz"][i].parts
        assert isinstance(image, Image) and image.pil().size == (28, 28) and label.text in "0123456789"
