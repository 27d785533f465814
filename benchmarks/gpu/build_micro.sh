#!/usr/bin/env bash
# Compiles micro.cu for sm_90, twice, into build/gpu of the repository, unless that is there, runs and is of these
# sources. Needs nvcc, no GPU; what it makes needs a driver alone. Refuses kernels that spill.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/cuda/bin
cd "$(dirname "$0")/../.."
out=build/gpu
sources=(benchmarks/gpu/{build_micro.sh,*.cu,*.cuh,prototype/*} csrc/cuda/device.h csrc/model/*.h)
sources+=(csrc/cuda/teams/{layout.h,lanes.cuh,mail.cuh})
key=$(sha256sum "${sources[@]}" | sha256sum | cut -d ' ' -f 1)

# Without arguments it says how it is called, and needs no GPU for that.
runs() { "$1" >/dev/null 2>&1 || (($? == 2)); }
if [[ -f $out/micro.key && $(<"$out/micro.key") == "$key" ]] && runs "$out/micro" && runs "$out/micro_exact"; then
  echo "$out/micro is up to date"
  exit
fi

mkdir -p "$out"
rm -f "$out/micro.key"
compile() {
  nvcc -std=c++20 -O3 -arch=sm_90 -cudart static --resource-usage -Icsrc -Icsrc/cuda -Ibenchmarks/gpu/prototype \
    "${@:2}" benchmarks/gpu/micro.cu -o "$out/$1" >"$out/$1.txt" 2>&1 || {
    cat "$out/$1.txt"
    return 1
  }
  if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$out/$1.txt"; then
    echo "$1: registers do not suffice"
    return 1
  fi
}
compile micro_exact -DEXACT_SIGMOID &
compile micro
wait $!
echo "$key" >"$out/micro.key"
echo "$out/micro is built"
