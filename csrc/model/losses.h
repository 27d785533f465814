// These lists say every loss once: the error that it gives to the output, which is minus its gradient by the output
// units or logits of a sample. A nudge pulls by beta times the error, a readout learns from it.
#pragma once

#include "elementary.h"
#include "lists.h"

namespace ceprop {

// These losses are sums over units: their names, and the error of a unit with state s and target y. A unit's pull is
// computed where it moves.
#define CEPROP_UNIT_LOSSES(ENTRY) ENTRY(mse, y - s)
// These losses take all outputs of a sample together. Their errors are computed before a step, by sample_error() and
// sample_error_of(): a second loss needs a branch in both, for which they have to be told the loss.
#define CEPROP_SAMPLE_LOSSES(ENTRY) ENTRY(cross_entropy)

enum class Loss { CEPROP_UNIT_LOSSES(CEPROP_NAME) CEPROP_SAMPLE_LOSSES(CEPROP_NAME) };

inline constexpr const char* loss_names[] = {CEPROP_UNIT_LOSSES(CEPROP_WORD) CEPROP_SAMPLE_LOSSES(CEPROP_WORD)};

CEPROP_INLINE bool is_of_units(Loss loss) {
#define CEPROP_IS(name, ...) || loss == Loss::name
  return false CEPROP_UNIT_LOSSES(CEPROP_IS);
#undef CEPROP_IS
}

template <class T>
CEPROP_INLINE T unit_error(Loss loss, T y, T s) {
#define CEPROP_ERROR(name, error) \
  if (loss == Loss::name) return error;
  CEPROP_UNIT_LOSSES(CEPROP_ERROR)
#undef CEPROP_ERROR
  return T(0);
}

template <class T, class Logit>
CEPROP_CALLS T largest_logit(int64_t classes, const Logit& logit) {
  T most = logit(0);
  for (int64_t c = 1; c < classes; ++c) most = logit(c) > most ? logit(c) : most;
  return most;
}

// slot(c) <- scale times the error, for every class c of one sample; logit(c) may be the number in slot(c). Returns
// whether the errors are numbers. Cross-entropy: y - softmax(logits).
template <class T, class Logit, class Target, class Slot>
CEPROP_CALLS bool sample_error(int64_t classes, T scale, const Logit& logit, const Target& target, const Slot& slot) {
  const T most = largest_logit<T>(classes, logit);
  T sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += slot(c) = exponential(logit(c) - most);
  for (int64_t c = 0; c < classes; ++c) slot(c) = scale * (target(c) - slot(c) / sum);
  return sum == sum;
}

// Returns the error of the class with logit `own` and target y alone, in the same bits.
template <class T, class Logit>
CEPROP_CALLS T sample_error_of(int64_t classes, T own, T y, const Logit& logit) {
  const T most = largest_logit<T>(classes, logit);
  T sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += exponential(logit(c) - most);
  return y - exponential(own - most) / sum;
}

}  // namespace ceprop
