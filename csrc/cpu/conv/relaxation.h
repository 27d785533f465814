// A chain with convolutions on its way to a fixed point: its states in maps, its packed weights, and the step.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../../model/stages.h"
#include "../sanity.h"
#include "../settling.h"
#include "../sharing.h"
#include "../units.h"
#include "map_numbers.h"
#include "passes.h"
#include "weights.h"

namespace ceprop::CEPROP_SET::conv {

// The states of one layer at one time, a map per sample. `seen` are the firing rates: rho(state) in energy dynamics,
// else the states themselves, in the same memory.
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

  Relaxation(const Network<T>& network, const Batch<T>& batch, int workers, const std::optional<Forms>& = {},
             Gate = Gate::none, bool /*steps_learn*/ = true, bool /*stays_packed*/ = false)
      : network_(network), shape_(network.shape), batch_(batch), settling_(workers) {
    for (int l = -1; l < shape_.connection_count(); ++l) maps_.push_back(map_above(l));
    for (int c = 0; c < shape_.connection_count(); ++c)
      links_.emplace_back(map(c - 1), map(c), shape_.as_convolution(c));
    together_ = samples_together();
    for (Link<Tile>& link : links_) link.note_positions(together_);
    allocate(workers);
  }

  // ---- the parts that every worker calls, in the same order ----

  // Samples know nothing of each other: a worker takes whole ones, and nobody waits, unless what is learned moves the
  // weights.
  Part by_samples(const Worker& worker) const { return {{}, worker.share(batch_.size), true}; }
  Part by_units(const Worker& worker) const { return {{}, worker.share(batch_.size), worker.count == 1}; }
  int64_t rows_together() const { return together_; }

  // Takes over the weights. load_batch() follows.
  void load_parameters(const Worker& worker) {
    for (size_t c = 0; c < links_.size(); ++c) {
      const Range channels = worker.share(links_[c].above.channels);
      weights_[c].load(links_[c], channels);
      if (has_feedback(c)) feedback_[c].load(links_[c], channels);
      for (int64_t i = channels.begin; i < channels.end && network_.biases[c]; ++i)
        biases_[c].get()[i] = network_.biases[c][i];
    }
    worker.wait();
    pack(worker);
  }

