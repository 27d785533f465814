// A network on its way to a fixed point: packed weights, states in panels, and the step.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "../memory.h"
#include "../panels.h"
#include "../sanity.h"
#include "../settling.h"
#include "../sharing.h"
#include "../units.h"

namespace ceprop::CEPROP_SET::dense {

// The states of one layer at one time. `seen` is what its neighbours see: rho(state) in energy dynamics, else the
// state itself, in the same memory.
template <class T>
struct StateBuffer {
  T* state;  // [panel][batch][width]
  T* seen;   // [panel][batch][width]
  // Slopes of a gate at what moved the units here, for W[l] and for V[l + 1], in the same memory if they are the same;
  // without a gate null. [panel][batch][width]
  T* up;
  T* down;
};

// Weights into a layer from one neighbour, in panels of the layer's units; null where the neighbour is not read.
template <class T>
struct Incoming {
  T* weights;     // [panel][depth][width]
  int64_t depth;  // units of the neighbour
};

template <class T>
struct Layer {
  UnitRule rule;
  int64_t units, panels;
  T* bias;            // [panel][width]
  T* drive;           // [panel][batch][width]: what reaches layer 0 from the input, bias included; else null
  Incoming<T> below;  // W[l]
  Incoming<T> above;  // V[l + 1], tied: W[l + 1]; in the top layer a readout
};

template <class Tile>
class Relaxation {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;
  // Buffers are numbered: a ring of three, in which the steps of a phase go round (a step may overwrite the oldest
  // while slow workers still read the two others), and two that keep what a phase left.
  static constexpr int ring = 3, kept_free = 3, kept_plus = 4, buffers = 5;

  // With `forms` the weights move; where they do so literally, layer 0 reads the input anew at every step, else its
  // drive is computed once.
  // With a gate nudged steps keep its slopes.
  Relaxation(const Network<T>& network, const Batch<T>& batch, int workers, std::optional<Forms> forms = {},
             Gate gate = Gate::none)
      : network_(network),
        batch_(batch),
        gate_(gate),
        sharing_(network.asynchronous ? 2 : 1, batch.size, sizeof(T) * numbers_read(network)),
        settling_(workers) {
    const int64_t n = batch.size;
    const bool literal_input = forms && forms->input == Form::literal;
    drives_ = keep(workers * n * width);
    pulls_ = keep(workers * n * width);
    error_ = keep(padded(network.classes()) * n);
    x_ = keep(padded(network.widths[0]) * n);
    target_ = keep(padded(network.classes()) * n);
    for (int l = 0; l < network.layers; ++l) {
      Layer<T> layer{};
      layer.rule = network.rules[l];
      layer.units = network.widths[l + 1];
      layer.panels = panels_of(layer.units, width);
      layer.bias = keep_zeros(layer.panels * width);
      layer.below.depth = network.widths[l];
      if (l > 0 || literal_input)
        layer.below.weights = keep(layer.panels * layer.below.depth * width);
      else
        layer.drive = keep(layer.panels * n * width);
      if (l + 1 < network.layers || network.readout) {
        layer.above.depth = network.widths[l + 2];
        layer.above.weights = keep(layer.panels * layer.above.depth * width);
      }
      const int64_t numbers = layer.panels * n * width;
      for (int buffer = 0; buffer < buffers; ++buffer) {
        T* state = buffer == 0 ? keep_zeros(numbers) : keep(numbers);  // where phases start
        T* up = gate == Gate::none || buffer >= ring ? nullptr : keep(numbers);
        T* down = up && gate == Gate::connection ? keep(numbers) : up;
        buffers_[buffer].push_back({state, layer.rule.dynamics == Dynamics::energy ? keep(numbers) : state, up, down});
      }
      layers_.push_back(layer);
    }
    for (int half = 0; half < sharing_.halves(); ++half)
      for (int l = half; l < network.layers; l += sharing_.halves())
        for (int64_t panel = 0; panel < layers_[l].panels; ++panel) {
          // A half panel takes about three quarters of a whole one's time: its tile waits for loads.
          const bool half_panel = lanes_used<Tile>(layers_[l].units, panel * width) <= Tile::lanes;
          sharing_.add(half, {l, panel}, (half_panel ? 0.75 : 1.0) * multiplications(l, forms));
        }
    if (network.readout) {
      const int64_t top = network.widths[network.layers];
      readout_ = {keep(padded(network.classes()) * top), top};
      readout_bias_ = keep_zeros(padded(network.classes()));
    }
  }

