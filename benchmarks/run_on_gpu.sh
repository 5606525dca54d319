#!/usr/bin/env bash
# Builds the package on a machine with a GPU, tests it there, and measures it.
#
#     benchmarks/run_on_gpu.sh [--dry-run] [--out FOLDER] [STAGE ...]
#
# Stages, in this order when none is named: build test sanitize bench variants profile. Each has a
# time limit of its own, and a log in FOLDER/logs; one that fails does not stop the others, but the
# exit status is 1 then. Several calls may share the work. FOLDER: benchmarks/results.
#
# Needs nvcc, a C++ compiler, and a Python with a CUDA build of torch, setuptools >= 77, ninja and
# numpy; stage test also pytest and hypothesis (pytest-xdist makes it faster), stages sanitize and
# profile compute-sanitizer and ncu. Nothing is downloaded, no setting of the card is changed.
#
# Environment: PYTHON (python3), COMMIT (what is built, where this is no git checkout), MAX_JOBS,
# WORKERS (test processes on the card, 4), LIMIT (seconds of a stage, 540), and what setup.py reads.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# Plans of the kernels to be compared: a name, and macros for nvcc.
VARIANTS=(
  "default"
  "tiles-of-18-KB -DDISCLOSS_TILE_KILOBYTES=18"
  "through-tiles -DDISCLOSS_PIXELS_IN_REGISTERS=0"
  "two-blocks -DDISCLOSS_BLOCKS_PER_MULTIPROCESSOR=2"
  "four-blocks -DDISCLOSS_BLOCKS_PER_MULTIPROCESSOR=4"
  "dependent-launches -DDISCLOSS_DEPENDENT_LAUNCHES=1"
  "two-blocks-share -DDISCLOSS_LEAST_BLOCKS_THAT_SHARE=2"
  "small-by-phases -DDISCLOSS_SMALL_BATCHES_AT_ONCE=0"
)
# What variants and profiles are taken of.
VARIANT_WORKLOADS=(2d-batch 2d-k64 2d-k200 2d-k1000 random-ids clip volume-large embryo-clouds small)
PROFILED=(2d-batch random-ids 2d-k1000 embryo-clouds)
# What is measured beside all baselines in float32, after one in bfloat16.
MEASURED=(
  small 2d-batch 2d-k64 2d-k200 2d-k1000 random-ids clip volume-large volume-k10000 embryo-clouds
)
SANITIZED='test_every_case and cuda and (d17 or d100 or image_d16 or aligned_d32 or mixed_counts or
  two_hundred_instances or many_ignored or clouds_d3 or clouds_long_d8 or no_pixel or norm1_d33)'

STAGES=(build test sanitize bench variants profile)
PYTHON=${PYTHON:-python3}
WORKERS=${WORKERS:-4}
LIMIT=${LIMIT:-540}
out=benchmarks/results
dry=""
chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --out)
      [ $# -gt 1 ] || { echo "--out: expected a folder" >&2; exit 2; }
      out=$2
      shift
      ;;
    *)
      case " ${STAGES[*]} " in
        *" $1 "*) chosen+=("$1") ;;
        *) echo "expected a stage of: ${STAGES[*]}; got $1" >&2; exit 2 ;;
      esac
      ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${STAGES[@]}")

