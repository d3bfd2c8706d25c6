#!/bin/sh
# The parts of a stage by GNU parallel, and then the whole: deploy/parallel.sh STAGE PARTS [flags of the stage].
#   JOBS=2        parts at once (default: one per core; every part uses all cores unless RAYON_NUM_THREADS says otherwise)
#   HOSTS=a,b     machines reached by ssh, which see the same folders at the same paths
#   MP4SR=path    the program
# A part that fails or is killed is tried three times in all; the log of all parts is STAGE.joblog in the folder of the call.
set -eu
stage=$1 parts=$2
shift 2
program=${MP4SR:-mp4sr}
seq "$parts" | parallel --will-cite --quote --line-buffer --tag --retries 3 --halt soon,fail=1 --joblog "$stage.joblog" \
    ${JOBS:+--jobs "$JOBS"} ${HOSTS:+--sshlogin "$HOSTS" --workdir .} \
    "$program" "$stage" --shard "{}/$parts" "$@"
exec "$program" "$stage" "$@"
