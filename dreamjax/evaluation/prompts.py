"""How questions are put to a model, as data: for each task a profile `clean` and, where DreamLLM's own evaluation has
one, `official`.

`official` follows the strings of the official code (omni/eval and scripts/eval of RunpeiDong/DreamLLM), so that
published figures can be approached: the words around the picture, what the answer is made to begin with, how it is
clipped. There nothing stands between a question and the words after it. Its runs ask for beams and a temperature at
once; a beam search here draws no lots, so its temperature is left out.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dreamjax.document import Document, Image, Text
from dreamjax.document.templates import TEMPLATES
from dreamjax.errors import ConfigError
from dreamjax.evaluation.questions import Question

T = TypeVar("T")

# ----------------------------------------------------------------------------------------------------------------------
# From the model's words to the prediction


def strip(text: str) -> str:
    return text.strip()


def capitalise(text: str) -> str:
    """With a capital first letter, and all others small."""
    return text.strip().capitalize()


def clip(text: str) -> str:
    """Up to the first comma, without full stops and double quotes, in lower case."""
    return text.replace(".", "").replace('"', "").split(",")[0].strip().lower()


def first_line(text: str) -> str:
    """The first line, without a full stop at its end."""
    return text.strip().split("\n")[0].strip().removesuffix(".")


def has_no(text: str) -> bool:
    """Whether "no" is anywhere in an answer, in words such as "know" too."""
    return "no" in text.lower()


def begins_with_no(text: str) -> bool:
    return text.lower().startswith("no")


def letter(text: str) -> str:
    """The capital letter that an answer begins with, else all of it."""
    found = re.match(r"\W*([A-Z])\b", text)
    return found[1] if found else text.strip()


# ----------------------------------------------------------------------------------------------------------------------
# Profiles


@dataclasses.dataclass(frozen=True)
class Profile:
    """One way to ask. In `ask`, {question}, {hint} and {choices} stand for a question's words."""

    ask: str
    before: str = ""  # the user's words before the picture
    opening: str = ""  # what the conversation begins with, in place of the template's words
    prefix: str = ""  # what the answer is made to begin with
    choice: str = "{letter}. {words}"  # one of {choices}
    between: str = "\n"  # between two choices
    no_hint: str = ""  # in place of {hint} where a question has none
    tidy: Callable[[str], str] = strip
    template: str | None = None  # None: the model's own
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of sampling.options.Options
    first: "Profile | None" = None  # asked first, whether the question can be answered
    says_no: Callable[[str], bool] = has_no  # whether what is said to that is a no
    if_no: "Profile | str" = ""  # then: the prediction, or how to ask instead

    def prompt(
        self, question: Question, images: Sequence[Image], examples: Sequence[tuple[Question, Sequence[Image]]] = ()
    ) -> Document:
        """The question as a Document, after examples with their answers; its last turn is left open for the model."""
        parts: list = [Text(self.opening, role="system")] if self.opening else []
        for example, shown in examples:
            parts += [*self._turn(example, shown), Text(f"{self.prefix} {example.answer}".strip(), role="assistant")]
        parts += self._turn(question, images)
        return Document((*parts, Text(self.prefix, role="assistant")) if self.prefix else tuple(parts), question.id)

    def _turn(self, question: Question, images: Sequence[Image]) -> list:
        choices = (
            self.choice.format(letter=chr(ord("A") + i), words=words) for i, words in enumerate(question.choices)
        )
        words = self.ask.format(
            question=question.text, hint=question.hint or self.no_hint, choices=self.between.join(choices)
        )
        words = "\n".join(
            line.strip() for line in words.split("\n") if line.strip()
        )  # of a question without a hint its line is left out
        before = [Text(self.before, role="user")] if self.before else []
        return [*before, *images, *([Text(words, role="user")] if words else [])]


# A space before the opening, which training has not.
_OPENING = " " + TEMPLATES["vicuna_v1.1"].system
_BEAMS = {"beams": 5, "max_tokens": 1024}
_KNOWN = "Is the answer can be known?"


def _official(ask: str, **fields) -> Profile:
    return Profile(ask, **{"opening": _OPENING, "template": "vicuna_v1.1", "decoding": _BEAMS, **fields})


_VQA = "Based on the image, please answer the question."
_WORD = "{question}Please provide an accurate answer within one word."
_EXAM = "This is an exam, please answer according to the image, hint and question."
_BRIEF = "The short answer '(one word)' is:"
_DETAILED = "Please provide an accurate and detailed answer."
_HINTED = "Hint:{hint}Question:{question}"

