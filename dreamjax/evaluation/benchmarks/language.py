"""Questions of language alone, answered by the likeliest of given continuations: PIQA, SIQA, HellaSwag, WinoGrande,
BoolQ, MMLU.

Read from the sets' own files, or from the instructions of LLM-Adapters (PIQA, SIQA, WinoGrande, BoolQ, the last without
its passage). A continuation's score is the sum of its tokens' log-probabilities; HellaSwag's is divided by its
characters. MMLU has five examples of its subject's `dev` before each question. These six are the paper's; they need
neither lm-evaluation-harness nor its downloads (evaluation/lm_eval.py runs its tasks).
"""

import csv
import functools
import io
import re
from collections.abc import Callable, Sequence

from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.files import expected_form, find_file, quote, read_json, read_text
from dreamjax.evaluation.predictions import Score, match_ids, percent, percent_by, read_predictions
from dreamjax.evaluation.question import limit
from dreamjax.evaluation.ranking import Ranking

LETTERS = "ABCDEFGHIJ"
MMLU_SHOTS = 5


def _letters(count: int) -> tuple[str, ...]:
    """The endings of a Ranking by the letters A, B, ..."""
    return tuple(f" {letter}" for letter in LETTERS[:count])


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_piqa(data: epath.PathLike) -> list[Ranking]:
    """piqa.test.json, or valid.jsonl with valid-labels.lst."""
    path = find_file(data, "piqa*.json", "valid.jsonl", "*.jsonl")
    if path.suffix == ".json":
        form = r"question: (?P<goal>.*)\n\nSolution1: (?P<a>.*)\n\nSolution2: (?P<b>.*)\n\nAnswer format"
        rows = [(row["goal"], (row["a"], row["b"]), right) for row, right in _instructions(path, form, "solution")]
    else:
        rows = [(row["goal"], (row["sol1"], row["sol2"]), right) for row, right in _labelled(path, 0)]
    return [
        Ranking(str(i), (f"Question: {goal}\nAnswer:",) * 2, tuple(f" {end}" for end in ends), right)
        for i, (goal, ends, right) in enumerate(rows)
    ]


def load_siqa(data: epath.PathLike) -> list[Ranking]:
    """social_i_qa.test.json, or socialiqa's dev.jsonl with dev-labels.lst."""
    path = find_file(data, "social_i_qa*.json", "dev.jsonl", "*.jsonl")
    if path.suffix == ".json":
        form = (
            r"answer to the question: (?P<q>.*)\n\nAnswer1: (?P<a>.*?) Answer2: (?P<b>.*?) Answer3: "
            r"(?P<c>.*)\n\nAnswer format"
        )
        rows = [(row["q"], (row["a"], row["b"], row["c"]), right) for row, right in _instructions(path, form, "answer")]
    else:
        rows = [
            (f"{row['context']}\n{row['question']}", (row["answerA"], row["answerB"], row["answerC"]), right)
            for row, right in _labelled(path, 1)
        ]
    ask = "Read the context. Choose A, B or C to answer the question.\n{}\n{}\nAnswer:"
    return [
        Ranking(str(i), (ask.format(question, _choices(choices)),) * 3, _letters(3), right)
        for i, (question, choices, right) in enumerate(rows)
    ]


def load_winogrande(data: epath.PathLike) -> list[Ranking]:
    """winogrande.test.json, or the set's dev.jsonl: what follows the blank is scored after each of the two names."""
    path = find_file(data, "winogrande*.json", "dev.jsonl", "*.jsonl")
    if path.suffix == ".json":
        form = r"the given sentence: (?P<s>.*)\n\nOption1: (?P<a>.*?) Option2: (?P<b>.*?)\s*Answer format"
        rows = [(row["s"], (row["a"], row["b"]), right) for row, right in _instructions(path, form, "option")]
    else:
        with expected_form(path, "file of WinoGrande"):
            rows = [
                (row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1) for row in read_json(path)
            ]
    rankings = []
    for i, (sentence, names, right) in enumerate(rows):
        before, blank, after = sentence.partition("_")
        if not blank or not after.strip():
            raise SourceError(f"{path}: sentence {i} has no blank with words after it: {sentence!r}")
        rankings.append(Ranking(str(i), tuple((before + name).strip() for name in names), (after.rstrip(),) * 2, right))
    return rankings


def load_boolq(data: epath.PathLike) -> list[Ranking]:
    """The set's dev.jsonl with its passages, or boolq.test.json, which has none."""
    path = find_file(data, "dev.jsonl", "val.jsonl", "boolq*.json", "*.jsonl")
    if path.suffix == ".json":
        form = r"true or false, question: (?P<q>.*?)\?*\n\nAnswer format"
        rows = [("", row["q"], right) for row, right in _instructions(path, form, ("false", "true"))]
    else:
        with expected_form(path, "file of BoolQ"):
            rows = [
                (row["passage"] + "\n", row["question"], int(row["answer"] if "answer" in row else row["label"]))
                for row in read_json(path)
            ]
    ask = "Choose yes or no to answer the question.\n{}Question: {}?\nAnswer:"
    return [
        Ranking(str(i), (ask.format(passage, question),) * 2, (" no", " yes"), right)
        for i, (passage, question, right) in enumerate(rows)
    ]


