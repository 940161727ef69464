"""Open questions about images: VQAv2, OKVQA, TextVQA, VizWiz. An answer counts by how many of ten people gave it.

The normaliser is EvalAI's and the accuracy the leave-one-out mean, both as in the TextVQA evaluator of MMF (pythia's
processors.py, m4c_evaluator.py), which LLaVA's eval_textvqa.py and DreamLLM's evaluation use: every answer is
normalised, and annotators are left out by their number, so that two who gave the same answer still count apart.
"""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, parse_digits, read_json
from dreamjax.evaluation.predictions import Exported, Matched, Prediction, Score, match, percent, read_predictions
from dreamjax.evaluation.prompts import ANSWERABLE, SHORT_ANSWER, AnswerableCheck, clip, has_no, official
from dreamjax.evaluation.question import Question, limit
from dreamjax.filesystem import atomic

ENOUGH = 3  # annotators, of those not left out, whose agreement makes an answer wholly right
UNANSWERABLE = "unanswerable"


# ----------------------------------------------------------------------------------------------------------------------
# Normaliser

NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'

# Contractions as they should be written. Each is found by its spellings that lack one apostrophe.
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
# The evaluator's own table differs: one word the wrong way round, and capitals that no lower-cased text can have.
CONTRACTIONS |= {"somebody'd": "somebodyd"}
for _capital in ("id've", "i'dve", "im", "ive"):
    del CONTRACTIONS[_capital]


