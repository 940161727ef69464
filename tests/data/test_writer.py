"""Preparing.

Every document once, in order, whatever is broken beside it; the same files after an interruption and in parallel.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import pickle

import fsspec
import numpy as np
import PIL.Image
import pytest
from made_data import encoded, jpeg, make_image, mmc4, pairs, told, write_jsonl, write_tar

from dreamjax.config import SourceConfig
from dreamjax.data.prepare import writer
from dreamjax.data.prepare.filters import Filters, keep
from dreamjax.data.registry import open_source
from dreamjax.document import Text
from dreamjax.document.tokenize import Limits, Slots, tokenize_document
from dreamjax.errors import BadImage, BadRecord, ConfigError, RunStopped, SourceError


def files_of(folder) -> dict[str, bytes]:
    """Content by name, without the settings, which name the source's folder."""
    return {
        path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir()) if path.name != writer.SETTINGS
    }


@contextlib.contextmanager
def interrupted_at(end: str):
    """The user stops at the document whose id ends so."""
    encode = writer.encode

    def stop(document, key):
        if document.id.endswith(end):
            raise KeyboardInterrupt
        return encode(document, key)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer, "encode", stop)
        yield


def test_documents_come_back_in_order(tmp_path, shapes_tokenizer):
    write_tar(
        tmp_path / "a.tar", [*pairs(range(7)), ("bad.jpg", b"no picture"), ("bad.txt", "bad"), *pairs(range(8, 12))]
    )
    source = open_source(SourceConfig("webdataset", str(tmp_path)))
    facts = writer.write(writer.Job(source, str(tmp_path / "out"), tokenizer=shapes_tokenizer, per_file=5), workers=1)
    assert (facts["documents"], facts["images"], facts["files"]) == (11, 11, 3) and facts["dropped"] == {
        "image in no known format": 1
    }
    assert facts["image_bytes"] == sum(len(jpeg(i)) for i in range(12) if i != 7) and facts["characters"] == sum(
        len(f"caption {i}") for i in range(12) if i != 7
    )
    again = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [told(document) for document in again] == [[i, f"caption {i}"] for i in range(12) if i != 7]
    assert again[3].kind == "pair" and again[3].id == source[3].id
    rows = [tokenize_document(document, shapes_tokenizer, Slots(3, 4)) for document in again]
    assert [n + 4 * inputs + 3 * targets for n, inputs, targets in again.lengths().tolist()] == [
        len(row.tokens) for row in rows
    ]
    assert facts["tokens"] == again.lengths()[:, 0].sum()
    (line,) = (tmp_path / "out" / writer.DROPPED).read_text().splitlines()
    assert json.loads(line)["record"] == f"{tmp_path}/a.tar:bad"


