"""What the commands share: flags that end in one clear line when they are wrong, and errors that do the same."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from dreamjax.config import ConfigError, RunStopped
from dreamjax.data.sources import SourceError
from dreamjax.images import BadImage


def run(name: str, main: Callable[[], int | None]):
    """Parses the flags and runs `main`; what a user can mend ends with one line on stderr and status 2."""

    logging.set_verbosity(logging.WARNING)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _stop(name, error)
        except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, ImportError) as error:  # raised by config files
            _stop(name, error)
        if len(rest) > 1:
            _stop(name, f"{rest[1]!r} is not a flag; see --help")
        return rest

    def guarded(_):
        try:
            sys.exit(main())
        except (ConfigError, RunStopped, SourceError, BadImage) as error:
            _stop(name, error)

    app.run(guarded, flags_parser=parse)


def _stop(name: str, error: Exception | str):
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"{name}: {' '.join(str(text).split())}", file=sys.stderr)
    sys.exit(2)
