// The rule of a DescentCall, see model/network.h, for the weights of every engine.
#pragma once

#include "../model/learning.h"
#include "set.h"

namespace ceprop::CEPROP_SET {

// How a gradient enters g; `first` of its batch. Without momentum nothing is left of earlier batches.
template <class T>
inline Blend<T> gathering_blend(double momentum, double divisor, double batch, bool first) {
  Blend<T> blend = gradient_blend<T>(divisor, batch, first && momentum == 0);
  if (first) blend.decay = T(1 - momentum);
  return blend;
}

// g <- g + weight_decay p,   p <- p - lr g,   of `count` numbers.
template <class T>
inline void descend(int64_t count, double lr, double weight_decay, T* p, T* g) {
  const T rate = static_cast<T>(lr), decay = static_cast<T>(weight_decay);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) p[i] -= rate * (g[i] += decay * p[i]);
}

}  // namespace ceprop::CEPROP_SET
