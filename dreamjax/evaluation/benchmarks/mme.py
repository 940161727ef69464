"""MME (Fu et al. 2023): two yes-or-no questions for each image, in ten categories of perception and four of cognition.

A category's score is the accuracy over questions plus the accuracy over images with both answers right, each in
percent (so 200 at most), as in the benchmark's calculation.py; answers are matched to questions as LLaVA's
convert_answer_to_mme.py does.
"""

import collections
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import quote, quote_name, read_text
from dreamjax.evaluation.predictions import Prediction, Score, match, percent, percent_by, read_predictions
from dreamjax.evaluation.prompts import PromptTemplate
from dreamjax.evaluation.question import Question, limit

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION
YES_OR_NO = "Please answer yes or no."

Key = tuple[str, ...]
"""Category, image without its ending, question without YES_OR_NO; a repeated question has its number behind."""


def stem(image: str) -> str:
    """An image's name up to its first dot, without folders."""
    return image.split("/")[-1].split(".")[0]


def bare(question: str) -> str:
    """A question, or a prompt that holds one, in single spaces and without "Please answer yes or no."."""
    return " ".join(question.replace(YES_OR_NO, " ").split())


def read_answer(text: str) -> str:
    """yes, no, or other, by the first four characters of an answer in lower case; yes goes first."""
    beginning = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def key_of(question: Question) -> Key:
    return (question.category, stem(question.id), bare(question.text))


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """All questions below a folder, in the benchmark's order of categories, of each the first `count` (made even).

    The folder (or gt/ in it) has CATEGORY.txt with lines of image, question, answer by tabs, or is the released
    benchmark: CATEGORY/ with, for each image, a .txt (in questions_answers_YN/ where there is one) with lines of
    question, answer. A question's id, category/image, is that of two questions. Raises SourceError.
    """
    data = epath.Path(data)
    if not data.is_dir():
        raise SourceError(f"{data}: no such folder")
    root = data / "gt" if (data / "gt").is_dir() else data
    questions = []
    for category in CATEGORIES:
        for image, text, answer in _read_category(root, category):
            if answer not in ("yes", "no"):
                raise SourceError(
                    f"{root}: {category}, {quote_name(image)}: the answer {quote(answer)} is neither Yes nor No"
                )
            name = f"{category}/{image}"
            questions.append(
                Question(name, f"{bare(text)} {YES_OR_NO}", (name,), category=category, references=(answer,))
            )
    if not questions:
        raise SourceError(f"{root}: holds neither CATEGORY.txt nor CATEGORY/*.txt of MME, such as existence.txt")
    for (category, image), size in collections.Counter(key_of(question)[:2] for question in questions).items():
        if size % 2:
            raise SourceError(f"{root}: {category}, {quote_name(image)}: has {size} questions; they come in pairs")
    return limit(questions, count and count + count % 2, lambda question: question.category)


def _read_category(root: epath.Path, category: str) -> Iterator[list[str]]:
    """(image, question, answer in lower case) by the first layout of the category's files that exists."""
    table, folder = root / f"{category}.txt", root / category
    if table.exists():
        yield from _read_lines(table, 3)
    elif folder.is_dir():
        inner = folder / "questions_answers_YN"
        for file in sorted((inner if inner.is_dir() else folder).glob("*.txt")):
            for fields in _read_lines(file, 2):
                yield [file.stem, *fields]


def _read_lines(file: epath.Path, width: int) -> Iterator[list[str]]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            fields = line.strip().split("\t")
            if len(fields) != width:
                raise SourceError(f"{file}: line {number} has {len(fields)} fields, needs {width} parted by tabs")
            yield [*fields[:-1], fields[-1].strip().lower()]


def read_answers(path: epath.PathLike) -> list[Prediction]:
    """LLaVA's answer file (question_id "category/image", prompt, text), or a folder of CATEGORY.txt with image,
    question, answer, prediction.
    """
    path = epath.Path(path)
    if not path.is_dir():
        return read_predictions(path)
    predictions = []
    for file in sorted(path.glob("*.txt")):
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                image, question, *_, text = line.split("\t") if line.count("\t") >= 2 else (line, "", "")
                location = f"{file}: line {number}"
                predictions.append(Prediction(f"{file.stem}/{image}", text, question, file.stem, location))
    if not predictions:
        raise SourceError(f"{path}: holds no predictions CATEGORY.txt")
    return predictions


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def numbered_keys(questions: Sequence[Question]) -> list[Key]:
    """The questions' keys; a later question that asks an image the same again has a number behind."""
    repeats: collections.Counter[Key] = collections.Counter()
    keys = []
    for key in map(key_of, questions):
        repeats[key] += 1
        keys.append((*key, str(repeats[key])) if repeats[key] > 1 else key)
    return keys


def finder(keys: Sequence[Key]) -> Callable[[Prediction], list[Key]]:
    """A function from a prediction to the keys it may answer: of its image, the longest question in its prompt."""
    of_image = collections.defaultdict(list)
    for key in keys:
        of_image[key[:2]].append(key)

    def find(prediction: Prediction) -> list[Key]:
        prompt, image = bare(prediction.prompt), (prediction.id.split("/")[0], stem(prediction.id))
        fitting = [key for key in of_image.get(image, ()) if key[2] in prompt]
        longest = max((key[2] for key in fitting), key=len, default="")
        return [key for key in fitting if key[2] == longest]

    return find


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`perception`, `cognition` and `total`, sums of category scores, and each category's score under its name.

    A missing answer is wrong.
    """
    questions = load_questions(data, count)
    keys = numbered_keys(questions)
    matched = match(read_answers(predictions), finder(keys), keys, str(data))
    answers = {key: read_answer(matched.texts.get(key, "")) for key in keys}
    right = {key: answers[key] == question.answer for key, question in zip(keys, questions, strict=True)}
    of_image = collections.defaultdict(list)
    for key, value in right.items():
        of_image[key[:2]].append(value)
    both = {
        (*key, str(i)): values[i] and values[i + 1]
        for key, values in of_image.items()
        for i in range(0, len(values), 2)
    }
    single, pairs = percent_by(right, lambda key: key[0]), percent_by(both, lambda key: key[0])
    of_category = {category: single[category] + pairs[category] for category in single}
    metrics = {
        name: sum(of_category.get(category, 0.0) for category in categories)
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", CATEGORIES))
    }
    metrics |= {"accuracy": percent(right.values())} | of_category
    lacking = [category for category in CATEGORIES if category not in of_category]
    warnings = matched.warnings
    if lacking:
        warnings += (
            f"the questions lack {len(lacking)} of 14 categories, which add nothing to the sums: {', '.join(lacking)}",
        )
    unclear = sum(read_answer(text) == "other" for text in matched.texts.values())
    counts = matched.counts | {"neither_yes_nor_no": unclear, "categories": len(of_category)}
    return Score(metrics, counts, warnings)


BENCHMARK = Benchmark(
    name="mme",
    questions=load_questions,
    score=score,
    prompts={"clean": PromptTemplate("{question}", decoding={"max_tokens": 8})},  # its questions say how to answer
)
