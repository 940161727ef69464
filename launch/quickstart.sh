#!/usr/bin/env bash
# Sets everything up, trains the embedded default model, measures it and writes illustrated stories as HTML.
# Usage: launch/quickstart.sh [folder of the run, default runs/quickstart]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart}
launch/environment.sh requirements.txt
# A training that a signal stopped ends the script too: what it saved is not yet to be measured.
.venv/bin/python -m dreamjax.train --config=experiments/quickstart.py --workdir="$run" --stopped_status=75
.venv/bin/python -m dreamjax.evaluate --model="$run" --task=shapes --out="$run/evaluation"
