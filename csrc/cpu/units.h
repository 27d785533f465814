// The units of a panel: from drives to next states.
#pragma once

// Calls `body.template operator()<A>()`.
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
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
    case Activation::linear:
      return body.template operator()<Activation::linear>();
  }
}

template <class T>
inline void apply_activation(Activation activation, const T* from, T* to, int64_t count) {
  with_activation(activation, [&]<Activation A>() {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = rho<A>(from[i]);
  });
}

// next_state of `count` units; `pull` is null or acts inside or outside of rho.
template <class T>
inline void move_units(const UnitRule& rule, int64_t count, const T* drive, const T* state, const T* pull, bool inside,
                       T* next) {
  const T dt = static_cast<T>(rule.dt);
  const bool gain = rule.gain, clips = rule.clip;
  with_activation(rule.activation, [&]<Activation A>() {
    const auto all = [&]<Dynamics D>(const auto& pull_inside, const auto& pull_outside) {
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i)
        next[i] = next_state<A, D>(drive[i], state[i], pull_inside(i), pull_outside(i), gain, clips, dt);
    };
    const auto zero = [](int64_t) { return T(0); };
    const auto pulled = [&](int64_t i) { return pull[i]; };
    const auto either = [&]<Dynamics D>() {
      if (!pull)
        all.template operator()<D>(zero, zero);
      else if (inside)
        all.template operator()<D>(pulled, zero);
      else
        all.template operator()<D>(zero, pulled);
    };
    if (rule.dynamics == Dynamics::prototypical)
      either.template operator()<Dynamics::prototypical>();
    else
      either.template operator()<Dynamics::energy>();
  });
}
