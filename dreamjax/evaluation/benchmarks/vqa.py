"""Open questions about pictures: VQAv2, OKVQA, TextVQA, VizWiz. An answer counts by how many of ten people gave it.

The normaliser is EvalAI's and the accuracy the leave-one-out mean, both as in the TextVQA evaluator of MMF (pythia's
processors.py, m4c_evaluator.py), which LLaVA's eval_textvqa.py and DreamLLM's evaluation use: every answer is
normalised, and annotators are left out by their number, so that two who said the same still count apart.
"""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, read_json, whole_number
from dreamjax.evaluation.predictions import Answer, Exported, Matched, Score, first, match, percent, read_answers
from dreamjax.filesystem import atomic

TASKS = ("textvqa", "vqav2", "okvqa", "vizwiz")
ENOUGH = 3  # annotators, of those not left out, whose agreement makes an answer wholly right
UNANSWERABLE = "unanswerable"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its annotators' answers; none on a server's test split."""

    id: str
    image: str
    text: str
    answers: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------------------------
# Normaliser

NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'

# Words that get their apostrophes back, written as they should be. Each is known by its spellings that lack one
# apostrophe.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _APOSTROPHES.split() for i, letter in enumerate(word) if letter == "'"
}
# What the evaluator's own table has otherwise: one word the wrong way round, and capitals that no lower-cased text can
# have.
CONTRACTIONS |= {"somebody'd": "somebodyd"}
for _capital in ("id've", "i'dve", "im", "ive"):
    del CONTRACTIONS[_capital]


@functools.lru_cache(1 << 16)  # people give the same answers again and again
def normalise(answer: str) -> str:
    """An answer in lower case without articles and most punctuation, number words as digits, contractions with their
    apostrophes.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in before or " " + mark in before
        text = text.replace(mark, "" if beside_space else " ")
    text = re.sub(
        r"\.(?!\d)", "", text, count=32
    )  # the evaluator gives re.UNICODE, which is 32, where the count belongs
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean, over each annotator left out, of min(1, annotators left who gave the predicted answer / 3); in 0..1."""
    predicted = normalise(prediction)
    agree = sum(normalise(answer) == predicted for answer in answers)
    apart = len(answers) - agree
    return (agree * min(1.0, (agree - 1) / ENOUGH) + apart * min(1.0, agree / ENOUGH)) / len(answers) if agree else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_questions(data: epath.PathLike, task: str, count: int | None = None) -> list[Question]:
    """The (first `count`) questions of a file or folder: VQA's pair of *questions.json and *annotations.json, TextVQA's
    or VizWiz' own single file.

    In a folder with several sets, the files whose names begin with the task's count, and of its splits val. Without
    annotations (a test split) the questions have no answers. Raises SourceError.
    """
    named = (f"{task}*val*questions*.json", f"{task}*questions*.json", "*val*questions*.json", "*questions*.json")
    path = find_file(data, *named, "TextVQA_*val.json", "TextVQA_*.json", "val.json", "test.json")
    content = read_json(path)
    with expected_form(path, "file of questions"):
        if isinstance(content, dict):
            rows = (
                content["data"] if "data" in content else _with_answers(content["questions"], path)
            )  # `data`: TextVQA_0.5.1_val.json
        else:  # VizWiz: val.json
            rows = [{**row, "question_id": row["image"], "image_id": row["image"]} for row in content]
        questions = [
            Question(
                str(row["question_id"]),
                str(row["image_id"]),
                str(row["question"]),
                _answer_texts(row.get("answers", ())),
            )
            for row in rows
        ]
    if len({question.id for question in questions}) < len(questions):
        raise SourceError(f"{path}: a question_id stands there twice")
    if not questions:
        raise SourceError(f"{path}: holds no questions")
    return first(questions, count)


def _with_answers(rows: list[dict], path: epath.Path) -> list[dict]:
    """The rows of *questions.json with the answers of the file beside it, where there is one."""
    annotations = path.parent / path.name.replace("OpenEnded_", "").replace("questions", "annotations")
    if not annotations.exists():
        return rows
    answers = {row["question_id"]: row["answers"] for row in read_json(annotations)["annotations"]}
    lacking = [row["question_id"] for row in rows if row["question_id"] not in answers]
    if lacking:
        raise SourceError(
            f"{annotations}: has no answers for {len(lacking)} of the {len(rows)} questions of "
            f"{path.name}, such as {lacking[0]}"
        )
    return [{**row, "answers": answers[row["question_id"]]} for row in rows]


def _answer_texts(answers: Sequence) -> tuple[str, ...]:
    return tuple(str(answer["answer"] if isinstance(answer, dict) else answer) for answer in answers)


def finder(questions: Sequence[Question]) -> Callable[[Answer], tuple[str, ...]]:
    """Which question an answer is of: by the question's id, else by the picture's with the question in the prompt.

    The question is the prompt's first line, or else another one (behind OCR tokens), or else what the prompt begins
    with, or holds. Several where it stands in the data more than once.
    """
    ids = {question.id for question in questions}
    of_image = collections.defaultdict(list)
    for question in questions:
        of_image[question.image].append(question)
        if "." in question.image:
            of_image[question.image.rpartition(".")[0]].append(question)

    def find(answer: Answer) -> tuple[str, ...]:
        if answer.id in ids:
            return (answer.id,)
        about = of_image.get(answer.id, ())
        if not answer.prompt:
            return (about[0].id,) if len(about) == 1 else ()
        asked, lines = _plain(answer.prompt), [_plain(line) for line in answer.prompt.split("\n")]
        for fits in (lines[0].__eq__, lines.__contains__, asked.startswith, asked.__contains__):
            fitting = [text for text in map(_plain, (question.text for question in about)) if fits(text)]
            if fitting:
                chosen = max(fitting, key=len)
                return tuple(question.id for question in about if _plain(question.text) == chosen)
        return ()

    return find


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def score(task: str, predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` in percent, and for VizWiz also that of the questions that can be answered, and of those that
    cannot.
    """
    questions = load_questions(data, task, count)
    if not any(question.answers for question in questions):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the file for the server is written"
        )
    matched = _match(questions, predictions, data)
    scores = {
        question.id: soft_accuracy(matched.texts[question.id], question.answers)
        if question.id in matched.texts
        else 0.0
        for question in questions
    }
    metrics = {"accuracy": percent(scores.values())}
    if task == "vizwiz":
        unanswerable = {question.id for question in questions if _most_say_unanswerable(question)}
        metrics["answerable_accuracy"] = percent(value for key, value in scores.items() if key not in unanswerable)
        metrics["unanswerable_accuracy"] = percent(value for key, value in scores.items() if key in unanswerable)
    return Score(metrics, matched.counts, matched.warnings)


def export(task: str, predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes the file that the task's server takes, with an (empty) answer for every question.

    VQAv2, OKVQA, TextVQA: [{"question_id", "answer"}]. VizWiz: [{"image", "answer"}]. Answers are normalised.
    """
    questions = load_questions(data, task)
    matched = _match(questions, predictions, data)
    rows = []
    for question in questions:
        answer = normalise(matched.texts.get(question.id, ""))
        number = whole_number(question.id)
        number = question.id if number is None else number
        rows.append(
            {"image": question.image, "answer": answer}
            if task == "vizwiz"
            else {"question_id": number, "answer": answer}
        )
    path = out / f"{task}_submission.json"
    atomic.write_text(path, json.dumps(rows))
    return Exported(path, matched.warnings)


def _match(questions: Sequence[Question], predictions: epath.PathLike, data: epath.PathLike) -> Matched:
    return match(read_answers(predictions), finder(questions), [question.id for question in questions], str(data))


def _most_say_unanswerable(question: Question) -> bool:
    return 2 * sum(normalise(answer) == UNANSWERABLE for answer in question.answers) > len(question.answers)
