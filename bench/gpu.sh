#!/usr/bin/env bash
# Runs everything that needs a GPU, the most valuable first, offline and without installation.
#
#   bench/gpu.sh            tests, sanitizers, benchmarks, in under nine minutes: for a nightly run
#   bench/gpu.sh check      tests, sanitizers, and the works that users wait for  at most 150 s
#   bench/gpu.sh tune       other tile sizes, and steps of 1 to 132 models        at most 150 s
#   bench/gpu.sh race       against other libraries, and the roofline             at most 200 s
#   bench/gpu.sh quality    time to quality, the gate, a study                    at most 200 s
#   ... --smoke             the same stages at toy size on a CPU, to test them
#
# bench/visit.py lists the files of results. The last hundred lines of the output are a summary.
# The exit status is 1 if a stage failed or was cut short, and 130 after an interrupt.
set -euo pipefail
cd "$(dirname "$0")/.."

# Puts the folders under one namespace, so that they need not be installed.
mkdir -p build/path/flashpoint
ln -sfn "$PWD/kernels" "$PWD/diffusion" "$PWD/bench" build/path/flashpoint/
export PYTHONPATH="$PWD/build/path${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m flashpoint.bench visit "$@"
