// The formulas of one unit by rules that are known at run time only, on packs of its samples.
#pragma once

#include "../../model/unit_math.h"
#include "pack.cuh"

namespace ceprop::cuda {

// function<A>(number) of each number, where A is the activation.
template <class T, class Function>
__device__ __forceinline__ Pack<T> of_each(Activation activation, const Pack<T>& x, const Function& function) {
  Pack<T> result;
  with_activation(activation, [&]<Activation A>() {
#pragma unroll
    for (int j = 0; j < Pack<T>::size; ++j) result.v[j] = function.template operator()<A>(x.v[j]);
  });
  return result;
}
// What units show to their neighbours in energy dynamics.
template <class T>
__device__ __forceinline__ Pack<T> rho_of(Activation activation, const Pack<T>& x) {
  return of_each(activation, x, []<Activation A>(T number) { return rho<A>(number); });
}
template <class T>
__device__ __forceinline__ Pack<T> slope_of(Activation activation, const Pack<T>& x) {
  return of_each(activation, x, []<Activation A>(T number) { return rho_prime<A>(number); });
}

// `pull`: of a nudge, zeros where there is none.
template <class T>
__device__ __forceinline__ Pack<T> next_of(const UnitRule& rule, const Pack<T>& drive, const Pack<T>& state,
                                           const Pack<T>& pull, NudgeAt at) {
  const T dt = static_cast<T>(rule.dt);
  Pack<T> next;
  with_activation(rule.activation, [&]<Activation A>() {
    const auto step = [&]<Dynamics D>() {
#pragma unroll
      for (int j = 0; j < Pack<T>::size; ++j)
        next.v[j] = next_state<A, D>(drive.v[j], state.v[j], pull_at(at, pull.v[j]), rule.gain, rule.clip, dt);
    };
    if (rule.dynamics == Dynamics::prototypical)
      step.template operator()<Dynamics::prototypical>();
    else
      step.template operator()<Dynamics::energy>();
  });
  return next;
}

// Returns by how much output units are pulled: `given` holds their targets, or beta times their errors where the loss
// takes a sample's outputs together.
template <class T>
__device__ __forceinline__ Pack<T> pull_of(Loss loss, T beta, const Pack<T>& given, const Pack<T>& state) {
  if (!is_of_units(loss)) return given;
  Pack<T> pull;
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) pull.v[j] = beta * unit_error(loss, given.v[j], state.v[j]);
  return pull;
}

}  // namespace ceprop::cuda