  // So that what they bring along stays in the second-level cache.
  int64_t rows_together() const { return 128; }

  // ---- the parts that every worker calls, in the same order ----

  Part by_units(const Worker& worker) const { return sharing_.by_units(worker); }
  Part by_samples(const Worker& worker) const { return sharing_.by_samples(worker); }
  template <class Body>
  void for_each_item(const Part& part, const Body& body) const {
    sharing_.for_each_item(part, body);
  }

  // Packs the batch and the weights, and computes the input's drive. Ends with a barrier.
  void load(const Worker& worker, const std::vector<const T*>& initial) {
    const int64_t n = batch_.size, n_in = network_.widths[0];
    const Range inputs = worker.share(panels_of(n_in, width));
    for (int64_t panel = inputs.begin; panel < inputs.end; ++panel) {
      T* to = x_ + panel * n * width;
      load_panel<Tile>(batch_.x, n, n_in, panel * width, to);
      if (network_.rules[0].dynamics == Dynamics::energy)
        apply_activation(network_.input_activation, to, to, n * width);
    }
    if (batch_.target) {
      const Range classes = worker.share(panels_of(network_.classes(), width));
      for (int64_t panel = classes.begin; panel < classes.end; ++panel)
        load_panel<Tile>(batch_.target, n, network_.classes(), panel * width, target_ + panel * n * width);
    }
    if (network_.readout) {
      const Range classes = worker.share(panels_of(network_.classes(), width));
      for (int64_t panel = classes.begin; panel < classes.end; ++panel) {
        load_panel_transposed<Tile>(network_.weights.back(), readout_.depth, readout_.depth, network_.classes(),
                                    panel * width, readout_.weights + panel * readout_.depth * width);
        if (network_.biases.back())
          load_panel<Tile>(network_.biases.back(), 1, network_.classes(), panel * width, readout_bias_ + panel * width);
      }
    }
    for_each_item(by_units(worker), [&](const Item& item) { load_item(item, initial); });
    worker.wait();
    load_input_drive(worker);
    worker.wait();
  }

  // The states of this part move from buffer `from` to buffer `to`; with a nudge towards the target. Of every panel,
  // correct(item, rows, drive) may add to the drive that the weights bring to some samples, and after(item) is called
  // when all have moved. Ends with a barrier unless the part is independent.
  template <class Correct, class After>
  void step(const Worker& worker, Part& part, int from, int to, const Nudge* nudge, const Correct& correct,
            const After& after) {
    if (nudge && !is_of_units(nudge->loss)) {
      compute_error(worker, part.independent ? part.rows : worker.share(batch_.size), from, static_cast<T>(nudge->beta),
                    error_);
      wait(worker, part);
    }
    for (int half = 0; half < sharing_.halves(); ++half) {
      for_some_rows(part.rows, rows_together(), [&](const Range& rows) {
        sharing_.for_each_item_of(half, part, [&](const Item& item) {
          move_panel(worker, item, rows, {from, half == 0 ? from : to, to, nudge && gate_ != Gate::none}, nudge,
                     correct);
        });
      });
      sharing_.for_each_item_of(half, part, after);
      wait(worker, part);
    }
    part.backwards = !part.backwards;
  }

  void step(const Worker& worker, Part& part, int from, int to, const Nudge* nudge) {
    step(worker, part, from, to, nudge, [](const Item&, const Range&, T*) {}, [](const Item&) {});
  }

