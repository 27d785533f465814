// Where the samples of one batch after the other come together, and what is found out about them.
#pragma once

#include <vector>

#include "../model/batches.h"
#include "../model/stages.h"
#include "memory.h"
#include "set.h"
#include "team.h"

namespace ceprop::CEPROP_SET {

template <class T>
class Gathering {
 public:
  // `call` then takes its batch from here; `Call` has rates.
  template <class Call>
  Gathering(Call& call, const DataSet<T>& data, const Batches& batches, int workers)
      : call_(call),
        rates_(call.lr),
        data_(data),
        batches_(batches),
        phases_(stages_of(call).count),
        n_in_(call.network.shape.input.units()),
        classes_(call.network.shape.classes),
        x_(call.batch.size * n_in_),
        target_(call.batch.size * classes_),
        logits_(workers * classes_),
        losses_(call.batch.size),
        wrong_(call.batch.size) {
    call.batch.x = x_.get();
    call.batch.target = target_.get();
  }

  // The call is about this batch; for one worker.
  void aim_at(int64_t batch) {
    const auto connections = static_cast<int64_t>(rates_.size());
    const double* rates = batches_.rates + batch * connections;
    std::copy(rates, rates + connections, rates_.begin());
    call_.nudge.beta = batches_.beta[batch];
    call_.stop.steps_used = batches_.steps + batch * phases_;
  }

  // Brings this worker's samples together. No barrier.
  void gather(const Worker& worker, int64_t batch) {
    const Range rows = worker.share(call_.batch.size);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t sample = batches_.order[batch * call_.batch.size + row];
      T* x = x_.get() + row * n_in_;
      if (data_.x) {
        std::memcpy(x, data_.x + sample * n_in_, n_in_ * sizeof(T));
      } else {
        const uint8_t* bytes = data_.bytes + sample * n_in_;
        for (int64_t channel = 0, i = 0; channel < data_.channels; ++channel)
          for (const int64_t end = i + n_in_ / data_.channels; i < end; ++i)
            x[i] = data_.values[channel * 256 + bytes[i]];
      }
      T* target = target_.get() + row * classes_;
      if (data_.target) {
        std::memcpy(target, data_.target + sample * classes_, classes_ * sizeof(T));
      } else {
        std::memset(target, 0, classes_ * sizeof(T));
        target[data_.labels[sample]] = 1;
      }
    }
  }

  // Judges this worker's samples by their free states. No barrier.
  void judge(const Worker& worker) {
    const Range rows = worker.share(call_.batch.size);
    const NetworkShape& shape = call_.network.shape;
    const int64_t top = shape.layers[shape.output].units();
    double* logits = logits_.get() + worker.index * classes_;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T* states = call_.free_states[shape.output] + row * top;
      const T* target = target_.get() + row * classes_;
      for (int64_t c = 0; c < classes_; ++c) logits[c] = shape.has_readout() ? logit(states, c, top) : states[c];
      const auto answer = [&](int64_t c) { return logits[c]; };
      const auto wanted = [&](int64_t c) { return static_cast<double>(target[c]); };
      losses_[row] = sample_loss(call_.nudge.loss, classes_, answer, wanted);
      wrong_[row] = first_largest(classes_, answer) != first_largest(classes_, wanted);
    }
  }

  // Counts up what has been judged of a batch, after a barrier; for one worker.
  void count(int64_t batch) const {
    double loss = 0;
    int64_t wrong = 0;
    for (int64_t row = 0; row < call_.batch.size; ++row) {
      loss += losses_[row];
      wrong += wrong_[row];
    }
    batches_.loss[batch] = loss / static_cast<double>(call_.batch.size);
    batches_.wrong[batch] = wrong;
  }

 private:
  double logit(const T* states, int64_t c, int64_t top) const {
    const T* weights = call_.network.weights.back() + c * top;
    const T* bias = call_.network.biases.back();
    double sum = bias ? bias[c] : 0;
    for (int64_t i = 0; i < top; ++i) sum += static_cast<double>(weights[i]) * static_cast<double>(states[i]);
    return sum;
  }

  LearnCall<T>& call_;
  std::vector<double>& rates_;
  const DataSet<T>& data_;
  const Batches& batches_;
  const int64_t phases_, n_in_, classes_;
  Buffer<T> x_;            // [B, n_in]
  Buffer<T> target_;       // [B, classes]
  Buffer<double> logits_;  // [worker][classes]
  std::vector<double> losses_;
  std::vector<char> wrong_;
};

}  // namespace ceprop::CEPROP_SET
