"""Caption measures: nlg-eval's example to every printed digit, the benchmarks' files, and what is left without Java."""

import shutil

import pytest
from evaluation.files import real_data, write_json, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import captions
from dreamjax.evaluation.metrics import captions as metrics

java = pytest.mark.skipif(
    shutil.which("java") is None, reason="needs Java: METEOR and the Penn Treebank tokenizer are Java programs"
)


@java
def test_the_example_of_nlg_eval():
    data = real_data("captions")
    found = captions.score("captions", data / "nlgeval_hyp.txt", data)
    printed = {name: f"{value / 100:.6f}" for name, value in found.metrics.items()}
    expected = {
        "Bleu_1": "0.550000",
        "Bleu_4": "0.201143",
        "METEOR": "0.295797",
        "ROUGE_L": "0.522104",
        "CIDEr": "1.242192",
    }
    assert {name: printed[name] for name in expected} == expected and found.warnings == ()


def test_without_java_the_rest_is_named_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    (tmp_path / "a_ref1.txt").write_text("A cat, sitting.\nTwo dogs\n")
    (tmp_path / "hyp.txt").write_text("a cat sitting\nthree dogs\n")
    found = captions.score("captions", tmp_path / "hyp.txt", tmp_path)
    assert set(found.metrics) == {
        f"{name}_plain" for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L")
    }
    assert (
        found.metrics["Bleu_1_plain"] == pytest.approx(80.0) and "no Java here: METEOR is left out" in found.warnings[0]
    )


def test_plain_tokens():
    text = "The dog's bone isn't here -- it's a (well-known) T-shirt!\u2028They don't."
    assert " ".join(metrics.plain_tokens(text)) == "the dog 's bone is n't here it 's a well-known t-shirt they do n't"


@java
def test_penn_treebank_keeps_captions_apart_whatever_they_hold():
    texts = {"a": ["one\ntwo\u2028three"], "b": ["", "It's (a) T-shirt."], "c": ["end"]}
    assert metrics.ptb_tokens(texts) == {"a": ["one two three"], "b": ["", "it 's -lrb- a -rrb- t-shirt"], "c": ["end"]}


KARPATHY = {
    "images": [
        {"cocoid": 5, "split": "test", "sentences": [{"raw": "a cat sits on a mat"}, {"raw": "the cat sits"}]},
        {"cocoid": 6, "split": "test", "sentences": [{"raw": "two dogs run on grass"}]},
        {"cocoid": 7, "split": "train", "sentences": [{"raw": "nothing"}]},
    ]
}
COCO = {
    "annotations": [
        {"image_id": i, "caption": text}
        for i, text in ((5, "a cat sits on a mat"), (5, "the cat sits"), (6, "two dogs run on grass"))
    ]
}


def references(task, data):
    return {question.id: list(question.references) for question in captions.load_questions(task, data)}


def test_the_benchmarks_files_hold_the_same(tmp_path):
    write_json(tmp_path / "karpathy" / "dataset_coco.json", KARPATHY)
    write_json(tmp_path / "coco" / "captions_val2014.json", COCO)
    write_json(tmp_path / "nocaps" / "nocaps_val_4500_captions.json", COCO)
    paragraphs = [{"image_id": row["image_id"], "paragraph": row["caption"]} for row in COCO["annotations"][1:]] + [
        {"image_id": 9, "paragraph": "train"}
    ]
    write_json(tmp_path / "paragraphs" / "paragraphs_v1.json", paragraphs)
    write_json(tmp_path / "paragraphs" / "test_split.json", [5, 6])
    expected = {"5": ["a cat sits on a mat", "the cat sits"], "6": ["two dogs run on grass"]}
    write_json(tmp_path / "release" / "annotations" / "captions_val2014.json", COCO)
    write_json(tmp_path / "release" / "annotations" / "captions_train2014.json", {"annotations": []})
    for folder, task in (("karpathy", "coco"), ("coco", "coco"), ("release", "coco"), ("nocaps", "nocaps")):
        assert references(task, tmp_path / folder) == expected
    assert references("image2paragraph", tmp_path / "paragraphs") == {
        "5": ["the cat sits"],
        "6": ["two dogs run on grass"],
    }


def test_an_image_without_a_caption_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    data = write_json(tmp_path / "captions_val2014.json", COCO)
    both = [{"image_id": 5, "caption": "a cat sits on a mat"}, {"image_id": 6, "caption": "two dogs run on grass"}]
    whole = captions.score("coco", write_json(tmp_path / "a.json", both), data)
    half = captions.score("coco", write_lines(tmp_path / "b.jsonl", both[:1]), data)
    assert half.counts["missing"] == 1 and "1 of 2 questions have no prediction" in half.warnings[0]
    assert half.metrics["ROUGE_L_plain"] == pytest.approx(whole.metrics["ROUGE_L_plain"] / 2)
    with pytest.raises(SourceError, match="a second time"):
        captions.score("coco", write_json(tmp_path / "c.json", both + both[:1]), data)


@pytest.mark.parametrize(
    "given", ["", "\nb\nc\n", "a\nb\n\n", "a\nb\n", "\nb\n\n", "\r\nb\r\nc\r\n", "\ufeff\nb\nc", "a\n\nc\n\n\n"]
)
def test_an_empty_line_is_an_empty_caption_and_shifts_nothing(tmp_path, monkeypatch, given):
    inputs = {}

    def measure(references, texts):
        inputs.update(references=references, texts=texts)
        return metrics.CaptionMetrics({}, "ptb")

    monkeypatch.setattr(metrics, "measure", measure)
    (tmp_path / "ref1.txt").write_text("a\nb\nc\n")
    (tmp_path / "ref2.txt").write_text("\nb2\n\n\n")  # fewer references for some
    (tmp_path / "hyp.txt").write_bytes((given or "a\nb\nc\n").encode())
    found = captions.score("captions", tmp_path / "hyp.txt", tmp_path)
    lines = (given.replace("\r", "").replace("\ufeff", "") or "a\nb\nc").split("\n")
    assert inputs["texts"] == dict(zip("123", lines, strict=False)) and inputs["references"] == {
        "1": ("a", ""),
        "2": ("b", "b2"),
        "3": ("c", ""),
    }
    empty = [number for number, line in enumerate(lines[:3], 1) if not line]
    assert found.warnings == (
        (f"{len(empty)} of 3 lines are empty captions, which are scored as they are; the first is line {empty[0]}",)
        if empty
        else ()
    )


def test_wrong_data(tmp_path):
    (tmp_path / "hyp.txt").write_text("one\ntwo\n")
    (tmp_path / "ref1.txt").write_text("one\n")
    with pytest.raises(SourceError, match="hyp.txt: has 2 lines for 1 references"):
        captions.score("captions", tmp_path / "hyp.txt", tmp_path)
    (tmp_path / "ref2.txt").write_text("one\ntwo\n")
    with pytest.raises(SourceError, match="ref1.txt has 1 lines, ref2.txt has 2 lines"):
        captions.score("captions", tmp_path / "hyp.txt", tmp_path)
    with pytest.raises(SourceError, match="is no file of captions"):
        captions.score("coco", tmp_path / "hyp.txt", write_json(tmp_path / "captions_x.json", {"images": [{}]}))
