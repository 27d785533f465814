// The kernel: what every block does of an op, from the first step to the last, in one launch.
#pragma once

#include "learning.cuh"

namespace ceprop::cuda {

// One loop runs all stages of all ops, and one call in it all products, so that their code exists once: the input's
// drive, then what model/stages.h lists.
//
// A part of the kernel, whose parameters would be read from memory if it were called.
template <class T, class Tile, class States>
__device__ __forceinline__ void run(const Problem<T>& p) {
  Relaxation<T, Tile, States> network(p);
  const Learning<T, Tile, States> learning(network);
  const Stages& stages = p.stages;
  const bool cep = stages.op == Op::cep_step, learns = stages.op != Op::relax;
  int buffer = 0, learnt = 0;
  double keep = 1;
  if (cep) remember(p, learning);
  network.load();
  for (int index = -1; index < stages.count; ++index) {
    const bool loads = index < 0;
    const Stage stage = loads ? Stage{} : stages.stage[index];
    const bool nudged = learns && stage.beta != 0;
    const int phase = stage.stores == 2;
    if (!loads && stage.from != Kept::last) {
      buffer = (buffer + 1) % ring;  // the one that no slow block still reads
      network.copy_states(buffer_of(stage.from, buffer), buffer);
      network.states.sync();
    }
    int count = 0;
    for (bool stays = false, ends = false; !ends;) {
      ends = loads || stays || count == stage.steps;
      const int to = (buffer + 1) % ring;
      const bool corrected = nudged && p.low_rank && p.layers > 1;
      // The nudge needs an error, and at the end of a nudged phase a readout learns from one.
      const bool has_error = ends ? nudged && p.readout : stage.beta != 0 && !is_of_units(p.nudge.loss);
      T* error = ends ? p.workspace.end_error[phase] : p.workspace.error;
      for (int part = 0; part < 3; ++part) {
        const Kind kind = part == 0   ? (loads ? Kind::drive : Kind::logits)
                          : part == 1 ? (loads ? Kind::gram : Kind::low_rank)
                                      : Kind::move;
        const bool wanted = part == 0   ? loads || (has_error && p.readout)
                            : part == 1 ? (loads ? cep : corrected && !ends)
                                        : !ends;
        if (wanted) network.take({kind, buffer, to, T(stage.beta), T(keep), cep && index != 0, corrected, error});
        if (part == 0 && has_error) network.take_error(buffer, ends ? T(1) : T(stage.beta), error);
      }
      if (ends) break;
      const Between between{buffer, to, buffer};
      if (stage.learns && cep) {
        learning.move_own(between, stage.divisor);
        keep *= 1 - p.rate[0] * p.weight_decay;
      }
      if (stage.learns && !(cep && (p.low_rank || p.layout.resident))) {
        learning.learn(between, stage.divisor, learnt++ == 0, false, to, keep);
        if (cep) network.states.sync();  // weights moved that other blocks read
      }
      stays = network.may_stop(++count);
      buffer = to;
    }
    if (loads) continue;
    network.note_steps(index, count);
    if (stage.stores >= 0) network.store(buffer, stage.stores == 0 ? p.free_states : p.nudged_states[phase]);
    if (stage.keeps != Kept::last) network.copy_states(buffer, buffer_of(stage.keeps, buffer));
    if (index == 0 && p.low_rank) network.states.sync();  // all blocks read what is kept in the next phase
  }
  if (learns) {
    network.sanity.tell();
    network.states.sync();  // what the phases kept is there for all blocks
    const Between ends{buffer_of(stages.earlier, buffer), buffer_of(stages.later, buffer), kept_free};
    if (network.sanity.holds()) {
      learning.learn(ends, stages.divisor, true, true, buffer, keep);
      if (cep && !p.low_rank && p.layout.resident) learning.store_resident();
    } else {
      take_back(p, learning, stages.count);
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
