"""Chat templates.

What stands between the turns of a conversation, and a document as a stream of words, pictures and marks.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator

from dreamjax.document import Document, Image, Text
from dreamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Template:
    """The strings that join turns.

    A space at the end of one belongs to the words that it leads to, as in `ASSISTANT: A cat`.
    """

    system: str = ""  # words that open a chat without a system turn of its own
    before_system: str = ""
    system_to_user: str = ""
    before_user: str = ""  # at the beginning, and after an assistant's turn
    user_to_assistant: str = ""
    end: str = ""  # between the assistant's words and </s>
    restart: bool = False  # every turn of the user after the first begins with <s>

    def join(self, before: str | None, after: str) -> str:
        """What stands between a turn of the role `before` (None: nothing) and one of the role `after`."""
        match before, after:
            case None, "system":
                return self.before_system
            case "system", "user":
                return self.system_to_user
            case _, "user":
                return self.before_user
            case None, "assistant":
                return self.user_to_assistant.lstrip()
            case _, "assistant":
                return self.user_to_assistant
        return ""


TEMPLATES = {
    "plain": Template(),
    # fastchat's conv_vicuna_v1_1, on which the official models are trained
    "vicuna_v1.1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system_to_user=" USER: ",
        before_user="USER: ",
        user_to_assistant=" ASSISTANT: ",
    ),
    # the format of LLaMA-2-Chat, which has no system words unless a chat brings its own
    "llama2": Template(
        before_system="[INST] <<SYS>>\n",
        system_to_user="\n<</SYS>>\n\n",
        before_user="[INST] ",
        user_to_assistant=" [/INST] ",
        end=" ",
        restart=True,
    ),
}


class Mark(enum.Enum):
    """What a stream holds besides words and pictures."""

    END = "</s>"
    UNSUPERVISED_END = "</s>, not to be learned"
    START = "<s>"


def stream(document: Document, template: str, prompt: bool = False) -> Iterator[Text | tuple[Image, int] | Mark]:
    """Texts, (picture, number of its part) and marks, in reading order, with the template's words put in where turns
    begin.

    Texts that follow each other are one text. A text keeps its role; it is learned where it is marked so and no user or
    system says it. `prompt` leaves the end open: the assistant's last turn may go on, and after a user's turn stands
    what leads to the assistant's words. Raises ConfigError for an unknown template.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template: {template!r} is unknown; there are {', '.join(TEMPLATES)}")
    numbered = [(number, part) for number, part in enumerate(document.parts)]
    if not any(part.role for part in document.parts):
        yield from _content(numbered)
        return
    words = TEMPLATES[template]
    turns = [(role, list(parts)) for role, parts in itertools.groupby(numbered, key=lambda item: item[1].role)]
    if words.system and all(role != "system" for role, _ in turns):
        turns.insert(0, ("system", [(-1, Text(words.system, role="system"))]))
    before, adjoins = None, False  # the role of the turn before, and whether the stream ends in words
    for place, (role, parts) in enumerate(turns):
        content = list(_content(parts))
        if words.restart and role == "user" and before == "assistant":
            yield Mark.START
        yield from _lead(words.join(before, role) if role else "", role, content, adjoins)
        yield from content
        adjoins = bool(content) and isinstance(content[-1], Text)
        open_end = prompt and place + 1 == len(turns)
        if role == "assistant" and not open_end:
            supervised = any(text.supervised for text in content if isinstance(text, Text)) or not any(
                isinstance(item, Text) for item in content
            )
            if words.end:
                yield Text(words.end, supervised, role)
            yield Mark.END if supervised else Mark.UNSUPERVISED_END
            adjoins = False
        before = role
    if prompt and before == "user" and (lead := words.user_to_assistant.rstrip()):
        yield Text(lead, False, "assistant")


def _content(parts: list[tuple[int, Text | Image]]) -> Iterator[Text | tuple[Image, int]]:
    for number, part in parts:
        if isinstance(part, Image):
            yield part, number
        elif part.text:
            yield dataclasses.replace(part, supervised=part.supervised and part.role in (None, "assistant"))


def _lead(joint: str, role: str | None, content: list, adjoins: bool) -> Iterator[Text]:
    """The words before a turn. Its last space is learned with the words or the picture that follow."""
    if not joint and adjoins and content and isinstance(content[0], Text):
        joint = " "  # nothing else keeps the words of two turns apart
    bare = joint.rstrip()
    if bare:
        yield Text(bare, False, role)
    if space := joint[len(bare) :]:
        supervised = content[0].supervised if content and isinstance(content[0], Text) else role == "assistant"
        yield Text(space, supervised, role)
