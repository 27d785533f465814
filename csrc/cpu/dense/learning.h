// How C-EP takes a nudged step on dense layers: the states step, then the weights move, by the forms that were chosen.
#pragma once

#include <optional>

#include "continual_update.h"
#include "low_rank_update.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class Learning {
 public:
  using T = typename Tile::Scalar;

  Learning(const CepCall<T>& call, Relaxation<Tile>& relaxation, Contrast<Tile>& contrast, int workers)
      : relaxation_(relaxation), contrast_(contrast), update_(call, relaxation, contrast, workers) {
    if (call.forms.inner == Form::low_rank) low_rank_.emplace(call, relaxation, contrast);
  }

  // Begins a nudged phase. Ends with a barrier.
  void load(const Worker& worker) {
    update_.load(worker);
    if (low_rank_) low_rank_->load(worker);
    worker.wait();
  }

  // This part takes a step, then its weights move by the contrast over `divisor`.
  void step(const Worker& worker, Part& part, int from, int to, const Nudge& nudge, double divisor) {
    const Between between{from, to, from, to};
    if (low_rank_) low_rank_->prepare(worker, from);
    relaxation_.step(
        worker, part, from, to, &nudge,
        [&](const Item& item, const Range& rows, T* drive) {
          if (low_rank_) low_rank_->correct(item, rows, drive);
        },
        [&](const Item& item) {
          if (low_rank_) low_rank_->follow(item, to);
        });
    contrast_.differ(worker, between);
    update_.move(worker, part, between, divisor, !low_rank_);
  }

  // Weights that have waited for the end of all nudged phases move, after so many updates, the last of which ended in
  // buffer `last`. No barrier.
  void finish(const Worker& worker, const Part& part, int last, int moves) const {
    update_.finish(worker, moves);
    if (low_rank_) low_rank_->finish(part, last, update_.packed());
  }

  // Writes what has moved where it lies packed back into the network's parameters. No barrier.
  void store(const Worker& worker, const Part& part) const {
    update_.store(worker, part, !low_rank_ || relaxation_.stays_packed());
  }

  // Notes what W[0] moves by, if it does so at the end.
  void note_parameters(const Worker& worker, const Part& part, Sanity<T>& sanity) const {
    update_.note_parameters(worker, part, sanity);
  }
  double largest_input_update(const Sanity<T>& sanity) const { return update_.largest_input_update(sanity); }

 private:
  Relaxation<Tile>& relaxation_;
  Contrast<Tile>& contrast_;
  ContinualUpdate<Tile> update_;
  std::optional<LowRankUpdate<Tile>> low_rank_;
};

}  // namespace ceprop::CEPROP_SET::dense
