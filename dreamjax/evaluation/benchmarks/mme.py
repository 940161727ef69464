"""MME (Fu et al. 2023): two yes-or-no questions for each picture, in ten categories of perception and four of
cognition.

A category's score is the accuracy over questions plus the accuracy over pictures with both answers right, each in
percent (so 200 at most), as in the benchmark's calculation.py; answers are matched to questions as LLaVA's
convert_answer_to_mme.py does.
"""

import collections
import dataclasses
from collections.abc import Callable

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import read_text, shown, shown_name
from dreamjax.evaluation.predictions import Answer, Score, first, match, percent, percent_by, read_answers

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION
YES_OR_NO = "Please answer yes or no."


@dataclasses.dataclass(frozen=True)
class Question:
    """One question; `picture` is the file's name as the benchmark has it."""

    category: str
    image: str
    text: str
    answer: str  # yes | no

    @property
    def key(self) -> tuple[str, str, str]:
        """Category, picture without its ending, question without what says how to answer."""
        return (self.category, stem(self.image), bare(self.text))


def stem(image: str) -> str:
    """A picture's name up to its first dot, without folders."""
    return image.split("/")[-1].split(".")[0]


def bare(question: str) -> str:
    """A question, or a prompt that holds one, in single spaces and without "Please answer yes or no."."""
    return " ".join(question.replace(YES_OR_NO, " ").split())


def said(text: str) -> str:
    """yes, no, or other: what stands in the first four characters of an answer, in lower case; yes goes first."""
    beginning = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """All questions below a folder, in the benchmark's order of categories, of each the first `count` (made even);
    raises SourceError.

    The folder (or gt/ in it) has CATEGORY.txt with lines of picture, question, answer by tabs, or is the released
    benchmark: CATEGORY/ with, for each picture, a .txt (in questions_answers_YN/ where there is one) with lines of
    question, answer.
    """
    data = epath.Path(data)
    if not data.is_dir():
        raise SourceError(f"{data}: no such folder")
    root = data / "gt" if (data / "gt").is_dir() else data
    questions = []
    for category in CATEGORIES:
        if (root / f"{category}.txt").exists():
            questions += [Question(category, *fields) for fields in _lines(root / f"{category}.txt", 3)]
        elif (root / category).is_dir():
            folder = root / category / "questions_answers_YN"
            for file in sorted((folder if folder.is_dir() else root / category).glob("*.txt")):
                questions += [Question(category, file.stem, *fields) for fields in _lines(file, 2)]
    if not questions:
        raise SourceError(f"{root}: holds neither CATEGORY.txt nor CATEGORY/*.txt of MME, such as existence.txt")
    for question in questions:
        if question.answer not in ("yes", "no"):
            raise SourceError(
                f"{root}: {question.category}, {shown_name(question.image)}: the answer "
                f"{shown(question.answer)} is neither Yes nor No"
            )
    for (category, image), asked in collections.Counter(question.key[:2] for question in questions).items():
        if asked % 2:
            raise SourceError(f"{root}: {category}, {shown_name(image)}: has {asked} questions; they come in pairs")
    return first(questions, count and count + count % 2, lambda question: question.category)


def _lines(file: epath.Path, fields: int) -> list[list[str]]:
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            row = line.strip().split("\t")
            if len(row) != fields:
                raise SourceError(f"{file}: line {number} has {len(row)} fields, needs {fields} parted by tabs")
            rows.append([*row[:-1], row[-1].strip().lower()])
    return rows


def read_predictions(path: epath.PathLike) -> list[Answer]:
    """LLaVA's answer file (question_id "category/picture", prompt, text), or a folder of CATEGORY.txt with picture,
    question, answer, prediction.
    """
    path = epath.Path(path)
    if not path.is_dir():
        return read_answers(path)
    answers = []
    for file in sorted(path.glob("*.txt")):
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                image, question, *_, text = line.split("\t") if line.count("\t") >= 2 else (line, "", "")
                answers.append(Answer(f"{file.stem}/{image}", text, question, file.stem, f"{file}: line {number}"))
    if not answers:
        raise SourceError(f"{path}: holds no predictions CATEGORY.txt")
    return answers


def keys_of(questions: list[Question]) -> list[tuple]:
    """The questions' keys; where a picture is asked the same again, the later one's has a number behind."""
    seen, keys = collections.Counter(), []
    for question in questions:
        seen[question.key] += 1
        keys.append((*question.key, seen[question.key]) if seen[question.key] > 1 else question.key)
    return keys


def finder(keys: list[tuple]) -> Callable[[Answer], list[tuple]]:
    """Which question, by its key, an answer is of.

    That of its picture which its prompt holds, the longer one where it holds both.
    """
    of_image = collections.defaultdict(list)
    for key in keys:
        of_image[key[:2]].append(key)

    def find(answer: Answer) -> list[tuple]:
        prompt = bare(answer.prompt)
        fitting = [key for key in of_image.get((answer.id.split("/")[0], stem(answer.id)), ()) if key[2] in prompt]
        longest = max((key[2] for key in fitting), key=len, default="")
        return [key for key in fitting if key[2] == longest]

    return find


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`perception`, `cognition` and `total`, sums of category scores, and each category's score under its name.

    A missing answer is wrong.
    """
    questions = load_questions(data, count)
    keys = keys_of(questions)
    matched = match(read_predictions(predictions), finder(keys), keys, str(data))
    right = {
        key: said(matched.texts.get(key, "")) == question.answer for key, question in zip(keys, questions, strict=True)
    }
    of_image = collections.defaultdict(list)
    for key, value in right.items():
        of_image[key[:2]].append(value)
    both = {
        (*key, at): values[at] and values[at + 1] for key, values in of_image.items() for at in range(0, len(values), 2)
    }
    single, pairs = percent_by(right, lambda key: key[0]), percent_by(both, lambda key: key[0])
    of_category = {category: single[category] + pairs[category] for category in single}

    def total(names):
        return sum(of_category.get(name, 0.0) for name in names)

    metrics = {
        "perception": total(PERCEPTION),
        "cognition": total(COGNITION),
        "total": total(CATEGORIES),
        "accuracy": percent(right.values()),
    } | of_category
    lacking = [category for category in CATEGORIES if category not in of_category]
    warnings = (
        (f"the questions lack {len(lacking)} of 14 categories, which add nothing to the sums: {', '.join(lacking)}",)
        if lacking
        else ()
    )
    unclear = sum(said(text) == "other" for text in matched.texts.values())
    return Score(
        metrics,
        matched.counts | {"neither_yes_nor_no": unclear, "categories": len(of_category)},
        matched.warnings + warnings,
    )
