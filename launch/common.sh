# shellcheck shell=bash disable=SC2154
# What the scripts that start runs elsewhere share. They set `usage` and read this file.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=launch/flags.sh
. launch/flags.sh

dry_run=
stop() {
  echo "launch: $*" >&2
  exit 2
}

# run COMMAND ...: runs it, or prints it as a shell would read it.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# quoted WORD ...: one line that a shell reads as these words.
quoted() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line# }"
}

# parse ARGUMENT ...: takes the command, the settings --name=value (each of which has a variable of that name with its default, or
# empty for one that must be given) and, behind --, the arguments of python -m dreamjax.train.
parse() {
  command=
  train=()
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h)
        echo "$usage"
        exit 0
        ;;
      --dry-run) dry_run=1 ;;
      --)
        shift
        train=("$@")
        break
        ;;
      --*=*)
        local setting=${1%%=*}
        setting=${setting#--}
        setting=${setting//-/_}
        [[ " $settings " == *" $setting "* ]] || stop "${1%%=*} is unknown; see --help"
        printf -v "$setting" '%s' "${1#*=}"
        ;;
      --*) stop "$1 is unknown, or lacks its =value; see --help" ;;
      *)
        [ -z "$command" ] || stop "'$1' is one command too many; the arguments of training stand behind --"
        command=$1
        ;;
    esac
    shift
  done
  case $command in
    start | status | log | delete) ;;
    '') stop "needs a command: start, status, log or delete; see --help" ;;
    *) stop "'$command' is no command; there are start, status, log and delete" ;;
  esac
  if [ "$command" = start ]; then
    [[ " ${train[*]} " == *" --config="* ]] || stop "start needs --config=... behind --; see --help"
    [[ " ${train[*]} " == *" --workdir="* ]] || stop "start needs --workdir=... behind --; see --help"
  fi
}

# need NAME ...: settings that must be given.
need() {
  local setting
  for setting in "$@"; do
    [ -n "${!setting}" ] || stop "--${setting//_/-}=... is missing; see --help"
  done
}
