#!/bin/bash
# Serve a model repository with the Triton of deploy/local/triton-requirements.txt, in the foreground.
#   TRITON_ADMIN_KEY  the key that guards model control (setting triton.admin_key); without one nothing is served
#   MODELS            the model repository (default /models)
#   TRITON_ENV        the environment that holds the server (default /opt/triton)
#   TRITON_RUNTIME    a writable folder (default /tmp/triton)
#   TRITON_ADDRESS, TRITON_PORTS   where it listens (default 0.0.0.0, and 8000 8001 8002 for HTTP, gRPC, metrics)
set -euo pipefail
: "${TRITON_ADMIN_KEY:?set it: who can load models runs code}"
models=${MODELS:-/models} runtime=${TRITON_RUNTIME:-/tmp/triton} env=${TRITON_ENV:-/opt/triton} address=${TRITON_ADDRESS:-0.0.0.0}
read -r http grpc metrics <<<"${TRITON_PORTS:-8000 8001 8002}"
python=$env/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
library=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
server=$site/pytriton/tritonserver
mkdir -p "$runtime"
cp -r "$server/backends" "$server/caches" "$runtime/"
install -m 755 "$server/python_backend_stubs/$version/triton_python_backend_stub" "$runtime/backends/python/"
guarded=model-repository,model-config,shared-memory,statistics,trace,logging
machine=$(uname -m)
export PATH=$env/bin:$PATH LD_LIBRARY_PATH=$library:$library/$machine-linux-gnu:$site/nvidia_pytriton.libs HOME=$runtime
# Each instance is one thread; instances, not threads, use the cores.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
exec "$server/bin/tritonserver" --model-repository="$models" --backend-directory="$runtime/backends" \
    --cache-directory="$runtime/caches" --model-control-mode=explicit --load-model='*' --disable-auto-complete-config \
    --exit-on-error=false --exit-timeout-secs=15 \
    --grpc-restricted-protocol="$guarded:admin-key=$TRITON_ADMIN_KEY" --http-restricted-api="$guarded:admin-key=$TRITON_ADMIN_KEY" \
    --http-address="$address" --grpc-address="$address" --metrics-address="$address" \
    --http-port="$http" --grpc-port="$grpc" --metrics-port="$metrics"
