"""Shared by the commands: wrong flags and user errors end with one clear line and status 2."""

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from dreamjax.config import RunConfig
from dreamjax.config.aliases import current_path
from dreamjax.config.arguments import experiment_file
from dreamjax.errors import ConfigError, UserError, printable

VERIFY = flags.DEFINE_bool(
    "verify_checksums",
    True,
    "Compare each array of a model that is read with its checksum; --noverify_checksums saves the time for a huge one.",
)
MENDABLE = (UserError, OSError)  # errors that a user can mend; others are bugs

NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
)  # a full disk, a quota, a limit, a disk that has failed


def patience_for_fake_devices() -> None:
    """Lets several CPU devices (--xla_force_host_platform_device_count) wait for each other on a machine of few cores.

    To be called before the first array. XLA's thread pool is as large as NPROC says, else as the machine has cores, and
    collectives that wait on each other can deadlock a small one; and it waits only 40 seconds for a late device.
    """
    set_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in set_flags:
        os.environ.setdefault("NPROC", "32")
        if "collective_call_terminate_timeout" not in set_flags:
            os.environ["XLA_FLAGS"] = f"{set_flags} --xla_cpu_collective_call_terminate_timeout_seconds=600"


def run(name: str, main: Callable[[], int | None]) -> None:
    """Parses the flags and runs `main`; an error that a user can mend ends with one line on stderr and status 2."""
    logging.set_verbosity(logging.WARNING)
    patience_for_fake_devices()

    def parse(argv: list[str]) -> list[str]:
        try:
            sys.argv = with_current_names(with_experiment_files(argv))  # where ml_collections looks for overrides
            rest = flags.FLAGS(sys.argv)
            if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
                flags.FLAGS["config"].value.lock()  # raises here if the file did not load
        except SystemExit:  # --help, which absl ends with status 1
            sys.exit(0)
        except flags.Error as error:
            _stop(name, f"--config: {_raised(error)}" if "Error whilst parsing config file" in str(error) else error)
        except Exception as error:  # of any type: raised by the config file, a program of the user, or by an override
            _stop(name, f"--config: {_reason(error)}")
        if len(rest) > 1:
            _stop(name, f"{rest[1]!r} is not a flag; see --help")
        return rest

    def guarded(_: list[str]) -> None:
        # A full disk is reported once, at the end.
        logging.get_absl_handler().addFilter(lambda record: no_room(record.exc_info and record.exc_info[1]) is None)
        try:
            sys.exit(main())
        except Exception as error:
            full = no_room(error)
            if full is None and not isinstance(error, MENDABLE):
                raise
            if full is not None and not isinstance(error, OSError):
                # From threads of Orbax, which would each print a traceback at exit.
                _print(name, full)
                sys.stdout.flush()
                os._exit(2)
            _stop(name, full or error)

    app.run(guarded, flags_parser=parse)


def with_experiment_files(argv: list[str]) -> list[str]:
    """Arguments in which `--config=NAME[:ARGUMENT]` names the experiment's file, wherever the package is installed."""
    files = []
    for previous, argument in zip(["", *argv], argv, strict=False):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            argument = f"{flag}={experiment_file(value)}"
        elif previous in ("--config", "-config"):
            argument = experiment_file(argument)
        files.append(argument)
    return files


def with_current_names(argv: list[str]) -> list[str]:
    """Arguments in which `--config.a.b=c` names settings as they are called today."""
    prefix = "--config."
    renamed = []
    for argument in argv:
        path, equals, value = argument.removeprefix(prefix).partition("=")
        known = argument.startswith(prefix)
        renamed.append(f"{prefix}{current_path(RunConfig, path)}{equals}{value}" if known else argument)
    return renamed


def _reason(error: Exception) -> str:
    """The reason in an error of ml_collections, which nests errors and has a file's failure on the last line."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    message = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, KeyError):
        return f"has no key {message}"
    return message.strip().splitlines()[-1] if "earlier failure to load" in message else message


def _raised(error: BaseException) -> str:
    """The first error of a config file, out of those of ml_collections and absl that wrap it with its trace."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def no_room(error: BaseException | None) -> str | None:
    """The line for a full disk, where an error or one of its causes is about that; else None.

    Libraries that write in threads, as Orbax and tensorstore do, raise it as a ValueError that quotes the system's
    message.
    """
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        if isinstance(error, OSError):
            number, path = error.errno, error.filename
        else:
            number = next((number for number in NO_ROOM if os.strerror(number) in str(error)), None)
            path = next(iter(re.findall(r'"(/[^"]*)"', str(error))), None)
        if number in NO_ROOM:
            place = f"{path}: " if path else ""
            return (
                f"{place}{os.strerror(number)}; complete files stay complete, and when there is room the same "
                "command goes on from there"
            )
        error = error.__cause__ or error.__context__
    return None


def _stop(name: str, error: Exception | str) -> NoReturn:
    _print(name, error)
    sys.exit(2)


def _print(name: str, error: Exception | str) -> None:
    print(f"{name}: {printable(str(error))}", file=sys.stderr, flush=True)
