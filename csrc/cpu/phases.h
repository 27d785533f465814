// The three ops: what every worker does from the first step to the last. An Engine is a kind of network: how it
// relaxes, what it learns from, and how its weights move while it learns.
#pragma once

// The phase with -beta comes second.
inline Nudge reversed(const Nudge& nudge) { return {-nudge.beta, nudge.at, nudge.loss}; }

inline void note_steps(const Worker& worker, const Stop& stop, int phase, int count) {
  if (worker.index == 0) stop.steps_used[phase] = count;
}

// Whether a phase ends after `count` steps, settled or interrupted. With a tolerance the workers wait for each other
// even where their samples are independent, so that they have to end together.
template <class Relaxation>
bool ends_after(Relaxation& relaxation, const Worker& worker, const Part& part, const Stop& stop, int count, int from,
                int to) {
  const bool settled = relaxation.may_stop(worker, part, stop, count, from, to);
  return worker.ends(part.independent && !stop.tolerance) || settled;
}

// At most `steps` steps from ring field `from`; returns the field of the last. Phase number `phase` of the call.
template <class Relaxation>
int run_phase(Relaxation& relaxation, const Worker& worker, Part& part, int steps, int from, const Nudge* nudge,
              const Stop& stop, int phase) {
  int count = 0, last = from;
  const auto go = [&](Part some) {
    last = from;
    count = 0;
    for (bool ends = false; count < steps && !ends;) {
      const int to = (last + 1) % Relaxation::ring;
      relaxation.step(worker, some, last, to, nudge);
      ends = ends_after(relaxation, worker, some, stop, ++count, last, to);
      last = to;
    }
  };
  if (part.independent && !stop.tolerance) {  // samples that know nothing of each other; else all stop together
    for_some_rows(part.rows, relaxation.rows_together(),
                  [&](const Range& rows) { go({{part.items[0], part.items[1]}, rows, true}); });
    count = steps;  // of a worker without samples, too
    last = (from + steps) % Relaxation::ring;
  } else {
    go(part);
  }
  note_steps(worker, stop, phase, count);
  return last;
}

template <class Engine>
bool relax(const RelaxCall<typename Engine::Scalar>& call, int threads) {
  typename Engine::Relaxation relaxation(call.network, call.batch, threads);
  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    relaxation.load(worker, call.initial);
    Part part = relaxation.by_samples(worker);
    const Nudge* nudge = call.batch.target ? &call.nudge : nullptr;
    const int last = run_phase(relaxation, worker, part, call.steps, 0, nudge, call.stop, 0);
    relaxation.store(part, last, call.states.data());
  });
}

// Where the two learning ops agree: the fields that mark the phases, and the readout's errors at their ends.
template <class Engine>
class Phases {
 public:
  using T = typename Engine::Scalar;
  using Relaxation = typename Engine::Relaxation;

  Phases(const LearnCall<T>& call, Relaxation& relaxation, int workers)
      : call_(call), relaxation_(relaxation), sanity_(workers) {
    if (call.network.readout)
      for (Buffer<T>& error : error_) error = Buffer<T>(relaxation.padded(call.network.classes()) * call.batch.size);
  }

  int count() const { return call_.symmetric ? 2 : 1; }

  // Runs the free phase; returns its last field. Its states stay in `kept_free`. Ends with a barrier.
  int run_free(const Worker& worker) {
    relaxation_.load(worker, {});
    relaxation_.note_inputs(worker, sanity_);
    Part part = relaxation_.by_samples(worker);
    const int free = run_phase(relaxation_, worker, part, call_.free_steps, 0, nullptr, call_.stop, 0);
    relaxation_.note_states(worker, part, free, sanity_);
    relaxation_.copy_field(part, free, Relaxation::kept_free);
    relaxation_.store(part, free, call_.free_states.data());
    worker.wait();
    return free;
  }

  // Stores the states at the end of a phase that was shared in these parts, and takes the readout's error there. Ends
  // with a barrier.
  void end(const Worker& worker, const Part& part, int phase, int field) {
    relaxation_.note_states(worker, part, field, sanity_);
    relaxation_.store(part, field, call_.nudged_states.data() + phase * call_.network.layers);
    if (call_.network.readout)
      relaxation_.compute_error(worker, part.independent ? part.rows : worker.share(call_.batch.size), field, T(1),
                                error_[phase].get());
    worker.wait();
  }

  const T* error(int phase) const { return error_[phase].get(); }

  Sanity<T>& sanity() { return sanity_; }

  // The largest number in a sum of outer products over the batch: of what states moved by, with states or inputs.
  double largest_contrast() const {
    const double states = sanity_.largest(Sanity<T>::states), inputs = sanity_.largest(Sanity<T>::inputs);
    return 4 * static_cast<double>(call_.batch.size) * states * std::max(states, inputs);
  }
  // And of a readout's.
  double largest_of_readout() const {
    const double states = sanity_.largest(Sanity<T>::states), inputs = sanity_.largest(Sanity<T>::inputs);
    return static_cast<double>(call_.batch.size) * (1 + inputs) * std::max(states, 1.0);
  }

  // Says that nothing was stored. `phases`: of the op.
  void note_nothing(const Worker& worker, int phases) const {
    for (int phase = 0; phase < phases; ++phase) note_steps(worker, call_.stop, phase, -1);
  }

 private:
  const LearnCall<T>& call_;
  Relaxation& relaxation_;
  Buffer<T> error_[2];  // laid out as the relaxation does
  Sanity<T> sanity_;
};

