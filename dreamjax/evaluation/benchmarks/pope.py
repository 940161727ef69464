"""POPE (Li et al. 2023): does a model say that objects are there which are not? Over random, popular and adversarial
objects.

Answers are read and counted as in POPE's evaluate.py, which LLaVA's eval_pope.py and DreamLLM's evaluation follow.
There are two published revisions of the labels (2,910 or 3,000 random questions); a score is of the one in `data`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, parse_digits, quote, read_json
from dreamjax.evaluation.predictions import ID_KEYS, Prediction, Score, match, parse_predictions, percent, read_rows
from dreamjax.evaluation.prompts import PromptTemplate, official
from dreamjax.evaluation.question import Question, limit

CATEGORIES = ("random", "popular", "adversarial")
# LLaVA numbers the questions of all three in one file: the number in the label file plus this much.
NUMBERS_APART = 10_000_000
LLAVA_OFFSETS = {"adversarial": 0, "random": NUMBERS_APART, "popular": 2 * NUMBERS_APART}

Key = tuple[str, str]
"""(category, id) of a question."""


def says_yes(text: str) -> bool:
    """True unless an answer's first sentence, commas removed, has the word No, no or not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def is_unclear(text: str) -> bool:
    """True for an answer that counts as yes without having the word."""
    return says_yes(text) and not re.search(r"\byes\b", text, re.IGNORECASE)


def binary_metrics(predicted: Sequence[bool], labels: Sequence[bool]) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_ratio in percent.

    Without a predicted (or true) yes, precision (recall) and f1 are 0.
    """
    true_yes = sum(a and b for a, b in zip(predicted, labels, strict=True))
    precision = true_yes / sum(predicted) if any(predicted) else 0.0
    recall = true_yes / sum(labels) if any(labels) else 0.0
    return {
        "accuracy": percent(a == b for a, b in zip(predicted, labels, strict=True)),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / (precision + recall) if true_yes else 0.0,
        "yes_ratio": percent(predicted),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The (first `count`, in each category) questions of a folder's *pope_CATEGORY.json, or of one such file.

    Raises SourceError.
    """
    data = epath.Path(data)
    files = [data] if data.is_file() else [file for category in CATEGORIES for file in _label_files(data, category)]
    if not files:
        raise SourceError(f"{data}: holds no label file *pope_{{{','.join(CATEGORIES)}}}.json")
    questions = []
    for file in files:
        category = next((category for category in CATEGORIES if file.stem.endswith(category)), None)
        if category is None:
            raise SourceError(f"{file}: the name ends in none of {', '.join(CATEGORIES)}")
        with expected_form(file, "label file of POPE"):
            questions += [
                Question(
                    str(row["question_id"]),
                    row["text"],
                    (row["image"],),
                    category=category,
                    references=(_label(row["label"]),),
                )
                for row in read_json(file)
            ]
    if len(_by_key(questions)) < len(questions):
        raise SourceError(f"{data}: a question_id stands twice in a category")
    return limit(questions, count, lambda question: question.category)


def _by_key(questions: Iterable[Question]) -> dict[Key, Question]:
    return {(question.category, question.id): question for question in questions}


def _label(label: str) -> str:
    if label not in ("yes", "no"):
        raise ValueError(f"the label {label!r} is neither yes nor no")
    return label


def _label_files(folder: epath.Path, category: str) -> list[epath.Path]:
    """The label file of a category, if there is one: of COCO's images, which published figures are of, or of others."""
    files = sorted(folder.glob(f"coco_pope_{category}.json")) or sorted(folder.glob(f"*pope_{category}.json"))
    if len(files) > 1:
        raise SourceError(
            f"{folder}: holds {', '.join(file.name for file in files)}; leave the label files of one kind "
            "of pictures there"
        )
    return files


