#!/bin/bash
# Serve a repository of the gpu target inside NVIDIA's image, in the foreground; engines are built at the first start.
#   serve-gpu            verify repository, host and engines; build engines where there are none; serve
#   serve-gpu rebuild    remove this repository's engines first, whoever built them
#   TRITON_ADMIN_KEY     the key that guards model control (setting triton.admin_key); without one nothing is served
#   MODELS, ENGINES      the model repository (default /models), and the volume of engines, which configurations name (/engines)
#   TRITON_ADDRESS, TRITON_PORTS   where it listens (default 0.0.0.0, and 8000 8001 8002 for HTTP, gRPC, metrics)
#   START_SECONDS        longest that building engines may take (default 7200)
set -euo pipefail
: "${TRITON_ADMIN_KEY:?set it: who can load models runs code}"
models=${MODELS:-/models} engines=${ENGINES:-/engines} address=${TRITON_ADDRESS:-0.0.0.0} limit=${START_SECONDS:-7200}
host=${HOST_PY:-/opt/pigeon/host.py}
read -r http grpc metrics <<<"${TRITON_PORTS:-8000 8001 8002}"
guarded=model-repository,model-config,shared-memory,statistics,trace,logging
export LC_ALL=C.UTF-8

serve() { # ADDRESS EXIT_ON_ERROR: Triton on it
    exec tritonserver --model-repository="$models" --model-control-mode=explicit --load-model='*' \
        --disable-auto-complete-config --rate-limit=execution_count --exit-on-error="$2" --exit-timeout-secs=15 \
        --grpc-restricted-protocol="$guarded:admin-key=$TRITON_ADMIN_KEY" \
        --http-restricted-api="$guarded:admin-key=$TRITON_ADMIN_KEY" \
        --http-address="$1" --grpc-address="$1" --metrics-address="$1" \
        --http-port="$http" --grpc-port="$grpc" --metrics-port="$metrics"
}

ready() { # whether all models are loaded, engines and all
    python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
        "http://127.0.0.1:$http/v2/health/ready" 2>/dev/null
}

build() { # engines come into being while models are loaded, behind a server that nobody else can reach
    echo "serve-gpu: building engines in $engines; this takes minutes, and only once per repository and host" >&2
    (serve 127.0.0.1 true) &
    local server=$! began=$SECONDS
    until ready; do
        if ! kill -0 "$server" 2>/dev/null; then
            wait "$server" || true
            echo "serve-gpu: Triton ended while it built engines; its log above says why" >&2
            exit 3
        fi
        if ((SECONDS - began > limit)); then
            kill "$server"
            echo "serve-gpu: engines were not built in $limit seconds (START_SECONDS); Triton's log above says what it does" >&2
            exit 3
        fi
        sleep 1
    done
    kill "$server"
    wait "$server" || true
    python3 "$host" record "$models" "$engines"
}

if [ "${1:-}" = rebuild ]; then
    python3 "$host" forget "$models" "$engines"
elif [ $# -gt 0 ]; then
    echo "usage: serve-gpu [rebuild]" >&2
    exit 2
fi
state=$(python3 "$host" verify "$models" "$engines")
if [ "$state" = build ]; then
    build
fi
serve "$address" false
