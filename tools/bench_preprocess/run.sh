#!/bin/sh
# Measures the time and the peak memory of `mp4sr preprocess`, pandas and Python polars in turn on the same generated events, in three rounds.
# usage: run.sh FOLDER MP4SR PYTHON [OTHER_MP4SR]   (FOLDER as generate.py wrote it; another build of the program to compare with)
set -eu
here=$(dirname "$0")
folder=$1 program=$2 python=$3 other=${4:-}
cat > "$folder/tsv.toml" <<TOML
[dataset]
name = "tsv"
[source]
format = "tabular"
interactions = ["events.tsv"]
TOML
cat > "$folder/json.toml" <<TOML
[dataset]
name = "json"
[source]
format = "amazon-2018"
interactions = ["reviews.json.gz"]
TOML
cat > "$folder/items.toml" <<TOML
[dataset]
name = "items"
[source]
format = "amazon-2018"
interactions = ["reviews.json.gz"]
items = ["meta.json.gz"]
TOML
measure() {
    name=$1
    shift
    /usr/bin/time -f "$name %e s, %U s of CPU, %M KiB at the peak" "$@" > "$folder/output.txt" # the times go to standard error
}
for round in 1 2 3; do
    echo "round $round" >&2
    for form in tsv json items; do
        rm -rf "$folder/artifacts"
        run="preprocess --pipeline $folder/$form.toml --data $folder --artifacts $folder/artifacts --quiet"
        measure "mp4sr $form" "$program" $run
        rm -rf "$folder/artifacts"
        measure "mp4sr $form, 512 MiB" "$program" $run --set preprocess.memory=512MiB
        rm -rf "$folder/artifacts"
        [ -z "$other" ] || measure "other mp4sr $form" "$other" $run
    done
    measure "pandas tsv" "$python" "$here/with_pandas.py" "$folder/events.tsv" "$folder/pandas"
    measure "pandas json" "$python" "$here/with_pandas.py" "$folder/reviews.json.gz" "$folder/pandas"
    measure "polars tsv" "$python" "$here/with_polars.py" "$folder/events.tsv" "$folder/polars"
    measure "polars json" "$python" "$here/with_polars.py" "$folder/reviews.json.gz" "$folder/polars"
done
