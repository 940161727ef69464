"""The EvalAI normaliser, leave-one-out accuracy, and the benchmarks' files."""

import json
import random

import pytest
from evaluation.files import real_data, write_json, write_lines

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmarks import vqa
from dreamjax.evaluation.predictions import Prediction
from dreamjax.evaluation.question import Question

# What MMF's EvalAIAnswerProcessor returns, its oddities included.
NORMALISED = {
    "The Dakota, Digital.": "dakota digital",
    "Two dogs": "2 dogs",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "dont": "don't",
    "wouldnt've": "wouldn't've",
    "somebody'd": "somebodyd",
    "lets": "lets",
    "Im": "im",
    "hershey's": "hershey 's",
    "1,000": "1000",
    "3.50": "3.50",
    "u.s.a.": "usa",
    ".5": ".5",
    "black/white": "black white",
    "black / white": "black  white".replace("  ", " "),
    "t-shirt": "t shirt",
    "a - b": "b",
    "x\ny\tz": "x y z",
    " An  apple ": "apple",
    "yes?": "yes",
    "10:10": "10:10",
    "": "",
    "a." * 40: "a" * 32 + "a." * 7 + "a.",  # only the first 32 full stops go
}


@pytest.mark.parametrize("answer", NORMALISED)
def test_normaliser(answer):
    assert vqa.normalise(answer) == NORMALISED[answer]


def brute_force(prediction, answers):
    """The mean over each annotator left out of what the others allow."""
    answers = [vqa.normalise(answer) for answer in answers]
    found = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        found.append(min(1, others.count(vqa.normalise(prediction)) / 3))
    return sum(found) / len(found)


def test_accuracy_leaves_annotators_out_by_number():
    draw = random.Random(0)
    for _ in range(300):
        answers = draw.choices(["a cat", "cat", "dog", "two", "2"], k=draw.choice([5, 10]))
        prediction = draw.choice(["Cat.", "dog", "2", "bird"])
        assert vqa.soft_accuracy(prediction, answers) == pytest.approx(brute_force(prediction, answers), abs=1e-12)
    assert vqa.soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa.soft_accuracy("cat", ["cat"] * 10) == 1.0


def made_data(folder, name="textvqa_val"):
    """Three questions, two of them about one picture."""
    rows = [(11, "p1", "What is it?"), (12, "p1", "What is it called?"), (13, "p2", "Where?")]
    write_json(
        folder / f"{name}_questions.json",
        {"questions": [{"question_id": i, "image_id": p, "question": q} for i, p, q in rows]},
    )
    given = {11: ["cat"] * 10, 12: ["tom"] * 4 + ["tommy"] * 6, 13: ["here"] * 10}
    annotations = [
        {"question_id": i, "image_id": "p", "answers": [{"answer": text} for text in texts]}
        for i, texts in given.items()
    ]
    write_json(folder / f"{name}_annotations.json", {"annotations": annotations})
    return folder


def llava(image, question, text):
    return {
        "question_id": image,
        "prompt": f"{question}\nReference OCR token: WHAT, IS\nAnswer the question using a single word or phrase.",
        "text": text,
    }


def test_rows_are_told_apart_by_image_and_question(tmp_path):
    data = made_data(tmp_path)
    rows = [
        llava("p1", "What is it called?", "Tommy"),
        llava("p1", "What is it?", "Cat."),
        llava("p2", "Where?", "there"),
    ]
    found = vqa.score("textvqa", write_lines(tmp_path / "a.jsonl", rows), data)
    assert found.metrics == {"accuracy": pytest.approx(100 * (1 + 1 + 0) / 3)} and found.warnings == ()
    by_number = [{"question_id": 11, "answer": "Cat"}, {"question_id": 12, "answer": "Tommy"}]
    found = vqa.score("textvqa", write_json(tmp_path / "a.json", by_number), data)
    assert (
        found.metrics == {"accuracy": pytest.approx(100 * 2 / 3)}
        and found.counts["missing"] == 1
        and "1 of 3" in found.warnings[0]
    )
    with pytest.raises(SourceError, match="answers question 11 a second time"):
        vqa.score(
            "textvqa",
            write_lines(tmp_path / "b.jsonl", [llava("p1", "What is it?", "cat"), llava("p1", "what is it?", "dog")]),
            data,
        )
    with pytest.raises(SourceError, match="id 'p1' is of no question"):  # which of the two?
        vqa.score("textvqa", write_lines(tmp_path / "c.jsonl", [{"question_id": "p1", "text": "cat"}]), data)


