#!/usr/bin/env bash
# Compiles micro.cu, twice, and layouts.cu for sm_90 into build/gpu of the repository, unless they are there, run and
# are of these sources. Needs nvcc, no GPU; what it makes needs a driver alone. Refuses kernels that spill.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/cuda/bin
cd "$(dirname "$0")/../.."
out=build/gpu
sources=(benchmarks/gpu/{build_micro.sh,*.cu,*.cuh,prototype/*} csrc/cuda/device.h csrc/model/*.h csrc/cuda/teams/*)
key=$(sha256sum "${sources[@]}" | sha256sum | cut -d ' ' -f 1)

# Without arguments it says how it is called, and needs no GPU for that.
runs() { "$1" >/dev/null 2>&1 || (($? == 2)); }
if [[ -f $out/micro.key && $(<"$out/micro.key") == "$key" ]] && runs "$out/micro" && runs "$out/micro_exact" &&
  runs "$out/layouts"; then
  echo "$out/micro and layouts are up to date"
  exit
fi

mkdir -p "$out"
rm -f "$out/micro.key"
compile() {
  nvcc -std=c++20 -O3 -arch=sm_90 -cudart static --resource-usage -Icsrc -Icsrc/cuda -Ibenchmarks/gpu/prototype \
    "${@:2}" -o "$out/$1" >"$out/$1.txt" 2>&1 || {
    cat "$out/$1.txt"
    return 1
  }
  if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$out/$1.txt"; then
    echo "$1: registers do not suffice"
    return 1
  fi
}
compile micro_exact -DEXACT_SIGMOID benchmarks/gpu/micro.cu &
compile micro benchmarks/gpu/micro.cu
wait $!
compile layouts --expt-relaxed-constexpr --extended-lambda -lineinfo benchmarks/gpu/layouts.cu csrc/cuda/teams/kernels.cu
echo "$key" >"$out/micro.key"
echo "$out/micro and layouts are built"
