#!/usr/bin/env bash
# Sets everything up, checks format, lint and documentation, and runs the tests, two files at a time: most of their time is XLA compiling
# on one core. They share what XLA has compiled; JAX_COMPILATION_CACHE_DIR names a folder that keeps it for the next time.
# Usage: launch/test.sh [--all] [arguments of pytest]     --all: the slow tests too
set -euo pipefail
cd "$(dirname "$0")/.."
selection=(-m "not slow")
if [ "${1-}" = --all ]; then
  selection=()
  shift
fi
launch/environment.sh requirements-dev.txt requirements-lock.txt
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "${selection[@]}" "$@"
