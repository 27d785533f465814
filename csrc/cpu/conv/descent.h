// How EP's gradients move the weights of chains with convolutions at the end of a batch: model/network.h says by which
// rule.
#pragma once

#include "../descent.h"
#include "contrast.h"

namespace ceprop::CEPROP_SET::conv {

template <class Tile>
class Descent {
 public:
  using T = typename Tile::Scalar;

  Descent(const DescentCall<T>& call, Relaxation<Tile>& relaxation, Contrast<Tile>& contrast, bool, int)
      : call_(call), relaxation_(relaxation), contrast_(contrast) {
    const auto momentum = [](const std::vector<T*>& momenta, size_t at, T* parameter) {
      return at < momenta.size() ? momenta[at] : parameter;
    };
    for (int c = 0; c < layers(); ++c) {
      const Link<Tile>& link = relaxation.link(c);
      const int feedback = call.network.shape.connections[c].feedback;
      weights_.emplace_back(link, momentum(call.weight_momenta, c, call.network.weights[c]), false, false);
      feedback_.emplace_back(
          link, feedback < 0 ? nullptr : momentum(call.feedback_momenta, feedback, call.network.feedback[feedback]),
          false, false);
      biases_.push_back(Buffer<T>::zeros(link.above.channels));
    }
  }

  // Takes over this worker's momenta. No barrier.
  void load(const Worker& worker, const Part&) const {
    if (call_.momentum == 0) return;
    for_each_channel(worker, [&](int c, const Range& channels) {
      weights_[c].load(relaxation_.link(c), channels);
      if (relaxation_.has_feedback(c)) feedback_[c].load(relaxation_.link(c), channels);
      for (int64_t i = channels.begin; i < channels.end && call_.network.biases[c]; ++i)
        biases_[c].get()[i] = call_.bias_momenta[c][i];
    });
  }

  // Takes the gradient between two states, `first` of its batch. Ends with a barrier.
  void gather(const Worker& worker, const Part&, const Between& between, double divisor, bool first) {
    const auto blend = gathering_blend<T>(call_.momentum, divisor, static_cast<double>(relaxation_.batch()), first);
    contrast_.differ(worker, between);
    contrast_.for_each_channel(worker, between, IntoGathered{*this, blend});
    worker.wait();
  }

  // Moves all weights, by the gradient between two states or, with none, by what was gathered. A barrier must follow.
  void move(const Worker& worker, const Part& part, const Between* between, double divisor) {
    if (between) gather(worker, part, *between, divisor, true);
    for_each_channel(worker, [&](int c, const Range& channels) {
      const Link<Tile>& link = relaxation_.link(c);
      const int64_t first = channels.begin, count = channels.end - channels.begin;
      descend(c, count * link.depth, relaxation_.weights(c).row(link, first), weights_[c].row(link, first));
      if (relaxation_.has_feedback(c))
        descend(c, count * link.depth, relaxation_.feedback(c).row(link, first), feedback_[c].row(link, first));
      if (call_.network.biases[c]) descend(c, count, relaxation_.bias(c) + first, biases_[c].get() + first);
    });
    worker.wait();
    relaxation_.pack(worker);
  }

  // Writes this worker's channels back into the network's parameters and momenta. No barrier.
  void store(const Worker& worker, const Part&) const {
    for_each_channel(worker, [&](int c, const Range& channels) {
      relaxation_.store_parameters(c, channels);
      if (call_.momentum == 0) return;
      weights_[c].store(relaxation_.link(c), channels);
      if (relaxation_.has_feedback(c)) feedback_[c].store(relaxation_.link(c), channels);
      for (int64_t i = channels.begin; i < channels.end && call_.network.biases[c]; ++i)
        call_.bias_momenta[c][i] = biases_[c].get()[i];
    });
  }

 private:
  int layers() const { return call_.network.shape.layer_count(); }

  template <class Body>
  void for_each_channel(const Worker& worker, const Body& body) const {
    for (int c = 0; c < layers(); ++c) body(c, worker.share(relaxation_.link(c).above.channels));
  }

  void descend(int c, int64_t count, T* p, T* g) const {
    CEPROP_SET::descend(count, call_.lr[c], call_.weight_decay, p, g);
  }

  struct IntoGathered {
    const Descent& descent;
    Blend<T> blend;

    void bias(int c, int64_t channel, T sum) const {
      T& to = descent.biases_[c].get()[channel];
      to = blend(to, sum);
    }
    void weights(int c, int64_t channel, const T* sums) const { add(descent.weights_[c], c, channel, sums); }
    void feedback(int c, int64_t channel, const T* sums) const { add(descent.feedback_[c], c, channel, sums); }
    void add(const Weights<Tile>& to, int c, int64_t channel, const T* sums) const {
      const Link<Tile>& link = descent.relaxation_.link(c);
      T* row = to.row(link, channel);
      for (int64_t k = 0; k < link.depth; ++k) row[k] = blend(row[k], sums[k]);
    }
  };

  const DescentCall<T>& call_;
  Relaxation<Tile>& relaxation_;
  Contrast<Tile>& contrast_;
  std::vector<Weights<Tile>> weights_, feedback_;  // g, of the parameters
  std::vector<Buffer<T>> biases_;
};

}  // namespace ceprop::CEPROP_SET::conv
