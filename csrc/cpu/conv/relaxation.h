// A chain of convolutions on its way to a fixed point: states in maps, packed weights, and the step.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../sanity.h"
#include "../settling.h"
#include "../sharing.h"
#include "../units.h"
#include "passes.h"
#include "weights.h"

namespace ceprop::CEPROP_SET::conv {

// The states of one layer at one time, a map per sample. `seen` is what its neighbours see: rho(state) in energy
// dynamics, else the state itself, in the same memory.
template <class T>
struct StateBuffer {
  T* state;
  T* seen;
};

template <class Tile>
class Relaxation {
 public:
  using T = typename Tile::Scalar;
  using PlacesOf = std::vector<Buffer<uint16_t>>;  // per connection [batch][places above][stride above]
  static constexpr int ring = 3, kept_free = 3, kept_plus = 4, buffers = 5;  // as with dense layers

  Relaxation(const Network<T>& network, const Batch<T>& batch, int workers, const std::optional<Forms>& = {},
             Gate = Gate::none)
      : network_(network), batch_(batch), settling_(workers), halves_(network.asynchronous ? 2 : 1) {
    const int connections = network.layers + network.readout;
    for (int l = -1; l < connections; ++l) maps_.push_back(map_above(l));
    for (int c = 0; c < connections; ++c) links_.emplace_back(map(c - 1), map(c), made(c));
    together_ = samples_together();
    for (Link<Tile>& link : links_) link.note_positions(together_);
    allocate(workers);
  }

  // ---- the parts that every worker calls, in the same order ----

  // Whole samples, which know nothing of each other: nobody waits, unless what is learned moves the weights.
  Part by_samples(const Worker& worker) const { return {{}, worker.share(batch_.size), true}; }
  Part by_units(const Worker& worker) const { return {{}, worker.share(batch_.size), worker.count == 1}; }
  int64_t rows_together() const { return together_; }

  // Takes over the batch and the weights, and computes the input's drive. Ends with a barrier.
  void load(const Worker& worker, const std::vector<const T*>& initial) {
    const Range rows = worker.share(batch_.size);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      load_map(map(-1), batch_.x, row, x_.get());
      if (energy()) {
        activate(map(-1), network_.input_activation, x_.get() + row * map(-1).size(), x_.get() + row * map(-1).size());
      }
      if (batch_.target) load_map(maps_.back(), batch_.target, row, target_.get());
      for (int l = 0; l < network_.layers; ++l) {
        const StateBuffer<T>& start = buffers_[0][l];
        const int64_t at = row * map(l).size();
        if (!initial.empty()) load_map(map(l), initial[l], row, start.state);
        if (energy()) activate(map(l), network_.rules[l].activation, start.state + at, start.seen + at);
      }
    }
    for (size_t c = 0; c < links_.size(); ++c) {
      const Range channels = worker.share(links_[c].above.channels);
      weights_[c].load(links_[c], channels);
      if (has_feedback(c)) feedback_[c].load(links_[c], channels);
      for (int64_t i = channels.begin; i < channels.end && network_.biases[c]; ++i)
        biases_[c].get()[i] = network_.biases[c][i];
    }
    worker.wait();
    pack(worker);
    worker.wait();
    load_input_drive(worker, rows);
    worker.wait();
  }

  // The states of this part move from buffer `from` to buffer `to`; with a nudge towards the target. Ends with a
  // barrier unless the part is independent.
  void step(const Worker& worker, const Part& part, int from, int to, const Nudge* nudge) {
    for_some_rows(part.rows, together_, [&](const Range& rows) {
      if (nudge && !is_of_units(nudge->loss))
        compute_error(worker, rows, from, static_cast<T>(nudge->beta), error_.get());
      for (int half = 0; half < halves_; ++half) {
        const int neighbours = half == 0 ? from : to;
        const auto moves = [&](int l) { return l % halves_ == half; };
        for (int c = 1; c < network_.layers; ++c) {
          const bool picks = links_[c].picks_maxima(), picks_for_below = picks && moves(c - 1);
          const int below = moves(c - 1) ? from : neighbours;
          // Layers that move in the second half of a step find their maxima picked in the first.
          if (moves(c) || (half == 0 && picks_for_below && !network_.free_feedback))
            lift(worker, c, weights_[c], buffers_[below][c - 1].seen, rows, drive_of(worker, c), places_[c].get());
          if (picks_for_below && network_.free_feedback)
            lift(worker, c, feedback_[c], buffers_[below][c - 1].seen, rows, nullptr, places_[c].get());
        }
        for (int l = half; l < network_.layers; l += halves_)
          move_layer(worker, l, rows, {from, neighbours, to}, nudge);
      }
    });
    if (!part.independent) worker.wait();
  }

