"""MM-Vet (Yu et al. 2023): free answers, graded by a language model elsewhere.

Here: the file for its grader, and metrics from its grades. They are those of the benchmark's mm-vet_evaluator.py: for
each run the sum of grades over the number of questions, in percent, then the mean over runs; by each of six
capabilities, and by each combination that questions need.
"""

import json
import statistics
from collections.abc import Collection, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, read_json
from dreamjax.evaluation.predictions import ID_KEYS, Exported, Prediction, Score, match, read_predictions, read_rows
from dreamjax.evaluation.prompts import PromptTemplate, official
from dreamjax.evaluation.question import Question, limit
from dreamjax.filesystem import atomic

# Recognition, text, knowledge, generation, spatial awareness, mathematics.
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def load_questions(data: epath.PathLike, count: int | None = None) -> list[Question]:
    """The (first `count`) questions of mm-vet.json; their groups are the capabilities. Raises SourceError."""
    path = find_file(data, "mm-vet.json", "*.json")
    with expected_form(path, "mm-vet.json"):
        questions = [
            Question(
                key,
                str(row.get("question", "")),
                (str(row["imagename"]),) if "imagename" in row else (),
                references=(str(row["answer"]),) if "answer" in row else (),
                groups=tuple(sorted(set(row["capability"]), key=_order)),
            )
            for key, row in read_json(path).items()
        ]
    if not questions or not all(question.groups for question in questions):
        raise SourceError(f"{path}: holds no questions with capabilities, as mm-vet.json does")
    return limit(questions, count)


def score(predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`total` and its `std` over runs, CAPABILITY and combinations such as ocr+math, in percent, from the grader's
    *-grade-*runs.json.

    A question without a grade counts as 0. Raises SourceError for answers that nobody graded.
    """
    questions, grades = load_questions(data, count), load_grades(predictions)
    ids = {question.id for question in questions}
    known = [key for key in grades if key in ids]
    if not known:
        raise SourceError(
            f"{predictions}: {next(iter(grades))} is no question of {data}, and neither are all "
            f"{len(grades)} graded ones"
        )
    runs = {len(grades[key]) for key in known}
    if len(runs) > 1:
        raise SourceError(
            f"{predictions}: some questions have {min(runs)} grades and others {max(runs)}; let the grader finish"
        )
    ungraded = [0.0] * runs.pop()
    totals = _totals([grades.get(question.id, ungraded) for question in questions])

    def mean(chosen: Collection[Question]) -> float:
        return statistics.fmean(_totals([grades.get(question.id, ungraded) for question in chosen]))

    metrics = {"total": statistics.fmean(totals), "std": statistics.pstdev(totals)}
    for capability in sorted({group for question in questions for group in question.groups}, key=_order):
        metrics[capability] = mean([question for question in questions if capability in question.groups])
    for groups in dict.fromkeys(question.groups for question in questions):
        if len(groups) > 1:
            metrics["+".join(groups)] = mean([question for question in questions if question.groups == groups])
    missing = [question.id for question in questions if question.id not in grades]
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {len(questions)} questions have no grade and count as 0; the first is {missing[0]}"
        )
    if len(grades) > len(known):
        warnings.append(f"{len(grades) - len(known)} of {len(grades)} graded questions are not in {data} and left out")
    counts = {
        "questions": len(questions),
        "predictions": len(grades),
        "missing": len(missing),
        "unmatched": len(grades) - len(known),
        "runs": len(ungraded),
    }
    return Score(metrics, counts, tuple(warnings))


def load_grades(path: epath.PathLike) -> dict[str, list[float]]:
    """{id: grade of each run, in 0..1}; raises SourceError.

    From the grader's file {id: {"score": [..], ..}}, or any table or JSON lines of rows with an id and a score.
    """
    grades: dict[str, list[float]] = {}
    for location, row in read_rows(path):
        if isinstance(row, dict) and "total" in row and not set(ID_KEYS) & set(row):
            raise SourceError(
                f"{path}: holds the sums of MM-Vet's grader, not its grades, which are in *-grade-*runs.json beside it"
            )
        if isinstance(row, dict) and isinstance(row.get("text"), int | float | list):  # {id: grade}
            row = {"score": row["text"], **row}
        if not isinstance(row, dict) or row.get("score") in (None, ""):
            raise SourceError(
                f"{path}: {location} holds answers, not grades: MM-Vet's grader gives those, from "
                "mmvet_answers.json, which --out=DIR writes"
            )
        with expected_form(path, "file of grades"):
            key = full_id(str(next(row[name] for name in ID_KEYS if name in row)))
            values = [float(grade) for grade in (row["score"] if isinstance(row["score"], list) else [row["score"]])]
        if key in grades:
            raise SourceError(f"{path}: {location}: grades question {key} a second time")
        if not values or not all(0 <= value <= 1 for value in values):
            raise SourceError(f"{path}: {key}: grades {values} are not numbers in 0..1, one a run")
        grades[key] = values
    if not grades:
        raise SourceError(f"{path}: holds no predictions")
    return grades


def full_id(key: str) -> str:
    """A question's id in mm-vet.json; LLaVA's files have its bare number."""
    return f"v1_{key}" if key.isdecimal() else key


def export(predictions: epath.PathLike, data: epath.PathLike, out: epath.Path) -> Exported:
    """Writes mmvet_answers.json, {"v1_0": text, ..}, for the benchmark's grader; questions without an answer get ""."""
    ids = [question.id for question in load_questions(data)]

    def find(prediction: Prediction) -> tuple[str, ...]:
        key = full_id(prediction.id)
        return (key,) if key in known else ()

    known = set(ids)
    matched = match(read_predictions(predictions), find, ids, str(data))
    path = out / "mmvet_answers.json"
    atomic.write_text(path, json.dumps({key: matched.texts.get(key, "") for key in ids}, indent=2))
    return Exported(path, matched.warnings)


def _totals(grades: Sequence[Sequence[float]]) -> list[float]:
    """For each run the mean grade in percent."""
    return [100 * sum(run) / len(grades) for run in zip(*grades, strict=True)]


def _order(capability: str) -> tuple[int, str]:
    return (CAPABILITIES.index(capability) if capability in CAPABILITIES else len(CAPABILITIES), capability)


BENCHMARK = Benchmark(
    name="mmvet",
    questions=load_questions,
    score=score,
    export=export,
    prompts={
        "clean": PromptTemplate("{question}", decoding={"max_tokens": 512}),
        "official": official(
            "{question}Please provide an accurate, detailed and comprehensive answer.",
            before_image="This is an exam, please answer according to the image and question.",
        ),
    },
    paper={"total": {"DreamLLM": 35.9, "+ SFT": 36.6}},
)