def test_interrupted_repeated_and_in_parallel(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(12)))
    source = open_source(SourceConfig("webdataset", str(tmp_path)))

    def job(out, **others):
        return writer.Job(source, str(tmp_path / out), per_file=3, **others)

    facts = writer.write(job("whole"), 1)
    with interrupted_at("7"):
        writer.write(job("stopped"), 1)
    with pytest.raises(
        SourceError, match="stopped: is an unfinished set of documents, 2 of 4 files are there; run python -m .* again"
    ):
        open_source(SourceConfig("array_record", str(tmp_path / "stopped")))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("documents-*")}
    assert writer.write(job("stopped"), 1) | {"out": ""} == facts | {"out": ""}
    assert len(times) == 4 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    writer.write(job("parallel"), 2)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "parallel") == files_of(tmp_path / "whole")
    with pytest.raises(ConfigError, match="another filters"):
        writer.write(job("whole", filters=Filters(min_side=3)), 1)
    with pytest.raises(ConfigError, match="another per_file"):
        writer.write(writer.Job(source, str(tmp_path / "whole"), per_file=4), 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.array_record").touch()
    with pytest.raises(ConfigError, match="something else"):
        writer.write(job("other"), 1)


def test_an_unfinished_set_is_named_with_the_command_that_finishes_it(tmp_path):
    """However it came to be.

    Killed at any file or at the end, stopped for broken records, begun anew, or copied in part.
    """
    write_tar(tmp_path / "a.tar", pairs(range(4)))
    out, source = tmp_path / "out", open_source(SourceConfig("webdataset", str(tmp_path / "a.tar")))
    job = writer.Job(source, str(out), per_file=1, command="python -m dreamjax.prepare --out=X")

    def opened(path=out):
        return open_source(SourceConfig("array_record", str(path)))

    whole = writer.write(job, 1)
    assert len(opened()) == 4
    for name, there in ((writer.DROPPED, 4), ("documents-00001-of-00004.array_record", 3)):
        (out / name).unlink()
        with pytest.raises(
            SourceError,
            match=f"out: is an unfinished set .* {there} of 4 files .*; run python -m dreamjax.prepare --out=X again",
        ):
            opened()
        assert len(opened(out / "*.array_record")) == there
        assert writer.write(job, 1) == whole and len(opened()) == 4
    (out / "documents-00003-of-00004.array_record").unlink()
    (out / writer.SETTINGS).unlink()
    with pytest.raises(
        SourceError, match="3 of 4 files are there; run python -m dreamjax.prepare with the same flags again"
    ):
        opened()


def test_files_of_others_stay(tmp_path):
    """Such as an editor's, which may end as ours do; what a killed run left goes."""
    write_tar(tmp_path / "a.tar", pairs(range(2)))
    (tmp_path / "out").mkdir()
    for name in ("mine.tmp", "documents-00000-of-00001.json.0123456789ab.tmp", "prepare.json.0123456789ab.tmp"):
        (tmp_path / "out" / name).touch()
    writer.write(writer.Job(open_source(SourceConfig("webdataset", str(tmp_path / "a.tar"))), str(tmp_path / "out")), 1)
    assert [path.name for path in (tmp_path / "out").glob("*.tmp")] == ["mine.tmp"]


def test_a_run_stops_where_too_much_is_broken(tmp_path):
    """At the file where it is certain; --max_bad_share as in training, and what filters leave out is not broken."""
    write_jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.jpg", "caption": "x" * (1 + i % 2)} for i in range(40)])
    for i in range(4, 40):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    source = open_source(SourceConfig("pairs", str(tmp_path / "a.jsonl")))

    def job(out, share, **others):
        return writer.Job(source, str(tmp_path / out), per_file=2, max_bad_share=share, **others)

    with pytest.raises(
        RunStopped,
        match=r"2 of 40 records are broken, more than --max_bad_share = 1.00%: 2 image missing; the first: "
        r".*a.jsonl:1: image missing",
    ):
        writer.write(job("out", 0.01), 1)
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 1
    with pytest.raises(RunStopped, match="4 of 40 records.*begin anew with --overwrite, or raise --max_bad_share"):
        writer.write(job("out", 0.09), 1)
    assert writer.write(job("out", 0.1), 1)["documents"] == 36
    assert writer.write(job("short", 0.1, filters=Filters(max_characters=1)), 1)["dropped"] == {
        "caption too long": 18,
        "image missing": 4,
    }


def test_nothing_that_can_be_used_is_an_error(tmp_path):
    """It names the first; once the source is mended, by the same command with overwrite, whatever lies there."""
    write_jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.jpg", "caption": "x"} for i in range(5)])

    def job(**others):
        return writer.Job(
            open_source(SourceConfig("pairs", str(tmp_path / "a.jsonl"))), str(tmp_path / "out"), per_file=2, **others
        )

    first = "; ".join(f"{tmp_path}/a.jsonl:{i + 1}: image missing: {tmp_path}/{i}.jpg: no such file" for i in range(3))
    for _ in range(2):
        with pytest.raises(RunStopped) as stopped:
            writer.write(job(), 1)
        assert (
            str(stopped.value)
            == f"none of 5 records can be used: 5 image missing; the first: {first}; mend them and begin "
            "anew with --overwrite"
        )
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "out" / "mine.txt").touch()
    assert writer.overwrite(job(), 1)["documents"] == 5
    write_jsonl(tmp_path / "a.jsonl", [{"image": "1.jpg", "caption": "y"}])
    with pytest.raises(ConfigError, match="another source; begin anew with --overwrite, or give another folder"):
        writer.write(job(), 1)
    facts = writer.overwrite(job(), 1)
    assert (facts["documents"], facts["files"], facts["dropped"]) == (1, 1, {}) and len(
        open_source(SourceConfig("array_record", str(tmp_path / "out")))
    ) == 1
    assert (tmp_path / "out" / "mine.txt").exists()
    with pytest.raises(RunStopped, match="none of 1 records can be used: 1 too few pictures"):
        writer.overwrite(job(filters=Filters(min_images=2)), 1)
    for name in (writer.SETTINGS, "documents-00000-of-00001.json"):
        (tmp_path / "out" / name).write_bytes(b"")
        with pytest.raises(ConfigError, match=f"{name}: is damaged .*; begin anew with --overwrite"):
            writer.write(job(), 1)
        writer.overwrite(job(), 1)
    whole = json.loads((tmp_path / "out" / "documents-00000-of-00001.json").read_bytes())
    for change in (
        {"counts": 5},
        {"counts": {"documents": "1"}},
        {"lengths": [[1, 2]]},
        {"lengths": [7]},
        {"dropped": [["a"]]},
        {"dropped": None},
        {"left_out": []},
    ):
        (tmp_path / "out" / "documents-00000-of-00001.json").write_text(json.dumps(whole | change))
        with pytest.raises(
            ConfigError, match="documents-00000-of-00001.json: is damaged .*; begin anew with --overwrite"
        ):
            writer.write(job(), 1)
    writer.overwrite(job(), 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.array_record").touch()
    with pytest.raises(ConfigError, match="--overwrite: .*other holds ArrayRecord files that are not of this command"):
        writer.overwrite(dataclasses.replace(job(), out=str(tmp_path / "other")), 1)
    assert (tmp_path / "other" / "a.array_record").exists()


def test_to_a_bucket_and_back(tmp_path, shapes_tokenizer, monkeypatch):
    """An interrupted run leaves no half file there, and the next one goes on."""
    bucket = fsspec.filesystem("memory")
    write_tar(tmp_path / "a.tar", pairs(range(7)))
    source = open_source(SourceConfig("webdataset", str(tmp_path)))

    def job(out):
        return writer.Job(source, out, tokenizer=shapes_tokenizer, per_file=3)

    facts = writer.write(job(str(tmp_path / "here")), 1)
    with interrupted_at("4"):
        writer.write(job("memory://prepared/out"), 1)
    assert len(bucket.glob("memory://prepared/out/documents-*")) == 2
    asked, encode = [], writer.encode
    monkeypatch.setattr(writer, "encode", lambda document, key: asked.append(document.id[-1]) or encode(document, key))
    assert writer.write(job("memory://prepared/out"), 1) | {"out": ""} == facts | {"out": ""} and asked == list("3456")
    assert {
        name.rpartition("/")[2]: bucket.cat_file(name) for name in bucket.ls("memory://prepared/out", detail=False)
    } == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    with pytest.raises(ConfigError, match="another template"):
        writer.write(dataclasses.replace(job("memory://prepared/out"), template="llama2"), 1)
    there = open_source(SourceConfig("array_record", "memory://prepared/out", cache=str(tmp_path / "cache")))
    here = open_source(SourceConfig("array_record", str(tmp_path / "here")))
    assert [told(document) for document in there] == [told(document) for document in here] and len(there) == 7
    assert [there.key(i) for i in range(7)] == [here.key(i) for i in range(7)] and np.array_equal(
        there.lengths(), here.lengths()
    )
    assert len(os.listdir(tmp_path / "cache")) == 3 and pickle.loads(pickle.dumps(there))[6].id == here[6].id


# ----------------------------------------------------------------------------------------------------------------------
# Broken input


@pytest.fixture(scope="module")
def odd_images():
    """(bytes, reason to drop or "") by name."""
    frames = [PIL.Image.fromarray(make_image(number)) for number in (5, 6)]
    palette = frames[0].convert("P")
    bomb = PIL.Image.new("1", (19_000, 19_000))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "good": (jpeg(5), ""),
        "cut": (encoded(noise)[:-900], "image does not decode"),
        "text": (b"<html>404</html>", "image in no known format"),
        "empty": (b"", "image in no known format"),
        "one_pixel": (encoded(PIL.Image.new("RGB", (1, 1))), "image too small"),
        "long": (encoded(PIL.Image.new("1", (20_001, 2)), "PNG"), "image too large"),
        "just_fits": (encoded(PIL.Image.new("1", (20_000, 2)), "PNG"), ""),
        "bomb": (encoded(bomb, "PNG"), "image too large"),
        "animated": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), ""),
        "cmyk": (encoded(frames[0].convert("CMYK")), ""),
        "palette": (encoded(palette, "PNG", transparency=bytes([0] + [255] * 255)), ""),
        "grey16": (encoded(PIL.Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"), ""),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_odd_images_are_used_or_dropped_and_move_no_other(tmp_path, odd_images):
    """As pairs.

    Each bad picture takes its own pair. In an interleaved document: it leaves, and all else stays where it was.
    """
    names = list(odd_images)
    members = [
        member
        for i, name in enumerate(names)
        for member in ((f"{name}.jpg", odd_images[name][0]), (f"{name}.txt", f"of {name}"))
    ]
    write_tar(tmp_path / "a.tar", members)
    source = open_source(SourceConfig("webdataset", str(tmp_path / "a.tar")))
    assert len(source) == len(names)
    for i, name in enumerate(names):
        reason = odd_images[name][1]
        try:
            kept, _ = keep(source[i], Filters())
        except BadImage as error:
            assert error.reason == reason and "\n" not in str(error), name
            with pytest.raises(BadImage):
                source[i].images  # noqa: B018
            continue
        assert not reason and kept.parts[1].text == f"of {name}" and source[i].images[0].mode == "RGB", name
    facts = writer.write(writer.Job(source, str(tmp_path / "out")), 1)
    assert (
        sum(facts["dropped"].values()) == sum(bool(reason) for _, reason in odd_images.values())
        and facts["dropped"]["image too large"] == 2
    )
    logged = [json.loads(line) for line in (tmp_path / "out" / writer.DROPPED).read_text().splitlines()]
    assert [(entry["record"].rpartition(":")[2], entry["reason"]) for entry in logged] == [
        (name, reason) for name, (_, reason) in odd_images.items() if reason
    ]

    for i, name in enumerate(names):
        (tmp_path / f"1-{i}.jpg").write_bytes(odd_images[name][0])
    write_jsonl(tmp_path / "a.jsonl", [mmc4(1, len(names), range(len(names)))])
    kept, left_out = keep(open_source(SourceConfig("mmc4", str(tmp_path / "a.jsonl")))[0], Filters())
    assert sorted(error.reason for error in left_out) == sorted(reason for _, reason in odd_images.values() if reason)
    words = ""
    shown = []
    for part in kept.parts:
        if isinstance(part, Text):
            words += part.text
        else:
            shown.append(part.source)
            assert words.endswith(f"Sentence {[data for data, _ in odd_images.values()].index(part.source)} of 1.")
    assert shown == [data for data, reason in odd_images.values() if not reason]
    assert not any(isinstance(one, Text) and isinstance(other, Text) for one, other in itertools.pairwise(kept.parts))


def test_odd_texts_become_words(tmp_path, shapes_tokenizer):
    special = " ".join(shapes_tokenizer.special) + " <s> </s> <image>"
    texts = [special, "x " * 2**19, "\x00\x07", "日本 🦒", "\ud800 alone", " \n "]
    members = [
        member for i, text in enumerate(texts) for member in ((f"{i}.png", jpeg(i)), (f"{i}.json", {"caption": text}))
    ]
    source = open_source(SourceConfig("webdataset", str(write_tar(tmp_path / "a.tar", members))))
    limits = Limits(64, 1, 1)
    row = tokenize_document(source[0], shapes_tokenizer, Slots(2, 3), limits=Limits(512, 1, 1))
    control = sum(int(token) in shapes_tokenizer.special_ids for token in row.tokens)
    assert control == 2 + 2 + 2 + 2 + 3  # <s> </s>, the marks around the picture and its slots, and none from the words
    assert "<dream_start>" in shapes_tokenizer.decode_continuation(row.tokens[-len(special) * 2 :])
    huge = tokenize_document(source[1], shapes_tokenizer, Slots(2, 3), limits=limits)
    assert huge.truncated and len(huge.tokens) <= 64
    for i in (2, 3, 4):
        assert tokenize_document(source[i], shapes_tokenizer, Slots(2, 3), limits=Limits(512, 1, 1)).inputs
    with pytest.raises(BadRecord, match="no text"):
        source[5]
    facts = writer.write(writer.Job(source, str(tmp_path / "out"), tokenizer=shapes_tokenizer), 1)
    assert facts["documents"] == 5 and facts["dropped"] == {"no text": 1}
    again = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert [document.parts[1].text for document in again] == [text.strip() for text in texts[:5]]


def test_a_shard_that_vanishes_while_preparing(tmp_path):
    write_tar(tmp_path / "a-0.tar", pairs(range(4)))
    write_tar(tmp_path / "a-1.tar", pairs(range(4, 8)))
    source = open_source(SourceConfig("webdataset", str(tmp_path)))
    os.unlink(tmp_path / "a-0.tar")
    facts = writer.write(writer.Job(source, str(tmp_path / "out")), 1)
    assert facts["documents"] == 4 and facts["dropped"] == {"file missing": 4}
    assert [told(document)[0] for document in open_source(SourceConfig("array_record", str(tmp_path / "out")))] == [
        4,
        5,
        6,
        7,
    ]