  bool may_stop(const Worker& worker, const Part& part, const Stop& stop, int count, int from, int to) {
    return settling_.may_stop(worker, stop, count, [&](T limit) {
      bool all = true;
      for (int l = 0; l < network_.layers; ++l) {
        const Map& of = map(l);
        const T *before = buffers_[from][l].state, *after = buffers_[to][l].state;
        for (int64_t i = part.rows.begin * of.size(); i < part.rows.end * of.size(); ++i)
          all &= stays(before[i], after[i], limit);
      }
      return all;
    });
  }

  // The part's states; no barrier.
  void copy_states(const Part& part, int from, int to) {
    for (int l = 0; l < network_.layers; ++l) {
      const int64_t at = part.rows.begin * map(l).size(), bytes = (part.rows.end * map(l).size() - at) * sizeof(T);
      std::memcpy(buffers_[to][l].state + at, buffers_[from][l].state + at, bytes);
      std::memcpy(buffers_[to][l].seen + at, buffers_[from][l].seen + at, bytes);
    }
  }

  // states[l] [B, channels, height, width] <- the part's states; no barrier.
  void store(const Part& part, int buffer, T* const* states) const {
    for (int l = 0; l < network_.layers; ++l)
      for (int64_t row = part.rows.begin; row < part.rows.end; ++row)
        store_map(map(l), buffers_[buffer][l].state, row, states[l]);
  }

  // to = scale times the error of the outputs of these samples, [batch][padded classes], zero past the classes; no
  // barrier.
  void compute_error(const Worker& worker, const Range& some, int buffer, T scale, T* to) {
    const Map& of = maps_.back();
    const T* top = buffers_[buffer].back().state;
    for_some_rows(some, together_, [&](const Range& rows) {
      if (network_.readout)
        lift(worker, network_.layers, weights_.back(), top, rows, to + rows.begin * of.stride, nullptr);
      else
        std::memcpy(to + rows.begin * of.stride, top + rows.begin * of.stride,
                    (rows.end - rows.begin) * of.stride * sizeof(T));
    });
    for (int64_t row = some.begin; row < some.end; ++row)
      take_error(target_.get() + row * of.stride, of.channels, scale, to + row * of.stride);
  }

  // ---- what must be a number before anything is stored, as with dense layers; no barrier ----

  void note_inputs(const Worker& worker, Sanity<T>& sanity) const {
    sanity.note_inputs(worker, batch_, network_.widths[0], network_.classes());
  }
  void note_parameters(const Worker& worker, Sanity<T>& sanity) const {
    for (int c = 0; c < static_cast<int>(links_.size()); ++c) {
      const Link<Tile>& of = links_[c];
      const Range channels = worker.share(of.above.channels);
      const auto note = [&](const T* from, int64_t numbers) {
        const T* first = from + channels.begin * numbers;
        sanity.note(worker, Sanity<T>::parameters, largest_of(first, channels.end - channels.begin, numbers, numbers));
      };
      note(weights_[c].row(of, 0), of.depth);
      if (has_feedback(c)) note(feedback_[c].row(of, 0), of.depth);
      note(biases_[c].get(), 1);
    }
  }
  void note_states(const Worker& worker, const Part& part, int buffer, Sanity<T>& sanity) const {
    for (int l = 0; l < network_.layers; ++l)
      for (const T* of : {buffers_[buffer][l].state, buffers_[buffer][l].seen})
        note_maps(worker, Sanity<T>::states, map(l), part.rows, of, sanity);
  }

  // ---- what the learning rules read and write ----

  // What a connection picks of the states below it, [places above][stride above] of these samples.
  void pick(const Worker& worker, int c, const Weights<Tile>& weights, const T* below, const Range& some,
            uint16_t* places) {
    for_some_rows(some, together_, [&](const Range& rows) { lift(worker, c, weights, below, rows, nullptr, places); });
  }

