"""Runs a model on a benchmark: questions to prompts, prompts in batches to predictions, each written down as it comes.

    out/TASK/run.json             what the predictions are of; another model or profile needs another folder
    out/TASK/predictions.jsonl    a row a question: question_id, prompt, text (as it is scored), raw, category

A run that was interrupted goes on after its last whole row. A prediction depends on its question, the options and the
size of the batch, never on the questions beside it, so the end is the same.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation.prompts import Profile
from dreamjax.evaluation.questions import Question
from dreamjax.filesystem import atomic
from dreamjax.progress import bar
from dreamjax.sampling.prompts import prompt_tokens

ROOM = 32  # positions that examples leave for the answer, or all of a short one's


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What to ask.

    Questions, their pictures by name, how, and after which examples (those nearest to the question last).
    """

    questions: Sequence[Question]
    images: Mapping[str | bytes, Image]
    profile: Profile
    examples: Callable[[Question], Sequence[Question]] = lambda question: ()

    def prompt(self, question: Question, profile: Profile, examples: Sequence[Question] = ()) -> Document:
        def shown(asked):
            return [self.images[name] for name in asked.images]

        return profile.prompt(question, shown(question), [(example, shown(example)) for example in examples])


def predict(
    model: DreamLLM, job: Job, out: epath.Path, settings: dict, batch_size: int = 16, desc: str = ""
) -> tuple[epath.Path, int]:
    """Answers every question that has no row yet; the file of predictions, and how many examples were left out for want
    of context.

    `settings` say whose the predictions are: a folder with others' raises ConfigError.
    """
    path = out / "predictions.jsonl"
    check_settings(out, settings)
    done = {tuple(map(str, row["key"])) for row in resume(path, key=list, text=str, raw=str)}
    numbers = {question.key: number for number, question in enumerate(job.questions)}
    if len(numbers) < len(job.questions):
        raise SourceError("the same question with the same id stands in the data twice")
    waiting = [question for question in job.questions if question.key not in done]
    dropped = 0
    with bar(len(job.questions), "question", desc, len(job.questions) - len(waiting)) as progress:
        for batch in batched(waiting, batch_size):
            chosen = [_fitting(model, job, question) for question in batch]
            dropped += sum(missing for _, missing in chosen)
            texts = _answers(
                model,
                job,
                batch,
                [examples for examples, _ in chosen],
                [numbers[question.key] for question in batch],
                batch_size,
            )
            append(path, [_row(question, *text) for question, text in zip(batch, texts, strict=True)])
            progress.update(len(batch))
    return path, dropped


def _answers(
    model: DreamLLM, job: Job, batch: Sequence[Question], examples: Sequence, seeds: Sequence[int], size: int
) -> list[tuple[str, str]]:
    """(prediction, the model's own words) for each question.

    Whether it can be answered is asked first where the profile does.
    """
    profile, found = job.profile, {}
    ways = [profile] * len(batch)
    if profile.first:
        said = _generate(model, profile.first, [job.prompt(question, profile.first) for question in batch], seeds, size)
        no = [profile.says_no(text) for text in said]
        if isinstance(profile.if_no, str):
            found = {i: (profile.if_no, text) for i, text in enumerate(said) if no[i]}
        else:
            ways = [profile.if_no if refused else profile for refused in no]
    for way in dict.fromkeys(map(id, ways)):
        mine = [i for i in range(len(batch)) if id(ways[i]) == way and i not in found]
        if mine:
            prompts = [job.prompt(batch[i], ways[i], examples[i]) for i in mine]
            said = _generate(model, ways[mine[0]], prompts, [seeds[i] for i in mine], size)
            found |= {i: (ways[i].tidy(text), text) for i, text in zip(mine, said, strict=True)}
    return [found[i] for i in range(len(batch))]


def _generate(
    model: DreamLLM, profile: Profile, prompts: Sequence[Document], seeds: Sequence[int], size: int
) -> list[str]:
    made = model.generate_batch(
        prompts, seeds, batch_size=size, max_images=0, **_template(model, profile), **profile.decoding
    )
    return [document.text for document in made]


