#!/bin/sh
# Installs this project with its pinned packages, those of tracing among them, into a new virtual environment: the Dockerfile's only build step, to be
# run from the project's folder. Usage: scripts/install.sh FOLDER
# PYTHON names the interpreter. pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL) say where packages come from.
set -eu

folder=${1:?usage: scripts/install.sh FOLDER}
python=${PYTHON:-python3}

"$python" -m venv "$folder"
# torch comes first and alone, so that DeepSpeed finds it. DeepSpeed's kernels are left to be compiled when first used.
"$folder/bin/pip" install --quiet --no-cache-dir "$(grep -E '^torch==' constraints.txt)" -c constraints.txt
DS_BUILD_OPS=0 "$folder/bin/pip" install --quiet --no-cache-dir ".[trace]" -c constraints.txt
"$folder/bin/gangway" --version