def load_hellaswag(data: epath.PathLike) -> list[Ranking]:
    """hellaswag_val.jsonl."""
    path = find_file(data, "hellaswag_val.jsonl", "*.jsonl")

    def plain(text: str) -> str:
        return " ".join(re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).split())

    with expected_form(path, "file of HellaSwag"):
        return [
            Ranking(
                str(row.get("ind", i)),
                (plain(f"{row['activity_label']}: {row['ctx']}"),) * 4,
                tuple(" " + plain(end) for end in row["endings"]),
                int(row["label"]),
                by_length=True,
            )
            for i, row in enumerate(read_json(path))
        ]


def load_mmlu(data: epath.PathLike) -> list[Ranking]:
    """test/SUBJECT_test.csv with dev/SUBJECT_dev.csv.

    Question, four choices, the letter or number of the right one; a header is left out.
    """
    files = sorted(epath.Path(data).glob("test/*_test.csv"))
    if not files:
        raise SourceError(f"{data}: holds no test/SUBJECT_test.csv of MMLU")
    rankings = []
    for file in files:
        subject = file.name.removesuffix("_test.csv")
        shots = tuple(
            f"{ask} {LETTERS[right]}\n\n"
            for ask, right in _mmlu_rows(epath.Path(data) / "dev" / f"{subject}_dev.csv")[:MMLU_SHOTS]
        )
        heading = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        for i, (ask, right) in enumerate(_mmlu_rows(file)):
            rankings.append(
                Ranking(
                    f"{subject}/{i}",
                    (ask,) * 4,
                    _letters(4),
                    right,
                    category=subject,
                    heading=heading,
                    examples=shots,
                )
            )
    return rankings


def _mmlu_rows(path: epath.Path) -> list[tuple[str, int]]:
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    rows = rows[1:] if rows and rows[0][0] == "question" else rows
    with expected_form(path, "file of MMLU"):
        return [
            (f"{ask.strip()}\n{_choices(choices)}\nAnswer:", LETTERS.index(right) if right in LETTERS else int(right))
            for ask, *choices, right in rows
        ]


def _choices(choices: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _instructions(path: epath.Path, form: str, answers: str | tuple[str, ...]) -> list[tuple[dict, int]]:
    """(fields of `form`, index of the right answer) for each row of a file of instructions.

    `answers` are the answers themselves, or the prefix of their number.
    """
    rows = []
    for i, row in enumerate(read_json(path)):
        match = re.search(form, row["instruction"], re.DOTALL)
        if not match:
            raise SourceError(f"{path}: row {i} is not of the expected form: {row['instruction'][:80]!r}")
        right = (
            int(row["answer"].removeprefix(answers)) - 1 if isinstance(answers, str) else answers.index(row["answer"])
        )
        rows.append((match.groupdict(), right))
    return rows


def _labelled(path: epath.Path, lowest: int) -> list[tuple[dict, int]]:
    """Rows of a JSONL file with the lines of its -labels.lst, which count from `lowest`."""
    labels = read_text(path.with_name(f"{path.stem}-labels.lst")).split()
    rows = read_json(path)
    if len(rows) != len(labels):
        raise SourceError(f"{path}: has {len(rows)} rows, and its labels are {len(labels)}")
    return [(row, int(label) - lowest) for row, label in zip(rows, labels, strict=True)]


LOADERS: dict[str, Callable[[epath.PathLike], list[Ranking]]] = {
    "piqa": load_piqa,
    "siqa": load_siqa,
    "hellaswag": load_hellaswag,
    "winogrande": load_winogrande,
    "boolq": load_boolq,
    "mmlu": load_mmlu,
}


def load(task: str, data: epath.PathLike, count: int | None = None) -> list[Ranking]:
    """The rankings of a task, of each category the first `count`; raises SourceError."""
    with expected_form(data, f"data of {task}"):
        rankings = limit(LOADERS[task](data), count, lambda ranking: ranking.category)
    if not rankings:
        raise SourceError(f"{data}: holds no questions")
    return rankings


# ----------------------------------------------------------------------------------------------------------------------
# Scores


def score(task: str, predictions: epath.PathLike, data: epath.PathLike, count: int | None = None) -> Score:
    """`accuracy` over questions in percent; of MMLU also `subject_mean` and each subject's.

    A missing prediction is wrong.
    """
    rankings = load(task, data, count)
    matched = match_ids(read_predictions(predictions), [ranking.id for ranking in rankings], str(data))
    right = {ranking: matched.texts.get(ranking.id) == str(ranking.right) for ranking in rankings}
    metrics = {"accuracy": percent(right.values()), "chance": percent(1 / len(ranking.endings) for ranking in rankings)}
    if task == "mmlu":
        subjects = percent_by(right, lambda ranking: ranking.category)
        metrics |= {"subject_mean": sum(subjects.values()) / len(subjects)} | subjects
    no_choice = [
        ranking.id
        for ranking in rankings
        if matched.texts.get(ranking.id, "0") not in map(str, range(len(ranking.endings)))
    ]
    warnings = matched.warnings
    if no_choice:
        warnings += (
            f"{len(no_choice)} predictions are no number of a choice, counted from 0, and are wrong; the first is "
            f"{quote(matched.texts[no_choice[0]])} for question {no_choice[0]}",
        )
    return Score(metrics, matched.counts | {"no_choice": len(no_choice)}, warnings)


PAPER = {"piqa": 78.6, "siqa": 48.8, "hellaswag": 77.4, "winogrande": 68.5, "boolq": 75.2, "mmlu": 41.8}
BENCHMARKS = tuple(
    Benchmark(
        name=name,
        rankings=functools.partial(load, name),
        score=functools.partial(score, name),
        paper={"accuracy": {"DreamLLM": PAPER[name]}},  # of MMLU with its five examples
    )
    for name in LOADERS
)
