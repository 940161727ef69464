"""All errors that are raised on purpose, and the formatting of messages as one line.

A user can mend a UserError: commands print its one line (problem, location, remedy) and end with status 2.
"""

LINE = 2000  # characters of a message
GIST = 200  # of a library's message quoted in one
DETAIL = 300  # characters of the detail about a record, which may quote a file


class UserError(Exception):
    """An error that a user can mend; the message is one line with problem, location and remedy."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be right; the message begins with its key."""


class RunStopped(UserError, RuntimeError):
    """A run that cannot go on; the message says why and, in training, at which step."""


class SourceError(UserError, ValueError):
    """A source that cannot be read at all; the message is one line with problem, location and remedy."""


class BadImage(UserError, ValueError):
    """An image that cannot be used; the message is one line with its name, `reason` a fixed phrase to count by."""

    def __init__(self, message: str, reason: str = "bad image"):
        super().__init__(message, reason)  # both as arguments, so that it travels between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class BadRecord(ValueError):
    """One record that cannot be used.

    `name` is the record's (file and place in it), `reason` a fixed phrase to count by, such as "bad JSON", `detail`
    the specific problem. The message is one line of the three.
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
    """A file that cannot be read, or that has changed; `reason` is a fixed phrase to count by."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.args = (message, reason)  # so that it travels between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def printable(text: str) -> str:
    """The text as one line for a terminal or a log.

    Foreign names may be very long, or contain line ends, terminal escapes and lone surrogates.
    """
    line = " ".join(text[: 2 * LINE].split())
    line = line if len(line) <= LINE else f"{line[:LINE]} ..."
    return (
        line
        if line.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    )


def gist(error: BaseException) -> str:
    """A library's error as part of a message: one short line; its type where it has no text."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= GIST else f"{words[:GIST]}..."
