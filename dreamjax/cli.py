"""What the commands share: flags that end in one clear line when they are wrong, and errors that do the same."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from dreamjax.data.sources import SourceError
from dreamjax.images import BadImage
from dreamjax.schema import ConfigError, RunStopped, printable


MENDABLE = (ConfigError, RunStopped, SourceError, BadImage, OSError)  # what a user can mend; the rest are faults of the program


def patience_for_fake_devices():
    """Lets several CPU devices (--xla_force_host_platform_device_count) wait for each other on a machine of few cores.

    To be called before the first array. XLA's thread pool is as large as NPROC says, else as the machine has cores, and
    collectives that wait on each other can fill a small one for ever; and it gives a late device only 40 seconds.
    """
    set_flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in set_flags:
        os.environ.setdefault("NPROC", "32")
        if "collective_call_terminate_timeout" not in set_flags:
            os.environ["XLA_FLAGS"] = f"{set_flags} --xla_cpu_collective_call_terminate_timeout_seconds=600"


def run(name: str, main: Callable[[], int | None]):
    """Parses the flags and runs `main`; what a user can mend ends with one line on stderr and status 2."""

    logging.set_verbosity(logging.WARNING)
    patience_for_fake_devices()

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
                flags.FLAGS["config"].value.lock()  # a file that did not load says so only when it is touched
        except SystemExit:  # --help, which absl ends with status 1
            sys.exit(0)
        except flags.Error as error:
            _stop(name, f"--config: {_raised(error)}" if "Error whilst parsing config file" in str(error) else error)
        except Exception as error:  # raised by a config file, which is the user's program, or by an override that fits it not
            _stop(name, f"--config: {_reason(error)}")
        if len(rest) > 1:
            _stop(name, f"{rest[1]!r} is not a flag; see --help")
        return rest

    def guarded(_):
        try:
            sys.exit(main())
        except MENDABLE as error:
            _stop(name, error)

    app.run(guarded, flags_parser=parse)


def _reason(error: Exception) -> str:
    """The gist of what ml_collections raises: it wraps errors in each other and tells of a file's failure on the last line."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    message = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, KeyError):
        return f"has no key {message}"
    return message.strip().splitlines()[-1] if "earlier failure to load" in message else message


def _raised(error: BaseException) -> str:
    """What a config file raised first: ml_collections and absl wrap it, with its whole trace in their words."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def _stop(name: str, error: Exception | str):
    print(f"{name}: {printable(str(error))}", file=sys.stderr)
    sys.exit(2)