  // The slopes of a gate at the states of buffer `from`, without a nudge, go to buffer `to`, whose states are lost.
  // Ends with a barrier.
  void take_slopes_at(const Worker& worker, int from, int to) {
    for_each_item(by_units(worker), [&](const Item& item) {
      move_panel(worker, item, {0, batch_.size}, {from, from, to, true}, nullptr, [](const Item&, const Range&, T*) {});
    });
    worker.wait();
  }

  // Whether a phase ends after `count` steps, the last from buffer `from` to buffer `to`; all workers agree. With a
  // tolerance every worker has to ask after every step.
  bool may_stop(const Worker& worker, const Part& part, const Stop& stop, int count, int from, int to) {
    return settling_.may_stop(worker, stop, count, [&](T limit) { return stays_within(part, limit, from, to); });
  }

  // The part's states; no barrier.
  void copy_states(const Part& part, int from, int to) {
    for_each_block(part, [&](const Item& item, int64_t at) {
      const int64_t bytes = (part.rows.end - part.rows.begin) * width * sizeof(T);
      std::memcpy(buffers_[to][item.layer].state + at, buffers_[from][item.layer].state + at, bytes);
      std::memcpy(buffers_[to][item.layer].seen + at, buffers_[from][item.layer].seen + at, bytes);
    });
  }

  // states[l] [B, n_l] <- the part's states; no barrier.
  void store(const Part& part, int buffer, T* const* states) const {
    for_each_block(part, [&](const Item& item, int64_t at) {
      const int64_t units = layers_[item.layer].units;
      store_panel<Tile>(buffers_[buffer][item.layer].state + at, part.rows.end - part.rows.begin, units,
                        item.panel * width, states[item.layer] + part.rows.begin * units);
    });
  }

  // to = scale times the error of the outputs of these samples, [panel][batch][width], zero in the lanes past the
  // classes; no barrier.
  void compute_error(const Worker&, const Range& rows, int buffer, T scale, T* to) {
    const int64_t n = batch_.size, classes = network_.classes(), panels = panels_of(classes, width);
    const T* top = buffers_[buffer].back().state;
    if (rows.begin == rows.end) return;
    for (int64_t panel = 0; panel < panels; ++panel) {
      T* logits = to + (panel * n + rows.begin) * width;
      if (!network_.readout) {
        std::memcpy(logits, top + (panel * n + rows.begin) * width, (rows.end - rows.begin) * width * sizeof(T));
        continue;
      }
      add_products<Tile>(logits, {readout_bias_ + panel * width, 0}, top + rows.begin * width, n * width,
                         readout_.weights + panel * readout_.depth * width, readout_.depth, rows.end - rows.begin,
                         lanes_used<Tile>(classes, panel * width));
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) take_error(row, scale, to);
  }

  // ---- what must be a number before anything is stored; no barrier ----

  void note_inputs(const Worker& worker, Sanity<T>& sanity) const {
    sanity.note_inputs(worker, batch_, network_.widths[0], network_.classes());
  }

  // The weights that are packed, of tied ones one copy, biases, and the input's drive: where W[0] is not packed, that
  // is no number if one of its weights is none.
  void note_parameters(const Worker& worker, Sanity<T>& sanity) const {
    for_each_item(by_units(worker), [&](const Item& item) {
      const Layer<T>& layer = layers_[item.layer];
      const auto note = [&](const T* panels, int64_t rows) {
        if (panels) note_panel(worker, Sanity<T>::parameters, panels, item.panel, layer.units, rows, sanity);
      };
      note(layer.below.weights, layer.below.depth);
      if (network_.free_feedback && item.layer + 1 < network_.layers) note(layer.above.weights, layer.above.depth);
      note(layer.bias, 1);
      note(layer.drive, batch_.size);
    });
    if (!network_.readout) return;
    note_panels(worker, Sanity<T>::parameters, readout_.weights, network_.classes(), readout_.depth, sanity);
    note_panels(worker, Sanity<T>::parameters, readout_bias_, network_.classes(), 1, sanity);
  }

