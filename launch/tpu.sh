#!/usr/bin/env bash
# A Cloud TPU slice from request to deletion: launch/tpu.sh request|wait|install|train|log|delete   (docs/tpu.md)
set -euo pipefail
: "${NAME:?name of the slice, such as NAME=localist}" "${ZONE:?zone, such as ZONE=us-central1-a}"
: "${TYPE:=v5litepod-256}" # or v5p-512, v6e-256, …
: "${SLICES:=1}" "${SPOT:=}"

case $TYPE in # software of the hosts, by the kind of TPU
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) echo "tpu.sh: no image known for TYPE=$TYPE" >&2 && exit 1 ;;
esac

nodes() { # names of the slices
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    seq -f "$NAME-%g" 0 $((SLICES - 1))
  fi
}

everywhere() { # runs a command on all hosts of all slices, at once
  local pids=() node pid status=0
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

case ${1:-} in
  request)
    if ((SLICES == 1)); then where=(--node-id="$NAME"); else where=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
      --runtime-version="$image" "${where[@]}" ${SPOT:+--spot}
    ;;
  wait)
    until gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' |
      tee /dev/stderr | grep -qx ACTIVE; do sleep 60; done
    ;;
  install)
    : "${REPOSITORY:?address of the git repository to clone}"
    # The images' own Python is 3.10, too old for JAX: uv brings another.
    everywhere "git clone $REPOSITORY localist_jax && cd localist_jax && python3 -m pip install --quiet --user uv &&
      python3 -m uv venv --quiet --seed --python 3.12 .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
    ;;
  train)
    : "${WORKDIR:?folder that all hosts see, on a Filestore or NFS mount}" "${CONFIG:?such as experiments/configs/pod_1b.py}"
    everywhere "cd localist_jax && nohup env JAX_COMPILATION_CACHE_DIR=$WORKDIR/../programs \
      launch/until_done.sh .venv/bin/python -m experiments.launch --hosts=auto --config=$CONFIG --workdir=$WORKDIR \
      ${*:2} > train.log 2>&1 < /dev/null &"
    ;;
  log)
    gcloud compute tpus tpu-vm ssh "$(nodes | head -1)" --zone="$ZONE" --worker=0 --command="tail -f localist_jax/train.log"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
  *)
    sed -n 2p "$0" >&2
    exit 2
    ;;
esac
