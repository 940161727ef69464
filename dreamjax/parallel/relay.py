"""What stands between one process of several and its stderr: where the runtime ends it because another has died, one
line instead of a stack.

JAX's coordination service ends a process from a thread of its own, without asking Python: by a fatal log message with a
stack, to which Python adds the stacks of its threads. `hosts.join` starts this file as a program of its own, which
needs only the standard library: it copies all that the process says, and is still there when the process is not.
"""

import os
import re
import select
import sys
import time

FIRST = re.compile(rb"[EF]\d{4} .*(coordination_service|Terminating process because the JAX distributed service)")
FATAL = re.compile(rb"F\d{4} .*Terminating process because the JAX distributed service")
PATIENCE = 5.0  # seconds for which what may be the beginning of the end is held back, whatever else comes meanwhile
# said last: what the process has started may still hold its stderr open, so that no end of file would come
END = b"E\0\n"
LOST = "lost another host"
ADVICE = "look at what the others say. The same command, on all of them, goes on from the last checkpoint"


class Relay:
    """`feed` gives what is to be shown now, at a time in seconds, of the bytes that have come."""

    def __init__(self, who: str):
        self.last_words = f"{who}: {LOST}, which died, fell silent or cannot be reached; {ADVICE}\n".encode()
        self.line = b""  # what has come of a line whose beginning may be that of a log message
        self.held = b""  # lines from the first that may be the beginning of the end
        self.since = 0.0  # when the first of what is held back came
        self.over = False  # whether the process itself has said it, or the runtime
        self.ended = False  # whether END has come

    def feed(self, data: bytes, now: float) -> bytes:
        shown = b""
        if not (self.held or self.line):
            self.since = now
        elif now > self.since + PATIENCE:
            shown, self.since = self.release(), now
        for piece in data.splitlines(keepends=True):
            self.line += piece
            if self.line[:1] in b"EF" and not self.line.endswith(b"\n"):
                continue
            shown += self._show(self.line)
            self.line = b""
        return shown

    def _show(self, line: bytes) -> bytes:
        if line.endswith(END):
            self.ended, line = True, line.removesuffix(END)
        if self.over:
            return b""
        if LOST.encode() in line:  # the process says it itself, and what the runtime has to add is no more than that
            self.over, self.held = True, b""
            return line
        if FATAL.match(line):
            self.over = True
            return self.last_words
        if self.held or FIRST.match(line):
            self.held += line
            return b""
        return line

    def release(self) -> bytes:
        """What was held back and turned out not to be the end."""
        shown, self.line, self.held = (b"" if self.over else self.held + self.line), b"", b""
        return shown


def main():
    """Copies stdin to stderr until it ends or END comes; the argument says whose it is."""
    relay = Relay(sys.argv[1])
    while True:
        ready, _, _ = select.select([0], [], [], PATIENCE)
        data = os.read(0, 65536) if ready else None
        shown = relay.feed(data, time.monotonic()) if data else b""
        if not data or relay.ended:
            shown += relay.release()
        while shown:
            shown = shown[os.write(2, shown) :]
        if data == b"" or relay.ended:
            return


if __name__ == "__main__":
    main()
