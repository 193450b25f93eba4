#!/usr/bin/env bash
# Starts a command again until it is done: launch/until_done.sh COMMAND …
#
# 0: done. 75: stopped by SIGTERM and saved. 128 and above: killed by a signal, or aborted because another process of the
# job was (JAX's heartbeat). In both cases it is started again, and goes on from the last whole checkpoint. Any other
# status is an error that starting again would not mend. ATTEMPTS (100) bounds the starts, PAUSE (10) is in seconds.
# SIGTERM is handed on to the command; after it nothing is started again, since the machine goes away.
set -uo pipefail
attempts=${ATTEMPTS:-100} pause=${PAUSE:-10} leaving=
child=
trap 'leaving=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM
for ((attempt = 1; attempt <= attempts; attempt++)); do
  "$@" &
  child=$!
  wait "$child"
  status=$?
  # `wait` comes back when the trap ran: the command may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
  done
  ((status == 75 || status >= 128)) && [[ -z $leaving ]] || exit "$status"
  echo "until_done: status $status, start $attempt of $attempts; again in $pause s" >&2
  sleep "$pause"
done
exit "$status"
