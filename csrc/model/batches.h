// What calls are told that learn from many batches of a data set, one after the other.
#pragma once

#include <cmath>
#include <cstdint>

#include "losses.h"

namespace ceprop {

// The samples that batches are gathered from, where they lie.
template <class T>
struct DataSet {
  const T* x;            // [samples, n_in], or null where inputs are bytes
  const uint8_t* bytes;  // [samples, n_in]
  const T* values;  // [channels, 256]: what a byte of a channel stands for; a sample is one channel after the other
  int64_t channels;
  const T* target;        // [samples, classes], or null where there are labels
  const int64_t* labels;  // [samples]
};

// The batches of one network: which samples they hold, and what is found out about them.
struct Batches {
  int64_t count;
  const int64_t* order;  // [count, B], numbers of samples
  const double* beta;    // [count]
  const double* rates;   // [count, connections]
  double* loss;          // out, [count]: the free phase's, mean over the batch
  int64_t* wrong;        // out, [count]: samples whose largest output is not their largest target
  int64_t* steps;        // out, [count, phases]
  // Asked by the calling thread after batches; true ends the call after the batch in work, or if there is but one
  // within it.
  bool (*interrupted)();
};

// Returns the loss of one sample, from its outputs or logits, in double.
template <class Answer, class Target>
double sample_loss(Loss loss, int64_t classes, const Answer& answer, const Target& target) {
  double sum = 0;
  if (is_of_units(loss)) {  // mse, ||y - s||^2 / 2
    for (int64_t c = 0; c < classes; ++c) {
      const double error = unit_error<double>(loss, target(c), answer(c));
      sum += error * error / 2;
    }
    return sum;
  }
  const double most = largest_logit<double>(classes, answer);
  double exponentials = 0;
  for (int64_t c = 0; c < classes; ++c) exponentials += std::exp(answer(c) - most);
  for (int64_t c = 0; c < classes; ++c) sum += target(c) * (most + std::log(exponentials) - answer(c));
  return sum;
}

template <class Values>
int64_t first_largest(int64_t count, const Values& values) {
  int64_t at = 0;
  for (int64_t c = 1; c < count; ++c)
    if (values(c) > values(at)) at = c;
  return at;
}

}  // namespace ceprop
