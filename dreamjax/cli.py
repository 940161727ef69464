"""What the commands share: flags that end in one clear line when they are wrong, and errors that do the same."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from dreamjax.data.sources import SourceError
from dreamjax.images import BadImage
from dreamjax.schema import ConfigError, RunStopped


def run(name: str, main: Callable[[], int | None]):
    """Parses the flags and runs `main`; what a user can mend ends with one line on stderr and status 2."""

    logging.set_verbosity(logging.WARNING)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
                flags.FLAGS["config"].value.lock()  # a file that did not load says so only when it is touched
        except SystemExit:  # --help, which absl ends with status 1
            sys.exit(0)
        except KeyError as error:  # an override of what the config lacks
            _stop(name, f"--config has no key {error.args[0] if error.args else error}")
        except flags.Error as error:
            _stop(name, error)
        except (AttributeError, OSError, SyntaxError, TypeError, ValueError, ImportError) as error:  # raised by config files
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
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
