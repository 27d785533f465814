// The kernel of chains with convolutions: what every block does of an op, from the first step to the last, in one
// launch.
#pragma once

#include "learning.cuh"
#include "relaxation.cuh"

namespace ceprop::cuda::conv {

// One loop runs all stages of all ops, and one call in it all products, so that their code exists once: what
// model/stages.h lists, at last what is learned from the states that the phases left.
//
// A part of the kernel, whose parameters would be read from memory if it were called.
template <class T>
__device__ __forceinline__ void run(const Problem<T>& p) {
  Relaxation<T> network(p);
  const Learning<T> learning(p);
  const Stages& stages = p.stages;
  const bool cep = stages.op == Op::cep_step, learns = stages.op != Op::relax;
  const int halves = p.asynchronous ? 2 : 1;
  int buffer = 0, learnt = 0;
  bool lifts_input = true;
  if (cep) remember(p, learning);
  network.load();
  for (int index = 0; index < stages.count + learns; ++index) {
    const bool at_end = index == stages.count;
    const Stage stage = at_end ? Stage{} : stages.stage[index];
    const bool nudged = learns && stage.beta != 0;
    const int phase = stage.stores == 2;
    if (!at_end && stage.from != Kept::last) {
      buffer = (buffer + 1) % ring;  // the one that no slow block still reads
      network.copy_states(buffer_of(stage.from, buffer), buffer);
    }
    if (at_end) network.sanity.tell();
    if (index > 1) network.sync();  // what phases kept is there for all blocks
    if (at_end && !network.sanity.holds()) {
      take_back(p, learning, stages.count);
      break;
    }
    int count = 0;
    for (bool stays = false, ends = false; !ends;) {
      ends = at_end || stays || count == stage.steps;
      const int to = (buffer + 1) % ring;
      // The nudge needs an error, and at the end of a nudged phase a readout learns from one.
      const bool has_error = ends ? nudged && p.readout : stage.beta != 0 && !is_of_units(p.nudge.loss);
      const bool contrasts = at_end || (stage.learns && !ends);
      Part<T> part{};
      part.from = buffer;
      part.to = to;
      part.beta = T(stage.beta);
      part.error = ends ? p.workspace.end_error[phase] : p.workspace.error;
      part.between = at_end ? Between{buffer_of(stages.earlier, buffer), buffer_of(stages.later, buffer), kept_free}
                            : Between{buffer, to, buffer};
      part.first = at_end && stages.steps_learn ? p.layers : 0;
      part.last = at_end ? p.layers + p.readout : p.layers;
      for (int i = 0; i < 7; ++i) {
        const bool steps_now = !ends && (i + 1) / 2 <= halves;
        const bool wanted = i == 0   ? has_error && p.readout
                            : i == 5 ? contrasts && part.first < p.layers
                            : i == 6 ? contrasts && part.first < part.last
                                     : steps_now;
        part.kind = i == 0   ? Kind::logits
                    : i == 5 ? Kind::unpool
                    : i == 6 ? Kind::contrast
                    : i % 2  ? Kind::lift
                             : Kind::move;
        part.half = i > 2 && i < 5;
        part.lifts_input = lifts_input;
        if (wanted) network.take(part);
        if (i == 0 && has_error) network.take_error(buffer, ends ? T(1) : part.beta, part.error);
        if (i == 1 && wanted) lifts_input = false;
      }
      if (contrasts) {
        learning.learn(part, at_end ? stages.divisor : stage.divisor, at_end || learnt++ == 0);
        if (cep && !at_end) {
          lifts_input = true;
          network.sync();  // weights moved that other blocks read
        }
      }
      if (ends) break;
      stays = network.may_stop(++count);
      buffer = to;
    }
    if (at_end) break;
    network.note_steps(index, count);
    if (stage.stores >= 0) network.store(buffer, stage.stores == 0 ? p.free_states : p.nudged_states[phase]);
    if (stage.keeps != Kept::last) network.copy_states(buffer, buffer_of(stage.keeps, buffer));
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1) run_op(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
  run<T>(problem);
}

}  // namespace ceprop::cuda::conv
