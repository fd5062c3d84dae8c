#!/usr/bin/env bash
# Everything that needs a GPU, the most valuable first; offline, with nothing installed beforehand.
#
#   bench/gpu.sh            tests, sanitizers, benchmarks, in under nine minutes: for a nightly run
#   bench/gpu.sh check      is it right, and how fast is what users wait for?     at most 150 s
#   bench/gpu.sh tune       other tile sizes beside the shipped                   at most 150 s
#   bench/gpu.sh race       against other libraries, and the roofline             at most 200 s
#   bench/gpu.sh quality    time to quality, the gate, a study                    at most 200 s
#   ... --smoke             the same stages at toy size on a CPU, to see that they work
#
# bench/visit.py says what is written where. The last hundred lines that it prints are a summary.
# Exit status 1 if a stage failed or was cut short, 130 if interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

# The folders under one namespace, so that they need not be installed.
mkdir -p build/path/flashpoint
ln -sfn "$PWD/kernels" "$PWD/diffusion" "$PWD/bench" build/path/flashpoint/
export PYTHONPATH="$PWD/build/path${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m flashpoint.bench visit "$@"
