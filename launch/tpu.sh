#!/usr/bin/env bash
# Trains on a Cloud TPU slice, or on several, through a queued resource.
set -euo pipefail
usage="Trains on Cloud TPU through a queued resource, which waits until the chips are there.

  launch/tpu.sh start --name=NAME --project=P --zone=Z --type=v4-128 [--slices=1] [--spot=yes] [--bucket=gs://...] [--dry-run] -- --config=... --workdir=gs://... [...]
  launch/tpu.sh status|log|delete --name=NAME --project=P --zone=Z [--dry-run]

start   asks for the slice; its machines fetch the code from --bucket when they boot, install it and train. A run that is
        preempted saves first; when Google gives the machines back they boot, and the run goes on by itself.
status  the state of the request and of its machines
log     what host 0 prints, until Ctrl-C
delete  ends the run, gives the chips back

--type counts cores on v4 and v5p (v4-128 is 64 chips), chips on v5e (v5litepod-256) and v6e (v6e-128).
--version is the machines' image, such as tpu-ubuntu2204-base, v2-alpha-tpuv5, v2-alpha-tpuv5-lite, v2-alpha-tpuv6e.
--bucket is where start puts the code, gs://BUCKET/FOLDER. The workdir has to be in a bucket too: all hosts write to it.
--account is a service account that may read and write them; without it the machines use the project's own."
settings="name project zone type slices spot version bucket account"
name='' project='' zone='' type='' slices=1 spot='' version=tpu-ubuntu2204-base bucket='' account=''
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
parse "$@"
need name project zone
where=(--project="$project" --zone="$zone")

# What each machine does when it boots.
startup_script() {
  cat <<SCRIPT
#!/usr/bin/env bash
set -eu
mkdir -p /opt/dreamjax && cd /opt/dreamjax
gcloud storage cp $(quoted "$bucket/$name.tar.gz") code.tar.gz && tar xzf code.tar.gz
launch/environment.sh requirements-tpu.txt
export LIBTPU_INIT_ARGS=$(quoted "$tpu_flags")
until .venv/bin/python -u -m dreamjax.train $(quoted "${train[@]}" "--stopped_status=$stopped_status"); do
  echo "ended with \$?; again in 10 s"; sleep 10
done > >(tee -a /var/log/dreamjax.log) 2>&1
SCRIPT
}

first_node=$name
case $command in
  start)
    need type bucket
    [[ " ${train[*]} " == *" --workdir=gs://"* ]] || stop "--workdir has to be in a bucket, gs://...: all hosts write to it"
    if [ -n "$dry_run" ]; then
      script=startup.sh
      echo "# startup.sh:"
      startup_script | sed 's/^/#   /'
    else
      script=$(mktemp)
      startup_script > "$script"
    fi
    request=(gcloud compute tpus queued-resources create "$name" "${where[@]}" --accelerator-type="$type" --runtime-version="$version")
    if [ "$slices" = 1 ]; then request+=(--node-id="$name"); else request+=(--node-count="$slices" --node-prefix="$name"); fi
    if [ -n "$spot" ]; then request+=(--spot); fi
    if [ -n "$account" ]; then request+=(--service-account="$account"); fi
    run tar --exclude=./.venv --exclude=./.git --exclude=./runs --exclude='__pycache__' -czf "/tmp/$name.tar.gz" .
    run gcloud storage cp "/tmp/$name.tar.gz" "$bucket/$name.tar.gz"
    run "${request[@]}" --metadata-from-file="startup-script=$script"
    ;;
  status)
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}"
    run gcloud compute tpus tpu-vm list "${where[@]}" --filter="name~$name"
    ;;
  log)
    if [ "$slices" != 1 ]; then first_node=$name-0; fi
    run gcloud compute tpus tpu-vm ssh "$first_node" "${where[@]}" --worker=0 --command="tail -n 200 -F /var/log/dreamjax.log"
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
esac
