#!/usr/bin/env bash
# Build everything that a platform team installs from, under the version of pyproject.toml, into dist/. usage: release.sh TOOLS
set -euo pipefail
tools=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=$tools/venv/bin/python
version=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
for name in version appVersion; do
    grep -qx "$name: $version" deploy/helm/pigeon/Chart.yaml || { echo "Chart.yaml: $name is not $version" >&2; exit 2; }
done
out=dist/$version
rm -rf "$out"
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git archive --format=tar HEAD | tar x -C "$scratch"
"$python" -m build --outdir "$out" "$scratch" >"$scratch/build.log" 2>&1 || { tail -20 "$scratch/build.log" >&2; exit 1; }
"$tools/helm" package "$scratch/deploy/helm/pigeon" --destination "$out" 2>/dev/null >/dev/null
# What an image is built from: the files that .dockerignore lets through.
tar czf "$out/pigeon-image-context-$version.tar.gz" -C "$scratch" --exclude=deploy/models/nano.training \
    --exclude=deploy/models/nano/evaluation .dockerignore LICENSE README.md constraints.txt consumers deploy generator migrations \
    pyproject.toml schemas
"$tools/venv/bin/cyclonedx-py" requirements --pyproject "$scratch/pyproject.toml" --mc-type application --sv 1.6 \
    --output-reproducible -o "$out/pigeon-$version.cdx.json" "$scratch/constraints.txt" 2>"$scratch/sbom.log" \
    || { cat "$scratch/sbom.log" >&2; exit 1; }
(cd "$out" && sha256sum -- * >"$scratch/SHA256SUMS" && mv "$scratch/SHA256SUMS" SHA256SUMS)
ls -l "$out"
echo "built from commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo '; changes that are not committed are left out')"
echo "NOT pushed: nothing was uploaded to a package index, a chart repository or an image registry, and no image was built"
