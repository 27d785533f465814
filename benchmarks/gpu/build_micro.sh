#!/usr/bin/env bash
# Compiles micro.cu, twice, and layouts.cu with the library's kernels for sm_90 into build/gpu of the repository, unless
# they are there, run and are of these sources. Needs nvcc, no GPU; what it makes needs a driver alone. Refuses kernels
# that spill.
#
#   build_micro.sh [--dry]      --dry: of layouts.cu only what has no kernels, which take a minute
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/cuda/bin
cd "$(dirname "$0")/../.."
dry=${1:-}
out=build/gpu
sources=(benchmarks/gpu/{build_micro.sh,*.cu,*.cuh,prototype/*} csrc/cuda/device.h csrc/model/*.h csrc/aten/whole_phase.h
  csrc/cuda/{block,maps,teams}/*)
key=$(sha256sum "${sources[@]}" | sha256sum | cut -d ' ' -f 1)

# A program without arguments says how it is called, and needs no GPU for that.
is_there() {
  [[ -f $out/$1.key && $(<"$out/$1.key") == "$key" ]] || return 1
  [[ $1 == *.o ]] && return
  "$out/$1" >/dev/null 2>&1 || (($? == 2))
}
compile() {
  is_there "$1" && return
  rm -f "$out/$1.key"
  nvcc -std=c++20 -O3 -arch=sm_90 -cudart static --resource-usage -Icsrc -Icsrc/cuda -Ibenchmarks/gpu/prototype \
    "${@:2}" -o "$out/$1" >"$out/$1.txt" 2>&1 || {
    cat "$out/$1.txt"
    return 1
  }
  if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$out/$1.txt"; then
    echo "$1: registers do not suffice"
    return 1
  fi
  echo "$key" >"$out/$1.key"
}

mkdir -p "$out"
compile micro_exact -DEXACT_SIGMOID benchmarks/gpu/micro.cu &
compile micro benchmarks/gpu/micro.cu
wait $!
layouts=(--expt-relaxed-constexpr --extended-lambda -lineinfo benchmarks/gpu/layouts.cu)
if [[ $dry == --dry ]]; then
  compile layouts.o -c "${layouts[@]}"
else
  compile layouts "${layouts[@]}" csrc/cuda/{maps,teams}/kernels.cu
fi
echo "$out has micro and layouts"
