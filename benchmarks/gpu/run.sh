#!/usr/bin/env bash
# Uses a few minutes on a GPU whole: measures what decisions hang on, tests, times and profiles, and says at the end what
# was predicted and what came out. README.md beside this tells more.
#
#   run.sh [--dry] [--out DIR] [--minutes N]
#
# --dry: without a GPU, everything that can go wrong without one. PYTHON: the interpreter, python3 unless set. COMMIT: of
# which commit the sources are, where they are no repository.
set -euo pipefail
export LC_ALL=C PYTHONUNBUFFERED=1
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
python=${PYTHON:-python3}

dry=false
out=$root/build/gpu/results
minutes=9
while (($#)); do
  case $1 in
    --dry) dry=true ;;
    --out) out=${2:?"--out needs a folder"} && shift ;;
    --minutes) minutes=${2:?"--minutes needs a number"} && shift ;;
    *) echo "run.sh [--dry] [--out DIR] [--minutes N], got $1" >&2 && exit 2 ;;
  esac
  shift
done
[[ $minutes =~ ^[0-9]+$ ]] || { echo "--minutes needs a whole number, got $minutes" >&2 && exit 2; }

mkdir -p "$out"
out=$(cd "$out" && pwd)
if [[ ! -e $out/run.log && -n $(ls -A "$out") ]]; then
  echo "--out needs a new folder, or one of an earlier run, which is overwritten; got $out" >&2
  exit 2
fi
rm -f "$out"/{run.log,build.log,micro.csv,tests.txt,{cuda,cpu}_steps.csv,{cuda,cpu}.csv,{calls,ncu,report}.csv}
cd "$root"
export PATH=$PATH:/usr/local/cuda/bin
export PYTHONPATH=$root:$here${PYTHONPATH:+:$PYTHONPATH}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$here/steps.sh"
begin_steps "$out" $((60 * minutes - 8)) # less the table's time

table() { "$python" "$here/report.py" "$out" || failed=1; }
stopped() {
  trap '' TERM INT
  stop_steps
  table
  exit 143
}
trap stopped TERM INT

# What the driver says of the first GPU.
ask() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 || true; }
clocks() {
  $dry || fact "clocks $1, of SM, at most, of memory" "$(ask clocks.sm,clocks.max.sm,clocks.mem)"
}
commit() {
  if [[ -e .git ]] && git describe --always --dirty --exclude '*' 2>/dev/null; then return; fi
  echo "${COMMIT:-unknown}"
}
facts() {
  fact date "$(date -u +%F)"
  fact commit "$(commit)"
  if $dry; then
    fact gpu "none: this is a dry run"
  else
    fact gpu "$(ask name)"
    fact driver "$(ask driver_version)"
  fi
  clocks "at the start"
  fact nvcc "$(nvcc --version 2>/dev/null | sed -n 's/.*release .*, V//p' || true)"
  fact torch "$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null || echo none)"
  sed -n 's/^-- /# /p' "$log" >"$work/facts"
}

build() {
  if $dry; then
    begin_step build 5 60 "$python" -c "import ceprop_cuda._C"
  else
    to=$out/build.log begin_step build 60 300 env TORCH_CUDA_ARCH_LIST="$(ask compute_cap)" MAX_JOBS="$(nproc)" \
      CEPROP_CUDA=1 "$python" setup.py build_ext --inplace
  fi
}

# Each part alone: what a kernel breaks ends with its process.
microbenchmarks() {
  if ! command -v nvcc >/dev/null && $dry; then
    say "micro: not compiled, there is no nvcc here"
    return
  fi
  if $dry; then
    step micro 5 120 "$here/build_micro.sh" --dry || true
    return
  fi
  step micro 5 120 "$here/build_micro.sh" || return 0
  { cat "$work/facts" && echo "name,value,unit"; } >"$out/micro.csv"
  local part
  for part in clocks clusters barriers mailboxes l2 prototype; do
    step "micro, $part" 5 30 build/gpu/micro "$out/micro.csv" "$part" || true
  done
  step "micro, exact sigmoid" 5 30 build/gpu/micro_exact "$out/micro.csv" prototype || true
  step "micro, layouts" 5 60 build/gpu/layouts "$out/micro.csv" || true
  clocks "after the microbenchmarks"
}

