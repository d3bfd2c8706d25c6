#!/bin/sh
# Builds the book of the documents that docs/SUMMARY.md lists into the folder that is given:
#     sh tools/book/build.sh target/book
# The documents are copied to where they are in the repository, so that the links between them work on GitHub and in the book alike.
set -eu
[ $# -eq 1 ] || { echo "usage: sh tools/book/build.sh FOLDER" >&2; exit 1; }
mkdir -p "$1"
book=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
staging=$book.staging
rm -rf "$staging"
mkdir -p "$staging/src/docs"
cp tools/book/book.toml tools/book/book.css "$staging"
cp -R docs/images "$staging/src/docs/images"

# mdBook names a page index.html only if its source is called index.md, and it has no Mermaid: the drawing of the diagram is committed.
# Values and deviations in tables stay on one line.
page() {
    awk '
        /^```mermaid/ { print "![The stages and the files between them](docs/images/architecture.svg)"; skip = 1; next }
        skip { if (/^```/) skip = 0; next }
        /^\|/ { gsub(/ ± /, "\\&nbsp;±\\&nbsp;") }
        { gsub(/README\.md\)/, "index.md)"); gsub(/README\.md#/, "index.md#"); print }
    ' "$1" > "$2"
}

sed -n 's/.*](\(.*\.md\))$/\1/p' docs/SUMMARY.md | while read -r link; do
    case $link in
    ../*) source=${link#../} ;;
    *) source=docs/$link ;;
    esac
    target=$(printf '%s' "$source" | sed 's/README\.md$/index.md/')
    mkdir -p "$staging/src/$(dirname "$target")"
    page "$source" "$staging/src/$target"
done
sed -e 's|](\.\./|](#|' -e 's|](\([a-z]\)|](docs/\1|' -e 's|](#|](|' -e 's|README\.md)|index.md)|' docs/SUMMARY.md > "$staging/src/SUMMARY.md"
mdbook build "$staging" --dest-dir "$book"
rm -rf "$staging"
