"""A filter on a process's stderr in multi-host runs: one line instead of a stack where the runtime ends the process
because another host has died.

JAX's coordination service ends a process from a thread of its own, outside Python: by a fatal log message with a stack,
to which Python adds the stacks of its threads. `multihost.join` starts this file as a separate program, which needs
only the standard library: it copies stderr, and outlives the process.
"""

import os
import re
import select
import sys
import time

FIRST = re.compile(rb"[EF]\d{4} .*(coordination_service|Terminating process because the JAX distributed service)")
FATAL = re.compile(rb"F\d{4} .*Terminating process because the JAX distributed service")
PATIENCE = 5.0  # seconds for which lines that may begin the runtime's fatal message are withheld
# written last: child processes may keep stderr open, so that no end of file would come
END = b"E\0\n"
LOST = "lost another host"
ADVICE = "look at what the others say. The same command, on all of them, goes on from the last checkpoint"


class Relay:
    """The filter's state: `feed` takes bytes and a time in seconds, and returns the bytes to write."""

    def __init__(self, host_name: str):
        self.last_words = f"{host_name}: {LOST}, which died, fell silent or cannot be reached; {ADVICE}\n".encode()
        self.line = b""  # an incomplete line that may begin a log message
        self.withheld = b""  # lines from the first that may begin the runtime's fatal message
        self.since = 0.0  # when the first withheld line came
        self.reported = False  # True once the loss of a host is reported, by the process itself or here
        self.ended = False  # True once END has come

    def feed(self, data: bytes, seconds: float) -> bytes:
        output = b""
        if not (self.withheld or self.line):
            self.since = seconds
        elif seconds > self.since + PATIENCE:
            output, self.since = self.release(), seconds
        for piece in data.splitlines(keepends=True):
            self.line += piece
            if self.line[:1] in b"EF" and not self.line.endswith(b"\n"):
                continue
            output += self._show(self.line)
            self.line = b""
        return output

    def _show(self, line: bytes) -> bytes:
        if line.endswith(END):
            self.ended, line = True, line.removesuffix(END)
        if self.reported:
            return b""
        if LOST.encode() in line:  # the process reports it itself, and the runtime adds nothing
            self.reported, self.withheld = True, b""
            return line
        if FATAL.match(line):
            self.reported = True
            return self.last_words
        if self.withheld or FIRST.match(line):
            self.withheld += line
            return b""
        return line

    def release(self) -> bytes:
        """The withheld bytes, once they turn out not to be a fatal message."""
        output, self.line, self.withheld = (b"" if self.reported else self.withheld + self.line), b"", b""
        return output


def main() -> None:
    """Copies stdin to stderr until it ends or END comes; the argument is the host's name in messages."""
    relay = Relay(sys.argv[1])
    while True:
        ready, _, _ = select.select([0], [], [], PATIENCE)
        data = os.read(0, 65536) if ready else None
        output = relay.feed(data, time.monotonic()) if data else b""
        if not data or relay.ended:
            output += relay.release()
        while output:
            output = output[os.write(2, output) :]
        if data == b"" or relay.ended:
            return


if __name__ == "__main__":
    main()
