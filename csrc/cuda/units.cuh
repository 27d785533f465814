// The formulas of one unit by rules that are known at run time only.
#pragma once

#include "../unit_math.h"
#include "device.h"

namespace ceprop::cuda {

template <class T>
__device__ __forceinline__ T rho_of(Activation activation, T x) {
  switch (activation) {
    case Activation::sigmoid:
      return rho<Activation::sigmoid>(x);
    case Activation::hard_sigmoid:
      return rho<Activation::hard_sigmoid>(x);
    case Activation::half_hard_sigmoid:
      return rho<Activation::half_hard_sigmoid>(x);
    case Activation::centered_hard_sigmoid:
      return rho<Activation::centered_hard_sigmoid>(x);
    case Activation::tanh:
      return rho<Activation::tanh>(x);
    default:
      return x;
  }
}

template <Activation A, class T>
__device__ __forceinline__ T next_of(const UnitRule& rule, T drive, T state, T inside, T outside) {
  const T dt = static_cast<T>(rule.dt);
  if (rule.dynamics == Dynamics::prototypical)
    return next_state<A, Dynamics::prototypical>(drive, state, inside, outside, rule.gain, rule.clip, dt);
  return next_state<A, Dynamics::energy>(drive, state, inside, outside, rule.gain, rule.clip, dt);
}
template <class T>
__device__ __forceinline__ T next_of(const UnitRule& rule, T drive, T state, T inside, T outside) {
  switch (rule.activation) {
    case Activation::sigmoid:
      return next_of<Activation::sigmoid>(rule, drive, state, inside, outside);
    case Activation::hard_sigmoid:
      return next_of<Activation::hard_sigmoid>(rule, drive, state, inside, outside);
    case Activation::half_hard_sigmoid:
      return next_of<Activation::half_hard_sigmoid>(rule, drive, state, inside, outside);
    case Activation::centered_hard_sigmoid:
      return next_of<Activation::centered_hard_sigmoid>(rule, drive, state, inside, outside);
    case Activation::tanh:
      return next_of<Activation::tanh>(rule, drive, state, inside, outside);
    default:
      return next_of<Activation::linear>(rule, drive, state, inside, outside);
  }
}

}  // namespace ceprop::cuda
