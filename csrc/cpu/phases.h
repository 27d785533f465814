// What every worker does in a phase, and in all phases of a batch, by the table of model/stages.h. An Engine says for
// one kind of network how it relaxes, what it learns from, and how its weights move while it learns.
#pragma once

#include <algorithm>
#include <cmath>

#include "../model/stages.h"
#include "memory.h"
#include "sanity.h"
#include "sharing.h"

namespace ceprop::CEPROP_SET {

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

// Takes at most so many steps from a buffer of the ring, each by step(part, from, to).
struct Walked {
  int last;   // the buffer of the last step
  int count;  // how many steps there were
};
template <class Relaxation, class Step>
Walked walk(Relaxation& relaxation, const Worker& worker, Part& part, int steps, int from, const Stop& stop,
            const Step& step) {
  Walked walked{from, 0};
  for (bool ends = worker.has_ended(); walked.count < steps && !ends;) {
    const int to = (walked.last + 1) % ring;
    step(part, walked.last, to);
    ends = ends_after(relaxation, worker, part, stop, ++walked.count, walked.last, to);
    walked.last = to;
  }
  return walked;
}

// Walks through a phase from which nothing is learned until it ends.
template <class Relaxation>
Walked walk_phase(Relaxation& relaxation, const Worker& worker, Part& part, int steps, int from, const Stop& stop,
                  const Nudge* nudge) {
  const auto step = [&](Part& some, int before, int after) { relaxation.step(worker, some, before, after, nudge); };
  if (!part.independent || stop.tolerance) return walk(relaxation, worker, part, steps, from, stop, step);
  // These samples know nothing of each other.
  for_some_rows(part.rows, relaxation.rows_together(), [&](const Range& rows) {
    Part some{{part.items[0], part.items[1]}, rows, true};
    walk(relaxation, worker, some, steps, from, stop, step);
  });
  return {(from + steps) % ring, steps};  // a worker without samples says so, too
}

// All that learn share this: the way through their stages, and what must hold before anything is stored.
template <class Engine>
class LearningPhases {
 public:
  using T = typename Engine::Scalar;
  using Relaxation = typename Engine::Relaxation;

  LearningPhases(const LearnCall<T>& call, const Stages& stages, Relaxation& relaxation, int workers)
      : call_(call), stages_(stages), relaxation_(relaxation), sanity_(workers) {
    if (call.network.shape.has_readout())
      for (Buffer<T>& error : error_)
        error = Buffer<T>(relaxation.padded(call.network.shape.classes) * call.batch.size);
  }

  // The next batch goes by these stages; to be said by one worker, between barriers.
  void start(const Stages& stages) { stages_ = stages; }
  const Stages& stages() const { return stages_; }

  // Walks through all stages. begin() is called after the free phase; learn(part, stage, nudge, from, to, number) takes
  // step `number` of those that learn, and learns from it. Ends with a barrier. Returns the last buffer, and how many
  // steps learned.
  template <class Begin, class Learn>
  Walked run(const Worker& worker, const Begin& begin, const Learn& learn) {
    sanity_.clear(worker);
    relaxation_.load_batch(worker, {});
    relaxation_.note_inputs(worker, sanity_);
    Part part = relaxation_.by_samples(worker);
    int last = 0, learnt = 0;
    for (int index = 0; index < stages_.count; ++index) {
      const Stage& stage = stages_.stage[index];
      const Nudge nudge{stage.beta, call_.nudge.at, call_.nudge.loss};
      if (index == 1) {
        begin();
        if (stages_.steps_learn) part = relaxation_.by_units(worker);
      }
      if (stage.from != Kept::last) {
        relaxation_.copy_states(part, buffer_of(stage.from, last), last);
        worker.wait();
      }
      const auto step = [&](Part& some, int from, int to) { learn(some, stage, nudge, from, to, learnt++); };
      const Walked walked = stage.learns ? walk(relaxation_, worker, part, stage.steps, last, call_.stop, step)
                                         : walk_phase(relaxation_, worker, part, stage.steps, last, call_.stop,
                                                      stages_.is_nudged(index) ? &nudge : nullptr);
      last = walked.last;
      note_steps(worker, call_.stop, index, walked.count);
      end(worker, part, index, last);
    }
    return {last, learnt};
  }

  // The buffers that are compared in the end; slopes may go where no states are needed any more.
  Between ends(int last) const {
    return {buffer_of(stages_.earlier, last), buffer_of(stages_.later, last), kept_free, (last + 1) % ring};
  }

  Sanity<T>& sanity() { return sanity_; }

  // A bound of the numbers in a sum of outer products over the batch: of what states moved by, with states or inputs.
  double largest_contrast() const {
    const double states = sanity_.largest(Sanity<T>::states), inputs = sanity_.largest(Sanity<T>::inputs);
    return 4 * static_cast<double>(call_.batch.size) * states * std::max(states, inputs);
  }
  // A bound of the numbers in a readout's sums.
  double largest_of_readout() const {
    if (!call_.network.shape.has_readout()) return 0;
    const double states = sanity_.largest(Sanity<T>::states), inputs = sanity_.largest(Sanity<T>::inputs);
    return static_cast<double>(call_.batch.size) * (1 + inputs) * std::max(states, 1.0);
  }

  // Whether what is learned may be stored, where `update` is the largest number that is added; if not, steps_used says
  // so.
  bool holds(const Worker& worker, double update) const {
    const bool all = sanity_.holds(update);
    for (int phase = 0; phase < stages_.count && !all; ++phase) note_steps(worker, call_.stop, phase, -1);
    return all;
  }

  // R and c learn from the errors at the ends of the nudged phases; blend(fresh) says how. Ends with a barrier.
  template <class Contrast, class BlendOf>
  void learn_readout(const Worker& worker, Contrast& contrast, int last, const BlendOf& blend, T* weights,
                     T* biases) const {
    if (!call_.network.shape.has_readout()) return;
    for (int phase = 0; phase < stages_.nudged; ++phase) {
      const int at = phase + 1 < stages_.nudged ? kept_plus : last;
      contrast.add_to_readout(worker, error_[phase].get(), at, blend(phase == 0), weights, biases);
      worker.wait();
    }
  }

 private:
  // Stores and keeps the states at the end of a stage that was shared in these parts, and takes the readout's error
  // there. Ends with a barrier.
  void end(const Worker& worker, const Part& part, int index, int last) {
    const Stage& stage = stages_.stage[index];
    if (stage.keeps != Kept::last) relaxation_.copy_states(part, last, buffer_of(stage.keeps, last));
    if (stage.stores < 0) return;
    relaxation_.note_states(worker, part, last, sanity_);
    const int phase = stage.stores - 1;
    relaxation_.store(
        part, last,
        phase < 0 ? call_.free_states.data() : call_.nudged_states.data() + phase * call_.network.shape.layer_count());
    if (call_.network.shape.has_readout() && stages_.is_nudged(index))
      relaxation_.compute_error(worker, part.independent ? part.rows : worker.share(call_.batch.size), last, T(1),
                                error_[phase].get());
    worker.wait();
  }

  const LearnCall<T>& call_;
  Stages stages_;
  Relaxation& relaxation_;
  Buffer<T> error_[2];  // laid out as the relaxation does
  Sanity<T> sanity_;
};

}  // namespace ceprop::CEPROP_SET
