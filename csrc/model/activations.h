// This list says every activation once: its name, rho(x) and rho'(x). The enumeration, the names that ops take and
// every choice among activations follow from this list; ceprop_cuda's table in Python has the same names in the same
// order.
#pragma once

#include "elementary.h"
#include "lists.h"

// At a kink rho' is the slope of the side that is not clipped: energy dynamics start at 0 and must be able to leave it.
#define CEPROP_ACTIVATIONS(ENTRY)                                                                   \
  ENTRY(sigmoid, steep_sigmoid(x), T(4) * steep_sigmoid(x) * (T(1) - steep_sigmoid(x)))             \
  ENTRY(hard_sigmoid, clip(x, T(0), T(1)), x >= T(0) && x <= T(1) ? T(1) : T(0))                    \
  ENTRY(half_hard_sigmoid, clip(x / T(2), T(0), T(1)), x >= T(0) && x <= T(2) ? T(0.5) : T(0))      \
  ENTRY(centered_hard_sigmoid, clip(x, T(-0.5), T(0.5)), x >= T(-0.5) && x <= T(0.5) ? T(1) : T(0)) \
  ENTRY(tanh, hyperbolic_tangent(x), T(1) - hyperbolic_tangent(x) * hyperbolic_tangent(x))          \
  ENTRY(linear, x, T(1))                                                                            \
  ENTRY(relu, x < T(0) ? T(0) : x, x >= T(0) ? T(1) : T(0))                                         \
  ENTRY(relu6, clip(x, T(0), T(6)), x >= T(0) && x <= T(6) ? T(1) : T(0))

namespace ceprop {

enum class Activation { CEPROP_ACTIVATIONS(CEPROP_NAME) };

inline constexpr const char* activation_names[] = {CEPROP_ACTIVATIONS(CEPROP_WORD)};

template <Activation A, class T>
CEPROP_INLINE T rho(T x) {
#define CEPROP_RHO(name, rho, slope) \
  if constexpr (A == Activation::name) return rho;
  CEPROP_ACTIVATIONS(CEPROP_RHO)
#undef CEPROP_RHO
}

template <Activation A, class T>
CEPROP_INLINE T rho_prime([[maybe_unused]] T x) {
#define CEPROP_SLOPE(name, rho, slope) \
  if constexpr (A == Activation::name) return slope;
  CEPROP_ACTIVATIONS(CEPROP_SLOPE)
#undef CEPROP_SLOPE
}

// Calls body.template operator()<A>() with the activation as a constant.
template <class Body>
CEPROP_CALLS void with_activation(Activation activation, const Body& body) {
  switch (activation) {
#define CEPROP_CASE(name, rho, slope) \
  case Activation::name:              \
    return body.template operator()<Activation::name>();
    CEPROP_ACTIVATIONS(CEPROP_CASE)
#undef CEPROP_CASE
  }
}

}  // namespace ceprop
