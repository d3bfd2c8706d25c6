#!/bin/sh
# Runs the shards of a stage with GNU parallel, and then merges them: deploy/parallel.sh STAGE SHARDS [flags of the stage].
#   JOBS=2        the number of shards at once (default: one per core; every shard uses all cores unless RAYON_NUM_THREADS is set)
#   HOSTS=a,b     the machines to use by ssh, which must have the same folders at the same paths
#   MP4SR=path    the program
# A shard that fails or is killed is run up to three times in total. The log of all shards is STAGE.joblog in the current folder.
set -eu
stage=$1 shards=$2
shift 2
program=${MP4SR:-mp4sr}
# ssh passes no environment on, so shards would run without the settings that only the environment has. Secrets are left out, because the
# other machines would show them in their lists of processes.
forwarded=
if [ -n "${HOSTS:-}" ]; then
    for name in $(env | grep -oE '^(RAYON_NUM_THREADS|MP4SR_[A-Z_]+|HF_(HOME|ENDPOINT|HUB_[A-Z_]+)|SSL_CERT_FILE)=' | tr -d =); do
        case $name in MP4SR_KEYS | MP4SR_STORE) ;; *) forwarded="$forwarded --env $name" ;; esac
    done
fi
# shellcheck disable=SC2086 # These are several arguments.
seq "$shards" | parallel --will-cite --quote --line-buffer --tag --retries 3 --halt soon,fail=1 --joblog "$stage.joblog" \
    ${JOBS:+--jobs "$JOBS"} ${HOSTS:+--sshlogin "$HOSTS" --workdir .} $forwarded \
    "$program" "$stage" --shard "{}/$shards" "$@"
exec "$program" "$stage" "$@"