def _numbered(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Rows with their number from 1 for an id, where they have none, as in POPE's own answer files."""
    for number, (location, row) in enumerate(rows, 1):
        if isinstance(row, dict) and all(row.get(key) is None for key in ID_KEYS):
            row = {**row, "question_id": str(number)}
        yield location, row


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` over all questions, the mean f1 of the categories, and CATEGORY_accuracy, _precision, _recall, _f1,
    _yes_ratio, in percent.

    Predictions name their category, or are numbered as LLaVA's, or belong to one label file. A missing one counts as
    the wrong answer. An answer that says neither yes nor no counts as yes, as in POPE's evaluate.py, and is counted
    beside as `neither_yes_nor_no`.
    """
    questions = _by_key(load_questions(data, count))
    answers = parse_predictions(_numbered(read_rows(predictions)), predictions)
    find = finder(questions, answers, epath.Path(predictions).stem)
    matched = match(answers, find, list(questions), str(data))
    labels = {key: question.answer == "yes" for key, question in questions.items()}
    predicted = {
        key: says_yes(matched.texts[key]) if key in matched.texts else not label for key, label in labels.items()
    }
    metrics = {"accuracy": percent(predicted[key] == label for key, label in labels.items())}
    categories = dict.fromkeys(category for category, _ in questions)
    for category in categories:
        keys = [key for key in questions if key[0] == category]
        values = binary_metrics([predicted[key] for key in keys], [labels[key] for key in keys])
        metrics |= {f"{category}_{name}": value for name, value in values.items()}
    metrics["mean_f1"] = sum(metrics[f"{category}_f1"] for category in categories) / len(categories)
    unclear = [text for text in matched.texts.values() if is_unclear(text)]
    warnings = matched.warnings + _warn_of_other_questions(answers, questions, find)
    if unclear:
        warnings += (
            f"{len(unclear)} of {len(matched.texts)} answers say neither yes nor no and count as yes, as in POPE's own "
            f"script; the first is {quote(unclear[0])}",
        )
    return Score(metrics, matched.counts | {"neither_yes_nor_no": len(unclear)}, warnings)


def finder(
    questions: dict[Key, Question], predictions: Sequence[Prediction], name: str
) -> Callable[[Prediction], tuple[Key, ...]]:
    """A function from a prediction to the key of its question, or to none.

    `name` is that of the predictions' file and may say their category. Raises SourceError for predictions without any.
    """
    categories = {category for category, _ in questions}
    in_name = [category for category in CATEGORIES if category in name]
    of_all = next(iter(categories)) if len(categories) == 1 else in_name[0] if len(in_name) == 1 else ""

    def number(prediction: Prediction) -> int:
        return parse_digits(prediction.id) or 0

    if (
        not of_all
        and not all(prediction.category for prediction in predictions)
        and not any(number(prediction) > NUMBERS_APART for prediction in predictions)
    ):
        raise SourceError(
            f"{name}: predictions name no category ({', '.join(CATEGORIES)}); score each after its own label file"
        )

    def find(prediction: Prediction) -> tuple[Key, ...]:
        in_range = (name for name, by in LLAVA_OFFSETS.items() if 0 < number(prediction) - by < NUMBERS_APART)
        category = prediction.category.lower() or of_all or next(in_range, "")
        own = str(number(prediction) - LLAVA_OFFSETS.get(category, 0))
        return next(((key,) for key in ((category, prediction.id), (category, own)) if key in questions), ())

    return find


def _warn_of_other_questions(
    predictions: Sequence[Prediction], questions: dict[Key, Question], find: Callable[[Prediction], tuple[Key, ...]]
) -> tuple[str, ...]:
    """A warning of prompts without the question that the label files have under their id: those of another revision."""

    def plain(text: str) -> str:
        return " ".join(text.lower().replace("imange", "image").split())  # one revision misspells it

    others = [
        prediction
        for prediction in predictions
        if prediction.prompt
        and any(plain(questions[key].text) not in plain(prediction.prompt) for key in find(prediction))
    ]
    if not others:
        return ()
    prompt = quote(" ".join(others[0].prompt.split()))
    return (
        f"{len(others)} of {len(predictions)} predictions were asked another question than the label file has, such as "
        f"{others[0].location}: {prompt}",
    )


BENCHMARK = Benchmark(
    name="pope",
    questions=load_questions,
    score=score,
    prompts={
        "clean": PromptTemplate("{question}\nAnswer yes or no.", decoding={"max_tokens": 8}),
        "official": official(
            "{question}",
            before_image="Based on the image, please objectively and accurately indicate whether the object exists.",
            answer_prefix="The answer is:",
            decoding={"temperature": 0.2, "max_tokens": 1024},
        ),
    },
    paper={
        "random_accuracy": {"DreamLLM": 86.36},
        "random_f1": {"DreamLLM": 86.91},
        "popular_accuracy": {"DreamLLM": 80.07},
        "popular_f1": {"DreamLLM": 81.61},
        "adversarial_accuracy": {"DreamLLM": 72.63},
        "adversarial_f1": {"DreamLLM": 76.47},
    },
)
