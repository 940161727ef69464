"""Runs a model on a benchmark: questions to prompts, prompts in batches to predictions, each stored at once.

    out/TASK/run.json             model, task and options; another model or profile needs another folder
    out/TASK/predictions.jsonl    a row a question: question_id, prompt, text (as it is scored), raw, category

An interrupted run goes on after its last complete row. A prediction depends on its question, the options and the size
of the batch, never on the questions beside it, so the end is the same.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image
from dreamjax.errors import ConfigError, SourceError
from dreamjax.evaluation.prompts import PromptTemplate
from dreamjax.evaluation.question import Question
from dreamjax.evaluation.run_files import append_rows, batched, check_settings, read_rows
from dreamjax.progress import bar
from dreamjax.sampling.prompts import prompt_tokens

ANSWER_ROOM = 32  # positions that examples leave for the answer, or all of a short one's


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Questions, their images by name, the template around them, and the examples before each, the nearest last."""

    questions: Sequence[Question]
    images: Mapping[str | bytes, Image]
    template: PromptTemplate
    examples: Callable[[Question], Sequence[Question]] = lambda question: ()

    def prompt(self, question: Question, template: PromptTemplate, examples: Sequence[Question] = ()) -> Document:
        def images_of(question: Question) -> list[Image]:
            return [self.images[name] for name in question.images]

        return template.document(question, images_of(question), [(shot, images_of(shot)) for shot in examples])


def predict(
    model: DreamLLM, job: Job, out: epath.Path, settings: dict, batch_size: int = 16, desc: str = ""
) -> tuple[epath.Path, int]:
    """Answers every question that has no row yet; (file of predictions, examples that the context did not hold).

    `settings` identify the predictions: a folder with those of other settings raises ConfigError.
    """
    path = out / "predictions.jsonl"
    check_settings(out, settings)
    done = {tuple(map(str, row["key"])) for row in read_rows(path, key=list, text=str, raw=str)}
    seeds = {question.key: number for number, question in enumerate(job.questions)}
    if len(seeds) < len(job.questions):
        raise SourceError("the same question with the same id stands in the data twice")
    waiting = [question for question in job.questions if question.key not in done]
    dropped = 0
    with bar(len(job.questions), "question", desc, len(job.questions) - len(waiting)) as progress:
        for batch in batched(waiting, batch_size):
            examples = []
            for question in batch:
                fitting, left_out = _fitting_examples(model, job, question)
                examples.append(fitting)
                dropped += left_out
            answers = _answer(model, job, batch, examples, [seeds[question.key] for question in batch], batch_size)
            append_rows(path, [_row(question, *answer) for question, answer in zip(batch, answers, strict=True)])
            progress.update(len(batch))
    return path, dropped


def _answer(
    model: DreamLLM,
    job: Job,
    batch: Sequence[Question],
    examples: Sequence[Sequence[Question]],
    seeds: Sequence[int],
    batch_size: int,
) -> list[tuple[str, str]]:
    """(prediction, the model's own text) for each question, after the check of the template, if it has one."""
    templates = [job.template] * len(batch)
    answers: dict[int, tuple[str, str]] = {}
    check = job.template.answerable
    if check:
        texts = _generate(model, check.prompt, [job.prompt(q, check.prompt) for q in batch], seeds, batch_size)
        for i, text in enumerate(texts):
            if not check.is_refusal(text):
                continue
            if isinstance(check.otherwise, PromptTemplate):
                templates[i] = check.otherwise
            else:
                answers[i] = (check.otherwise, text)
    for template in {id(template): template for template in templates}.values():
        numbers = [i for i in range(len(batch)) if templates[i] is template and i not in answers]
        if numbers:
            prompts = [job.prompt(batch[i], template, examples[i]) for i in numbers]
            texts = _generate(model, template, prompts, [seeds[i] for i in numbers], batch_size)
            answers |= {i: (template.postprocess(text), text) for i, text in zip(numbers, texts, strict=True)}
    return [answers[i] for i in range(len(batch))]


def _generate(
    model: DreamLLM, template: PromptTemplate, prompts: Sequence[Document], seeds: Sequence[int], batch_size: int
) -> list[str]:
    options = {"template": template.chat_template or model.template, **template.decoding}
    documents = model.generate_batch(prompts, seeds, batch_size=batch_size, max_images=0, **options)
    return [document.text for document in documents]


def _fitting_examples(model: DreamLLM, job: Job, question: Question) -> tuple[list[Question], int]:
    """The last examples that fit the context with the question, and how many were left out."""
    examples, context = list(job.examples(question)), model.model.llm.config.max_positions
    room = min(ANSWER_ROOM, model.options(dict(job.template.decoding)).max_tokens)
    chat_template = job.template.chat_template or model.template
    for left_out in range(len(examples) + 1):
        fitting = examples[left_out:]
        prompt = job.prompt(question, job.template, fitting)
        length = prompt_tokens(model.model, model.tokenizer, prompt, chat_template)
        if length + room <= context:
            return fitting, left_out
    if length < context:  # a question alone may have less room for its answer
        return fitting, left_out
    raise ConfigError(
        f"question {question.id}: its prompt takes {length} tokens, which leaves nothing of the model's context of "
        f"{context}"
    )


def _row(question: Question, text: str, raw: str) -> dict:
    row = {"question_id": question.id, "prompt": question.text, "text": text}
    if question.category:
        row["category"] = question.category
    return row | {"raw": raw, "key": list(question.key)}
