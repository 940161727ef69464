"""Other models' prediction files as they are published, at the benchmarks' sizes, scored by the command.

Each figure is compared with one that is counted here from the benchmark's definition, by other means than the scorer's.
"""

import functools
import json
import random
import re

import pytest
from evaluation.files import real_data, write_json, write_lines

SHORT = "Answer the question using a single word or phrase."


def metrics_of(score, task, predictions, data) -> dict:
    status, out, err = score(f"--task={task}", f"--predictions={predictions}", f"--data={data}")
    assert status == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["task"] == task
    return result["metrics"] | {"counts": result["counts"], "warnings": err}


def llava(rows: list[dict]) -> list[dict]:
    """With the fields that LLaVA's answer files have besides."""
    return [
        {**row, "answer_id": f"{number:022d}", "model_id": "llava-v1.5-13b", "metadata": {}}
        for number, row in enumerate(rows)
    ]


# ----------------------------------------------------------------------------------------------------------------------
# TextVQA


@functools.cache
def plain(text: str) -> str:
    """An answer as the EvalAI processor leaves it, for the texts below.

    Mark by mark, full stop by full stop, word by word.
    """
    text = text.lower()
    for gone in ",?":
        text = text.replace(gone, "")
    text = text.replace("'s", " 's").strip().replace("\n", " ").replace("\t", " ")
    whole = text
    for mark in r""";/[]"{}()=+\_-><@`!""":
        text = text.replace(mark, "" if re.search(f"(?: {re.escape(mark)}|{re.escape(mark)} )", whole) else " ")
    kept, gone = "", 0
    for at, letter in enumerate(text):
        if letter == "." and not text[at + 1 : at + 2].isdecimal() and gone < 32:
            gone += 1
        else:
            kept += letter
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    words = ["0" if word == "none" else str(numbers.index(word)) if word in numbers else word for word in kept.split()]
    return " ".join("don't" if word == "dont" else word for word in words if word not in {"a", "an", "the"})


def share_of_ten(prediction: str, answers: list[str]) -> float:
    """What ten annotators give it, by how many said the same.

    Each left out in turn, the others' thirds counted up to one.
    """
    same = sum(plain(answer) == plain(prediction) for answer in answers)
    assert len(answers) == 10
    return [0, 0.3, 0.6, 0.9][same] if same < 4 else 1.0


def test_textvqa_of_5000_rows_on_3166_images(score, tmp_path):
    data = real_data("vqa")
    questions = json.loads((data / "textvqa_val_questions.json").read_text())["questions"]
    answers = {
        row["question_id"]: [one["answer"] for one in row["answers"]]
        for row in json.loads((data / "textvqa_val_annotations.json").read_text())["annotations"]
    }
    draw, rows, right = random.Random(5), [], []
    for question in questions:
        given = answers[question["question_id"]]
        text = draw.choice(
            [
                draw.choice(given),
                given[0].capitalize() + ".",
                f"The {given[3]}",
                given[5].upper(),
                "unanswerable",
                given[0] + " or so",
                "dont",
                "None",
            ]
        )
        prompt = (
            question["question"].capitalize()
            + draw.choice(["", "\nReference OCR token: WHAT, IS, THIS?", "\nReference OCR token: "])
            + f"\n{SHORT}"
        )
        rows.append({"question_id": question["image_id"], "prompt": prompt, "text": text})
        right.append(share_of_ten(text, given))
    assert len(rows) == 5000 and len({row["question_id"] for row in rows}) == 3166 and 0.3 < sum(right) / 5000 < 0.7
    found = metrics_of(
        score, "textvqa", write_lines(tmp_path / "llava-v1.5-13b.jsonl", llava(draw.sample(rows, 5000))), data
    )
    assert found["accuracy"] == pytest.approx(100 * sum(right) / 5000, abs=1e-9) and found["warnings"] == ""
    lacking = metrics_of(score, "textvqa", write_lines(tmp_path / "b.jsonl", llava(rows[:4990])), data)
    assert (
        lacking["accuracy"] == pytest.approx(100 * sum(right[:4990]) / 5000, abs=1e-9)
        and "10 of 5000 questions have no prediction" in lacking["warnings"]
    )
    status, _, err = score(
        "--task=textvqa",
        f"--predictions={write_lines(tmp_path / 'c.jsonl', llava([*rows, rows[7]]))}",
        f"--data={data}",
    )
    assert status == 2 and "row 5001: answers question" in err and "a second time; the first is" in err


# ----------------------------------------------------------------------------------------------------------------------
# POPE

# Texts, and whether they count as a yes: unless the first sentence has the word No, no or not.
SAID = [
    ("Yes", True),
    ("No", False),
    ("Yes, there is a dog in the image.", True),
    ("No, there is no dog.", False),
    ("There is not a dog. Yes", False),
    ("NO", True),
    ("Nothing", True),
    ("yes. no", True),
    ("There are no, dogs", False),
    ("I cannot see one", True),
    ("", True),
    ("no.", False),
]


