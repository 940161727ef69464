"""Every error that is raised on purpose, and how messages become one line.

A UserError is what a user can mend: commands print its one line (what, where, what to do) and end with status 2.
"""

LINE = 2000  # characters of a message
GIST = 200  # of a library's words within one
DETAIL = 300  # characters kept of what is wrong with a record: it may quote a whole file


class UserError(Exception):
    """What a user can mend; the message is one line that says what is wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be right; the message begins with its key."""


class RunStopped(UserError, RuntimeError):
    """A run that cannot go on; the message says why and, in training, at which step."""


class SourceError(UserError, ValueError):
    """A source that cannot be read as a whole: what, where, and what to do, in one line."""


class BadImage(UserError, ValueError):
    """A picture that cannot be used.

    The message is one line: which picture, and why. `reason` is a fixed phrase to count by.
    """

    def __init__(self, message: str, reason: str = "bad image"):
        super().__init__(message, reason)  # both as arguments, so that it travels between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class BadRecord(ValueError):
    """One record that cannot be used.

    `name` is the record's (file and place in it), `reason` a fixed phrase to count by, such as "bad JSON", and `detail`
    says more of this one. The message is one line of the three.
    """

    def __init__(self, name: str, reason: str, detail: str = ""):
        detail = " ".join(detail.split())[:DETAIL]
        super().__init__(name, reason, detail)  # as the arguments, so that it travels between processes
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.name, self.reason, self.detail) if part))


class OutsideFolder(ValueError):
    """A file name that leads out of the folder that it belongs to."""

    def __init__(self, name: str, why: str):
        super().__init__(name, why)  # both as arguments, so that it travels between processes

    def __str__(self) -> str:
        name, why = self.args
        return f"{name[:200]!r} is outside the folder: {why}"


class Unreadable(OSError):
    """A file that cannot be read, or not as it was; `reason` is a fixed phrase to count by."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.args = (message, reason)  # so that it travels between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def printable(text: str) -> str:
    """The text as one line for a terminal or a log.

    Other people's names may be endless, or hold line ends, escapes of terminals and half characters.
    """
    line = " ".join(text[: 2 * LINE].split())
    line = line if len(line) <= LINE else f"{line[:LINE]} ..."
    return (
        line
        if line.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    )


def gist(error: BaseException) -> str:
    """What a library's error says, as part of a message: in one line, not long; its type where it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= GIST else f"{words[:GIST]}..."
