// The kernel: what every block does of an op, from the first step to the last, in one launch.
#pragma once

#include "learning.cuh"

namespace ceprop::cuda {

// One loop runs all phases of all ops, and one call in it all products, so that their code exists once: the input's
// drive, the free phase, then the nudged phase with +beta and, if symmetric, that with -beta, to which C-EP goes back
// by un-nudged steps.
//
// A part of the kernel, whose parameters would be read from memory if it were called.
template <class T, class Tile, class States>
__device__ __forceinline__ void run(const Problem<T>& p) {
  Relaxation<T, Tile, States> network(p);
  const Learning<T, Tile, States> learning(network);
  const bool cep = p.op == Op::cep_step, learns = p.op != Op::relax;
  const int stages = 2 + (!learns ? 0 : !p.symmetric ? 1 : cep ? 3 : 2);
  int field = 0, moves = 0;
  double keep = 1;
  if (cep) remember(p, learning);
  network.load();
  for (int stage = 0; stage < stages; ++stage) {
    const bool loads = stage == 0, free = stage == 1, returns = cep && stage == 3, nudged = stage > 1 && !returns;
    const int phase = stage > 2 ? 1 : 0, steps = free ? p.free_steps : p.nudged_steps;
    const double beta = nudged                        ? (phase ? -p.nudge.beta : p.nudge.beta)
                        : free && p.target && !learns ? p.nudge.beta
                                                      : 0;
    const double divisor = beta * phases_of(p);
    if (stage == 3 && !cep) {
      field = (field + 1) % ring;  // the one that no slow block still reads
      network.copy_field(kept_free, field);
      network.states.sync();
    }
    int count = 0;
    for (bool stays = false, ends = false; !ends;) {
      ends = loads || stays || count == steps;
      const int to = (field + 1) % ring;
      const bool corrected = nudged && p.low_rank && p.layers > 1;
      // Of the nudge, or, at the end of a nudged phase, that by which a readout learns.
      const bool has_error = ends ? nudged && p.readout : beta != 0 && p.nudge.loss == Loss::cross_entropy;
      T* error = ends ? p.workspace.end_error[phase] : p.workspace.error;
      for (int part = 0; part < 3; ++part) {
        const Kind kind = part == 0   ? (loads ? Kind::drive : Kind::logits)
                          : part == 1 ? (loads ? Kind::gram : Kind::low_rank)
                                      : Kind::move;
        const bool wanted = part == 0   ? loads || (has_error && p.readout)
                            : part == 1 ? (loads ? cep : corrected && !ends)
                                        : !ends;
        if (wanted) network.take({kind, field, to, T(beta), T(keep), cep && !free, corrected, error});
        if (part == 0 && has_error) network.softmax_error(field, ends ? T(1) : T(beta), error);
      }
      if (ends) break;
      const Between between{field, to, field};
      if (nudged && cep) {
        learning.move_own(between, divisor);
        keep *= 1 - p.rate[0] * p.weight_decay;
      }
      if (nudged && (cep ? !p.low_rank && !p.layout.resident : accumulates(p))) {
        learning.learn(between, divisor, phase + count == 0, false, to, keep);
        if (cep) network.states.sync();  // weights moved that other blocks read
      }
      stays = network.may_stop(++count);
      field = to;
    }
    if (loads) continue;
    if (nudged) moves += count;
    network.note_steps(stage - 1, count);
    if (!returns) network.store(field, free ? p.free_states : p.nudged_states[phase]);
    if (free && learns) {
      network.copy_field(field, kept_free);
      if (p.low_rank) network.states.sync();  // all blocks read it in the next phase
    }
    if (stage == 2 && p.symmetric) network.copy_field(field, kept_plus);
  }
  if (learns) {
    network.sanity.tell();
    network.states.sync();  // what the phases kept is there for all blocks
    const Between ends =
        p.symmetric && !cep ? Between{field, kept_plus, kept_free} : Between{kept_free, field, kept_free};
    if (network.sanity.holds()) {
      learning.learn(ends, p.nudge.beta * phases_of(p), true, true, field, keep);
      if (cep && !p.low_rank && p.layout.resident) learning.store_resident();
    } else {
      take_back(p, learning, stages - 1);
    }
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