def _template(model: DreamLLM, profile: Profile) -> dict:
    return {"template": profile.template or model.template}


def _fitting(model: DreamLLM, job: Job, question: Question) -> tuple[list[Question], int]:
    """The examples that fit the context with the question, the first ones left out where they do not.

    And how many were.
    """
    examples = list(job.examples(question))
    wanted, context = len(examples), model.config.llm.max_positions
    room = min(ROOM, model.options(dict(job.profile.decoding)).max_tokens)
    while True:
        prompt = job.prompt(question, job.profile, examples)
        needed = prompt_tokens(model.model, model.tokenizer, prompt, _template(model, job.profile)["template"])
        if not examples or needed + room <= context:
            break
        examples.pop(0)
    if needed >= context:
        raise ConfigError(
            f"question {question.id}: its prompt takes {needed} tokens, which leaves nothing of the "
            f"model's context of {context}"
        )
    return examples, wanted - len(examples)


def _row(question: Question, text: str, raw: str) -> dict:
    row = {"question_id": question.id, "prompt": question.text, "text": text}
    return (
        row | ({"category": question.category} if question.category else {}) | {"raw": raw, "key": list(question.key)}
    )


# ----------------------------------------------------------------------------------------------------------------------
# Files


def check_settings(out: epath.Path, settings: dict):
    """Writes run.json, or raises ConfigError where another run's stands there."""
    out.mkdir(parents=True, exist_ok=True)
    path, settings = out / "run.json", json.loads(json.dumps(settings))
    if path.exists() and (out / "predictions.jsonl").exists():
        before = _settings_of(path)
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise ConfigError(
                f"--out: {out} holds predictions with {name} = {before.get(name)!r}, not "
                f"{settings[name]!r}; use another folder"
            )
    atomic.write_text(path, json.dumps(settings, indent=1) + "\n")


def _settings_of(path: epath.Path) -> dict:
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"--out: {path}, which says whose the predictions beside it are, is damaged; delete its "
            "folder or use another one"
        )
    return settings


def begin(out: epath.Path, settings: dict):
    """`check_settings`, but what another run left there is put away; it costs little to make again."""
    path, before = out / "predictions.jsonl", out / "run.json"
    if path.exists() and (not before.exists() or _settings_of(before) != json.loads(json.dumps(settings))):
        print(f"dreamjax.evaluate: {path} is of another model or other data, and is begun anew", file=sys.stderr)
        path.unlink()
    check_settings(out, settings)


def resume(path: epath.Path, **fields: type) -> list[dict]:
    """The rows of a file of predictions that was being written; half a line at its end is cut off. None where there is
    no file.

    Each row has the named `fields`, of these types; raises SourceError where one has not: the file is read as what
    anybody wrote.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        atomic.write_bytes(path, whole)
    rows = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line:
            rows.append(_row_of(line, f"{path}: line {number}", fields))
    return rows


def _row_of(line: bytes, where: str, fields: dict[str, type]) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise SourceError(f"{where} is not JSON; delete the file or use another folder") from None
    wrong = next(
        (name for name, kind in fields.items() if not isinstance(row, dict) or type(row.get(name)) is not kind), None
    )
    if wrong:
        raise SourceError(f"{where} is no prediction of a run: has no {wrong}; delete the file or use another folder")
    return row


def document_of(record: dict, folder: epath.Path, where: str) -> Document:
    """The document that a row holds, with its pictures in the row or in `folder`. Raises SourceError."""
    try:
        return Document.from_json(record, folder)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{where}: holds a document that cannot be read: {error}; delete the file or use another folder"
        ) from None


def append(path: epath.Path, rows: Sequence[dict]):
    """Adds rows and forces them to the disk."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        if "://" not in os.fspath(path):
            os.fsync(file.fileno())


def batched(values: Sequence, size: int) -> Iterator[Sequence]:
    """Slices of `size`, the last one shorter."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