@pytest.mark.parametrize("revision", ["coco_head", "coco_e3e3926"])
@pytest.mark.parametrize("numbered", ["as the label file", "as LLaVA"])
def test_pope(score, tmp_path, revision, numbered):
    data = real_data("pope") / revision
    draw, rows, expected, right, total = random.Random(6), [], {}, 0, 0
    for category, first in (("adversarial", 0), ("random", 10_000_000), ("popular", 20_000_000)):
        count = {(said, true): 0 for said in (True, False) for true in (True, False)}
        for question in map(json.loads, (data / f"coco_pope_{category}.json").read_text().splitlines()):
            text, said = draw.choice(SAID)
            count[said, question["label"] == "yes"] += 1
            row = {"prompt": f"{question['text']}\n{SHORT}", "text": text}
            if numbered == "as LLaVA":
                rows.append({"question_id": question["question_id"] + first, **row})
            else:
                rows.append({"question_id": question["question_id"], "category": category, **row})
        found = count[True, True] + count[False, False]
        right, total = right + found, total + sum(count.values())
        expected[f"{category}_f1"] = (
            200 * count[True, True] / (2 * count[True, True] + count[True, False] + count[False, True])
        )
        expected[f"{category}_accuracy"] = 100 * found / sum(count.values())
        expected[f"{category}_precision"] = 100 * count[True, True] / (count[True, True] + count[True, False])
        expected[f"{category}_recall"] = 100 * count[True, True] / (count[True, True] + count[False, True])
        expected[f"{category}_yes_ratio"] = 100 * (count[True, True] + count[True, False]) / sum(count.values())
    assert total == {"coco_head": 9000, "coco_e3e3926": 8910}[revision]
    found = metrics_of(score, "pope", write_lines(tmp_path / "llava-v1.5-13b.jsonl", llava(rows)), data)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["accuracy"] == pytest.approx(100 * right / total, abs=1e-9)
    assert found["counts"]["missing"] == 0 and not found["warnings"].replace("predictions are empty texts", "").count(
        " of no question"
    )


# ----------------------------------------------------------------------------------------------------------------------
# MME

PERCEPTION = {
    "existence": 30,
    "count": 30,
    "position": 30,
    "color": 30,
    "posters": 147,
    "celebrity": 170,
    "scene": 200,
    "landmark": 200,
    "artwork": 200,
    "OCR": 20,
}
COGNITION = {"commonsense_reasoning": 70, "numerical_calculation": 20, "text_translation": 20, "code_reasoning": 20}
ANSWERS = [  # texts, and what their first four letters say
    ("Yes", "yes"),
    ("No", "no"),
    ("yes.", "yes"),
    ("No, it is not", "no"),
    ("Maybe", ""),
    ("It is yes", ""),
    (" Yes", "yes"),
    ("NO", "no"),
    ("Not at all", "no"),
    ("", ""),
]


@pytest.mark.parametrize("suffix", [f"\n{SHORT}", " Please answer yes or no."])
def test_mme(score, tmp_path, suffix):
    """1,187 pictures of two questions.

    A category is worth its share of right answers plus its share of pictures with two, times 100.
    """
    draw, rows, expected = random.Random(7), [], {"perception": 0.0, "cognition": 0.0}
    (tmp_path / "gt").mkdir()
    for part, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
        for category, images in categories.items():
            lines, single, both = [], 0, 0
            for number in range(images):
                image, hits = f"{category[:2]}_{number:04d}.{draw.choice(['jpg', 'png'])}", 0
                asked = [
                    f"Is it {number}?",
                    draw.choice([f"Is it {number}? Sure?", f"Is  it not {number}?", f'Is "{number}" it?']),
                ]
                for question, answer in zip(asked, draw.sample(["Yes", "No"], 2), strict=True):
                    between = draw.choice([" ", "  "])  # the benchmark has both
                    lines.append(f"{image}\t{question}{between}Please answer yes or no.\t{answer}\n")
                    text, said = draw.choice(ANSWERS)
                    hits += said == answer.lower()
                    name = image if category in COGNITION else f"images/{image}"
                    rows.append(
                        {
                            "question_id": f"{category}/{name}",
                            "prompt": " ".join(question.split()) + suffix,
                            "text": text,
                        }
                    )
                single, both = single + hits, both + (hits == 2)
            (tmp_path / "gt" / f"{category}.txt").write_text("".join(lines))
            expected[category] = 100 * single / (2 * images) + 100 * both / images
            expected[part] += expected[category]
    assert len(rows) == 2374
    predictions = write_lines(tmp_path / "llava-v1.5-13b.jsonl", llava(rows))
    found = metrics_of(score, "mme", predictions, tmp_path)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["counts"]["missing"] == found["counts"]["unmatched"] == 0 and found["counts"]["categories"] == 14
    assert metrics_of(score, "mme", predictions, tmp_path / "gt")["perception"] == pytest.approx(
        expected["perception"], abs=1e-9
    )


