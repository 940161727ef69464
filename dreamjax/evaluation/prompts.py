"""Prompt templates: the words around a question and its image, and how the model's text becomes a prediction.

Each benchmark has a template for the profile `clean` and, where DreamLLM's own evaluation has one, `official`. The
latter follow the strings of the official code (omni/eval and scripts/eval of RunpeiDong/DreamLLM), so that published
figures can be approached: nothing stands between a question and the words after it, as there. Its runs ask for beams
and a temperature at once; beam search here does not sample, so its temperature is left out.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES
from dreamjax.evaluation.question import Question

PROFILES = ("clean", "official")

# ----------------------------------------------------------------------------------------------------------------------
# From the model's text to a prediction


def strip(text: str) -> str:
    return text.strip()


def capitalise(text: str) -> str:
    """A capital first letter, and all others small."""
    return text.strip().capitalize()


def clip(text: str) -> str:
    """Up to the first comma, without full stops and double quotes, in lower case."""
    return text.replace(".", "").replace('"', "").split(",")[0].strip().lower()


def first_line(text: str) -> str:
    """The first line, without a full stop at its end."""
    return text.strip().split("\n")[0].strip().removesuffix(".")


def letter(text: str) -> str:
    """The capital letter that an answer begins with, else all of it."""
    match = re.match(r"\W*([A-Z])\b", text)
    return match[1] if match else text.strip()


def has_no(text: str) -> bool:
    """True for "no" anywhere in an answer, in words such as "know" too."""
    return "no" in text.lower()


def begins_with_no(text: str) -> bool:
    return text.lower().startswith("no")


# ----------------------------------------------------------------------------------------------------------------------
# Templates


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """The words around a question. In `ask`, {question}, {hint} and {choices} stand for the question's own."""

    ask: str
    before_image: str = ""  # the user's words before the image
    system: str = ""  # begins the conversation in place of the chat template's words
    answer_prefix: str = ""  # begins the answer
    choice: str = "{letter}. {words}"  # one of {choices}
    choice_separator: str = "\n"
    no_hint: str = ""  # in place of {hint} for a question without one
    postprocess: Callable[[str], str] = strip  # from the model's text to the prediction
    chat_template: str | None = None  # None: the model's own
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of sampling.options.Options
    answerable: "AnswerableCheck | None" = None

    def document(
        self, question: Question, images: Sequence[Image], examples: Sequence[tuple[Question, Sequence[Image]]] = ()
    ) -> Document:
        """The question as a Document, after examples with their answers; its last turn is left open for the model."""
        parts: list[Text | Image] = [Text(self.system, role="system")] if self.system else []
        for example, example_images in examples:
            parts += self._turn(example, example_images)
            parts.append(Text(f"{self.answer_prefix} {example.answer}".strip(), role="assistant"))
        parts += self._turn(question, images)
        if self.answer_prefix:
            parts.append(Text(self.answer_prefix, role="assistant"))
        return Document(tuple(parts), question.id)

    def _turn(self, question: Question, images: Sequence[Image]) -> list[Text | Image]:
        choices = (self.choice.format(letter=letter, words=words) for letter, words in question.choices)
        text = self.ask.format(
            question=question.text, hint=question.hint or self.no_hint, choices=self.choice_separator.join(choices)
        )
        # A question without a hint leaves no empty line.
        text = "\n".join(line.strip() for line in text.split("\n") if line.strip())
        before = [Text(self.before_image, role="user")] if self.before_image else []
        return [*before, *images, *([Text(text, role="user")] if text else [])]


@dataclasses.dataclass(frozen=True)
class AnswerableCheck:
    """A prompt that asks beforehand if the question can be answered."""

    prompt: PromptTemplate
    is_refusal: Callable[[str], bool]  # of the model's text
    otherwise: PromptTemplate | str  # after a refusal: the prompt to use instead, or the prediction itself


# ----------------------------------------------------------------------------------------------------------------------
# Templates and strings that several benchmarks share

_SYSTEM = " " + TEMPLATES["vicuna_v1.1"].system  # with a space before it, which training has not


def official(ask: str, **fields: Any) -> PromptTemplate:
    """A template of DreamLLM's own evaluation."""
    shared = {"system": _SYSTEM, "chat_template": "vicuna_v1.1", "decoding": {"beams": 5, "max_tokens": 1024}}
    return PromptTemplate(ask, **{**shared, **fields})


ANSWERABLE = "Is the answer can be known?"  # the official spelling
SHORT_ANSWER = PromptTemplate(
    "{question}\nAnswer in one word or a short phrase.", postprocess=first_line, decoding={"max_tokens": 16}
)
LETTER_OF_CHOICE = PromptTemplate(
    "{hint}\n{question}\n{choices}\nAnswer with the letter of the right choice.",
    postprocess=letter,
    decoding={"max_tokens": 8},
)
