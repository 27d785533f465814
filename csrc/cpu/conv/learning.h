// C-EP of chains with convolutions: every nudged step moves  W <- (1 - lr weight_decay) W + lr / (beta B) contrast.
#pragma once

#include "contrast.h"

namespace ceprop::CEPROP_SET::conv {

template <class Tile>
class Learning {
 public:
  using T = typename Tile::Scalar;

  Learning(const CepCall<T>& call, Relaxation<Tile>& relaxation, Contrast<Tile>& contrast, int)
      : call_(call), relaxation_(relaxation), contrast_(contrast) {
    contrast.expect_steps();
  }

  void load(const Worker&) {}
  void finish(const Worker&, const Part&, int, int) const {}  // no weight waits for the end

  // This part's samples take a step, then all weights move by the contrast over `divisor`. Ends after barriers, before
  // which `part` waits.
  void step(const Worker& worker, const Part& part, int from, int to, const Nudge& nudge, double divisor) {
    const Between between{from, to, from};
    relaxation_.step(worker, part, from, to, &nudge);
    contrast_.differ(worker, between);
    contrast_.for_each_channel(worker, between, IntoWeights{*this, divisor});
    worker.wait();
    relaxation_.pack(worker);
    worker.wait();
    relaxation_.load_input_drive(worker, part.rows);
  }

  // Writes what has moved back into the network's parameters. No barrier.
  void store(const Worker& worker, const Part&) const {
    for (int c = 0; c < call_.network.shape.layer_count(); ++c)
      relaxation_.store_parameters(c, worker.share(relaxation_.link(c).above.channels));
  }

  // No weight moves at the end only.
  void note_parameters(const Worker&, const Part&, Sanity<T>&) const {}
  double largest_input_update(const Sanity<T>&) const { return 0; }

 private:
  Blend<T> blend(int c, double divisor) const {
    return continual_blend<T>(call_.lr[c], call_.weight_decay, divisor, static_cast<double>(relaxation_.batch()));
  }

  struct IntoWeights {
    const Learning& learning;
    double divisor;

    void bias(int c, int64_t channel, T sum) const {
      T& to = learning.relaxation_.bias(c)[channel];
      if (learning.call_.network.biases[c]) to = learning.blend(c, divisor)(to, sum);
    }
    void weights(int c, int64_t channel, const T* sums) const {
      move(learning.relaxation_.weights(c), c, channel, sums);
    }
    void feedback(int c, int64_t channel, const T* sums) const {
      move(learning.relaxation_.feedback(c), c, channel, sums);
    }
    void move(const Weights<Tile>& weights, int c, int64_t channel, const T* sums) const {
      const Link<Tile>& link = learning.relaxation_.link(c);
      const Blend<T> blend = learning.blend(c, divisor);
      T* row = weights.row(link, channel);
      for (int64_t k = 0; k < link.depth; ++k) row[k] = blend(row[k], sums[k]);
    }
  };

  const CepCall<T>& call_;
  Relaxation<Tile>& relaxation_;
  Contrast<Tile>& contrast_;
};

}  // namespace ceprop::CEPROP_SET::conv