# That compare with the reference: of the folder python_tests/cuda_device the file $2.
tests() {
  local agree="agree or golden or every or phases or activations or papers or copies"
  local cuda=(-m pytest -m cuda -k "$agree" -p poisoned -p no:cacheprovider --no-header "python_tests/cuda_device/$2")
  if $dry; then
    to=$out/tests.txt step "$1" 5 60 "$python" "${cuda[@]}" --collect-only -q || true
  else
    local parallel=()
    if "$python" -c "import xdist" 2>/dev/null; then parallel=(-n 6); fi
    # Blocks that wait for each other forever end with their process, and the other tests go on in another.
    if "$python" -c "import pytest_timeout" 2>/dev/null; then parallel+=(--timeout 20 --timeout-method thread); fi
    to=$out/tests.txt step "$1" 20 90 env OMP_NUM_THREADS=4 "$python" "${cuda[@]}" "${parallel[@]}" \
      -v -rf --tb=short || true
  fi
}

# Of dense layers first, then of convolutions.
steps() {
  if $dry; then
    step steps 5 60 "$python" benchmarks/cuda_steps.py --device cpu --cases ep-1h-b1 --out "$out" || true
  else
    step steps 30 120 "$python" benchmarks/cuda_steps.py --out "$out" \
      --cases 'ep-?h-b20' p-3h-b20 'c-*-?h-b20' 'ep-?h-b*' 'c-*-?h-b*' p-conv-b20 c-ep-conv-b20 || true
  fi
}

bench() {
  if $dry; then
    # Compiled, its reference would take longer than all else here.
    step bench 5 60 env TORCHDYNAMO_DISABLE=1 "$python" -m ceprop_cuda bench --cases ep-1h-b1 --threads 1 --rounds 1 \
      --out "$out" || true
  else
    reserve=75 # for the profiler
    step bench 40 400 "$python" -m ceprop_cuda bench --device cuda --rounds 3 --out "$out" \
      --cases ep-2h-b20 c-ep-1h-b20 ep-1h-b20 c-ep-2h-b20 p-conv-b20 c-ep-conv-b20 'c-vf-?h-b20' p-3h-b20 || true
    reserve=0
    clocks "after the benchmarks"
  fi
  rm -f "$out"/{cuda,cpu}.png # report.csv has its numbers
}

calls() {
  if $dry; then
    step calls 5 60 "$python" benchmarks/gpu/calls.py ep-1h-b1 --device cpu --out "$out" || true
  else
    step calls 10 60 "$python" benchmarks/gpu/calls.py ep-1h-b20 c-ep-1h-b20 ep-2h-b20 p-conv-b20 --out "$out" || true
  fi
}

# Of launches by layouts.cu of which nearly all is steps of one kind: in a launch with clusters in which all blocks meet
# the profiler sees nothing.
profiles() {
  local profile=(ncu --clock-control none --section SpeedOfLight --section WarpStateStats --section InstructionStats
    --section SourceCounters -k "regex:run_team|relax_maps" -c 1 --csv --page raw)
  $dry || { cat "$work/facts" && echo "case,metric,value,unit"; } >"$out/ncu.csv"
  local case layout
  while read -r case layout; do
    if $dry; then
      say "$case would be profiled by: ${profile[*]} build/gpu/layouts /dev/null $layout"
    else
      step "profile of $case" 15 40 "${profile[@]}" --log-file "$work/$case" build/gpu/layouts /dev/null "$layout" ||
        true
      "$python" benchmarks/gpu/counters.py "$case" "$work/$case" >>"$out/ncu.csv" 2>>"$log" || failed=1
    fi
  done <<'CASES'
free-steps 2h-b20/cluster-16x3-
free-steps-of-a-grid 3h-b20/grid-132x4-
nudged-steps 2h-b20/moving-grid-
free-steps-of-maps p-conv-b20/maps-4
CASES
}

if $dry; then
  export CUDA_VISIBLE_DEVICES=
elif [[ -z $(ask name) ]]; then
  echo "nvidia-smi names no GPU; --dry needs none" >&2
  exit 2
fi
if build; then building=true; else building=false; fi
facts # the first import of torch on a machine takes long
microbenchmarks
if $building && end_step build; then
  tests "tests of teams" test_cuda.py
  tests "tests of maps" test_cuda_maps.py
  steps
  tests "tests of the library" test_cuda_graphs.py
  calls
  bench
  profiles
else
  say "all else: left out, as there is no library"
fi
clocks "at the end"
table
end_steps
