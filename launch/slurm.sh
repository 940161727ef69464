#!/usr/bin/env bash
# Trains on the GPUs of several machines under Slurm, with a process for each GPU.
set -euo pipefail
usage="Trains on the GPUs of one or several machines under Slurm, with a process for each GPU.

  launch/slurm.sh start --name=NAME --nodes=2 --gpus=8 [--partition=P] [--account=A] [--time=2-00:00:00] [--dry-run] -- --config=... --workdir=... [...]
  launch/slurm.sh status|log|delete --name=NAME [--dry-run]

start   submits the script that --dry-run prints. Five minutes before the time is over, or when the job is preempted, the run
        saves, and the job is put back into the queue; it is put back after a failure too, ten times at most.
status  the job in the queue
log     what it prints, until Ctrl-C
delete  cancels the job

--gpus counts those of a machine. --cpus are the cores of each process, 12 without it.
The folder of this repository and the workdir have to be on a disk that all machines share; .venv is made on the first start
(the machine that submits needs no GPU)."
settings="name nodes gpus cpus partition account time"
name='' nodes=1 gpus='' cpus=12 partition='' account='' time=1-00:00:00
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
parse "$@"
need name

job() {
  cat <<SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gres=gpu:$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-$name.log
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}export XLA_FLAGS=$(quoted "$gpu_flags")
srun --kill-on-bad-exit=1 .venv/bin/python -u -m dreamjax.train $(quoted "${train[@]}" "--stopped_status=$stopped_status") && exit 0
status=\$?
if [ "\${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
SCRIPT
}

case $command in
  start)
    need gpus
    if [ -n "$dry_run" ]; then
      echo "# standard input of the last command:"
      job | sed 's/^/#   /'
    fi
    run mkdir -p runs
    run launch/environment.sh requirements-cuda.txt
    if [ -n "$dry_run" ]; then run sbatch; else job | sbatch; fi
    ;;
  status) run squeue --me --name="$name" ;;
  log) run tail -n 200 -F "runs/slurm-$name.log" ;;
  delete) run scancel --me --name="$name" ;;
esac
