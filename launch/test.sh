#!/usr/bin/env bash
# Sets everything up, checks format, lint and documentation, and runs the tests, two files at a time: most of their time is XLA compiling
# on one core.
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
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
# What XLA has compiled is kept for the next time; what was not read for two weeks goes.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-${XDG_CACHE_HOME:-$HOME/.cache}/dreamjax/compiled-tests}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
if [ -d "$JAX_COMPILATION_CACHE_DIR" ]; then
  find "$JAX_COMPILATION_CACHE_DIR" -type f -name 'jit_*' -atime +14 -delete
fi
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "${selection[@]}" "$@"