template <class Engine>
bool ep_step(const EpCall<typename Engine::Scalar>& call, int threads) {
  using T = typename Engine::Scalar;
  using Fields = typename Engine::Relaxation;
  Fields relaxation(call.network, call.batch, threads);
  typename Engine::Contrast contrast(relaxation, call.shared_update, threads);
  Phases<Engine> phases(call, relaxation, threads);
  // Tied and shared, the contrasts of consecutive steps telescope to the one between the ends.
  const bool accumulate = call.accumulate && call.network.free_feedback && !call.shared_update;
  // The gradient is minus the contrast.
  const double scale = -1.0 / (call.nudge.beta * phases.count() * static_cast<double>(call.batch.size));

  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    int field = phases.run_free(worker);
    relaxation.note_parameters(worker, phases.sanity());
    Part part = accumulate ? relaxation.by_units(worker) : relaxation.by_samples(worker);
    for (int phase = 0; phase < phases.count(); ++phase) {
      const Nudge nudge = phase == 0 ? call.nudge : reversed(call.nudge);
      if (phase == 1) {
        relaxation.copy_field(part, field, Fields::kept_plus);
        relaxation.copy_field(part, Fields::kept_free, field);
        worker.wait();
      }
      int step = 0;
      for (bool ends = worker.has_ended(); step < call.nudged_steps && !ends;) {
        const int to = (field + 1) % Fields::ring;
        const Between between{field, to, field};
        relaxation.step(worker, part, field, to, &nudge);
        if (accumulate) {
          contrast.differ(worker, between);
          contrast.add_to_gradients(worker, between, {0, T(phase == 0 ? scale : -scale), phase + step == 0}, call);
        }
        ends = ends_after(relaxation, worker, part, call.stop, ++step, field, to);
        field = to;
      }
      note_steps(worker, call.stop, phase + 1, step);
      phases.end(worker, part, phase, field);
      if (call.network.readout) {
        contrast.add_to_readout(
            worker, phases.error(phase), field,
            Blend<T>{0, T(-1.0 / (phases.count() * static_cast<double>(call.batch.size))), phase == 0},
            call.gradients.back(), call.bias_gradients.back());
        worker.wait();
      }
    }
    const double largest = std::abs(scale) * phases.largest_contrast() * (accumulate ? 2.0 * call.nudged_steps : 1.0);
    if (!phases.sanity().holds(std::max(largest, call.network.readout ? phases.largest_of_readout() : 0.0))) {
      phases.note_nothing(worker, 1 + phases.count());
    } else if (!accumulate && !worker.has_ended()) {
      const Between between = call.symmetric ? Between{field, Fields::kept_plus, Fields::kept_free}
                                             : Between{Fields::kept_free, field, Fields::kept_free};
      contrast.differ(worker, between);
      contrast.add_to_gradients(worker, between, {0, T(scale), true}, call);
    }
  });
}

template <class Engine>
bool cep_step(const CepCall<typename Engine::Scalar>& call, int threads) {
  using T = typename Engine::Scalar;
  using Fields = typename Engine::Relaxation;
  Fields relaxation(call.network, call.batch, threads, call.forms);
  typename Engine::Contrast contrast(relaxation, call.shared_update, threads);
  typename Engine::Learning learning(call, relaxation, contrast, threads);
  Phases<Engine> phases(call, relaxation, threads);
  const double fastest = *std::max_element(call.lr.begin(), call.lr.end()) / std::abs(call.nudge.beta);

  return run_team(threads, call.stop.interrupted, [&](const Worker& worker) {
    int field = phases.run_free(worker);
    Part part = relaxation.by_units(worker);
    learning.load(worker);
    int moves = 0, phase_number = 0;
    for (int phase = 0; phase < phases.count(); ++phase) {
      const Nudge nudge = phase == 0 ? call.nudge : reversed(call.nudge);
      if (phase == 1) {
        relaxation.copy_field(part, field, Fields::kept_plus);
        field = run_phase(relaxation, worker, part, call.nudged_steps, field, nullptr, call.stop, ++phase_number);
      }
      int step = 0;
      for (bool ends = worker.has_ended(); step < call.nudged_steps && !ends;) {
        const int to = (field + 1) % Fields::ring;
        learning.step(worker, part, field, to, nudge, nudge.beta * phases.count());
        ends = ends_after(relaxation, worker, part, call.stop, ++step, field, to);
        field = to;
      }
      moves += step;
      note_steps(worker, call.stop, ++phase_number, step);
      phases.end(worker, part, phase, field);
    }
    relaxation.note_parameters(worker, phases.sanity());
    learning.note_parameters(worker, part, phases.sanity());
    worker.wait();
    if (worker.has_ended()) return;
    const double of_dynamics = fastest / static_cast<double>(call.batch.size) * phases.largest_contrast();
    const double of_input = learning.largest_input_update(phases.sanity()),
                 of_readout = fastest * phases.largest_of_readout();
    if (!phases.sanity().holds(std::max({of_dynamics, of_input, call.network.readout ? of_readout : 0.0}))) {
      phases.note_nothing(worker, call.symmetric ? 4 : 2);
      return;
    }
    learning.store(worker, part, field, moves);
    for (int phase = 0; phase < phases.count() && call.network.readout; ++phase) {
      const int readout = call.network.layers, at = phase + 1 < phases.count() ? Fields::kept_plus : field;
      Blend<T> blend = learning.blend(readout, phases.count());
      if (phase > 0) blend.decay = 0;
      contrast.add_to_readout(worker, phases.error(phase), at, blend, call.network.weights.back(),
                              call.network.biases.back());
      worker.wait();
    }
  });
}