  // What connection c picked of the input, or last in a step: of the states before it, or after it.
  const uint16_t* picked(int c) const { return places_[c].get(); }
  bool picked_after_step(int c) const { return halves_ == 2 && c % 2 == 1; }

  // From the matrices, after a barrier; another one must follow.
  void pack(const Worker& worker) {
    for (size_t c = 0; c < links_.size(); ++c) {
      weights_[c].pack(links_[c], worker);
      if (has_feedback(c)) feedback_[c].pack(links_[c], worker);
    }
  }

  // F_0(x) of these samples, and what it picks.
  void load_input_drive(const Worker& worker, const Range& some) {
    for_some_rows(some, together_, [&](const Range& rows) {
      lift(worker, 0, weights_[0], x_.get(), rows, input_drive_.get() + rows.begin * drive_size(0), places_[0].get());
    });
  }

  bool has_feedback(size_t c) const {
    return network_.free_feedback && c > 0 && c < static_cast<size_t>(network_.layers);
  }
  const Weights<Tile>& weights(int c) const { return weights_[c]; }
  const Weights<Tile>& feedback(int c) const { return has_feedback(c) ? feedback_[c] : weights_[c]; }
  T* bias(int c) const { return biases_[c].get(); }
  const Link<Tile>& link(int c) const { return links_[c]; }
  const Map& map(int layer) const { return maps_[layer + 1]; }  // -1: the input
  const StateBuffer<T>& buffer(int index, int layer) const { return buffers_[index][layer]; }
  const T* input() const { return x_.get(); }  // rho(x) in energy dynamics
  int64_t batch() const { return batch_.size; }
  const Network<T>& network() const { return network_; }
  int64_t padded(int64_t channels) const { return (channels + Tile::lanes - 1) / Tile::lanes * Tile::lanes; }

 private:
  // The buffers of a step: of the units' own states and of their neighbours' before it, and of the states after it.
  struct Move {
    int from, seen, to;
  };

  // What a worker needs for a few samples.
  struct Scratch {
    Buffer<T> sums;                 // [samples][positions][width]
    Buffer<T> column;               // [samples][places with border][vectors]
    Buffer<T> total;                // [samples][places][stride]
    Buffer<T> pull;                 // [samples][stride] of the top layer
    std::vector<Buffer<T>> drives;  // per layer [samples][places][stride]: from below
    Lists<Tile> lists;
  };

  // Borders and lanes past the last channel are zero.
  static void note_maps(const Worker& worker, typename Sanity<T>::Kind kind, const Map& of, const Range& rows,
                        const T* maps, Sanity<T>& sanity) {
    const T* first = maps + rows.begin * of.size();
    sanity.note(worker, kind, largest_of(first, rows.end - rows.begin, of.size(), of.size()));
  }

  bool energy() const { return network_.rules[0].dynamics == Dynamics::energy; }
  int64_t drive_size(int l) const { return map(l).places() * map(l).stride; }

  Convolution made(int c) const {
    if (c < static_cast<int>(network_.convolutions.size())) return network_.convolutions[c];
    return {{map(c - 1).height, map(c - 1).width}, {1, 1}, {0, 0}, {1, 1}, Pool::none};
  }

  // The input's places follow each other: it has few channels.
  Map map_above(int l) const {
    const MapShape& shape = network_.maps[l + 1];
    const bool pads = l + 1 < static_cast<int>(network_.convolutions.size());
    const std::array<int64_t, 2> border = pads ? network_.convolutions[l + 1].padding : std::array<int64_t, 2>{0, 0};
    return {shape.channels,
            shape.height,
            shape.width,
            l < 0 ? shape.channels : padded(shape.channels),
            {border[0], border[1]}};
  }

  // As many as keep about a megabyte of states and sums in the second-level cache.
  int64_t samples_together() const {
    int64_t numbers = 1;
    for (const Link<Tile>& link : links_) numbers = std::max(numbers, link.below.size() + link.positions * Tile::width);
    const int64_t fit = (1 << 20) / (numbers * static_cast<int64_t>(sizeof(T)));
    return std::clamp<int64_t>(fit, 1, 16);
  }

