// The formulas of one unit by rules that are known at run time only, on packs of its samples.
#pragma once

#include "../unit_math.h"
#include "pack.cuh"

namespace ceprop::cuda {

// body.template operator()<A>() with the activation as a constant.
template <class Body>
__device__ __forceinline__ void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::sigmoid:
      return body.template operator()<Activation::sigmoid>();
    case Activation::hard_sigmoid:
      return body.template operator()<Activation::hard_sigmoid>();
    case Activation::half_hard_sigmoid:
      return body.template operator()<Activation::half_hard_sigmoid>();
    case Activation::centered_hard_sigmoid:
      return body.template operator()<Activation::centered_hard_sigmoid>();
    case Activation::tanh:
      return body.template operator()<Activation::tanh>();
    default:
      return body.template operator()<Activation::linear>();
  }
}

// What units show to their neighbours in energy dynamics.
template <class T>
__device__ __forceinline__ Pack<T> rho_of(Activation activation, const Pack<T>& x) {
  Pack<T> result;
  with_activation(activation, [&]<Activation A>() {
#pragma unroll
    for (int j = 0; j < Pack<T>::size; ++j) result.v[j] = rho<A>(x.v[j]);
  });
  return result;
}

template <class T>
__device__ __forceinline__ Pack<T> next_of(const UnitRule& rule, const Pack<T>& drive, const Pack<T>& state,
                                           const Pack<T>& inside, const Pack<T>& outside) {
  const T dt = static_cast<T>(rule.dt);
  Pack<T> next;
  with_activation(rule.activation, [&]<Activation A>() {
    const auto step = [&]<Dynamics D>() {
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j)
        next.v[j] = next_state<A, D>(drive.v[j], state.v[j], inside.v[j], outside.v[j], rule.gain, rule.clip, dt);
    };
    if (rule.dynamics == Dynamics::prototypical)
      step.template operator()<Dynamics::prototypical>();
    else
      step.template operator()<Dynamics::energy>();
  });
  return next;
}

// put(c, scale (y - softmax(logits))) for every class c of one sample. Whether it is numbers.
template <class T, class Logit, class Target, class Put>
__device__ __forceinline__ bool softmax_error(int classes, T scale, const Logit& logit, const Target& target,
                                              const Put& put) {
  T most = logit(0), sum = 0;
  for (int c = 1; c < classes; ++c) most = logit(c) > most ? logit(c) : most;
  for (int c = 0; c < classes; ++c) sum += exponential(logit(c) - most);
  for (int c = 0; c < classes; ++c) put(c, scale * (target(c) - exponential(logit(c) - most) / sum));
  return sum == sum;
}

}  // namespace ceprop::cuda
