// The kernel: what every block does of an op, from the first step to the last, in one launch.
#pragma once

#include "learning.cuh"

namespace ceprop::cuda {

// One loop runs all phases of all ops, so that the code of a step exists once: the input's drive, the free phase, then
// the nudged phase with +beta and, if symmetric, that with -beta, to which C-EP goes back by un-nudged steps.
template <class T, class Tile, class States>
__device__ void run(const Problem<T>& p) {
  Relaxation<T, Tile, States> network(p);
  const Learning<T, Tile, States> learning(network);
  const bool cep = p.op == Op::cep_step, learns = p.op != Op::relax;
  const int stages = 2 + (!learns ? 0 : !p.symmetric ? 1 : cep ? 3 : 2);
  int field = 0, moves = 0;
  network.load();
  for (int stage = 0; stage < stages; ++stage) {
    const bool loads = stage == 0, free = stage == 1, returns = cep && stage == 3, nudged = stage > 1 && !returns;
    const int phase = stage > 2 ? 1 : 0, steps = loads ? 1 : free ? p.free_steps : p.nudged_steps;
    const double beta = nudged                        ? (phase ? -p.nudge.beta : p.nudge.beta)
                        : free && p.target && !learns ? p.nudge.beta
                                                      : 0;
    const double divisor = beta * learning.phases();
    if (stage == 2 && cep) learning.load();
    if (stage == 3 && !cep) {
      field = (field + 1) % ring;  // the one that no slow block still reads
      network.copy_field(kept_free, field);
      network.states.sync();
    }
    int count = 0;
    for (bool stays = false; count < steps && !stays;) {
      const int to = (field + 1) % ring;
      const bool corrected = nudged && p.low_rank && p.layers > 1;
      if (beta != 0 && p.nudge.loss == Loss::cross_entropy) network.compute_error(field, T(beta), p.workspace.error);
      if (corrected) learning.prepare_low_rank(field);
      network.take({loads, field, to, T(beta), corrected});
      if (loads) break;
      const Between between{field, to, field};
      if (nudged && cep) learning.move_own(between, divisor);
      if (nudged && (cep ? !p.low_rank && !p.layout.resident : learning.accumulates())) {
        learning.learn(between, divisor, phase + count == 0, false, to, 0);
        if (cep) network.states.sync();  // weights moved that other blocks read
      }
      stays = network.may_stop(++count);
      field = to;
    }
    if (loads) continue;
    if (nudged) moves += count;
    network.note_steps(stage - 1, count);
    if (!returns) network.store(field, free ? p.free_states : p.nudged_states[phase]);
    if (free && learns) network.copy_field(field, kept_free);
    if (stage == 2 && p.symmetric) network.copy_field(field, kept_plus);
    if (nudged && p.readout) network.compute_error(field, T(1), p.workspace.end_error[phase]);
  }
  if (learns) {
    network.states.sync();  // what the phases kept is there for all blocks
    const Between ends =
        p.symmetric && !cep ? Between{field, kept_plus, kept_free} : Between{kept_free, field, kept_free};
    learning.learn(ends, p.nudge.beta * learning.phases(), true, true, field, moves);
    if (cep && !p.low_rank && p.layout.resident) learning.store_resident();
  }
  if (States::in_shared_memory) network.states.sync();  // no block may end while others read its memory
}

// What a kernel is made of, by names that exist in every pass of the compiler, as its types do not.
struct Exact {};
struct Tf32 {};
struct Bf16 {};
struct InGrid {};
struct InCluster {};

// void: not on this architecture.
template <class T, class Name>
struct TypeOf {
  using type = void;
};
template <class T>
struct TypeOf<T, Exact> {
  using type = FmaTile<T>;
};
template <class T>
struct TypeOf<T, InGrid> {
  using type = GridStates<T>;
};
#if DEVICE_HAS_TENSOR_FLOATS
template <>
struct TypeOf<float, Tf32> {
  using type = TensorTile<nvcuda::wmma::precision::tf32>;
};
template <>
struct TypeOf<float, Bf16> {
  using type = TensorTile<__nv_bfloat16>;
};
#endif
#if DEVICE_HAS_CLUSTERS
template <class T>
struct TypeOf<T, InCluster> {
  using type = ClusterStates<T>;
};
#endif

template <class T, class TileName, class StatesName>
__global__ void __launch_bounds__(block_threads, 1) run_op(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
  using Tile = typename TypeOf<T, TileName>::type;
  using States = typename TypeOf<T, StatesName>::type;
  if constexpr (std::is_void_v<Tile> || std::is_void_v<States>)
    __trap();
  else
    run<T, Tile, States>(problem);
}

}  // namespace ceprop::cuda