@functools.lru_cache(1 << 16)  # people give the same answers again and again
def normalise(answer: str) -> str:
    """An answer in lower case without articles and most punctuation, digits for number words, apostrophes mended."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in before or " " + mark in before
        text = text.replace(mark, "" if beside_space else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=32)  # the evaluator gives re.UNICODE, 32, in the place of the count
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean, over each annotator left out, of min(1, annotators left who gave the predicted answer / 3); in 0..1."""
    predicted = normalise(prediction)
    agree = sum(normalise(answer) == predicted for answer in answers)
    if not agree:
        return 0.0
    differ = len(answers) - agree
    return (agree * min(1.0, (agree - 1) / ENOUGH) + differ * min(1.0, agree / ENOUGH)) / len(answers)


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_questions(task: str, data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The (first `count`) questions of a file or folder: VQA's pair of *questions.json and *annotations.json, TextVQA's
    or VizWiz' own single file.

    In a folder with several sets, the files whose names begin with the task's count, and of its splits val. Without
    annotations (a test split) the questions have no references. Raises SourceError.
    """
    patterns = (f"{task}*val*questions*.json", f"{task}*questions*.json", "*val*questions*.json", "*questions*.json")
    path = find_file(data, *patterns, "TextVQA_*val.json", "TextVQA_*.json", "val.json", "test.json")
    with expected_form(path, "file of questions"):
        questions = [
            Question(
                str(row["question_id"]),
                str(row["question"]),
                (str(row["image_id"]),),
                references=tuple(str(answer["answer"] if isinstance(answer, dict) else answer) for answer in answers),
            )
            for row, answers in _rows(read_json(path), path)
        ]
    if len({question.id for question in questions}) < len(questions):
        raise SourceError(f"{path}: a question_id stands there twice")
    if not questions:
        raise SourceError(f"{path}: holds no questions")
    return limit(questions, count)


def _rows(content: Any, path: epath.Path) -> list[tuple[dict, Sequence]]:
    """(row with question_id, image_id and question, annotators' answers) for each question of a file."""
    if isinstance(content, list):  # VizWiz: val.json
        rows = [{**row, "question_id": row["image"], "image_id": row["image"]} for row in content]
    elif "data" in content:  # TextVQA: TextVQA_0.5.1_val.json
        rows = content["data"]
    else:
        rows, answers = content["questions"], _annotated(path)
        if answers is not None:
            lacking = [row["question_id"] for row in rows if row["question_id"] not in answers]
            if lacking:
                raise SourceError(
                    f"{_annotations(path)}: has no answers for {len(lacking)} of the {len(rows)} questions of "
                    f"{path.name}, such as {lacking[0]}"
                )
            return [(row, answers[row["question_id"]]) for row in rows]
    return [(row, row.get("answers", ())) for row in rows]


def _annotations(path: epath.Path) -> epath.Path:
    """*annotations.json beside VQA's *questions.json."""
    return path.parent / path.name.replace("OpenEnded_", "").replace("questions", "annotations")


def _annotated(path: epath.Path) -> dict | None:
    """{question_id: annotators' answers}; None without a file of annotations."""
    if not _annotations(path).exists():
        return None
    return {row["question_id"]: row["answers"] for row in read_json(_annotations(path))["annotations"]}


def finder(questions: Sequence[Question]) -> Callable[[Prediction], tuple[str, ...]]:
    """A function from a prediction to the ids of the questions it may answer.

    By the question's id, else by the image's with the question in the prompt: its first line, or else another one
    (behind OCR tokens), or else its beginning, or any part of it. Several ids for a question that stands in the data
    more than once.
    """
    ids = {question.id for question in questions}
    of_image = collections.defaultdict(list)
    for question in questions:
        image = str(question.images[0])
        of_image[image].append(question)
        if "." in image:
            of_image[image.rpartition(".")[0]].append(question)

    def find(prediction: Prediction) -> tuple[str, ...]:
        if prediction.id in ids:
            return (prediction.id,)
        candidates = of_image.get(prediction.id, ())
        if not prediction.prompt:
            return (candidates[0].id,) if len(candidates) == 1 else ()
        prompt, lines = _plain(prediction.prompt), [_plain(line) for line in prediction.prompt.split("\n")]
        for fits in (lines[0].__eq__, lines.__contains__, prompt.startswith, prompt.__contains__):
            fitting = [text for text in map(_plain, (question.text for question in candidates)) if fits(text)]
            if fitting:
                longest = max(fitting, key=len)
                return tuple(question.id for question in candidates if _plain(question.text) == longest)
        return ()

    return find


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def score(task: str, predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` in percent; for VizWiz also that of the questions that can be answered, and of those that cannot."""
    questions = load_questions(task, data, count)
    if not any(question.references for question in questions):
        raise SourceError(
            f"{data}: holds no answers to score against; with --out=DIR the file for the server is written"
        )
    matched = _match(questions, predictions, data)
    accuracies = {
        question: soft_accuracy(matched.texts[question.id], question.references)
        if question.id in matched.texts
        else 0.0
        for question in questions
    }
    metrics = {"accuracy": percent(accuracies.values())}
    if task == "vizwiz":
        unanswerable = {question for question in questions if _is_unanswerable(question)}
        metrics["answerable_accuracy"] = percent(accuracies[q] for q in questions if q not in unanswerable)
        metrics["unanswerable_accuracy"] = percent(accuracies[q] for q in questions if q in unanswerable)
    return Score(metrics, matched.counts, matched.warnings)


def export(task: str, predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes the file that the task's server takes, with an (empty) answer for every question.

    VQAv2, OKVQA, TextVQA: [{"question_id", "answer"}]. VizWiz: [{"image", "answer"}]. Answers are normalised.
    """
    questions = load_questions(task, data)
    matched = _match(questions, predictions, data)
    rows = []
    for question in questions:
        number = parse_digits(question.id)
        name, key = "question_id", question.id if number is None else number
        if task == "vizwiz":
            name, key = "image", str(question.images[0])
        rows.append({name: key, "answer": normalise(matched.texts.get(question.id, ""))})
    path = out / f"{task}_submission.json"
    atomic.write_text(path, json.dumps(rows))
    return Exported(path, matched.warnings)


def _match(questions: Sequence[Question], predictions: epath.PathLike, data: epath.PathLike) -> Matched[str]:
    ids = [question.id for question in questions]
    return match(read_predictions(predictions), finder(questions), ids, str(data))


def _is_unanswerable(question: Question) -> bool:
    """True where most annotators say so."""
    return 2 * sum(normalise(answer) == UNANSWERABLE for answer in question.references) > len(question.references)


# ----------------------------------------------------------------------------------------------------------------------
# Benchmarks

_ONE_WORD = "{question}Please provide an accurate answer within one word."
_BEFORE = "Based on the image, please answer the question."
_SHORT = "The short answer '(one word)' is:"
_VIZWIZ = official(
    _ONE_WORD,
    before_image=_BEFORE,
    answer_prefix="The answer is:",
    postprocess=clip,
    answerable=AnswerableCheck(official(f"{{question}}{ANSWERABLE}"), has_no, UNANSWERABLE),
)
PROMPTS = {
    "textvqa": {
        "clean": SHORT_ANSWER,
        "official": official(_ONE_WORD, before_image=_BEFORE, answer_prefix="The answer is:", postprocess=clip),
    },
    "vqav2": {
        "clean": SHORT_ANSWER,
        "official": official(_ONE_WORD, before_image=_BEFORE, answer_prefix=_SHORT, postprocess=clip),
    },
    "okvqa": {
        "clean": SHORT_ANSWER,
        "official": official(
            "{question}Please provide an accurate and brief answer within one word.",
            answer_prefix=_SHORT,
            postprocess=clip,
        ),
    },
    "vizwiz": {
        "clean": dataclasses.replace(
            SHORT_ANSWER,
            ask="{question}\nAnswer in one word or a short phrase, or unanswerable where the picture does not tell.",
        ),
        "official": _VIZWIZ,
    },
}
# (DreamLLM, + SFT) of the paper.
PAPER = {"textvqa": (34.9, 41.8), "vqav2": (56.6, 72.9), "okvqa": (44.3, 52.2), "vizwiz": (45.8, 49.3)}
FEW_SHOT = {
    "vqav2": {2: (58.1, 73.8), 4: (59.2, 74.4), 8: (59.4, 73.8)},
    "vizwiz": {2: (46.1, 49.8), 4: (46.7, 50.3), 8: (46.8, 49.7)},
}


def _figures(accuracies: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {"accuracy": dict(zip(("DreamLLM", "+ SFT"), accuracies, strict=True))}


BENCHMARKS = tuple(
    Benchmark(
        name=name,
        questions=functools.partial(load_questions, name),
        score=functools.partial(score, name),
        export=functools.partial(export, name),
        prompts=PROMPTS[name],
        paper=_figures(PAPER[name]),
        paper_few_shot={shots: _figures(pair) for shots, pair in FEW_SHOT.get(name, {}).items()},
    )
    for name in PROMPTS
)
