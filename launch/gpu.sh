#!/usr/bin/env bash
# Trains on all GPUs of this machine, in the background.
set -euo pipefail
usage="Trains on all GPUs of this machine, in the background.

  launch/gpu.sh start --name=NAME [--gpus=0,1,2,3] [--dry-run] -- --config=... --workdir=... [...]
  launch/gpu.sh status|log|delete --name=NAME [--dry-run]

start   sets up .venv and starts the run as one process; it goes on when the terminal is closed, and by itself after a crash, ten times at most
status  whether it runs
log     what it prints, until Ctrl-C
delete  asks it to save and to end; the same start goes on from there

--gpus are the numbers of the GPUs to use, all without it."
settings="name gpus"
name='' gpus=''
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
parse "$@"
need name
log=runs/gpu-$name.log pid=runs/gpu-$name.pid

# Runs on until the run is complete or was asked to stop; SIGTERM goes on to it.
# shellcheck disable=SC2016
supervise='child=
trap "asked=1; kill -TERM \"\$child\" 2>/dev/null" TERM
for attempt in 1 2 3 4 5 6 7 8 9 10 11; do
  "$@" & child=$!
  wait "$child"; status=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
  [ -z "${asked:-}" ] && [ "$status" -ne 0 ] && [ "$status" -ne 2 ] || exit "$status"
  echo "ended with $status; start $((attempt + 1)) in 10 s"; sleep 10
done'

case $command in
  start)
    [ ! -e "$pid" ] || ! kill -0 "$(cat "$pid")" 2>/dev/null || stop "$name runs already; see status"
    program=(env "XLA_FLAGS=$gpu_flags")
    if [ -n "$gpus" ]; then program+=("CUDA_VISIBLE_DEVICES=$gpus"); fi
    program+=(.venv/bin/python -u -m dreamjax.train "${train[@]}")
    run mkdir -p runs
    run launch/environment.sh requirements-cuda.txt
    if [ -n "$dry_run" ]; then
      echo "nohup $(quoted "${program[@]}") >> $log 2>&1 &   # started again after a crash; its number goes to $pid"
    else
      nohup bash -c "$supervise" supervise "${program[@]}" >> "$log" 2>&1 < /dev/null &
      echo $! > "$pid"
      echo "started; launch/gpu.sh log --name=$name shows what it prints"
    fi
    ;;
  status)
    if [ -n "$dry_run" ]; then
      run cat "$pid"
    elif [ -e "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; then
      echo "$name runs as process $(cat "$pid")"
    else
      echo "$name does not run"
    fi
    ;;
  log) run tail -n 200 -F "$log" ;;
  delete)
    if [ -n "$dry_run" ]; then
      echo "kill -TERM \$(cat $pid)"
    else
      [ -e "$pid" ] || stop "$name was not started here"
      kill -TERM "$(cat "$pid")" 2>/dev/null || true
      rm "$pid"
    fi
    ;;
esac