  void allocate(int workers) {
    const int64_t n = batch_.size;
    x_ = zeros(map(-1), n);
    target_ = zeros(maps_.back(), n);
    error_ = zeros(maps_.back(), n);
    input_drive_ = Buffer<T>(drive_size(0) * n);
    for (int l = 0; l < network_.layers; ++l)
      for (int f = 0; f < buffers; ++f) {
        memory_.push_back(zeros(map(l), n));
        T* state = memory_.back().get();
        if (energy()) memory_.push_back(zeros(map(l), n));
        buffers_[f].push_back({state, memory_.back().get()});
      }
    for (int c = 0; c < static_cast<int>(links_.size()); ++c) {
      const Link<Tile>& link = links_[c];
      const bool feeds_back = has_feedback(c);
      weights_.emplace_back(link, network_.weights[c], true, c > 0 && !feeds_back);
      feedback_.emplace_back(link, feeds_back ? network_.feedback[c - 1] : nullptr, feeds_back && link.picks_maxima(),
                             feeds_back);
      biases_.push_back(Buffer<T>::zeros(link.panels * Tile::width));
      no_bias_ = std::max(no_bias_, link.panels * Tile::width);
      places_.emplace_back(link.picks_maxima() ? n * drive_size(c) : 0);
    }
    zeros_ = Buffer<T>::zeros(no_bias_);
    scratch_.resize(workers);
    for (Scratch& scratch : scratch_) allocate(scratch);
  }

  void allocate(Scratch& scratch) const {
    int64_t sums = 0, column = 0, total = 0;
    for (const Link<Tile>& link : links_) {
      sums = std::max(sums, link.positions * Tile::width);
      for (const Column& some : link.columns)
        column = std::max(column, link.cells_below() * some.vectors * Tile::lanes);
      scratch.lists.make_room(link, together_);
    }
    for (int l = 0; l < network_.layers; ++l) {
      scratch.drives.emplace_back(together_ * drive_size(l));
      total = std::max(total, drive_size(l));
    }
    scratch.sums = Buffer<T>(together_ * sums);
    scratch.column = Buffer<T>(together_ * column);
    scratch.total = Buffer<T>(together_ * total);
    scratch.pull = Buffer<T>(together_ * drive_size(network_.layers - 1));
    scratch.lists.allocate();
  }

  // With room for a vector that begins at the last number.
  static Buffer<T> zeros(const Map& map, int64_t samples) {
    return Buffer<T>::zeros(samples * map.size() + Tile::width);
  }

  T* drive_of(const Worker& worker, int l) { return scratch_[worker.index].drives[l].get(); }

  // Up through connection c. below: maps of the batch; drive: of these samples; places: of the batch.
  void lift(const Worker& worker, int c, const Weights<Tile>& weights, const T* below, const Range& rows, T* drive,
            uint16_t* places) {
    const Link<Tile>& link = links_[c];
    const bool has_bias = &weights == &weights_[c];
    uint16_t* picked = places && link.picks_maxima() ? places + rows.begin * drive_size(c) : nullptr;
    go_up(link, weights.up(), has_bias ? biases_[c].get() : zeros_.get(), below + rows.begin * link.below.size(),
          rows.end - rows.begin, scratch_[worker.index].sums.get(), drive, picked);
  }

  void move_layer(const Worker& worker, int l, const Range& rows, const Move& move, const Nudge* nudge) {
    Scratch& scratch = scratch_[worker.index];
    const int64_t samples = rows.end - rows.begin;
    const bool is_top = l + 1 == network_.layers;
    const T* drive = l > 0 ? scratch.drives[l].get() : input_drive_.get() + rows.begin * drive_size(0);
    if (!is_top || (network_.readout && nudge)) {
      const Link<Tile>& link = links_[l + 1];
      const T* above = is_top ? error_.get() : buffers_[move.seen][l + 1].seen;
      const uint16_t* places = link.picks_maxima() ? places_[l + 1].get() + rows.begin * drive_size(l + 1) : nullptr;
      scratch.lists.fill(link, above + rows.begin * link.above.size(), places, samples);
      go_down(link, feedback(l + 1).down(), scratch.lists, samples, scratch.column.get(), drive, scratch.total.get());
      drive = scratch.total.get();
    }
    const T* pull = nullptr;
    if (nudge && is_top && !network_.readout) {
      const T* given = is_of_units(nudge->loss) ? target_.get() : error_.get();
      const int64_t first = rows.begin * drive_size(l);
      pull_units(*nudge, samples * drive_size(l), given + first, buffers_[move.from][l].state + first,
                 scratch.pull.get());
      pull = scratch.pull.get();
    }
    for (int64_t row = rows.begin; row < rows.end; ++row)
      move_map(l, row, drive + (row - rows.begin) * drive_size(l),
               pull ? pull + (row - rows.begin) * drive_size(l) : nullptr, nudge ? nudge->at : NudgeAt::state, move);
  }