  void note_states(const Worker& worker, const Part& part, int buffer, Sanity<T>& sanity) const {
    for_each_block(part, [&](const Item& item, int64_t at) {
      const int64_t valid = lanes_used<Tile>(layers_[item.layer].units, item.panel * width);
      for (const T* of : {buffers_[buffer][item.layer].state, buffers_[buffer][item.layer].seen})
        sanity.note(worker, Sanity<T>::states, largest_of(of + at, part.rows.end - part.rows.begin, valid, width));
    });
  }

  // ---- what the learning rules read and write ----

  const std::vector<Layer<T>>& layers() const { return layers_; }
  const StateBuffer<T>& buffer(int index, int layer) const { return buffers_[index][layer]; }
  const T* input() const { return x_; }  // [panel][batch][width], rho(x) in energy dynamics
  int64_t batch() const { return batch_.size; }
  const Network<T>& network() const { return network_; }
  Gate gate() const { return gate_; }

  // Whether the owner of a unit of layer l moves its weights from the layer below, or above. Of tied weights only one
  // owner does, on the wider side, where the work is shared by more panels.
  bool moves_from_below(int l) const {
    return l > 0 && (network_.free_feedback || network_.widths[l] < network_.widths[l + 1]);
  }
  bool moves_from_above(int l) const {
    return l + 1 < network_.layers && (network_.free_feedback || network_.widths[l + 1] >= network_.widths[l + 2]);
  }

  int64_t padded(int64_t units) const { return panels_of(units, width) * width; }

 private:
  // Of [panel][rows][width] numbers of so many units one panel, or this worker's share of all; lanes past the last unit
  // do not count.
  static void note_panel(const Worker& worker, typename Sanity<T>::Kind kind, const T* panels, int64_t panel,
                         int64_t units, int64_t rows, Sanity<T>& sanity) {
    sanity.note(worker, kind,
                largest_of(panels + panel * rows * width, rows, lanes_used<Tile>(units, panel * width), width));
  }
  static void note_panels(const Worker& worker, typename Sanity<T>::Kind kind, const T* panels, int64_t units,
                          int64_t rows, Sanity<T>& sanity) {
    const Range mine = worker.share(panels_of(units, width));
    for (int64_t panel = mine.begin; panel < mine.end; ++panel)
      note_panel(worker, kind, panels, panel, units, rows, sanity);
  }

  // The buffers of a step: of the units' own states and of their neighbours' before it, and of the states after it,
  // where the slopes of a gate are kept as well, if they are asked for.
  struct Move {
    int from, seen, to;
    bool slopes;
  };

  static void wait(const Worker& worker, const Part& part) {
    if (!part.independent) worker.wait();
  }

  // The weights between layers, into their units from below and from above.
  static double numbers_read(const Network<T>& network) {
    double all = 0;
    for (int l = 1; l < network.layers; ++l)
      all += 2 * static_cast<double>(network.widths[l]) * static_cast<double>(network.widths[l + 1]);
    return all;
  }

  // About how many multiplications a step takes for one sample and one unit of layer l, by which workers share.
  double multiplications(int l, const std::optional<Forms>& forms) const {
    const Layer<T>& layer = layers_[l];
    const double activation = 32, below = static_cast<double>(layer.below.depth);
    const double above = l + 1 < network_.layers ? static_cast<double>(layer.above.depth) : 0;
    double all = (layer.drive ? 0 : below) + above + activation;
    if (!forms) return all;
    const double batch = static_cast<double>(batch_.size), terms = network_.free_feedback ? 1 : 2;
    if (l == 0) all += layer.drive ? batch + activation : below;
    if (forms->inner == Form::low_rank) return all + 2 * batch;
    return all + terms * ((moves_from_below(l) ? below : 0) + (moves_from_above(l) ? above : 0));
  }

