// How the units of a panel come from their drives to their next states.
#pragma once

#include <cstdint>
#include <cstring>

#include "../model/network.h"
#include "set.h"

namespace ceprop::CEPROP_SET {

template <class T>
inline void apply_activation(Activation activation, const T* from, T* to, int64_t count) {
  with_activation(activation, [&]<Activation A>() {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = rho<A>(from[i]);
  });
}

// Takes next_state() of `count` units; `pull` may be null.
template <class T>
inline void move_units(const UnitRule& rule, int64_t count, const T* drive, const T* state, const T* pull, NudgeAt at,
                       T* next) {
  const T dt = static_cast<T>(rule.dt);
  const bool gain = rule.gain, clips = rule.clip;
  with_activation(rule.activation, [&]<Activation A>() {
    const auto all = [&]<Dynamics D>(const auto& pull_of) {
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) next[i] = next_state<A, D>(drive[i], state[i], pull_of(i), gain, clips, dt);
    };
    const auto either = [&]<Dynamics D>() {
      if (!pull)
        all.template operator()<D>([](int64_t) { return Pull<T>{0, 0}; });
      else if (at == NudgeAt::drive)
        all.template operator()<D>([&](int64_t i) { return pull_at(NudgeAt::drive, pull[i]); });
      else
        all.template operator()<D>([&](int64_t i) { return pull_at(NudgeAt::state, pull[i]); });
    };
    if (rule.dynamics == Dynamics::prototypical)
      either.template operator()<Dynamics::prototypical>();
    else
      either.template operator()<Dynamics::energy>();
  });
}

// Takes rho' of the drives of `count` units; `inside` is what a nudge adds to them and may be null.
template <class T>
inline void take_slopes(Activation activation, int64_t count, const T* drive, const T* inside, T* slopes) {
  with_activation(activation, [&]<Activation A>() {
    const auto all = [&](const auto& argument) {
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) slopes[i] = rho_prime<A>(argument(i));
    };
    if (inside)
      all([&](int64_t i) { return drive[i] + inside[i]; });
    else
      all([&](int64_t i) { return drive[i]; });
  });
}

// Computes by how much `count` output units are pulled: `given` holds their targets, or beta times their errors where
// the loss takes a sample's outputs together.
template <class T>
inline void pull_units(const Nudge& nudge, int64_t count, const T* given, const T* state, T* pull) {
  if (!is_of_units(nudge.loss)) {
    std::memcpy(pull, given, count * sizeof(T));
    return;
  }
  const T beta = static_cast<T>(nudge.beta);
  for (int64_t i = 0; i < count; ++i) pull[i] = beta * unit_error(nudge.loss, given[i], state[i]);
}

}  // namespace ceprop::CEPROP_SET