  // One sample: from drives to next states.
  void move_map(int l, int64_t sample, const T* drive, const T* pull, NudgeAt nudged_at, const Move& move) {
    const Map& of = map(l);
    const UnitRule& rule = network_.rules[l];
    const T* state = buffers_[move.from][l].state + sample * of.size();
    const StateBuffer<T>& next = buffers_[move.to][l];
    for_each_stretch(of, [&](int64_t place, int64_t at, int64_t count) {
      move_units(rule, count, drive + place * of.stride, state + at, pull ? pull + place * of.stride : nullptr,
                 nudged_at, next.state + sample * of.size() + at);
    });
    clear_padding(of, next.state + sample * of.size());
    if (energy()) activate(of, rule.activation, next.state + sample * of.size(), next.seen + sample * of.size());
  }

  static void activate(const Map& of, Activation activation, const T* from, T* to) {
    for_each_stretch(
        of, [&](int64_t, int64_t at, int64_t count) { apply_activation(activation, from + at, to + at, count); });
    clear_padding(of, to);
  }

  // body(first place, its offset, how many numbers follow) of what lies together within the border.
  template <class Body>
  static void for_each_stretch(const Map& of, const Body& body) {
    if (of.border[0] == 0 && of.border[1] == 0) return body(0, 0, of.size());
    for (int64_t y = 0; y < of.height; ++y) body(y * of.width, of.at(y, 0), of.width * of.stride);
  }

  // Lanes past the last channel hold zeros.
  static void clear_padding(const Map& of, T* sample) {
    if (of.stride == of.channels) return;
    for (int64_t y = 0; y < of.height; ++y)
      for (int64_t x = 0; x < of.width; ++x)
        std::memset(sample + of.at(y, x) + of.channels, 0, (of.stride - of.channels) * sizeof(T));
  }

  // One sample, from [batch, channels, height, width] and back.
  static void load_map(const Map& of, const T* from, int64_t sample, T* maps) {
    from += sample * of.channels * of.places();
    for (int64_t y = 0; y < of.height; ++y)
      for (int64_t x = 0; x < of.width; ++x)
        for (int64_t c = 0; c < of.channels; ++c)
          maps[sample * of.size() + of.at(y, x) + c] = from[(c * of.height + y) * of.width + x];
  }
  static void store_map(const Map& of, const T* maps, int64_t sample, T* to) {
    to += sample * of.channels * of.places();
    for (int64_t c = 0; c < of.channels; ++c)
      for (int64_t y = 0; y < of.height; ++y)
        for (int64_t x = 0; x < of.width; ++x)
          to[(c * of.height + y) * of.width + x] = maps[sample * of.size() + of.at(y, x) + c];
  }

  // `to` holds logits and becomes `scale` times their error.
  static void take_error(const T* target, int64_t classes, T scale, T* to) {
    const auto slot = [&](int64_t c) -> T& { return to[c]; };
    sample_error(classes, scale, slot, [&](int64_t c) { return target[c]; }, slot);
  }

  const Network<T>& network_;
  const Batch<T>& batch_;
  Settling<T> settling_;
  const int halves_;
  int64_t together_ = 1, no_bias_ = 0;
  std::vector<Map> maps_;
  std::vector<Link<Tile>> links_;  // a readout is the last
  std::vector<Weights<Tile>> weights_, feedback_;
  std::vector<Buffer<T>> biases_, memory_;
  std::vector<StateBuffer<T>> buffers_[buffers];
  PlacesOf places_;                       // of the input, and of a step on the way down
  Buffer<T> x_, target_, error_, zeros_;  // maps; the last: as a bias
  Buffer<T> input_drive_;                 // [batch][places][stride]
  std::vector<Scratch> scratch_;
};

}  // namespace ceprop::CEPROP_SET::conv
