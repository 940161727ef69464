#!/usr/bin/env bash
# Sets everything up and runs the tests, two files at a time: most of their time is XLA compiling on one core. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/environment.sh requirements-dev.txt
.venv/bin/ruff check --quiet .
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
