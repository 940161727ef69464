#!/usr/bin/env bash
# Makes .venv with the packages of a requirements file and this package; a second call finds it made.
# Usage: launch/environment.sh requirements.txt [file of exact versions]
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
exact=${2-}
python=$(command -v python3.11 || command -v python3) || { echo "launch: needs Python 3.11 or newer on the PATH" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "launch: needs Python 3.11 or newer, $python is older" >&2; exit 1; }
# A lock is of one version of Python; another one takes the newest packages.
if [ -n "$exact" ] && ! grep -q "Python $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "$exact"; then exact=; fi
stamp=.venv/installed-$(cat requirements*.txt setup.cfg "$requirements" | sha256sum | cut -c1-16)-$requirements
[ -e "$stamp" ] && exit 0
echo "installing the packages of $requirements into .venv ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv
# Most modules of the packages are never imported: those that are get compiled then.
.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r "$requirements" ${exact:+-c "$exact"}
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
touch "$stamp"