OFFICIAL: dict[str, Profile] = {
    "coco": _official(
        "Please summarize object in one sentence within 10 words.",
        before="Based on the image, give the image caption briefly.",
        prefix="The image depicts",
        tidy=capitalise,
    ),
    "image2paragraph": _official(
        "Please describe the image in detail.",
        before="Based on the image, please describe the image in detail.",
        prefix="The image depicts",
        tidy=capitalise,
    ),
    "nocaps": _official("Please summarize object briefly in one sentence within 5 words.", tidy=capitalise),
    "vqav2": _official(_WORD, before=_VQA, prefix=_BRIEF, tidy=clip),
    "okvqa": _official(
        "{question}Please provide an accurate and brief answer within one word.", prefix=_BRIEF, tidy=clip
    ),
    "textvqa": _official(_WORD, before=_VQA, prefix="The answer is:", tidy=clip),
    "vizwiz": _official(
        _WORD,
        before=_VQA,
        prefix="The answer is:",
        tidy=clip,
        first=_official(f"{{question}}{_KNOWN}"),
        if_no="unanswerable",
    ),
    # A question without a hint has pandas' "nan" there, and every choice is numbered 0.
    "mmbench": _official(
        f"{_HINTED}{_DETAILED}",
        before=_EXAM,
        no_hint="nan",
        first=_official(f"{_HINTED}{_KNOWN}", no_hint="nan"),
        says_no=begins_with_no,
        if_no=_official(
            f"{_HINTED}Options: {{choices}} {_DETAILED}",
            before=_EXAM,
            no_hint="nan",
            choice="(0). {words}",
            between=" ",
        ),
    ),
    "mmvet": _official(
        "{question}Please provide an accurate, detailed and comprehensive answer.",
        before="This is an exam, please answer according to the image and question.",
    ),
    "pope": _official(
        "{question}",
        before="Based on the image, please objectively and accurately indicate whether the object exists.",
        prefix="The answer is:",
        decoding={"temperature": 0.2, "max_tokens": 1024},
    ),
}

_SHORT = {"max_tokens": 16}
_CHOOSE = Profile(
    "{hint}\n{question}\n{choices}\nAnswer with the letter of the right choice.",
    tidy=letter,
    decoding={"max_tokens": 8},
)
_ONE_WORD = Profile("{question}\nAnswer in one word or a short phrase.", tidy=first_line, decoding=_SHORT)
_CAPTION = Profile("Describe the picture in one sentence.", tidy=first_line, decoding={"max_tokens": 64})
_YES_NO = Profile("{question}\nAnswer yes or no.", decoding={"max_tokens": 8})

CLEAN: dict[str, Profile] = {
    "coco": _CAPTION,
    "nocaps": _CAPTION,
    "image2paragraph": Profile("Describe the picture in a paragraph.", decoding={"max_tokens": 256}),
    "vqav2": _ONE_WORD,
    "okvqa": _ONE_WORD,
    "textvqa": _ONE_WORD,
    "vizwiz": dataclasses.replace(
        _ONE_WORD,
        ask="{question}\nAnswer in one word or a short phrase, or unanswerable where the picture does not tell.",
    ),
    "gqa": _ONE_WORD,
    "mme": Profile("{question}", decoding={"max_tokens": 8}),  # the benchmark's questions say how to answer
    "pope": _YES_NO,
    "mmbench": _CHOOSE,
    "scienceqa": _CHOOSE,
    "mmvet": Profile("{question}", decoding={"max_tokens": 512}),
}

PROFILES = {"clean": CLEAN, "official": OFFICIAL}


def profile_of(name: str, task: str) -> Profile:
    """The profile of a task; raises ConfigError, naming what there is."""
    return of_profile(PROFILES, name, task)


def of_profile(profiles: Mapping[str, Mapping[str, T]], name: str, task: str) -> T:
    """What a profile has for a task; raises ConfigError, naming what there is."""
    if name not in profiles:
        raise ConfigError(f"--profile: {name!r} is unknown; there are {', '.join(profiles)}")
    if task not in profiles[name]:
        raise ConfigError(f"--profile: {task} has no profile {name!r}, which there is for {', '.join(profiles[name])}")
    return profiles[name][task]
