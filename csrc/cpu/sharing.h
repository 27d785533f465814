// Who does what of a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "set.h"
#include "team.h"

namespace ceprop::CEPROP_SET {

// The unit of work is one panel of one layer.
struct Item {
  int layer;
  int64_t panel;
};

// What a worker does of a step.
struct Part {
  Range items[2];    // those of each turn, by their numbers in Sharing
  Range rows;        // samples
  bool independent;  // it reads no state that another worker writes
  // Every step goes through the items the other way round than the last: what was read last is still in the cache.
  bool backwards = false;
};

// Calls body(rows) for some samples at a time.
template <class Body>
inline void for_some_rows(const Range& rows, int64_t together, const Body& body) {
  for (int64_t row = rows.begin; row < rows.end; row += together) body(Range{row, std::min(row + together, rows.end)});
}

// There are two ways to share the work. While weights are constant, samples know nothing of each other: a worker takes
// some samples through all steps of a phase, and nobody waits. Where weights move at every step, or there are too few
// samples, a unit belongs to one worker, which holds the weights into it from below and from above and is the only one
// to write them and its state; a barrier ends every step. Either way there is no reduction, and the bits are the same
// for every number of workers.
class Sharing {
 public:
  // `turns`: how many a step has, one or two. `weight_bytes`: how much a step reads of weights.
  Sharing(int turns, int64_t batch, double weight_bytes)
      : turns_(turns), batch_(batch), enough_samples_(weight_bytes > (1 << 20) ? 32 : 4) {}

  int turns() const { return turns_; }

  // Adds an item; those of turn 0 come first. `cost`: how long it takes, in any unit.
  void add(int turn, const Item& item, double cost) {
    items_.push_back(item);
    cost_[turn].push_back(cost_[turn].back() + cost);
    for (int later = turn + 1; later <= turns_; ++later) first_[later] = static_cast<int64_t>(items_.size());
  }

  // A worker's part of a step with weights that move.
  Part by_units(const Worker& worker) const {
    Part part{{}, {0, batch_}, worker.count == 1};
    for (int turn = 0; turn < turns_; ++turn) {
      const Range share = worker.share(cost_[turn]);
      part.items[turn] = {first_[turn] + share.begin, first_[turn] + share.end};
    }
    return part;
  }

  // A worker's part of a step with constant weights. It is shared by samples, where each worker gets enough of them to
  // be worth reading all weights for. That takes more samples where the weights do not stay in the second-level cache
  // beside the states.
  Part by_samples(const Worker& worker) const {
    if (batch_ < enough_samples_ * worker.count) return by_units(worker);
    Part part{{}, worker.share(batch_), true};
    for (int turn = 0; turn < turns_; ++turn) part.items[turn] = {first_[turn], first_[turn + 1]};
    return part;
  }

  // Calls body(item) for the items of one turn of the part, in the order of this step.
  template <class Body>
  void for_each_item_of(int turn, const Part& part, const Body& body) const {
    const auto [begin, end] = part.items[turn];
    for (int64_t index = begin; index < end; ++index) body(items_[part.backwards ? begin + end - 1 - index : index]);
  }

  template <class Body>
  void for_each_item(const Part& part, const Body& body) const {
    for (int turn = 0; turn < turns_; ++turn) for_each_item_of(turn, part, body);
  }

 private:
  int turns_;
  int64_t batch_, enough_samples_;
  std::vector<Item> items_;
  int64_t first_[3] = {0, 0, 0};               // where the turns begin and end in items_
  std::vector<double> cost_[2]{{0.0}, {0.0}};  // running sums over the items of a turn
};

}  // namespace ceprop::CEPROP_SET
