# shellcheck shell=bash
# Steps one after the other, each within a time of its own and all within one. To be sourced.
#
#   begin_steps FOLDER SECONDS             what is said goes to FOLDER/run.log as well
#   step NAME LEAST MOST COMMAND...        runs for at most MOST seconds; does not begin with less than LEAST left
#   begin_step, end_step NAME              the same in two parts, for one that others run beside
#   end_steps                              whether all steps went well
#
# Output of a command goes to the file `to`, of the caller or of the one call (`to=FILE step ...`), else to run.log.
# `reserve`: seconds that are kept for later steps. `failed` becomes 1 with the first step that does not end well.

begin_steps() {
  log=$1/run.log
  end_of_time=$((SECONDS + $2))
  reserve=0
  failed=0
  declare -gA pids=() begins=() limits=()
}

# On disk first; that nobody reads any more what is printed stops nothing.
trap '' PIPE
tell() {
  printf '%s\n' "$1" >>"$log"
  printf '%s\n' "$1" 2>/dev/null || true
}
say() { tell "== $*"; }

# What measurements depend on; report.py puts it above its table.
fact() { tell "-- $1: $2"; }

seconds_left() { echo $((end_of_time - SECONDS - reserve)); }

# Whether it begins.
begin_step() {
  local name=$1 least=$2 most=$3 left
  shift 3
  left=$(seconds_left)
  if ((left < least)); then
    say "$name: left out, $left of $least s left"
    failed=1
    return 1
  fi
  limits[$name]=$((left < most ? left : most))
  begins[$name]=$SECONDS
  # Its own group of processes, which ends as a whole.
  timeout --kill-after=5 "${limits[$name]}" "$@" >>"${to:-$log}" 2>&1 &
  pids[$name]=$!
}

# Whether it went well.
end_step() {
  local name=$1 status=0 took
  wait "${pids[$name]}" || status=$?
  unset "pids[$name]"
  took=$((SECONDS - begins[$name]))
  if ((status == 0)); then
    say "$name: ok after $took s"
    return 0
  fi
  failed=1
  if ((took >= limits[$name] && (status == 124 || status == 137))); then
    say "$name: timed out after $took s"
  else
    say "$name: failed after $took s, with status $status"
  fi
  tail -n 12 "${to:-$log}" | cut -c 1-200 || true
  return 1
}

step() { begin_step "$@" && end_step "$1"; }

stop_steps() {
  local name
  for name in "${!pids[@]}"; do
    kill -TERM "${pids[$name]}" 2>/dev/null || true
    wait "${pids[$name]}" 2>/dev/null || true
    say "$name: stopped after $((SECONDS - begins[$name])) s"
  done
  pids=()
}

end_steps() { ((failed == 0)); }
