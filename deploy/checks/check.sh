#!/usr/bin/env bash
# Check what is under deploy/ by its own tools; nothing is run in a cluster or a container. usage: check.sh TOOLS
set -euo pipefail
tools=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
command -v promtool >/dev/null || { echo "promtool is missing: apt-get install prometheus" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "alerts: rules and their tests"
promtool check rules --lint=all --lint-fatal observability/alerts.yml
promtool test rules observability/alerts_test.yml
cp compose/prometheus.yml observability/alerts.yml "$scratch"
promtool check config "$scratch/prometheus.yml"

echo "images: hadolint, and shellcheck of what starts in them"
"$tools/venv/bin/hadolint" Dockerfile triton/Dockerfile
"$tools/venv/bin/shellcheck" triton/*.sh checks/*.sh

echo "compose: the compose specification"
"$tools/venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose/compose.yml

echo "chart: lint, render, and Kubernetes' schemas"
quietly() { # helm says of each linked file that it is one
    "$@" 2>"$scratch/said" || { cat "$scratch/said" >&2; return 1; }
    grep -v 'found symbolic link' "$scratch/said" >&2 || true
}
for values in helm/pigeon/values.yaml helm/full.yaml; do
    quietly "$tools/helm" lint --strict --quiet helm/pigeon -f "$values"
    quietly "$tools/helm" template pigeon helm/pigeon -f "$values" >"$scratch/rendered.yaml"
    for kubernetes in 1.27 1.37; do # the oldest that Chart.yaml allows, and the newest that is known
        if ! "$tools/venv/bin/kubernetes-validate" -k "$kubernetes" --strict "$scratch/rendered.yaml" >"$scratch/verdict" 2>&1; then
            cat "$scratch/verdict" >&2
            exit 1
        fi
        echo "  $values: $(grep -c ' passed ' "$scratch/verdict") objects fit Kubernetes $kubernetes; no schema here for:" \
            "$(grep -o 'kind [A-Za-z]* with' "$scratch/verdict" | cut -d' ' -f2 | sort -u | paste -sd' ' || true)"
    done
done
if quietly "$tools/helm" template pigeon helm/pigeon --set settings.PIGEON_DATABASE__URL=x >/dev/null 2>&1; then
    echo "the chart takes a secret among its settings" >&2
    exit 1
fi
echo "deploy: checked; no cluster and no container engine was asked"
