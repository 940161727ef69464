"""Chat templates: a document as turns, each with the words and control tokens that a template puts around it."""

import dataclasses
import enum
import itertools
from collections.abc import Iterable

from dreamjax.document import Document, Image, Part, Text
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
        """The words between a turn of the role `before` (None: nothing) and one of the role `after`."""
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
    """A control token of a turn."""

    END = "</s>"
    UNSUPERVISED_END = "</s> outside the loss"
    START = "<s>"


Item = Text | tuple[Image, int] | Mark  # an image with the number of its part


@dataclasses.dataclass(frozen=True)
class Turn:
    """The parts of one role that follow each other, and what a template puts around them; `role` is None outside
    conversations.
    """

    role: str | None
    content: tuple[Text | tuple[Image, int], ...] = ()
    prefix: tuple[Text | Mark, ...] = ()
    suffix: tuple[Text | Mark, ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """Prefix, content and suffix, in reading order."""
        return (*self.prefix, *self.content, *self.suffix)

    @property
    def ends_in_text(self) -> bool:
        """Its last words run on in the next turn, with no </s> in between."""
        return bool(self.content) and isinstance(self.content[-1], Text) and not self.suffix


def turns(document: Document, template: str) -> list[Turn]:
    """The turns of a document with the template's words around them; one turn where no part has a role.

    A text keeps its role; it is supervised where it is marked so and no user or system says it. Raises ConfigError for
    an unknown template.
    """
    rules = find_template(template)
    numbered = list(enumerate(document.parts))
    if not any(part.role for part in document.parts):
        return [Turn(None, _content(numbered))]
    by_role = itertools.groupby(numbered, key=lambda item: item[1].role)
    contents = [(role, _content(parts)) for role, parts in by_role]
    if rules.system and all(role != "system" for role, _ in contents):
        contents.insert(0, ("system", (Text(rules.system, supervised=False, role="system"),)))
    framed: list[Turn] = []
    for role, content in contents:
        before = framed[-1] if framed else None
        framed.append(Turn(role, content, _prefix(rules, before, role, content), _suffix(rules, role, content)))
    return framed


def open_turns(document: Document, template: str) -> list[Turn]:
    """The turns of a prompt: the assistant's last turn may go on, and after a user's stands what leads to the
    assistant's words.
    """
    closed = turns(document, template)
    if not closed or closed[-1].role not in ("user", "assistant"):
        return closed
    if closed[-1].role == "assistant":
        return [*closed[:-1], dataclasses.replace(closed[-1], suffix=())]
    lead = find_template(template).user_to_assistant.rstrip()
    return [*closed, Turn("assistant", prefix=(Text(lead, False, "assistant"),))] if lead else closed


def find_template(name: str) -> Template:
    """The template of that name; raises ConfigError."""
    if name not in TEMPLATES:
        raise ConfigError(f"template: {name!r} is unknown; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _content(parts: Iterable[tuple[int, Part]]) -> tuple[Text | tuple[Image, int], ...]:
    """Texts that are not empty and (image, number of its part); those of a user or the system are outside the loss."""
    content: list[Text | tuple[Image, int]] = []
    for number, part in parts:
        if isinstance(part, Image):
            content.append((part, number))
        elif part.text:
            supervised = part.supervised and part.role in (None, "assistant")
            content.append(dataclasses.replace(part, supervised=supervised))
    return tuple(content)


def _prefix(rules: Template, before: Turn | None, role: str | None, content: tuple) -> tuple[Text | Mark, ...]:
    """The words before a turn. Their last space is in the loss where the words or the image that follow are."""
    first = content[0] if content and isinstance(content[0], Text) else None
    joint = rules.join(before.role if before else None, role) if role else ""
    if not joint and before and before.ends_in_text and first:
        joint = " "  # nothing else keeps the words of two turns apart
    prefix: list[Text | Mark] = []
    if rules.restart and role == "user" and before and before.role == "assistant":
        prefix.append(Mark.START)
    if words := joint.rstrip():
        prefix.append(Text(words, False, role))
    if space := joint[len(words) :]:
        prefix.append(Text(space, first.supervised if first else role == "assistant", role))
    return tuple(prefix)


def _suffix(rules: Template, role: str | None, content: tuple) -> tuple[Text | Mark, ...]:
    """The end of an assistant's turn, in the loss unless the turn has words and none of them is."""
    if role != "assistant":
        return ()
    texts = [item for item in content if isinstance(item, Text)]
    supervised = not texts or any(text.supervised for text in texts)
    words = (Text(rules.end, supervised, role),) if rules.end else ()
    return (*words, Mark.END if supervised else Mark.UNSUPERVISED_END)
