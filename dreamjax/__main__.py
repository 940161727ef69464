"""The command `dreamjax COMMAND ...`, which is `python -m dreamjax.COMMAND ...`."""

import runpy
import sys

from dreamjax import __version__

COMMANDS = {
    "train": "train a model from an experiment file, or resume its run",
    "sample": "write illustrated documents, images and answers",
    "evaluate": "run benchmarks on a model, or score saved predictions",
    "prepare": "check, filter and convert training data to ArrayRecord",
    "precompute": "store the outputs of the frozen encoders for all images of a run",
    "convert": "import, export, inspect and verify weights",
    "compile": "compile a run's step for a TPU slice that is not at hand",
}
USAGE = "\n".join(
    [
        "usage: dreamjax COMMAND [--flag=value ...]",
        "",
        *(f"  {command:<12}{summary}" for command, summary in COMMANDS.items()),
        "",
        "dreamjax COMMAND --help explains a command's flags; dreamjax --version prints the version.",
    ]
)


def main() -> None:
    """Runs the command that the first argument names, with the arguments behind it."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("--help", "-h", "help"):
        print(USAGE)
    elif command == "--version":
        print(__version__)
    elif command in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"dreamjax.{command}", run_name="__main__", alter_sys=True)
    else:
        print(f"dreamjax: the command is one of {', '.join(COMMANDS)}, not {command!r}; see --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