def test_other_files_of_questions(tmp_path):
    single = {"data": [{"question_id": 1, "image_id": "p", "question": "Q?", "answers": ["a b"] * 10}]}
    write_json(tmp_path / "text" / "TextVQA_0.5.1_val.json", single)
    assert vqa.load_questions("textvqa", tmp_path / "text") == [Question("1", "Q?", ("p",), references=("a b",) * 10)]
    write_json(
        tmp_path / "wiz" / "val.json",
        [
            {
                "image": "VizWiz_val_1.jpg",
                "question": "Q?",
                "answers": [{"answer": "unanswerable"}] * 10,
                "answerable": 0,
            }
        ],
    )
    predictions = write_lines(
        tmp_path / "a.jsonl", [{"question_id": "VizWiz_val_1.jpg", "prompt": "Q?\nIn a word.", "text": "Unanswerable"}]
    )
    found = vqa.score("vizwiz", predictions, tmp_path / "wiz")
    assert found.metrics["accuracy"] == found.metrics["unanswerable_accuracy"] == 100.0
    (tmp_path / "text" / "TextVQA_0.5.1_train.json").write_text("{}")
    assert len(vqa.load_questions("textvqa", tmp_path / "text")) == 1  # of the splits val
    made_data(tmp_path / "v2", "v2_OpenEnded_mscoco_val2014").joinpath(
        "v2_OpenEnded_mscoco_val2014_annotations.json"
    ).rename(tmp_path / "v2" / "v2_mscoco_val2014_annotations.json")
    assert vqa.load_questions("vqav2", tmp_path / "v2")[1].references == ("tom",) * 4 + ("tommy",) * 6


def test_wrong_data(tmp_path):
    predictions = write_lines(tmp_path / "a.jsonl", [{"question_id": 11, "text": "cat"}])
    with pytest.raises(SourceError, match="is no file of questions"):
        vqa.score("textvqa", predictions, write_json(tmp_path / "x_questions.json", {"questions": [{"id": 1}]}))
    data = made_data(tmp_path / "data")
    write_json(data / "textvqa_val_annotations.json", {"annotations": [{"question_id": 11, "answers": []}]})
    with pytest.raises(SourceError, match="has no answers for 2 of the 3 questions .* such as 12"):
        vqa.score("textvqa", predictions, data)


def test_test_splits_are_exported_for_their_servers(tmp_path):
    data = made_data(tmp_path)
    (tmp_path / "textvqa_val_annotations.json").unlink()
    predictions = write_lines(
        tmp_path / "a.jsonl", [{"question_id": 12, "text": "A Cat."}, {"question_id": 11, "text": "two"}]
    )
    with pytest.raises(SourceError, match="holds no answers to score against"):
        vqa.score("textvqa", predictions, data)
    written = json.loads(vqa.export("textvqa", predictions, data, tmp_path).path.read_text())
    assert written == [
        {"question_id": 11, "answer": "2"},
        {"question_id": 12, "answer": "cat"},
        {"question_id": 13, "answer": ""},
    ]
    assert json.loads(vqa.export("vizwiz", predictions, data, tmp_path).path.read_text())[1] == {
        "image": "p1",
        "answer": "cat",
    }


def test_the_constant_answer_on_vizwiz(tmp_path):
    data = real_data("vqa")
    questions = vqa.load_questions("vizwiz", data)
    assert len(questions) == 4319
    found = vqa.score(
        "vizwiz",
        write_lines(tmp_path / "a.jsonl", [{"question_id": int(q.id), "text": "Unanswerable."} for q in questions]),
        data,
    )
    assert f"{found.metrics['accuracy']:.4f}" == "52.1232" and found.warnings == ()


def test_the_same_asked_twice_of_an_image(tmp_path):
    """Rows that cannot be told apart answer such questions in turn; a third one has no question."""
    rows = [(1, "p", "What is it?"), (2, "p", "what  is it?"), (3, "p", "What is it called?"), (4, "q", "Why?")]
    write_json(
        tmp_path / "textvqa_val_questions.json",
        {"questions": [{"question_id": i, "image_id": p, "question": q} for i, p, q in rows]},
    )
    given = {1: "cat", 2: "dog", 3: "tom", 4: "so"}
    write_json(
        tmp_path / "textvqa_val_annotations.json",
        {"annotations": [{"question_id": i, "answers": [text] * 10} for i, text in given.items()]},
    )
    said = [llava("p", "What is it?", text) for text in ("cat", "dog")] + [
        llava("p", "What is it called?", "tom"),
        llava("q", "Why?", "so"),
    ]
    found = vqa.score("textvqa", write_lines(tmp_path / "a.jsonl", said), tmp_path)
    assert found.metrics["accuracy"] == 100.0 and found.counts["missing"] == 0
    with pytest.raises(SourceError, match="answers question 1 a second time"):
        vqa.score("textvqa", write_lines(tmp_path / "b.jsonl", said + said[:1]), tmp_path)


def test_where_the_question_stands_in_the_prompt(tmp_path):
    questions = [
        Question("1", "is it red", ("p",)),
        Question("2", "what is it", ("p",)),
        Question("3", "What is it called?", ("p",)),
    ]
    find = vqa.finder(questions)

    def of(prompt):
        return find(Prediction("p", "", prompt, "", "row 1"))

    assert of("What is it\nReference OCR token: is it red\nAnswer") == (
        "2",
    )  # and not the other one among the tokens, or the longer one
    assert of("Reference OCR token: WHAT, IS, IT\nIs it red\nAnswer") == ("1",)
    assert of("OCR tokens: A, B\n Question: What is it called? Short answer:") == ("3",)
    assert of("What is it called? Answer in a word.") == ("3",) and of("Who?") == () and of("") == ()