# ----------------------------------------------------------------------------------------------------------------------
# ScienceQA

# How answers are worded around the letter, and whether LLaVA's eval_science_qa.py reads it.
WORDED = [
    ("{}", True),
    ("{}. a thing", True),
    ("LECTURE: it is so.\nThe answer is {}.", True),
    ("The answer is {}. BECAUSE: it is", True),
    ("{}.", False),
    ("The answer is {}", False),
    ("({})", False),
    (" {}", False),
    ("{}: a thing", False),
    ("Answer: {}", False),
    ("The answer is {0}. The answer is {0}.", False),
    ("{}\n", False),
]


def test_scienceqa_in_both_layouts(score, tmp_path):
    draw, rows, problems, chats, right = random.Random(8), [], {}, [], {True: [], False: []}
    for number in range(4241):
        choices, key = draw.randint(2, 5), str(5 * number + draw.randint(0, 4))
        answer, has_image = draw.randrange(choices), draw.random() < 0.475
        problems[key] = {
            "question": "Which?",
            "choices": ["x"] * choices,
            "answer": answer,
            "image": "image.png" if has_image else None,
            "hint": "",
            "split": "test",
        }
        human = "<image>\nWhich?\nA. x\nB. x" if has_image else "Which?\nA. x\nB. x"
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": "ABCDE"[answer]}]
        chats.append({"id": key, **({"image": f"{key}/image.png"} if has_image else {}), "conversations": turns})
        letter = draw.choice(["ABCDE"[answer], draw.choice("ABCDE")])
        words, is_read = WORDED[0] if draw.random() < 0.7 else draw.choice(WORDED)
        right[has_image].append(is_read and letter == "ABCDE"[answer])
        rows.append(
            {
                "question_id": key,
                "prompt": human + "\nAnswer with the option's letter from the given choices directly.",
                "text": words.format(letter),
            }
        )
    expected = {
        "accuracy": 100 * sum(right[True] + right[False]) / 4241,
        "image_accuracy": 100 * sum(right[True]) / len(right[True]),
    }
    predictions = write_lines(tmp_path / "llava-v1.5-13b.jsonl", llava(rows))
    chat = write_json(tmp_path / "chat" / "llava_test_CQM-A.json", chats)
    write_json(tmp_path / "own" / "problems.json", problems | {"x": {**problems[key], "split": "train"}})
    write_json(tmp_path / "own" / "pid_splits.json", {"train": ["x"], "test": list(problems)})
    for data in (chat, tmp_path / "chat", tmp_path / "own"):
        found = metrics_of(score, "scienceqa", predictions, data)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9) and found["warnings"] == ""
    of_scorer = {
        "acc": 1.0,
        "correct": 1,
        "count": 4241,
        "results": {},
        "outputs": {row["question_id"]: row["text"] for row in rows},
    }
    found = metrics_of(score, "scienceqa", write_json(tmp_path / "llava-v1.5-13b_result.json", of_scorer), chat)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# MM-Vet


def test_mmvet(score, tmp_path):
    """218 questions, three runs of the grader.

    Sums over runs first, then questions; the evaluator prints one decimal.
    """
    draw, names, data, grades = random.Random(9), ["rec", "ocr", "know", "gen", "spat", "math"], {}, {}
    sums, numbers = {name: [0.0] * 3 for name in (*names, "total")}, dict.fromkeys((*names, "total"), 0)
    for number in range(218):
        needs = draw.sample(names, draw.randint(1, 4))
        data[f"v1_{number}"] = {
            "imagename": f"v1_{number}.png",
            "question": "What?",
            "answer": "x",
            "imagesource": "y",
            "capability": needs,
        }
        scores = [draw.randint(0, 10) / 10 for _ in range(3)]
        grades[f"v1_{number}"] = {
            "model": ["gpt-4-0613"] * 3,
            "content": [str(value) for value in scores],
            "score": scores,
        }
        for name in (*needs, "total"):
            numbers[name] += 1
            sums[name] = [have + more for have, more in zip(sums[name], scores, strict=True)]
    write_json(tmp_path / "mm-vet" / "mm-vet.json", data)
    (tmp_path / "llava-v1.5-13b_gpt-4-grade-3runs.json").write_text(json.dumps(grades, indent=4))
    found = metrics_of(score, "mmvet", tmp_path / "llava-v1.5-13b_gpt-4-grade-3runs.json", tmp_path / "mm-vet")
    for name, values in sums.items():
        assert f"{found[name]:.1f}" == f"{100 * sum(values) / 3 / numbers[name]:.1f}", name
    one = {key: row["score"][0] for key, row in grades.items()}  # without the grader's other words
    assert metrics_of(score, "mmvet", write_json(tmp_path / "a.json", one), tmp_path / "mm-vet" / "mm-vet.json")[
        "total"
    ] == pytest.approx(100 * sums["total"][0] / 218)
