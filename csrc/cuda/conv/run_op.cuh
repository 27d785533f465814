// The kernel of chains with convolutions: what every block does of an op, from the first step to the last, in one
// launch.
#pragma once

#include "learning.cuh"
#include "relaxation.cuh"

namespace ceprop::cuda::conv {

// One loop runs all phases of all ops, and one call in it all products, so that their code exists once: the free phase,
// the nudged phase with +beta and, if symmetric, that with -beta, to which C-EP goes back by un-nudged steps; at last
// what is learned from the states that they left.
//
// A part of the kernel, whose parameters would be read from memory if it were called.
template <class T>
__device__ __forceinline__ void run(const Problem<T>& p) {
  Relaxation<T> network(p);
  const Learning<T> learning(p);
  const bool cep = p.op == Op::cep_step, learns = p.op != Op::relax;
  const int stages = 1 + (!learns ? 0 : !p.symmetric ? 1 : cep ? 3 : 2), halves = p.asynchronous ? 2 : 1;
  int field = 0;
  bool lifts_input = true;
  if (cep) remember(p, learning);
  network.load();
  for (int stage = 0; stage < stages + learns; ++stage) {
    const bool free = stage == 0, at_end = stage == stages, returns = cep && stage == 2 && !at_end;
    const bool nudged = !free && !returns && !at_end;
    const int phase = stage > 1 ? 1 : 0, steps = free ? p.free_steps : p.nudged_steps;
    const double beta = nudged                        ? (phase ? -p.nudge.beta : p.nudge.beta)
                        : free && p.target && !learns ? p.nudge.beta
                                                      : 0;
    if (stage == 2 && !cep && !at_end) {
      field = (field + 1) % ring;  // the one that no slow block still reads
      network.copy_field(kept_free, field);
    }
    if (at_end) network.sanity.tell();
    if (stage > 1) network.sync();  // what phases kept is there for all blocks
    if (at_end && !network.sanity.holds()) {
      take_back(p, learning, stages);
      break;
    }
    int count = 0;
    for (bool stays = false, ends = false; !ends;) {
      ends = at_end || stays || count == steps;
      const int to = (field + 1) % ring;
      // Of the nudge, or, at the end of a nudged phase, that by which a readout learns.
      const bool has_error = ends ? nudged && p.readout : beta != 0 && p.nudge.loss == Loss::cross_entropy;
      const bool contrasts = at_end || (nudged && !ends && (cep || accumulates(p)));
      Part<T> part{};
      part.from = field;
      part.to = to;
      part.beta = T(beta);
      part.error = ends ? p.workspace.end_error[phase] : p.workspace.error;
      part.between = !at_end               ? Between{field, to, field}
                     : p.symmetric && !cep ? Between{field, kept_plus, kept_free}
                                           : Between{kept_free, field, kept_free};
      part.first = at_end && (cep || accumulates(p)) ? p.layers : 0;
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
        if (i == 0 && has_error) network.softmax_error(field, ends ? T(1) : part.beta, part.error);
        if (i == 1 && wanted) lifts_input = false;
      }
      if (contrasts) {
        const double divisor = (at_end ? p.nudge.beta : beta) * phases_of(p);
        learning.learn(part, divisor, at_end || phase + count == 0);
        if (cep && !at_end) {
          lifts_input = true;
          network.sync();  // weights moved that other blocks read
        }
      }
      if (ends) break;
      stays = network.may_stop(++count);
      field = to;
    }
    if (at_end) break;
    network.note_steps(stage, count);
    if (!returns) network.store(field, free ? p.free_states : p.nudged_states[phase]);
    if (free && learns) network.copy_field(field, kept_free);
    if (stage == 1 && p.symmetric) network.copy_field(field, kept_plus);
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1) run_op(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
  run<T>(problem);
}

}  // namespace ceprop::cuda::conv
