// The table of an op's phases, which the loops of all kernels walk. The host fills it in; host and device read it.
#pragma once

#include "learning.h"
#include "network.h"

namespace ceprop {

enum class Op { relax, ep_step, cep_step };

// Which states are kept while others move on: those of the last step, of the free phase, or of the phase with +beta.
enum class Kept { last, free, plus };

// State buffers are numbered: a ring of three, in which the steps of a phase go round (a step may overwrite the oldest
// while slow workers or blocks still read the two others), and two that keep what a phase left.
inline constexpr int ring = 3, kept_free = 3, kept_plus = 4, state_buffers = 5;

// Where kept states are; the last step's lie in buffer `last`.
CEPROP_INLINE int buffer_of(Kept kept, int last) {
  return kept == Kept::last ? last : kept == Kept::free ? kept_free : kept_plus;
}

struct Stage {
  int steps;
  double beta;     // of the nudge; 0: none
  double divisor;  // of its contrasts: beta times the number of nudged phases
  bool learns;     // after every step
  Kept from;       // the states that it starts from; `last`: it goes on
  Kept keeps;      // as what its last states are kept; `last`: nowhere
  int stores;      // which of the results its last states are; -1: none
};

struct Stages {
  static constexpr int most = 4;

  Op op;
  int count;
  Stage stage[most];
  int nudged;           // number of nudged phases
  bool steps_learn;     // those of some stage do
  double divisor;       // of the contrast between the ends
  Kept earlier, later;  // the ends; the fixed state is the free one

  CEPROP_INLINE bool is_nudged(int index) const { return stage[index].beta != 0; }
};

// These are forced inline and have no lambdas: kernels of one instruction set share no copy with others.
template <class T>
CEPROP_INLINE Stages stages_of(const RelaxCall<T>& call) {
  return {Op::relax,
          1,
          {{call.steps, call.batch.nudges() ? call.nudge.beta : 0, 0, false, Kept::last, Kept::last, 0}},
          0,
          false,
          0,
          Kept::last,
          Kept::last};
}

// Lists the free phase, the phase with +beta, and if symmetric the one with -beta, for C-EP with the way back before
// it.
template <class T>
CEPROP_INLINE Stages stages_of(const LearnCall<T>& call, Op op, bool steps_learn) {
  const double beta = call.nudge.beta, divisor = call.symmetric ? 2 * beta : beta;
  const int steps = call.nudged_steps;
  const bool goes_back = op == Op::cep_step && call.symmetric;  // by steps without a nudge, with the weights of then
  Stages all{op, 0, {}, call.symmetric ? 2 : 1, steps_learn, divisor, Kept::free, Kept::last};
  all.stage[all.count++] = {call.free_steps, 0, 0, false, Kept::last, Kept::free, 0};
  all.stage[all.count++] = {steps, beta, divisor, steps_learn, Kept::last, call.symmetric ? Kept::plus : Kept::last, 1};
  if (goes_back) all.stage[all.count++] = {steps, 0, 0, false, Kept::last, Kept::last, -1};
  const Kept from = goes_back ? Kept::last : Kept::free;
  if (call.symmetric) all.stage[all.count++] = {steps, -beta, -divisor, steps_learn, from, Kept::last, 2};
  if (call.symmetric && op == Op::ep_step) {
    all.earlier = Kept::last;
    all.later = Kept::plus;
  }
  return all;
}

template <class T>
CEPROP_INLINE Stages stages_of_ep(const LearnCall<T>& call, bool accumulate) {
  // Tied and shared, the contrasts of consecutive steps telescope to the one between the ends.
  const Learns learns = learns_by(call.network.free_feedback, call.shared_update);
  return stages_of(call, Op::ep_step, accumulate && adds_up_steps(learns));
}
template <class T>
CEPROP_INLINE Stages stages_of(const EpCall<T>& call) {
  return stages_of_ep(call, call.accumulate);
}
template <class T>
CEPROP_INLINE Stages stages_of(const DescentCall<T>& call) {
  return stages_of_ep(call, call.accumulate);
}
template <class T>
CEPROP_INLINE Stages stages_of(const CepCall<T>& call) {
  return stages_of(call, Op::cep_step, true);
}

}  // namespace ceprop