  // NaN does not stay.
  bool stays_within(const Part& part, T limit, int from, int to) const {
    bool all = true;
    for_each_block(part, [&](const Item& item, int64_t at) {
      const T* before = buffers_[from][item.layer].state + at;
      const T* after = buffers_[to][item.layer].state + at;
      const int64_t valid = lanes_used<Tile>(layers_[item.layer].units, item.panel * width);
      for (int64_t row = part.rows.begin; row < part.rows.end; ++row, before += width, after += width)
        for (int64_t lane = 0; lane < valid; ++lane) all &= stays(before[lane], after[lane], limit);
    });
    return all;
  }

  // body(item, offset of its first row) for every panel of the part.
  template <class Body>
  void for_each_block(const Part& part, const Body& body) const {
    for_each_item(part, [&](const Item& item) { body(item, (item.panel * batch_.size + part.rows.begin) * width); });
  }

  T* keep(int64_t count) {
    memory_.emplace_back(count);
    return memory_.back().get();
  }
  T* keep_zeros(int64_t count) {
    memory_.push_back(Buffer<T>::zeros(count));
    return memory_.back().get();
  }

  void load_item(const Item& item, const std::vector<const T*>& initial) {
    const auto [l, panel] = item;
    Layer<T>& layer = layers_[l];
    const int64_t n = batch_.size, first = panel * width;
    if (network_.biases[l]) load_panel<Tile>(network_.biases[l], 1, layer.units, first, layer.bias + first);
    if (layer.below.weights)
      load_panel_transposed<Tile>(network_.weights[l], layer.below.depth, layer.below.depth, layer.units, first,
                                  layer.below.weights + first * layer.below.depth);
    if (layer.above.weights) {
      const bool is_top = l + 1 == network_.layers;
      const T* matrix = network_.free_feedback && !is_top ? network_.feedback[l] : network_.weights[l + 1];
      load_panel<Tile>(matrix, layer.above.depth, layer.units, first, layer.above.weights + first * layer.above.depth);
    }
    const StateBuffer<T>& start = buffers_[0][l];
    if (!initial.empty()) load_panel<Tile>(initial[l], n, layer.units, first, start.state + first * n);
    if (layer.rule.dynamics == Dynamics::energy)
      apply_activation(layer.rule.activation, start.state + first * n, start.seen + first * n, n * width);
  }

  // drive = b + x W[0]^T; some columns of a panel of W[0] are packed, used for all rows and forgotten.
  void load_input_drive(const Worker& worker) {
    const Layer<T>& layer = layers_[0];
    if (!layer.drive) return;
    const int64_t n = batch_.size, n_in = layer.below.depth;
    alignas(64) T packed[products_per_sum * width];
    const Range panels = worker.share(layer.panels);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      T* drive = layer.drive + panel * n * width;
      for (int64_t k = 0; k < n_in; k += products_per_sum) {
        const int64_t count = n_in - k < products_per_sum ? n_in - k : products_per_sum;
        load_panel_transposed<Tile>(network_.weights[0] + k, n_in, count, layer.units, panel * width, packed);
        const Start<T> start = k == 0 ? Start<T>{layer.bias + panel * width, 0} : Start<T>{drive, width};
        add_products<Tile>(drive, start, x_ + k * n, n * width, packed, count, n,
                           lanes_used<Tile>(layer.units, panel * width));
      }
    }
  }

