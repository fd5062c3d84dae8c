#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes, the most valuable first.
#
#   bench/gpu.sh            on a machine with a CUDA device, offline, nothing installed beforehand
#   bench/gpu.sh --smoke    the same stages at toy size on a CPU, to see that the script works
#
# Results go to $OUT if that is set, else to bench/records/<date>-<gpu>/: record.json, which holds
# whatever was measured at every moment, log.txt, the figures, and a copy of the gate's baseline,
# which belongs into bench/records/baselines/. Each stage has its own limit, and one that fails or is
# cut short does not stop the next. Exit status 1 if a stage failed.
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
# Triton, matplotlib and others keep what they compile in the home folder.
[[ -w ${HOME:-} ]] || export HOME=$work
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
interrupted="bench/gpu.sh: interrupted; $folder holds what was measured until then"
trap 'kill $(jobs -p) 2>/dev/null; wait; echo "$interrupted" >&2; exit 130' INT TERM
cat "$work"/install.txt >"$log" 2>/dev/null
"$python" -m flashpoint.bench record start "$folder"
failed=0

# begin NAME SECONDS COMMAND...: starts a stage with a time limit, beside others that are not timed.
begun=()
begin() {
  local name=$1 limit=$2
  shift 2
  begun+=("$name")
  echo "=== $name: $*" >"$work/$name.title"
  (
    start=$SECONDS
    # An interrupt, so that what is cut short still says what it found.
    timeout --signal=INT --kill-after=5 "$limit" "$@" >"$work/$name.txt" 2>&1 &
    trap "kill $!" TERM
    wait $!
    echo "$? $((SECONDS - start)) $limit" >"$work/$name.end"
  ) &
}

# finish: waits for all stages that were begun; logs, and records status and last line of each.
finish() {
  local name status
  wait
  for name in "${begun[@]}"; do
    read -r status _ <"$work/$name.end"
    [[ $status == 0 ]] || failed=1
    cat "$work/$name.title" "$work/$name.txt" >>"$log"
  done
  "$python" -m flashpoint.bench record stages "$folder" "$work" "${begun[@]}"
  begun=()
}

# stage NAME SECONDS COMMAND...: the same for one stage alone.
stage() {
  begin "$@"
  finish
}

# sanitize TOOL SECONDS: begins compute-sanitizer over every kernel at small size, if there is one.
sanitize() {
  local sanitizer
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  if [[ -z $sanitizer ]]; then
    "$python" -m flashpoint.bench record unavailable "$folder" "$1" "no compute-sanitizer"
    return
  fi
  # Without the caching allocator each tensor is an allocation of its own, whose end is guarded.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 begin "$1" "$2" "$sanitizer" --tool "$1" --error-exitcode 9 \
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
  finish
  stage race 300 "${bench[@]}" race "${cpu[@]}" --rounds 3 --seconds 0.01 --peers eager --budget 1
  stage roofline 300 "${bench[@]}" roofline "${cpu[@]}" --small
  stage gate 300 "${bench[@]}" gate "${cpu[@]}" --rounds 3 --small --baseline "$work/base.json"
  stage speedrun 300 "${bench[@]}" speedrun "${cpu[@]}" --small --seeds 2
  stage study 300 "${bench[@]}" study "${cpu[@]}" --small
else
  # What compiles offline, or needs a package that may be missing, is not about this GPU.
  tests=("$python" -m pytest -q -p no:cacheprovider --tb short
    --ignore tests/kernels/test_offline_compile.py --ignore tests/kernels/test_hub_layout.py)
  # All files at once: compiling kernels takes most of the time, and the GPU has memory for all.
  for file in $(grep -rlF mark.gpu --include 'test_*.py' tests); do
    name=$(basename "$file" .py)
    begin "gpu-$name" 110 "${tests[@]}" -m "gpu and not slow" "$file"
  done
  # What the interpreter runs too carries no mark, and must hold on a GPU as well.
  for name in adamw_kernel philox_kernel reverse_step_kernel reduce_grad train_step same_run; do
    begin "any-$name" 110 "${tests[@]}" -m "not gpu and not slow" "tests/kernels/test_$name.py"
  done
  sanitize memcheck 110
  sanitize racecheck 110
  finish
  # First the peers that are soon ready, at as many works as there is time for.
  race=("${bench[@]}" race "${keep[@]}" --seconds 10)
  stage race 55 "${race[@]}" --budget 40 --per-comparison 0.5 --peers eager,graph
  stage race-compiled 65 "${race[@]}" --budget 50 --per-comparison 1 \
    --peers "compile graph,jax,compile,compile reduce-overhead,states script"
  stage roofline 40 "${bench[@]}" roofline "${keep[@]}"
  stage gate 40 "${bench[@]}" gate "${keep[@]}"
  stage speedrun-mixture 45 "${bench[@]}" speedrun "${keep[@]}" --track mixture --budget 30
  stage speedrun-states 45 "${bench[@]}" speedrun "${keep[@]}" --track states --budget 30
  stage study 40 "${bench[@]}" study "${keep[@]}"
  stage operations 40 "${bench[@]}" operations "${keep[@]}" --budget 30
  cp bench/records/baselines/*.json "$folder" 2>/dev/null
fi
echo "$folder"
exit $failed