  // Takes over the batch, and computes the input's drive. Ends with a barrier.
  void load_batch(const Worker& worker, const std::vector<const T*>& initial) {
    const Range rows = worker.share(batch_.size);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      load_map(map(-1), batch_.x, row, x_.get());
      if (energy()) {
        activate(map(-1), network_.input_activation, x_.get() + row * map(-1).size(), x_.get() + row * map(-1).size());
      }
      if (batch_.target) load_map(maps_.back(), batch_.target, row, target_.get());
      for (int l = 0; l < shape_.layer_count(); ++l) {
        const StateBuffer<T>& start = buffers_[0][l];
        const int64_t at = row * map(l).size();
        if (initial.empty())
          std::memset(start.state + at, 0, map(l).size() * sizeof(T));
        else
          load_map(map(l), initial[l], row, start.state);
        if (energy()) activate(map(l), network_.rules[l].activation, start.state + at, start.seen + at);
      }
    }
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
      for (int turn = 0; turn < shape_.turn_count(); ++turn) {
        const int neighbours = turn == 0 ? from : to;
        const auto moves = [&](int l) { return turn_of(l) == turn; };
        for (int c = 1; c < shape_.layer_count(); ++c) {
          const bool picks = links_[c].picks_maxima(), picks_for_below = picks && moves(c - 1);
          const int below = moves(c - 1) ? from : neighbours;
          // Layers that move in the second turn of a step find their maxima picked in the first.
          if (moves(c) || (turn == 0 && picks_for_below && !network_.free_feedback))
            lift(worker, c, weights_[c], buffers_[below][c - 1].seen, rows, drive_of(worker, c), places_[c].get());
          if (picks_for_below && network_.free_feedback)
            lift(worker, c, feedback_[c], buffers_[below][c - 1].seen, rows, nullptr, places_[c].get());
        }
        for (const int l : shape_.turns[turn]) move_layer(worker, l, rows, {from, neighbours, to}, nudge);
      }
    });
    if (!part.independent) worker.wait();
  }

  bool may_stop(const Worker& worker, const Part& part, const Stop& stop, int count, int from, int to) {
    return settling_.may_stop(worker, stop, count, [&](T limit) {
      bool all = true;
      for (int l = 0; l < shape_.layer_count(); ++l) {
        const Map& of = map(l);
        const T *before = buffers_[from][l].state, *after = buffers_[to][l].state;
        for (int64_t i = part.rows.begin * of.size(); i < part.rows.end * of.size(); ++i)
          all &= stays(before[i], after[i], limit);
      }
      return all;
    });
  }

  // Copies the part's states; no barrier.
  void copy_states(const Part& part, int from, int to) {
    for (int l = 0; l < shape_.layer_count(); ++l) {
      const int64_t at = part.rows.begin * map(l).size(), bytes = (part.rows.end * map(l).size() - at) * sizeof(T);
      std::memcpy(buffers_[to][l].state + at, buffers_[from][l].state + at, bytes);
      std::memcpy(buffers_[to][l].seen + at, buffers_[from][l].seen + at, bytes);
    }
  }

  // Stores the part's states in states[l] [B, channels, height, width]; no barrier.
  void store(const Part& part, int buffer, T* const* states) const {
    for (int l = 0; l < shape_.layer_count(); ++l)
      for (int64_t row = part.rows.begin; row < part.rows.end; ++row)
        store_map(map(l), buffers_[buffer][l].state, row, states[l]);
  }

  // Computes to = scale times the error of the outputs of these samples, [batch][padded classes], zero past the
  // classes; no barrier.
  void compute_error(const Worker& worker, const Range& some, int buffer, T scale, T* to) {
    const Map& of = maps_.back();
    const T* top = buffers_[buffer][shape_.output].state;
    for_some_rows(some, together_, [&](const Range& rows) {
      if (shape_.has_readout())
        lift(worker, shape_.connection_count() - 1, weights_.back(), top, rows, to + rows.begin * of.stride, nullptr);
      else
        std::memcpy(to + rows.begin * of.stride, top + rows.begin * of.stride,
                    (rows.end - rows.begin) * of.stride * sizeof(T));
    });
    for (int64_t row = some.begin; row < some.end; ++row)
      take_error(target_.get() + row * of.stride, of.channels, scale, to + row * of.stride);
  }

  // ---- what must be a number before anything is stored, as with dense layers; no barrier ----

  void note_inputs(const Worker& worker, Sanity<T>& sanity) const {
    sanity.note_inputs(worker, batch_, shape_.input.units(), shape_.classes);
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
    for (int l = 0; l < shape_.layer_count(); ++l)
      for (const T* of : {buffers_[buffer][l].state, buffers_[buffer][l].seen})
        note_maps(worker, Sanity<T>::states, map(l), part.rows, of, sanity);
  }

  // ---- what the learning rules read and write ----

  // Notes what a connection picks of the states below it, [places above][stride above] of these samples.
  void pick(const Worker& worker, int c, const Weights<Tile>& weights, const T* below, const Range& some,
            uint16_t* places) {
    for_some_rows(some, together_, [&](const Range& rows) { lift(worker, c, weights, below, rows, nullptr, places); });
  }

  // What connection c picked of the input, or last in a step: of the states before it, or after it.
  const uint16_t* picked(int c) const { return places_[c].get(); }
  bool picked_after_step(int c) const { return turn_of(c) > 0; }

  // Packs this worker's part of the weights from their matrices, after a barrier; another one must follow.
  void pack(const Worker& worker) {
    for (size_t c = 0; c < links_.size(); ++c) {
      weights_[c].pack(links_[c], worker);
      if (has_feedback(c)) feedback_[c].pack(links_[c], worker);
    }
  }

  // Computes F_0(x) of these samples, and notes what it picks.
  void load_input_drive(const Worker& worker, const Range& some) {
    for_some_rows(some, together_, [&](const Range& rows) {
      lift(worker, 0, weights_[0], x_.get(), rows, input_drive_.get() + rows.begin * drive_size(0), places_[0].get());
    });
  }

  // Writes some channels of a connection back into the network's parameters.
  void store_parameters(int c, const Range& channels) const {
    weights_[c].store(links_[c], channels);
    if (has_feedback(c)) feedback_[c].store(links_[c], channels);
    for (int64_t i = channels.begin; i < channels.end && network_.biases[c]; ++i)
      network_.biases[c][i] = biases_[c].get()[i];
  }

  // Takes over a readout that has moved in the network. A barrier must follow.
  void load_readout(const Worker& worker) {
    if (!shape_.has_readout()) return;
    const int c = shape_.layer_count();
    const Range classes = worker.share(links_[c].above.channels);
    weights_[c].load(links_[c], classes);
    for (int64_t i = classes.begin; i < classes.end && network_.biases[c]; ++i)
      biases_[c].get()[i] = network_.biases[c][i];
    worker.wait();
    weights_[c].pack(links_[c], worker);
  }

  bool has_feedback(size_t c) const { return shape_.connections[c].feedback >= 0; }
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
  // The numbers of a step's buffers: those of the units' own states and of their neighbours' before it, and those of
  // the states after it.
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
  int turn_of(int l) const { return l % shape_.turn_count(); }

  // The input's places follow each other without padding: it has few channels.
  Map map_above(int l) const {
    const MapShape of = l < 0 ? shape_.input : shape_.above(l);
    std::array<int64_t, 2> border{};
    if (l + 1 < shape_.connection_count()) border = shape_.as_convolution(l + 1).padding;
    return {of.channels, of.height, of.width, l < 0 ? of.channels : padded(of.channels), {border[0], border[1]}};
  }

  // So many samples keep about a megabyte of states and sums in the second-level cache.
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
    for (int l = 0; l < shape_.layer_count(); ++l)
      for (int buffer = 0; buffer < state_buffers; ++buffer) {
        memory_.push_back(zeros(map(l), n));
        T* state = memory_.back().get();
        if (energy()) memory_.push_back(zeros(map(l), n));
        buffers_[buffer].push_back({state, memory_.back().get()});
      }
    for (int c = 0; c < static_cast<int>(links_.size()); ++c) {
      const Link<Tile>& link = links_[c];
      const bool feeds_back = has_feedback(c);
      weights_.emplace_back(link, network_.weights[c], true, c > 0 && !feeds_back);
      feedback_.emplace_back(link, feeds_back ? network_.feedback[shape_.connections[c].feedback] : nullptr,
                             feeds_back && link.picks_maxima(), feeds_back);
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
    for (int l = 0; l < shape_.layer_count(); ++l) {
      scratch.drives.emplace_back(together_ * drive_size(l));
      total = std::max(total, drive_size(l));
    }
    scratch.sums = Buffer<T>(together_ * sums);
    scratch.column = Buffer<T>(together_ * column);
    scratch.total = Buffer<T>(together_ * total);
    scratch.pull = Buffer<T>(together_ * drive_size(shape_.output));
    scratch.lists.allocate();
  }

  // They have room for a vector that begins at the last number.
  static Buffer<T> zeros(const Map& map, int64_t samples) {
    return Buffer<T>::zeros(samples * map.size() + Tile::width);
  }

  T* drive_of(const Worker& worker, int l) { return scratch_[worker.index].drives[l].get(); }

  // Passes up through connection c. below: maps of the batch; drive: of these samples; places: of the batch.
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
    const bool is_top = l == shape_.output;
    const T* drive = l > 0 ? scratch.drives[l].get() : input_drive_.get() + rows.begin * drive_size(0);
    if (!is_top || (shape_.has_readout() && nudge)) {
      const Link<Tile>& link = links_[l + 1];
      const T* above = is_top ? error_.get() : buffers_[move.seen][l + 1].seen;
      const uint16_t* places = link.picks_maxima() ? places_[l + 1].get() + rows.begin * drive_size(l + 1) : nullptr;
      scratch.lists.fill(link, above + rows.begin * link.above.size(), places, samples);
      go_down(link, feedback(l + 1).down(), scratch.lists, samples, scratch.column.get(), drive, scratch.total.get());
      drive = scratch.total.get();
    }
    const T* pull = nullptr;
    if (nudge && is_top && !shape_.has_readout()) {
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

  // Moves one sample from its drives to its next states.
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

  // `to` holds logits and becomes `scale` times their error.
  static void take_error(const T* target, int64_t classes, T scale, T* to) {
    const auto slot = [&](int64_t c) -> T& { return to[c]; };
    sample_error(classes, scale, slot, [&](int64_t c) { return target[c]; }, slot);
  }

  const Network<T>& network_;
  const NetworkShape& shape_;
  const Batch<T>& batch_;
  Settling<T> settling_;
  int64_t together_ = 1, no_bias_ = 0;
  std::vector<Map> maps_;
  std::vector<Link<Tile>> links_;  // a readout is the last
  std::vector<Weights<Tile>> weights_, feedback_;
  std::vector<Buffer<T>> biases_, memory_;
  std::vector<StateBuffer<T>> buffers_[state_buffers];
  PlacesOf places_;               // of the input, and of a step on the way down
  Buffer<T> x_, target_, error_;  // maps
  Buffer<T> zeros_;               // a bias for V, which has none
  Buffer<T> input_drive_;         // [batch][places][stride]
  std::vector<Scratch> scratch_;
};

}  // namespace ceprop::CEPROP_SET::conv
