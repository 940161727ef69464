"""POPE: whether a model says that objects are there which are not (Li et al. 2023), over random, popular and
adversarial objects.

How an answer is read and what is counted are as in POPE's evaluate.py, which LLaVA's eval_pope.py and DreamLLM's
evaluation follow. There are two published revisions of the labels (2,910 or 3,000 random questions); a score is of the
one in `data`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, read_json, shown, whole_number
from dreamjax.evaluation.predictions import Answer, Score, first, match, percent, read_answers

CATEGORIES = ("random", "popular", "adversarial")
# LLaVA numbers the questions of all three in one file: the number in the label file plus this much.
NUMBERS_APART = 10_000_000
LLAVA_OFFSETS = {"adversarial": 0, "random": NUMBERS_APART, "popular": 2 * NUMBERS_APART}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a label file."""

    category: str
    id: str
    image: str
    text: str
    yes: bool


def says_yes(text: str) -> bool:
    """Whether an answer counts as yes: unless its first sentence, commas removed, has the word No, no or not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def is_unclear(text: str) -> bool:
    """Whether an answer counts as yes without having the word."""
    return says_yes(text) and not re.search(r"\byes\b", text, re.IGNORECASE)


def figures(said: Sequence[bool], right: Sequence[bool]) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_ratio in percent.

    Of what nothing was said (or is) yes, precision (recall) and f1 are 0.
    """
    true_yes = sum(a and b for a, b in zip(said, right, strict=True))
    precision = true_yes / sum(said) if any(said) else 0.0
    recall = true_yes / sum(right) if any(right) else 0.0
    return {
        "accuracy": percent(a == b for a, b in zip(said, right, strict=True)),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / (precision + recall) if true_yes else 0.0,
        "yes_ratio": percent(said),
    }


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
                Question(category, str(row["question_id"]), row["image"], row["text"], _is_yes(row["label"]))
                for row in read_json(file)
            ]
    if len({(question.category, question.id) for question in questions}) < len(questions):
        raise SourceError(f"{data}: a question_id stands twice in a category")
    return first(questions, count, lambda question: question.category)


def _is_yes(label: str) -> bool:
    if label not in ("yes", "no"):
        raise ValueError(f"the label {label!r} is neither yes nor no")
    return label == "yes"


def _label_files(folder: epath.Path, category: str) -> list[epath.Path]:
    """The label file of a category, if there is one.

    Of COCO's pictures, which the published figures are of, before other ones.
    """
    found = sorted(folder.glob(f"coco_pope_{category}.json")) or sorted(folder.glob(f"*pope_{category}.json"))
    if len(found) > 1:
        raise SourceError(
            f"{folder}: holds {', '.join(file.name for file in found)}; leave the label files of one kind "
            "of pictures there"
        )
    return found


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` over all questions, the mean f1 of the categories, and CATEGORY_accuracy, _precision, _recall, _f1,
    _yes_ratio, in percent.

    Predictions name their category, or are numbered as LLaVA's, or come after one label file. A missing one counts as
    the wrong answer. What says neither yes nor no counts as yes, as in POPE's evaluate.py, and is counted beside as
    `neither_yes_nor_no`.
    """
    questions = {(question.category, question.id): question for question in load_questions(data, count)}
    answers = read_answers(predictions, numbered=True)
    find = finder(questions, answers, epath.Path(predictions).stem)
    matched = match(answers, find, list(questions), str(data))
    said = {
        key: says_yes(matched.texts[key]) if key in matched.texts else not question.yes
        for key, question in questions.items()
    }
    metrics = {"accuracy": percent(said[key] == question.yes for key, question in questions.items())}
    for category in dict.fromkeys(question.category for question in questions.values()):
        chosen = [key for key in questions if key[0] == category]
        found = figures([said[key] for key in chosen], [questions[key].yes for key in chosen])
        metrics |= {f"{category}_{name}": value for name, value in found.items()}
    f1 = [value for name, value in metrics.items() if name.endswith("_f1")]
    metrics["mean_f1"] = sum(f1) / len(f1)
    unclear = [text for text in matched.texts.values() if is_unclear(text)]
    warnings = matched.warnings + _other_questions(answers, questions, find)
    if unclear:
        said_so = (
            f"{len(unclear)} of {len(matched.texts)} answers say neither yes nor no and count as yes, as in "
            "POPE's own script"
        )
        warnings += (f"{said_so}; the first is {shown(unclear[0])}",)
    return Score(metrics, matched.counts | {"neither_yes_nor_no": len(unclear)}, warnings)


def finder(
    questions: dict[tuple[str, str], Question], answers: Sequence[Answer], name: str
) -> Callable[[Answer], tuple[tuple[str, str], ...]]:
    """Which question, by (category, id), an answer is of.

    None, or one; `name` is the predictions' and may say their category. SourceError where nothing does.
    """
    categories = {category for category, _ in questions}
    named = [category for category in CATEGORIES if category in name]
    all_of = next(iter(categories)) if len(categories) == 1 else named[0] if len(named) == 1 else ""

    def number(answer):
        return whole_number(answer.id) or 0

    if (
        not all_of
        and not all(answer.category for answer in answers)
        and not any(number(answer) > NUMBERS_APART for answer in answers)
    ):
        raise SourceError(
            f"{name}: predictions name no category ({', '.join(CATEGORIES)}); score each after its own label file"
        )

    def find(answer: Answer) -> tuple[tuple[str, str], ...]:
        category = (
            answer.category.lower()
            or all_of
            or next((name for name, by in LLAVA_OFFSETS.items() if 0 < number(answer) - by < NUMBERS_APART), "")
        )
        for key in ((category, answer.id), (category, str(number(answer) - LLAVA_OFFSETS.get(category, 0)))):
            if key in questions:
                return (key,)
        return ()

    return find


def _other_questions(answers: Sequence[Answer], questions: dict, find: Callable) -> tuple[str, ...]:
    """A warning where prompts do not hold the question that their id has in the label files.

    Those are of another revision.
    """

    def plain(text):
        return " ".join(text.lower().replace("imange", "image").split())  # one revision misspells it

    others = [
        answer
        for answer in answers
        if answer.prompt and any(plain(questions[key].text) not in plain(answer.prompt) for key in find(answer))
    ]
    if not others:
        return ()
    asked = shown(" ".join(others[0].prompt.split()))
    return (
        f"{len(others)} of {len(answers)} predictions were asked another question than the label file "
        f"has, such as {others[0].where}: {asked}",
    )
