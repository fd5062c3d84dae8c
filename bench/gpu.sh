#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes, the most valuable first.
#
#   bench/gpu.sh            on a machine with a CUDA device, offline, nothing installed beforehand
#   bench/gpu.sh --smoke    the same stages at toy size on a CPU, to see that the script works
#
# Results go to $OUT if that is set, else to bench/records/<date>-<gpu>/: record.json, which holds
# whatever was measured at every moment, log.txt and the figures. Each stage has its own limit, and
# one that fails or is cut short does not stop the next. Exit status 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."

smoke=${1:-}
python=${PYTHON:-python3}
has_cuda='import sys, torch; sys.exit(not torch.cuda.is_available())'
if [[ $smoke != --smoke ]] && ! "$python" -c "$has_cuda"; then
  echo "bench/gpu.sh: no CUDA device; --smoke runs the stages at toy size on a CPU" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
installed() { (cd "$work" && "$python" -c 'import flashpoint.kernels') 2>/dev/null; }
install=("$python" -m pip install --quiet --no-deps --no-build-isolation -e .)
if ! installed && ! "${install[@]}" >"$work/install.txt" 2>&1; then
  # An old setuptools or a read-only environment: the folders under one namespace do as well.
  mkdir -p "$work/path/flashpoint"
  ln -s "$PWD/kernels" "$PWD/diffusion" "$PWD/bench" "$work/path/flashpoint/"
  export PYTHONPATH="$work/path${PYTHONPATH:+:$PYTHONPATH}"
fi

folder=${OUT:-bench/records/$(date +%F)-$("$python" -m flashpoint.bench record name)}
mkdir -p "$folder"
log=$folder/log.txt
cat "$work"/install.txt >"$log" 2>/dev/null
"$python" -m flashpoint.bench record start "$folder"
failed=0

# stage NAME SECONDS COMMAND...: runs with a time limit, logs, records status and last line.
stage() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n=== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$work/stage.txt" >>"$log"
  status=${PIPESTATUS[0]}
  [[ $status == 0 ]] || failed=1
  "$python" -m flashpoint.bench record stage "$folder" "$name" "$status" $((SECONDS - start)) \
    "$limit" "$work/stage.txt"
}

# sanitize TOOL SECONDS: compute-sanitizer over every kernel at small size, if there is one.
sanitize() {
  local sanitizer
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  if [[ -z $sanitizer ]]; then
    "$python" -m flashpoint.bench record unavailable "$folder" "$1" "no compute-sanitizer"
    return
  fi
  # Without the caching allocator each tensor is an allocation of its own, whose end is guarded.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$1" "$2" "$sanitizer" --tool "$1" --error-exitcode 9 \
    "$python" -m flashpoint.bench operations --busy --small --rounds 0
}

bench=("$python" -m flashpoint.bench)
# Another process on the GPU is counted in the record rather than refused: there may be no other.
keep=(--busy --record "$folder")
if [[ $smoke == --smoke ]]; then
  cpu=(--device cpu "${keep[@]}")
  stage gpu-tests 300 "$python" -m pytest -q tests/kernels/test_philox_reference.py
  sanitize memcheck 300
  sanitize racecheck 300
  stage race 300 "${bench[@]}" race "${cpu[@]}" --rounds 3 --seconds 0.01 --peers eager --budget 1
  stage roofline 300 "${bench[@]}" roofline "${cpu[@]}" --small
  stage gate 300 "${bench[@]}" gate "${cpu[@]}" --rounds 3 --small --baseline "$work/base.json"
  stage speedrun 300 "${bench[@]}" speedrun "${cpu[@]}" --small --seeds 2
else
  tests=("$python" -m pytest -q -p no:cacheprovider --ignore tests/kernels/test_offline_compile.py)
  stage gpu-tests 60 "${tests[@]}" -m "gpu and not slow" tests
  sanitize memcheck 30
  sanitize racecheck 30
  stage race 130 "${bench[@]}" race "${keep[@]}" --budget 100 --per-comparison 2 --seconds 10
  stage roofline 30 "${bench[@]}" roofline "${keep[@]}"
  stage gate 30 "${bench[@]}" gate "${keep[@]}"
  stage tau 30 "${bench[@]}" calibrate --tau-only --track mixture
  stage speedrun-mixture 50 "${bench[@]}" speedrun "${keep[@]}" --track mixture --budget 30
  stage speedrun-states 50 "${bench[@]}" speedrun "${keep[@]}" --track states --budget 30
  stage tests 50 "${tests[@]}" -m "not gpu and not slow" tests/kernels
fi
echo "$folder"
exit $failed
