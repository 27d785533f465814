// What a network learns from two of its states, whichever engine computes it; for host and device.
//
// A contrast of a connection is the change of dPhi/dW between two states: a sum over the batch of two terms,
//   above moves   (r'[above] - r[above])^T shown below
//   below moves   (shown above)^T (r'[below] - r[below])
// where r is a firing rate, what neighbours see of a state. It never subtracts two large sums, so that in float32 the
// contrast keeps the digits that the states have. A convolution has the derivative of r[above] . F(r[below]) in place
// of a product.
#pragma once

#include "elementary.h"

namespace ceprop {

// What the weights W of a connection and its feedback V learn from.
enum class Learns {
  tied,    // there is no V
  shared,  // both from the mean of what tied weights would learn by either
  apart,   // vector field: each from the layer that it drives, while the other layer is held fixed
};
enum class Copy { weights, feedback };

CEPROP_INLINE Learns learns_by(bool free_feedback, bool shared_update) {
  return !free_feedback ? Learns::tied : shared_update ? Learns::shared : Learns::apart;
}

// Which of the terms a contrast has. Nothing moves below the input's connection.
struct Terms {
  bool above_moves, below_moves;
};
CEPROP_INLINE Terms terms_of(Learns learns, bool of_input, Copy copy) {
  if (of_input) return {true, false};
  if (learns == Learns::apart) return {copy == Copy::weights, copy == Copy::feedback};
  return {true, true};
}

// The states that a contrast compares, by the numbers of their buffers. It leads from the earlier to the later one; the
// fixed one stands for the layer that does not move in a vector field.
struct Between {
  int earlier, later, fixed;
  int slopes = -1;  // of a gate: the buffer whose slopes multiply the differences

  // The states that the layer shows which does not move in a term.
  CEPROP_INLINE int shown_below(Learns learns) const { return learns == Learns::apart ? fixed : later; }
  CEPROP_INLINE int shown_above(Learns learns) const { return learns == Learns::apart ? fixed : earlier; }
};

// Whether the differences are those of the states; else they are those of the firing rates.
CEPROP_INLINE bool moves_states(Learns learns) { return learns == Learns::apart; }

// Whether the contrasts of consecutive steps add up to something else than the contrast between their ends.
CEPROP_INLINE bool adds_up_steps(Learns learns) { return learns == Learns::apart; }

// How a sum enters a number: out = out - decay out + scale sum, or fresh out = scale sum. It holds the decay and not
// what the decay leaves: rounding 1 - decay would add up over the steps.
template <class T>
struct Blend {
  T decay, scale;
  bool fresh = false;

  template <class Number>
  CEPROP_INLINE Number operator()(Number out, Number sum) const {
    return fresh ? scale * sum : out + (scale * sum - decay * out);
  }
};

// EP's gradient is minus the contrast, over `divisor` and the batch.
template <class T>
CEPROP_INLINE Blend<T> gradient_blend(double divisor, double batch, bool fresh) {
  return {T(0), T(-1.0 / (divisor * batch)), fresh};
}

// C-EP moves a parameter by  p <- p + rate (contrast over `divisor` and the batch - weight_decay p).
template <class T>
CEPROP_INLINE Blend<T> continual_blend(double rate, double weight_decay, double divisor, double batch) {
  return {T(rate * weight_decay), T(rate / (divisor * batch)), false};
}

}  // namespace ceprop
