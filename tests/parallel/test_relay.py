"""What a process of several says passes through as it is.

What the runtime says when it ends the process becomes one line.
"""

import os
import subprocess
import sys

import pytest

from dreamjax.parallel import relay

ERROR = (
    b"E1130 08:36:57.780491   10566 coordination_service.cc:1549] [694] Use error polling to propagate "
    b"the following error to all tasks: UNAVAILABLE:\n"
    b"1\nThe tasks have crashed.\n"
)
FATAL = (
    b"F1130 08:36:57.781292   10577 client.h:80] Terminating process because the JAX distributed service "
    b"detected fatal errors. This most likely indicates\n"
    b"RPC: /xla.coordination.CoordinationService/PollForError\n*** Check failure stack trace: ***\n    @  "
    b"   0x7f93a5c40634  absl::lts\n"
    b"Fatal Python error: Aborted\n\nThread 0x00007f93ad89db80 (most recent call first):\n"
)
OURS = b"dreamjax.train: host 1 of 2: lost another host, or cannot reach it (Gloo)\n"
LINE = b"host 1 of 2: lost another host, which died, fell silent or cannot be reached; look at what the others say."


def passed(*chunks: bytes) -> bytes:
    through = relay.Relay("host 1 of 2")
    return b"".join(through.feed(chunk, 0.0) for chunk in chunks) + through.release()


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
@pytest.mark.parametrize(
    "before",
    [
        b"skipped a.tar:3\n",
        b"\rtraining: 10%\rtraining: 20%",
        b"F is for fox\nE1130 08:36:57.78 1 other.cc:3] as it is\n",
        b"",
    ],
)
def test_the_end_of_another_host_is_one_line(before, size):
    text = before + (b"" if before[-1:] in (b"", b"\n") else b"\n") + ERROR + FATAL
    out = passed(*(text[at : at + size] for at in range(0, len(text), size)))
    assert out.startswith(before) and out.count(LINE) == 1 and out.endswith(relay.ADVICE.encode() + b"\n")
    assert b"stack" not in out and b"Thread" not in out and b"UNAVAILABLE" not in out


def test_a_process_that_has_said_it_is_not_repeated():
    assert passed(OURS, FATAL) == passed(OURS, ERROR) == passed(ERROR, OURS) == passed(ERROR, OURS, ERROR) == OURS
    assert passed(FATAL, OURS).count(b"lost another host") == 1


@pytest.mark.parametrize(
    "text",
    [
        b"Fatal Python error: Segmentation fault\n\nThread 0x1\n",
        ERROR,
        b"E",
        b"F1130 unfinished",
        b"\xff\xfe\0\n",
        b"a\r\nb\rc\n\n",
        b"",
    ],
)
def test_all_else_stays(text):
    assert passed(text) == text == passed(*(bytes([byte]) for byte in text))


def test_what_comes_is_shown_at_once():
    through = relay.Relay("host 0 of 2")
    assert through.feed(b"\rtraining: 10%", 0.0) == b"\rtraining: 10%"
    assert through.feed(b"E1130 half of a mess", 0.0) == b"" and through.release() == b"E1130 half of a mess"


def test_what_goes_on_is_shown_again():
    """An error that was not the end holds nothing back for long, though a bar that moves leaves no silence behind
    it.
    """
    through = relay.Relay("host 0 of 2")
    shown = [through.feed(b"\rtraining: 10%" if second else ERROR, float(second)) for second in range(9)]
    assert not any(shown[:6]) and shown[6].startswith(ERROR) and b"".join(shown) == ERROR + b"\rtraining: 10%" * 8


def test_it_outlives_what_it_copies():
    command = [sys.executable, "-I", relay.__file__, "host 1 of 2"]
    copying = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(copying.stdin.fileno(), b"step 1\n" + FATAL)
    assert copying.communicate(timeout=60)[1].startswith(b"step 1\n" + LINE)


def test_it_ends_though_another_process_holds_stderr_open():
    copying = subprocess.Popen(
        [sys.executable, "-I", relay.__file__, "host 1 of 2"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.write(copying.stdin.fileno(), b"step 1\n" + ERROR + b"\rtraining: 10%" + relay.END)
    assert copying.stderr.read() == b"step 1\n" + ERROR + b"\rtraining: 10%" and copying.wait(60) == 0
    copying.stdin.close()
