// How one unit takes a step: its dynamics, the pull of a nudge, and whether it stays; said once for host and device.
#pragma once

#include "activations.h"
#include "losses.h"

namespace ceprop {

enum class Dynamics { prototypical, energy };
enum class NudgeAt { state, drive };

// How the units of a layer turn their drive into their next state.
struct UnitRule {
  Activation activation;
  Dynamics dynamics;
  bool gain;  // energy: the drive is multiplied by rho'(s)
  bool clip;  // energy: states are kept in [0, 1]
  double dt;  // energy: step size
};

// What a nudge adds to an output unit: inside rho, to its drive, or outside.
template <class T>
struct Pull {
  T inside, outside;
};

template <class T>
CEPROP_INLINE Pull<T> pull_at(NudgeAt at, T pull) {
  return {at == NudgeAt::drive ? pull : T(0), at == NudgeAt::drive ? T(0) : pull};
}

// Returns the next state of a unit with drive a and state s.
//   prototypical  rho(a + inside) + outside
//   energy        clip(s + dt (-s + rho'(s) a + inside + outside))
template <Activation A, Dynamics D, class T>
CEPROP_INLINE T next_state(T a, T s, const Pull<T>& pull, bool gain, bool clips, T dt) {
  if constexpr (D == Dynamics::prototypical) return rho<A>(a + pull.inside) + pull.outside;
  const T moved = s + dt * (-s + (gain ? rho_prime<A>(s) * a : a) + pull.inside + pull.outside);
  return clips ? clip(moved, T(0), T(1)) : moved;
}

// How large a drive and the state to which it leads are, to be added up over a few units: NaN stays what it is. A drive
// may be larger, but has to be a number.
template <class T>
CEPROP_INLINE T size_of(T drive, T state) {
  return std::fabs(drive) * T(0x1p-70) + std::fabs(state);
}

// Whether a unit has moved by no more than `limit`. One that has become NaN has moved by more.
template <class T>
CEPROP_INLINE bool stays(T before, T after, T limit) {
  const T moved = after - before;
  return moved <= limit && -moved <= limit;
}

// Turns a tolerance into a limit for stays(). It is rounded down, so that numbers of type T compare with it as with the
// tolerance.
template <class T>
T limit_of(double tolerance) {
  const T rounded = static_cast<T>(tolerance);
  return static_cast<double>(rounded) > tolerance ? std::nextafter(rounded, T(0)) : rounded;
}

}  // namespace ceprop
