#!/usr/bin/env bash
# Trains on a TPU slice of a Kubernetes cluster (GKE): one Indexed Job with a pod for each host.
set -euo pipefail
usage="Trains on a TPU slice of a GKE cluster: an Indexed Job with a pod for each host, and a service by which they find each other.

  launch/gke.sh start --name=NAME --image=IMAGE --accelerator=tpu-v4-podslice --topology=4x4x4 --hosts=16 --chips=4 [--dry-run] -- --config=... --workdir=gs://... [...]
  launch/gke.sh status|log|delete --name=NAME [--dry-run]

start   applies the manifest that --dry-run prints. A pod whose node is taken away gets SIGTERM and saves first; when one pod ends,
        the others do within a minute, and Kubernetes starts all again: the run goes on by itself.
status  the job and its pods
log     what host 0 prints, until Ctrl-C
delete  ends the run and removes job and service

--image holds this repository in its working directory, with jax[tpu] and requirements.txt installed.
--hosts is the chips of the slice divided by --chips, the chips of a host (4; on v5e and v6e also 1 or 8).
--context is kubectl's, without it the current one; --account is a service account of the cluster that may use the bucket."
settings="name image accelerator topology hosts chips context account restarts"
name='' image='' accelerator='' topology='' hosts='' chips=4 context='' account=default restarts=1000
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
parse "$@"
need name
kubectl=(kubectl)
if [ -n "$context" ]; then kubectl+=(--context="$context"); fi

# A word as a YAML string.
yaml() { printf "'%s'" "${1//\'/\'\'}"; }

manifest() {
  cat <<YAML
apiVersion: v1
kind: Service
metadata: {name: $name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {job-name: $name}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $name}
spec:
  completionMode: Indexed
  completions: $hosts
  parallelism: $hosts
  backoffLimit: $restarts
  template:
    spec:
      subdomain: $name
      serviceAccountName: $account
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 300
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: $accelerator
        cloud.google.com/gke-tpu-topology: $topology
      containers:
      - name: train
        image: $(yaml "$image")
        command:
        - python
        - -u
        - -m
        - dreamjax.train
$(for word in "${train[@]}" "--stopped_status=$stopped_status"; do echo "        - $(yaml "$word")"; done)
        env:
        - {name: LIBTPU_INIT_ARGS, value: $(yaml "$tpu_flags")}
        ports:
        - containerPort: 8482
        resources:
          requests: {google.com/tpu: $chips}
          limits: {google.com/tpu: $chips}
YAML
}

case $command in
  start)
    need image accelerator topology hosts
    [[ " ${train[*]} " == *" --workdir=gs://"* ]] || stop "--workdir has to be in a bucket, gs://...: all hosts write to it"
    if [ -n "$dry_run" ]; then
      echo "# standard input of the command:"
      manifest | sed 's/^/#   /'
      run "${kubectl[@]}" apply -f -
    else
      manifest | "${kubectl[@]}" apply -f -
    fi
    ;;
  status)
    run "${kubectl[@]}" get job "$name"
    run "${kubectl[@]}" get pods --selector="job-name=$name" -o wide
    ;;
  log) run "${kubectl[@]}" logs --follow --tail=200 --selector="job-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run "${kubectl[@]}" delete "job/$name" "service/$name" --ignore-not-found ;;
esac
