"""MMC4, OBELICS, LLaVA, pairs and instruction files.

Pictures where they belong, and one named reason for each record that cannot be used.
"""

import gzip
import itertools
import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import PIL.Image
import pytest
from goldens import recorded_file
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import jpeg, mmc4, reasons, told, write_jsonl

from dreamjax.config import SourceConfig
from dreamjax.data.prepare import writer
from dreamjax.data.prepare.filters import Filters
from dreamjax.data.registry import open_source
from dreamjax.data.sources import records
from dreamjax.data.sources.conversations import turn_parts
from dreamjax.data.sources.interleaved import place
from dreamjax.document import Image, Text
from dreamjax.document.tokenize import Slots, tokenize_document
from dreamjax.errors import SourceError

SHARED = pathlib.Path(os.environ.get("DREAMJAX_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def folder(tmp_path):
    """A folder with the pictures number-i.jpg, i of 0..2, of the numbers 0 to 3, each telling 10 number + i."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        for i in range(3):
            (tmp_path / "images" / f"{number}-{i}.jpg").write_bytes(jpeg(10 * number + i))
    return tmp_path


def opened(format, folder, content, name="records.jsonl", **options):
    """A source of one file of records (or of its bytes)."""
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        write_jsonl(folder / name, content)
    return open_source(SourceConfig(format, str(folder / name), images=str(folder / "images"), **options))


# ----------------------------------------------------------------------------------------------------------------------
# MMC4 and OBELICS


def test_each_image_stands_behind_its_sentence(folder):
    source = opened("mmc4", folder, [mmc4(1, 3, [2, 0, 0]), mmc4(2, 2, []), mmc4(3, 1, [0])])
    assert told(source[0]) == ["Sentence 0 of 1.", 11, 12, "Sentence 1 of 1. Sentence 2 of 1.", 10]
    assert told(source[1]) == ["Sentence 0 of 2. Sentence 1 of 2."] and told(source[2]) == ["Sentence 0 of 3.", 30]
    assert (
        source[0].id == f"{folder}/records.jsonl:1"
        and source[0].kind == ""
        and all(part.role is None for part in source[0].parts)
    )
    assert told(pickle.loads(pickle.dumps(source))[2]) == ["Sentence 0 of 3.", 30]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from(["a", " b ", "", "c d"]), min_size=1, max_size=6), st.data())
def test_placing_keeps_words_and_images(texts, data):
    matched = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=6))
    parts = place(texts, [(index, Image(f"{i}")) for i, index in enumerate(matched)])
    assert " ".join(part.text for part in parts if isinstance(part, Text)).split() == " ".join(texts).split()
    assert not any(isinstance(one, Text) and isinstance(next_one, Text) for one, next_one in itertools.pairwise(parts))
    order = [int(part.source) for part in parts if isinstance(part, Image)]
    assert order == sorted(range(len(matched)), key=lambda i: (matched[i], i))
    words = 0
    for part in parts:
        if isinstance(part, Text):
            words += len(part.text.split())
        else:  # before it, all words up to and including its sentence
            assert words == len(" ".join(texts[: matched[int(part.source)] + 1]).split())


def test_placing_as_recorded(bundle):
    from dreamjax.document.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(bundle / "ckpt")
    cases = json.loads(recorded_file(bundle, "data.json").read_text())["cases"]
    chosen = [
        c
        for c in cases
        if (c["kind"], c["mode"], c["tokenizer"], c.get("max_len"))
        == ("InterleavedImageText", "comprehension_only", "legacy", None)
    ]
    assert chosen
    for case in chosen:
        wanted = case["desc"]
        bad = wanted.get("bad_images", [])
        images = [(index, Image(str(i))) for i, index in enumerate(wanted["matched_text_index"]) if i not in bad]
        tokens, shown = [tokenizer.bos], []
        for part in place(wanted["text_list"], images):
            tokens += tokenizer.encode(part.text) if isinstance(part, Text) else [tokenizer.im_start, tokenizer.im_end]
            shown += [int(part.source)] if isinstance(part, Image) else []
        recorded = [token for token in case["output"]["input_ids"] if token != tokenizer.im_patch]
        assert (tokens + [tokenizer.eos], shown) == (recorded, case["output"]["images"]), wanted


def test_images_unlike_their_sentence_or_not_there_are_left_out(folder):
    content = [mmc4(1, 2, [0, 1], similarity=0.24), mmc4(1, 2, [0, 1]), mmc4(9, 2, [0, 1])]
    content[1]["image_info"][1]["matched_sim"] = 0.2499
    assert [told(document) for document in opened("mmc4", folder, content)] == [
        ["Sentence 0 of 1. Sentence 1 of 1."],
        ["Sentence 0 of 1.", 10, "Sentence 1 of 1."],
        ["Sentence 0 of 9. Sentence 1 of 9."],
    ]
    del content[1]["image_info"][1]["matched_sim"]
    for least in (0.0, 0.1):
        source = opened("mmc4", folder, content, min_similarity=least)
        assert told(source[0]) == ["Sentence 0 of 1.", 10, "Sentence 1 of 1.", 11]
        assert reasons(source)[1] == ("missing key" if least else "")


def test_bad_records_of_mmc4(folder):
    good = mmc4(1, 2, [0])

    def broken(**changes):
        return good | {"image_info": [good["image_info"][0] | changes]}

    content = [
        good,
        b"{broken",
        b"[1]",
        b"\xff\xfe",
        {},
        good | {"text_list": "one"},
        good | {"text_list": [1, 2]},
        good | {"image_info": None},
        good | {"image_info": ["x"]},
        broken(matched_text_index=2),
        broken(matched_text_index=-1),
        broken(matched_text_index=None),
        broken(matched_text_index="0"),
        broken(matched_sim=None),
        broken(image_base64="%"),
        mmc4(1, 0, []),
        {"text_list": ["", " "], "image_info": []},
        b"",
        good | {"more": "x" * 2**20},
        b"[" * 100_000,
    ]
    source = opened("mmc4", folder, content)
    assert reasons(source) == [
        "", "bad JSON", "bad JSON", "bad JSON", "missing key", "wrong type", "wrong type", "missing key", "wrong type",
        "bad index", "bad index", "missing key", "wrong type", "missing key",
        "bad base64", "empty", "empty", "", "bad JSON",
    ]  # fmt: skip
    assert source.key(17) == "records.jsonl:19"  # the empty line is no record, but counts as a line
    assert list(source.texts()) == 2 * ["Sentence 0 of 1.", "Sentence 1 of 1."]


def test_obelics(folder):
    content = [
        {"texts": [None, "One. ", None, " Two.", "Three."], "images": ["1-0.jpg", None, "1-1.jpg", None, None]},
        {"texts": ["One.", None, "Two."], "images": [None, "gone.jpg", None]},
        {"texts": ["a"], "images": []},
        {"texts": ["a"], "images": ["1-0.jpg"]},
        {"texts": [3], "images": [None]},
        {"images": []},
        {"texts": [None], "images": [None]},
    ]
    source = opened("obelics", folder, content)
    assert told(source[0]) == [10, "One.", 11, "Two. Three."] and told(source[1]) == ["One. Two."]
    assert reasons(source)[2:] == ["bad index", "bad index", "wrong type", "missing key", "empty"]


# ----------------------------------------------------------------------------------------------------------------------
# Conversations and instructions


def talk(*words, **others):
    speakers = ("human", "gpt") * len(words)
    return {
        "id": "7",
        "conversations": [{"from": speaker, "value": value} for speaker, value in zip(speakers, words, strict=False)],
    } | others


def test_conversations(folder):
    content = [
        talk("<image>\nWhat is it?", "A cat.", "And where?", "There.", image="1-0.jpg"),
        talk("First <image> then <image>.", "Two.", image=["2-1.jpg", "2-0.jpg"]),
        talk("Say <image>, please.", "The text <image>."),
        talk(
            "Draw a cat.", "Here: <dream>", "Now like <image>", "<dream> done", image=["1-0.jpg", "1-1.jpg", "1-2.jpg"]
        ),
        {
            "conversations": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes"},
            ]
        },
    ]
    for name, data in [("a.jsonl", content), ("a.json", json.dumps(content, indent=1).encode())]:
        source = opened("llava", folder, data, name)
        assert told(source[0]) == [10, "\nWhat is it?", "A cat.", "And where?", "There."]
        assert [part.role for part in source[0].parts] == ["user", "user", "assistant", "user", "assistant"]
        assert told(source[1]) == ["First ", 21, " then ", 20, ".", "Two."]
        assert told(source[2]) == ["Say <image>, please.", "The text <image>."]  # without pictures these are words
        assert told(source[3]) == ["Draw a cat.", "Here: ", 10, "Now like ", 11, 12, " done"]
        assert [(part.is_input, part.is_target) for part in source[3].parts if isinstance(part, Image)] == [
            (True, True),
            (True, False),
            (True, True),
        ]
        assert [part.role for part in source[4].parts] == ["system", "user", "assistant"]


def test_bad_conversations(folder):
    content = [
        talk("<image> What?", "A.", image="gone.jpg"),
        talk("<image> <image> What?", "A.", image="1-0.jpg"),
        talk("What?", "A.", image="1-0.jpg"),
        talk("What?", ""),
        talk("What?", "A.", image=3),
        {"conversations": [{"from": "robot", "value": "x"}]},
        {"conversations": [{"from": "gpt"}]},
        {"id": 1},
        {"conversations": "x"},
    ]
    assert reasons(opened("llava", folder, content)) == [
        "image missing",
        "placeholders do not match",
        "placeholders do not match",
        "no text",
        "wrong type",
        "unknown speaker",
        "missing key",
        "missing key",
        "wrong type",
    ]


def test_words_of_turns_are_kept_to_the_letter():
    turns = [("user", " <image>\n\n<image>x "), ("assistant", "\t<dream>")]
    parts = turn_parts(turns, ["a", "b", "c"])
    assert (
        "".join(part.text if isinstance(part, Text) else f"[{part.source}]" for part in parts) == " [a]\n\n[b]x \t[c]"
    )


def test_pairs(folder):
    content = [
        {"id": i, "image": f"{i % 4}-1.jpg", "caption": f" caption {i} ", "tags": ["one", "two"], "similarity": i / 10}
        for i in range(6)
    ]
    for name, data in [("a.jsonl", content), ("a.json", json.dumps(content, indent=1).encode())]:
        source = pickle.loads(pickle.dumps(opened("pairs", folder, data, name)))
        assert [told(document) for document in source] == [[10 * (i % 4) + 1, f"caption {i}"] for i in range(6)]
        assert (
            source[2].kind == "pair"
            and source[2].id == source.index.name(2)
            and source.key(1) == source.key(5) == "1-1.jpg"
        )
    other = [
        {"file": "2-0.jpg", "title": ["a cat", "cat"], "caption": "wrong"},
        {"image": "2-0.jpg", "title": "a cat"},
        {"file": "2-0.jpg", "caption": "x"},
    ]
    source = opened("pairs", folder, other, text_key="title", image_key="file")
    assert told(source[0]) == [20, "a cat"] and reasons(source) == ["", "missing key", "missing key"]
    assert reasons(opened("pairs", folder, content[:4], min_similarity=0.2)) == [
        "low similarity",
        "low similarity",
        "",
        "",
    ]


def test_bad_pairs(folder):
    good = {"image": "1-0.jpg", "text": "a cat"}
    content = [
        good,
        b"{",
        good | {"image": None},
        good | {"image": 3},
        good | {"image": "gone.jpg"},
        good | {"text": " "},
        good | {"text": []},
        good | {"text": [4]},
        {},
    ]
    assert reasons(opened("pairs", folder, content)) == [
        "",
        "bad JSON",
        "missing key",
        "wrong type",
        "image missing",
        "no text",
        "no text",
        "wrong type",
        "missing key",
    ]


def coco(captions):
    """COCO's layout of (image id, caption); pictures are 0-0.jpg to 3-0.jpg with the ids 100 to 103."""
    images = [{"license": 1, "file_name": f"{number}-0.jpg", "id": 100 + number, "height": 24} for number in range(4)]
    annotations = [{"image_id": number, "id": i, "caption": caption} for i, (number, caption) in enumerate(captions)]
    return {"info": {"year": 2014, "images": []}, "images": images, "licenses": [{"id": 1}], "annotations": annotations}


def test_captions_of_coco(folder):
    content = coco([(101, "Un café \u65e5"), (103, "a [dog] {"), (101, "two"), (999, "of nothing"), (102, "")])
    turned = dict(reversed(content.items()))
    for data in (
        json.dumps(content),
        json.dumps(content, indent=2, ensure_ascii=False),
        "\ufeff" + json.dumps(turned),
        json.dumps(content) + "\n",
    ):
        source = opened("pairs", folder, data.encode(), "captions.json")
        assert [told(source[i]) for i in range(3)] == [[10, "Un café \u65e5"], [30, "a [dog] {"], [10, "two"]]
        assert (
            len(source) == 4
            and reasons(source)[3:] == ["no text"]
            and [record.reason for record in source.skipped] == ["image missing"]
        )
        assert source[1].id == f"{folder}/captions.json:1" and source.key(0) == source.key(2) == "1-0.jpg"
    cut = opened("pairs", folder, json.dumps(content)[:-80].encode(), "captions.json")
    assert (
        1 <= len(cut) <= 3
        and told(cut[0]) == [10, "Un café \u65e5"]
        and "bad JSON" in [record.reason for record in cut.skipped]
    )
    assert (
        len(
            opened(
                "pairs",
                folder,
                json.dumps({"image": "1-0.jpg", "caption": "x", "images": [], "annotations": [3]}).encode(),
            )
        )
        == 1
    )  # a record


def test_instructions(folder):
    content = [
        mmc4(1, 2, [0], similarity=0.1) | {"instruction": " Write. "},
        {
            "instruction": "Write.",
            "text_list": ["One.", "Two."],
            "images": ["1-0.jpg", "1-1.jpg"],
            "matched_text_index": [1, 0],
        },
        {"instruction": "Draw.", "image": "2-0.jpg", "text": "Here."},
        {"instruction": "Draw.", "image": "2-0.jpg"},
        {"instruction": "Draw.", "image": "gone.jpg"},
        {"instruction": "Draw."},
        {"instruction": "", "image": "2-0.jpg"},
        {"instruction": "Write.", "text_list": ["One."], "images": ["1-0.jpg"], "matched_text_index": [1]},
        {"text_list": []},
    ]
    source = opened("instruct", folder, content)
    assert told(source[0]) == ["Write.", "Sentence 0 of 1.", 10, "Sentence 1 of 1."] and told(source[1]) == [
        "Write.",
        "One.",
        11,
        "Two.",
        10,
    ]
    assert told(source[2]) == ["Draw.", "Here.", 20] and told(source[3]) == ["Draw.", 20]
    assert all(
        [part.role for part in source[i].parts] == ["user"] + ["assistant"] * (len(source[i].parts) - 1)
        for i in range(4)
    )
    assert reasons(source)[4:] == ["image missing", "missing key", "no text", "bad index", "missing key"]


# ----------------------------------------------------------------------------------------------------------------------
# Files


def zipped(data: bytes, *names: str, folder) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return (folder / "made.zip").read_bytes()


def test_packed_files_are_unpacked_once(folder):
    lines = b"".join(json.dumps(mmc4(1, 2, [i % 2])).encode() + b"\r\n" for i in range(50))
    packed = {"a.jsonl.gz": gzip.compress(lines), "b.jsonl.zip": zipped(lines, "docs.jsonl", folder=folder)}
    for name, data in packed.items():
        source = opened("mmc4", folder, data, name, cache=str(folder / "cache"))
        assert len(source) == 50 and reasons(source) == [""] * 50 and source.key(7) == f"{name}:8"
    unpacked = sorted((folder / "cache").glob("unpacked-*"))
    assert [path.read_bytes() for path in unpacked] == [lines, lines]
    times = [path.stat().st_mtime_ns for path in unpacked]
    assert len(open_source(SourceConfig("mmc4", str(folder / "*.jsonl.*"), cache=str(folder / "cache")))) == 100
    assert [path.stat().st_mtime_ns for path in sorted((folder / "cache").glob("unpacked-*"))] == times
    noise = [mmc4(1, 1, [0]) | {"noise": os.urandom(2000).hex()} for _ in range(100)]
    whole = gzip.compress(b"".join(json.dumps(record).encode() + b"\n" for record in noise))
    cut = opened("mmc4", folder, whole[: len(whole) // 2], "c.jsonl.gz")
    assert cut.skipped[0].reason == "file damaged" and 40 < len(cut) < 60 and set(reasons(cut)[:-1]) == {""}
    for data, reason in [
        (zipped(lines, "a", "b", folder=folder), "holds 2 files"),
        (packed["b.jsonl.zip"][:-30], "not a zip file"),
    ]:
        with pytest.raises(SourceError, match=reason):
            opened("mmc4", folder, data, "d.jsonl.zip")


@pytest.mark.parametrize("chunk", [7, 64, 2**22])
def test_json_lists_by_windows(folder, monkeypatch, chunk):
    monkeypatch.setattr(records, "CHUNK", chunk)
    content = [talk(f'Question {i} 日本 \\" [{{', "é" * i) for i in range(1, 30)]
    for data in (
        json.dumps(content),
        json.dumps(content, indent=2, ensure_ascii=False),
        "\ufeff \n" + json.dumps(content) + "\n\n",
    ):
        source = opened("llava", folder, data.encode(), "a.json")
        assert [source[i].parts[1].text for i in range(len(source))] == ["é" * i for i in range(1, 30)]
        assert source.skipped == () and source.index.name(4) == f"{folder}/a.json:4"
    text = json.dumps(content)
    cut = opened("llava", folder, text[: len(text) // 2].encode(), "a.json")
    assert (
        5 < len(cut) < 25
        and set(reasons(cut)) == {""}
        and cut.skipped[0].reason == "bad JSON"
        and f"a.json:{len(cut)}" in cut.skipped[0].name
    )


def test_files_without_a_record(folder):
    for data in (b"", b"[]", b"[broken", b"\n\n"):
        with pytest.raises(SourceError, match="a.json: there is no record to read"):
            opened("llava", folder, data, "a.json")


def on_white(image: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGBA"), np.float64)
    return 255 + (pixels[..., :3] - 255) * pixels[..., 3:] / 255


@pytest.mark.skipif(not (SHARED / "emoji").is_dir(), reason=f"{SHARED} has no emoji: set DREAMJAX_DATA")
def test_the_real_emoji(tmp_path):
    """Pairs of 128 x 128 pictures in four modes; what is transparent lies on white."""
    source = open_source(SourceConfig("pairs", str(SHARED / "emoji" / "pairs.jsonl"), cache=str(tmp_path / "cache")))
    assert len(source) == 2008 and source.skipped == () and set(reasons(source)) == {""}
    assert (
        source[0].parts[1].text == "grinning face" and source[0].kind == "pair" and source.key(0) == "png/128/1f600.png"
    )
    inputs = {"RGBA": 0, "P": 0, "LA": 0, "RGB": 0}
    for index in range(len(source)):
        image = source[index].parts[0]
        with PIL.Image.open(image.source) as stored:
            if inputs[stored.mode] < 5:
                inputs[stored.mode] += 1
                ours = image.pil()
                assert ours.mode == "RGB" and np.abs(np.asarray(ours) - on_white(stored)).max() <= 1, image.source
    assert set(inputs.values()) == {5}
    names = open_source(
        SourceConfig(
            "pairs", str(SHARED / "emoji" / "pairs.jsonl"), text_key="cldr_keywords", cache=str(tmp_path / "cache")
        )
    )
    assert names[0].parts[1].text == "face | grin | grinning face"
    facts = writer.write(writer.Job(source, str(tmp_path / "out"), Filters(min_side=128)), 1)
    assert (facts["documents"], facts["images"], facts["dropped"]) == (2008, 2008, {})
    again = open_source(SourceConfig("array_record", str(tmp_path / "out")))
    assert again[2007].parts[1] == source[2007].parts[1] and np.array_equal(
        again[2007].images[0], source[2007].images[0]
    )


@pytest.mark.skipif(not (SHARED / "formats").is_dir(), reason=f"{SHARED} has no formats: set DREAMJAX_DATA")
def test_real_photographs_in_conversations(tmp_path, shapes_tokenizer):
    names = ["llava_extreme_ironing.jpg", "llava_waterview.jpg"]
    content = [
        talk("What is odd?\n<image>", "A man irons.", image=names[0]),
        talk("<image><image>\nWhich is calm?", "The second.", image=names),
    ]
    write_jsonl(tmp_path / "talks.jsonl", content)
    source = open_source(SourceConfig("llava", str(tmp_path / "talks.jsonl"), images=str(SHARED / "formats")))
    slots = Slots(queries=4, patches=16)
    for document, count in zip(source, (1, 2), strict=False):
        row = tokenize_document(document, shapes_tokenizer, slots, "vicuna_v1.1")
        assert (
            len(row.inputs) == count and row.targets == () and all(min(image.size) > 200 for image in document.images)
        )
        assert shapes_tokenizer.decode_continuation(row.tokens[row.loss_mask]).strip() == document.parts[-1].text


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: set DREAMJAX_DATA")
def test_the_real_document_of_mmc4(tmp_path):
    for name, number in (("b9040a0dbb22.jpg", 1), ("db1c21bc8474.jpg", 2)):
        (tmp_path / name).write_bytes(jpeg(number))
    path = str(SHARED / "formats" / "mmc4_readme_example.jsonl")
    shown = told(open_source(SourceConfig("mmc4", path, images=str(tmp_path), cache=str(tmp_path / "cache")))[0])
    assert (
        [shown[1], shown[3], len(shown)] == [2, 1, 4]
        and shown[0].startswith("When you lock the door")
        and shown[0].endswith("doors and the tailgate.")
    )
    assert shown[2].startswith("When you lock/unlock the driver’s door")