export FORCE_CUDA=1 PYTHONUNBUFFERED=1
MAX_JOBS=${MAX_JOBS:-$(nproc)}
export MAX_JOBS
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
if [ -z "${COMMIT:-}" ]; then
  COMMIT=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
  [ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || COMMIT+=", modified"
fi
logs=$out/logs
log=/dev/null
failed=0 # steps of the stage
deadline=0

# Runs a command until the stage's limit, its output in the stage's log; shows the end of it.
step() {
  local status left
  if [ "$dry" ]; then
    printf '  %q' "$1"
    printf ' %q' "${@:2}"
    echo
    return 0
  fi
  left=$((deadline - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "NOT RUN, the stage's $LIMIT s are over: $*" | tee -a "$log"
    failed=$((failed + 1))
    return 1
  fi
  echo "\$ $*" >>"$log"
  timeout --kill-after=10 "$left" "$@" >"$log.step" 2>&1
  status=$?
  cat "$log.step" >>"$log"
  if [ $status -ne 0 ]; then
    failed=$((failed + 1))
    tail -n 40 "$log.step"
    [ $status -ne 124 ] || echo "stopped after $left s"
    echo "FAILED ($status): $*" | tee -a "$log"
  else
    tail -n "${SHOWN:-3}" "$log.step"
  fi
  rm -f "$log.step"
  return $status
}

has() { [ "$dry" ] || "$PYTHON" -c "import $1" 2>/dev/null; }
missing() {
  echo "FAILED: $1" | tee -a "$log"
  failed=$((failed + 1))
}
tool() { # a command, or its place in a toolkit that is not on PATH
  local place
  for place in "$(command -v "$1")" /usr/local/cuda/bin/"$1" /opt/nvidia/nsight-compute/*/"$1"; do
    [ -x "$place" ] && [ ! -d "$place" ] && echo "$place" && return
  done
  [ -z "$dry" ] || echo "$1"
}

stage_build() {
  has ninja || missing "setup.py needs the package ninja"
  step "$PYTHON" setup.py build_ext --inplace || return
  step "$PYTHON" -m discloss_cuda
}

stage_test() {
  has pytest || { missing "needs the package pytest" && return; }
  has hypothesis || { missing "needs the package hypothesis (and sortedcontainers)" && return; }
  local parallel=(-n "$WORKERS") less=(--ignore tests/test_cuda_compiles.py)
  has xdist || { echo "no pytest-xdist: one process" && parallel=(); }
  has mypy || { echo "left out, no mypy: tests/test_typing.py" && less+=(--ignore tests/test_typing.py); }
  SHOWN=12 step "$PYTHON" -m pytest -q -p no:cacheprovider ${parallel[@]+"${parallel[@]}"} \
    "${less[@]}" -m "not emulated and not compiled" -k "cuda"
}

stage_sanitize() {
  local sanitizer each filter
  sanitizer=$(tool compute-sanitizer)
  [ "$sanitizer" ] || { missing "there is no compute-sanitizer" && return; }
  for each in memcheck racecheck synccheck initcheck; do
    filter=(--kernel-regex kns=discloss)
    [ $each != initcheck ] || filter=() # it has to see who writes, torch's kernels too
    step env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool $each --error-exitcode 86 \
      ${filter[@]+"${filter[@]}"} "$PYTHON" -m pytest -q -p no:cacheprovider -m "not emulated and not compiled" \
      tests/test_values.py -k "${SANITIZED//$'\n'/ }"
  done
}

measure() { # FILE ARGUMENT...
  SHOWN=${SHOWN:-40} step "$PYTHON" benchmarks/bench_loss.py --device cuda --commit "$COMMIT" \
    --json "$out/$1.json" "${@:2}"
}

stage_bench() {
  local names=() name
  for name in "${MEASURED[@]}"; do names+=(--workload "$name"); done
  measure "$stem-bfloat16" --dtype bfloat16 --workload 2d-batch --limit 20
  measure "$stem-float32" --dtype float32 "${names[@]}" --limit 20
}

stage_variants() {
  local variant name folder names=() files=()
  for name in "${VARIANT_WORKLOADS[@]}"; do names+=(--workload "$name"); done
  for variant in "${VARIANTS[@]}"; do
    name=${variant%% *}
    folder=build/variant-$name
    step env NVCC_APPEND_FLAGS="${variant#"$name"}" "$PYTHON" setup.py \
      build_py --build-lib "$folder" build_ext --build-lib "$folder" || continue
    files+=("$out/$stem-variant-$name.json")
    PYTHONPATH=$PWD/$folder:$PYTHONPATH SHOWN=14 measure "$stem-variant-$name" --only-ours \
      --limit 10 "${names[@]}"
  done
  SHOWN=60 step "$PYTHON" benchmarks/compare.py ${files[@]+"${files[@]}"}
}

stage_profile() {
  local ncu name report
  ncu=$(tool ncu)
  [ "$ncu" ] || { missing "there is no ncu" && return; }
  for name in "${PROFILED[@]}"; do
    report=$out/$stem-$name.ncu-rep
    step "$ncu" --clock-control none --set full --kernel-name-base mangled \
      --kernel-name regex:discloss --launch-count 24 --force-overwrite --export "$report" \
      "$PYTHON" benchmarks/bench_loss.py --device cuda --dtype float32 --only-ours \
      --workload "$name" --rounds 1 --seconds 0.001 --commit "$COMMIT" || continue
    SHOWN=0 step "$ncu" --import "$report" --page details --print-summary per-kernel
  done
}

stem=$(date +%F)-gpu
if [ -z "$dry" ]; then
  mkdir -p "$logs" || exit
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$PYTHON" - <<'PY' || exit
import platform, torch
assert torch.cuda.is_available(), f"torch {torch.__version__} finds no CUDA device"
major, minor = torch.cuda.get_device_capability()
print(f"python {platform.python_version()}, torch {torch.__version__}, sm_{major}{minor}")
PY
  nvcc --version | tail -n 2
  stem=$(date +%F)-$("$PYTHON" -c "
import re, torch
print(re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()).strip('-'))")
fi
echo "commit $COMMIT"

summary=()
result=0
for stage in "${chosen[@]}"; do
  echo "== $stage"
  log=$logs/$stage.log
  [ "$dry" ] && log=/dev/null || : >"$log"
  began=$SECONDS
  deadline=$((SECONDS + LIMIT))
  failed=0
  "stage_$stage"
  said=ok
  [ $failed -eq 0 ] || { said="FAILED ($failed)" && result=1; }
  summary+=("$(printf '%-10s%6d s  %s' "$stage" $((SECONDS - began)) "$said")")
done
if [ -z "$dry" ]; then
  echo "== summary, commit $COMMIT, results in $out"
  printf '%s\n' "${summary[@]}"
fi
exit $result
