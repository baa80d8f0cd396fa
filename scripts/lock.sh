#!/bin/sh
# Pins what the images install, with hashes: docker/requirements.txt and docker/requirements.cuda.txt.
# For the Python of the images; needs pip-tools, which it installs into a folder of its own.
set -eu
cd "$(dirname "$0")/.."
python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "the images have Python 3.11: run this with it" >&2
  exit 2
}
tools=.build/lock
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet "pip-tools>=7.5,<8"

lock() {
  "$tools/bin/pip-compile" --quiet --upgrade --extra "$1" --generate-hashes --strip-extras --no-header --no-annotate \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file "$tools/$2" pyproject.toml 2>/dev/null
  # Neither the package itself, which has no hash, nor remarks.
  grep -v -e '^dragoman @' -e '^#' "$tools/$2" >"docker/$2"
}

lock server requirements.txt
lock cuda requirements.cuda.txt