  // Some samples of one panel of units: drive, then next state.
  template <class Correct>
  void move_panel(const Worker& worker, const Item& item, const Range& rows, const Move& move, const Nudge* nudge,
                  const Correct& correct) {
    const auto [l, panel] = item;
    const Layer<T>& layer = layers_[l];
    const bool is_top = l + 1 == network_.layers;
    const int64_t n = rows.end - rows.begin, count = n * width, stride = batch_.size * width;
    const int64_t row = rows.begin * width, at = panel * stride + row;
    T* drive = drives_ + worker.index * stride;
    Start<T> start = layer.drive ? Start<T>{layer.drive + at, width} : Start<T>{layer.bias + panel * width, 0};
    const auto multiply = [&](T* sums, const Start<T>& from, const Incoming<T>& incoming, const T* seen) {
      add_products<Tile>(sums, from, seen + row, stride, incoming.weights + panel * incoming.depth * width,
                         incoming.depth, n, lanes_used<Tile>(layer.units, panel * width));
    };
    const auto add = [&](const Incoming<T>& incoming, const T* seen) {
      multiply(drive, start, incoming, seen);
      start = {drive, width};
    };
    const StateBuffer<T>& next = buffers_[move.to][l];
    const Activation activation = layer.rule.activation;
    const bool of_parts = move.slopes && gate_ == Gate::connection;
    if (layer.below.weights) add(layer.below, l ? buffers_[move.seen][l - 1].seen : x_);
    if (of_parts) take_slopes<T>(activation, count, start.rows, nullptr, next.up + at);
    if (of_parts && !is_top) {
      alignas(64) constexpr T zeros[width] = {};
      T* from_above = next.down + at;
      multiply(from_above, {zeros, 0}, layer.above, buffers_[move.seen][l + 1].seen);
      for (int64_t i = 0; i < count; ++i) drive[i] = start.rows[i] + from_above[i];
      start = {drive, width};
      take_slopes<T>(activation, count, from_above, nullptr, from_above);
    } else if (!is_top)
      add(layer.above, buffers_[move.seen][l + 1].seen);
    else if (network_.readout && nudge)
      add(layer.above, error_);

    if (start.rows != drive) std::memcpy(drive, start.rows, count * sizeof(T));  // a layer that sees the input only
    correct(item, rows, drive);

    const T* state = buffers_[move.from][l].state + at;
    const bool nudged = nudge && is_top && !network_.readout;
    T* pull = pulls_ + worker.index * stride;
    if (nudged) pull_units(*nudge, count, (is_of_units(nudge->loss) ? target_ : error_) + at, state, pull);
    if (move.slopes && gate_ == Gate::unit)
      take_slopes(activation, count, drive, nudged && nudge->at == NudgeAt::drive ? pull : nullptr, next.up + at);
    move_units(layer.rule, count, drive, state, nudged ? pull : nullptr, nudge ? nudge->at : NudgeAt::state,
               next.state + at);
    if (next.seen != next.state) apply_activation(activation, next.state + at, next.seen + at, count);
  }

  // Row `row` of `to` holds logits and becomes `scale` times their error.
  void take_error(int64_t row, T scale, T* to) const {
    const int64_t classes = network_.classes(), stride = batch_.size * width;
    const auto at = [&](int64_t c) { return (c / width) * stride + row * width + c % width; };
    const auto slot = [&](int64_t c) -> T& { return to[at(c)]; };
    sample_error(classes, scale, slot, [&](int64_t c) { return target_[at(c)]; }, slot);
    for (int64_t c = classes; c < padded(classes); ++c) to[at(c)] = 0;
  }

  const Network<T>& network_;
  const Batch<T>& batch_;
  const Gate gate_;
  std::vector<Buffer<T>> memory_;
  std::vector<Layer<T>> layers_;
  std::vector<StateBuffer<T>> buffers_[buffers];
  T* x_;       // [panel][batch][width]
  T* target_;  // [panel][batch][width]
  T* error_;   // [panel][batch][width]
  T* drives_;  // [worker][batch][width]
  T* pulls_;   // [worker][batch][width]
  Incoming<T> readout_{};
  T* readout_bias_ = nullptr;
  Sharing sharing_;
  Settling<T> settling_;
};

}  // namespace ceprop::CEPROP_SET::dense
