// A network of dense layers on its way to a fixed point: the step, and how its work is shared.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "../settling.h"
#include "packed_network.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class Relaxation {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  // With `forms` the weights move; where the input's do so literally, layer 0 reads the input anew at every step, else
  // its drive is computed once. With a gate nudged steps keep its slopes, if they learn. `stays_packed`: the batch is
  // overwritten by the next one, while the parameters stay as they are.
  Relaxation(const Network<T>& network, const Batch<T>& batch, int workers, std::optional<Forms> forms = {},
             Gate gate = Gate::none, bool steps_learn = true, bool stays_packed = false)
      : packed_(network, batch, forms && forms->input == Form::literal, gate, stays_packed),
        network_(network),
        stays_packed_(stays_packed),
        gate_(gate),
        keeps_slopes_(gate != Gate::none && steps_learn),
        drives_(workers * batch.size * width),
        pulls_(workers * batch.size * width),
        error_(packed_.padded(network.shape.classes) * batch.size),
        sharing_(network.shape.turn_count(), batch.size, sizeof(T) * numbers_read(network.shape)),
        settling_(workers) {
    for (int turn = 0; turn < network.shape.turn_count(); ++turn)
      for (const int l : network.shape.turns[turn])
        for (int64_t panel = 0; panel < layers()[l].panels; ++panel) {
          // A half panel takes about three quarters of a whole one's time: its tile waits for loads.
          const bool half_panel = lanes_used<Tile>(layers()[l].units, panel * width) <= Tile::lanes;
          sharing_.add(turn, {l, panel}, (half_panel ? 0.75 : 1.0) * multiplications(l, forms));
        }
  }

  // What so many samples bring along stays in the second-level cache.
  int64_t rows_together() const { return 128; }

  // ---- the parts that every worker calls, in the same order ----

  Part by_units(const Worker& worker) const { return sharing_.by_units(worker); }
  Part by_samples(const Worker& worker) const { return sharing_.by_samples(worker); }
  // The panels of W[0] that this worker reads and moves where that happens once a batch: their owners have other things
  // to do in a step.
  Range input_share(const Worker& worker) const { return worker.share(layers()[0].panels); }
  template <class Body>
  void for_each_item(const Part& part, const Body& body) const {
    sharing_.for_each_item(part, body);
  }

  // Packs the parameters. load_batch() follows.
  void load_parameters(const Worker& worker) {
    for_each_item(by_units(worker), [&](const Item& item) { packed_.load_parameters(item); });
    const Range panels = input_share(worker);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) packed_.load_input(panel);
  }

  // Packs a readout that has moved for the way down; the way up is packed with every batch. No barrier.
  void load_readout(const Worker& worker) {
    if (!network_.shape.has_readout()) return;
    for_each_item(by_units(worker), [&](const Item& item) {
      if (item.layer == network_.shape.output) packed_.load_above(item);
    });
  }

  // Packs the batch, with a readout, and computes the input's drive. Ends with a barrier.
  void load_batch(const Worker& worker, const std::vector<const T*>& initial) {
    packed_.load_batch(worker);
    for_each_item(by_units(worker), [&](const Item& item) { packed_.load_states(item, initial); });
    worker.wait();
    packed_.load_input_drive(input_share(worker));
    worker.wait();
  }

  // The states of this part move from buffer `from` to buffer `to`, with a nudge towards the target. For every panel
  // correct(item, rows, drive) may add to the drive that the weights bring to some samples, and after(item) is called
  // when all have moved. Ends with a barrier unless the part is independent.
  template <class Correct, class After>
  void step(const Worker& worker, Part& part, int from, int to, const Nudge* nudge, const Correct& correct,
            const After& after) {
    if (nudge && !is_of_units(nudge->loss)) {
      compute_error(worker, part.independent ? part.rows : worker.share(batch()), from, static_cast<T>(nudge->beta),
                    error_.get());
      wait(worker, part);
    }
    for (int turn = 0; turn < sharing_.turns(); ++turn) {
      for_some_rows(part.rows, rows_together(), [&](const Range& rows) {
        sharing_.for_each_item_of(turn, part, [&](const Item& item) {
          move_panel(worker, item, rows, {from, turn == 0 ? from : to, to, nudge && keeps_slopes_}, nudge, correct);
        });
      });
      sharing_.for_each_item_of(turn, part, after);
      wait(worker, part);
    }
    part.backwards = !part.backwards;
  }

  void step(const Worker& worker, Part& part, int from, int to, const Nudge* nudge) {
    step(worker, part, from, to, nudge, [](const Item&, const Range&, T*) {}, [](const Item&) {});
  }

  // Takes a gate's slopes at the states of buffer `from`, without a nudge, into buffer `to`, whose states are lost.
  // Ends with a barrier.
  void take_slopes_at(const Worker& worker, int from, int to) {
    for_each_item(by_units(worker), [&](const Item& item) {
      move_panel(worker, item, {0, batch()}, {from, from, to, true}, nullptr, [](const Item&, const Range&, T*) {});
    });
    worker.wait();
  }

  // Whether a phase ends after `count` steps, the last from buffer `from` to buffer `to`; all workers agree. With a
  // tolerance every worker has to ask after every step.
  bool may_stop(const Worker& worker, const Part& part, const Stop& stop, int count, int from, int to) {
    return settling_.may_stop(worker, stop, count, [&](T limit) {
      bool all = true;
      for_each_item(part, [&](const Item& item) { all &= packed_.stays_within(item, part.rows, limit, from, to); });
      return all;
    });
  }

  // Copies the part's states; no barrier.
  void copy_states(const Part& part, int from, int to) {
    for_each_item(part, [&](const Item& item) { packed_.copy_states(item, part.rows, from, to); });
  }

  // Stores the part's states in states[l] [B, n_l]; no barrier.
  void store(const Part& part, int buffer, T* const* states) const {
    for_each_item(part, [&](const Item& item) { packed_.store(item, part.rows, buffer, states[item.layer]); });
  }

  // Computes to = scale times the error of the outputs of these samples, [panel][batch][width], zero in the lanes past
  // the classes; no barrier.
  void compute_error(const Worker&, const Range& rows, int buffer, T scale, T* to) {
    const int64_t n = batch(), classes = network_.shape.classes, panels = panels_of(classes, width);
    const T* top = packed_.buffer(buffer, network_.shape.output).state;
    const Incoming<T>& readout = packed_.readout();
    if (rows.begin == rows.end) return;
    for (int64_t panel = 0; panel < panels; ++panel) {
      T* logits = to + (panel * n + rows.begin) * width;
      if (!readout.weights) {
        std::memcpy(logits, top + (panel * n + rows.begin) * width, (rows.end - rows.begin) * width * sizeof(T));
        continue;
      }
      add_products<Tile>(logits, {packed_.readout_bias() + panel * width, 0}, top + rows.begin * width, n * width,
                         readout.weights + panel * readout.depth * width, readout.depth, rows.end - rows.begin,
                         lanes_used<Tile>(classes, panel * width));
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) take_error(row, scale, to);
  }

  // ---- what must be a number before anything is stored; no barrier ----

  void note_inputs(const Worker& worker, Sanity<T>& sanity) const { packed_.note_inputs(worker, sanity); }
  void note_parameters(const Worker& worker, Sanity<T>& sanity) const {
    for_each_item(by_units(worker), [&](const Item& item) { packed_.note_parameters(worker, item, sanity); });
    packed_.note_readout(worker, sanity);
  }
  void note_states(const Worker& worker, const Part& part, int buffer, Sanity<T>& sanity) const {
    for_each_item(part, [&](const Item& item) { packed_.note_states(worker, item, part.rows, buffer, sanity); });
  }

  // ---- what the learning rules read and write ----

  const std::vector<Layer<T>>& layers() const { return packed_.layers(); }
  const StateBuffer<T>& buffer(int index, int layer) const { return packed_.buffer(index, layer); }
  const T* input() const { return packed_.input(); }  // [panel][batch][width], rho(x) in energy dynamics
  int64_t batch() const { return packed_.batch(); }
  const Network<T>& network() const { return network_; }
  Gate gate() const { return gate_; }
  bool stays_packed() const { return stays_packed_; }
  int64_t padded(int64_t units) const { return packed_.padded(units); }

  // Whether the owner of a unit of layer l moves its weights from the layer below, or above. Of tied weights only one
  // owner does, on the wider side, where the work is shared by more panels.
  bool moves_from_below(int l) const {
    return l > 0 && (network_.free_feedback || layers()[l - 1].units < layers()[l].units);
  }
  bool moves_from_above(int l) const {
    return l < network_.shape.output && (network_.free_feedback || layers()[l].units >= layers()[l + 1].units);
  }

 private:
  // The numbers of a step's buffers: those of the units' own states and of their neighbours' before it, and those of
  // the states after it, where a gate's slopes are kept as well, if they are asked for.
  struct Move {
    int from, seen, to;
    bool slopes;
  };

  static void wait(const Worker& worker, const Part& part) {
    if (!part.independent) worker.wait();
  }

  // A step reads the weights between layers twice: into their units from below and from above.
  static double numbers_read(const NetworkShape& shape) {
    double all = 0;
    for (int c = 1; c < shape.layer_count(); ++c) all += 2 * static_cast<double>(shape.weight_count(c));
    return all;
  }

  // About how many multiplications a step takes for one sample and one unit of layer l, by which workers share.
  double multiplications(int l, const std::optional<Forms>& forms) const {
    const Layer<T>& layer = layers()[l];
    const double activation = 32, below = static_cast<double>(layer.below.depth);
    const double above = l < network_.shape.output ? static_cast<double>(layer.above.depth) : 0;
    double all = (layer.drive ? 0 : below) + above + activation;
    if (!forms) return all;
    const double samples = static_cast<double>(batch()), terms = network_.free_feedback ? 1 : 2;
    if (l == 0) all += layer.drive ? samples + activation : below;
    if (forms->inner == Form::low_rank) return all + 2 * samples;
    return all + terms * ((moves_from_below(l) ? below : 0) + (moves_from_above(l) ? above : 0));
  }

  // Moves some samples of one panel of units: computes their drive, then their next states.
  template <class Correct>
  void move_panel(const Worker& worker, const Item& item, const Range& rows, const Move& move, const Nudge* nudge,
                  const Correct& correct) {
    const auto [l, panel] = item;
    const Layer<T>& layer = layers()[l];
    const bool is_top = l == network_.shape.output;
    const int64_t n = rows.end - rows.begin, count = n * width, stride = batch() * width;
    const int64_t row = rows.begin * width, at = panel * stride + row;
    T* drive = drives_.get() + worker.index * stride;
    Start<T> start = layer.drive ? Start<T>{layer.drive + at, width} : Start<T>{layer.bias + panel * width, 0};
    const auto multiply = [&](T* sums, const Start<T>& from, const Incoming<T>& incoming, const T* seen) {
      add_products<Tile>(sums, from, seen + row, stride, incoming.weights + panel * incoming.depth * width,
                         incoming.depth, n, lanes_used<Tile>(layer.units, panel * width));
    };
    const auto add = [&](const Incoming<T>& incoming, const T* seen) {
      multiply(drive, start, incoming, seen);
      start = {drive, width};
    };
    const StateBuffer<T>& next = buffer(move.to, l);
    const Activation activation = layer.rule.activation;
    const bool of_parts = move.slopes && gate_ == Gate::connection;
    if (layer.below.weights) add(layer.below, l ? buffer(move.seen, l - 1).seen : input());
    if (of_parts) take_slopes<T>(activation, count, start.rows, nullptr, next.up + at);
    if (of_parts && !is_top) {
      alignas(64) constexpr T zeros[width] = {};
      T* from_above = next.down + at;
      multiply(from_above, {zeros, 0}, layer.above, buffer(move.seen, l + 1).seen);
      for (int64_t i = 0; i < count; ++i) drive[i] = start.rows[i] + from_above[i];
      start = {drive, width};
      take_slopes<T>(activation, count, from_above, nullptr, from_above);
    } else if (!is_top)
      add(layer.above, buffer(move.seen, l + 1).seen);
    else if (nudge && layer.above.weights)
      add(layer.above, error_.get());

    if (start.rows != drive) std::memcpy(drive, start.rows, count * sizeof(T));  // a layer that sees the input only
    correct(item, rows, drive);

    const T* state = buffer(move.from, l).state + at;
    const bool nudged = nudge && is_top && !layer.above.weights;
    T* pull = pulls_.get() + worker.index * stride;
    if (nudged)
      pull_units(*nudge, count, (is_of_units(nudge->loss) ? packed_.target() : error_.get()) + at, state, pull);
    if (move.slopes && gate_ == Gate::unit)
      take_slopes(activation, count, drive, nudged && nudge->at == NudgeAt::drive ? pull : nullptr, next.up + at);
    move_units(layer.rule, count, drive, state, nudged ? pull : nullptr, nudge ? nudge->at : NudgeAt::state,
               next.state + at);
    if (next.seen != next.state) apply_activation(activation, next.state + at, next.seen + at, count);
  }

  // Row `row` of `to` holds logits and becomes `scale` times their error.
  void take_error(int64_t row, T scale, T* to) const {
    const int64_t classes = network_.shape.classes, stride = batch() * width;
    const auto at = [&](int64_t c) { return (c / width) * stride + row * width + c % width; };
    const auto slot = [&](int64_t c) -> T& { return to[at(c)]; };
    sample_error(classes, scale, slot, [&](int64_t c) { return packed_.target()[at(c)]; }, slot);
    for (int64_t c = classes; c < padded(classes); ++c) to[at(c)] = 0;
  }

  PackedNetwork<Tile> packed_;
  const Network<T>& network_;
  const bool stays_packed_;
  const Gate gate_;
  const bool keeps_slopes_;  // in nudged steps
  Buffer<T> drives_;         // [worker][batch][width]
  Buffer<T> pulls_;          // [worker][batch][width]
  Buffer<T> error_;          // [panel][batch][width] of the classes
  Sharing sharing_;
  Settling<T> settling_;
};

}  // namespace ceprop::CEPROP_SET::dense
