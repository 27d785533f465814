// A network of dense layers with its states and a batch, packed in panels: where the numbers lie, and their way in and
// out.
#pragma once

#include <cstring>
#include <vector>

#include "../../model/stages.h"
#include "../memory.h"
#include "../panels.h"
#include "../sanity.h"
#include "../sharing.h"
#include "../units.h"

namespace ceprop::CEPROP_SET::dense {

// The states of one layer at one time. `seen` are its firing rates: rho(state) in energy dynamics, else the states
// themselves, in the same memory.
template <class T>
struct StateBuffer {
  T* state;  // [panel][batch][width]
  T* seen;   // [panel][batch][width]
  // A gate's slopes at what moved the units here, for W[l] and for V[l + 1], in the same memory if they are the same;
  // null without a gate. [panel][batch][width]
  T* up;
  T* down;
};

// The weights that lead into a layer from one neighbour, in panels of the layer's units; null where the layer does not
// read it.
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
  T* input;           // W[0] in panels, where it stays packed and only a batch's drive reads it; else null
  Incoming<T> below;  // W[l]
  Incoming<T> above;  // V[l + 1], tied: W[l + 1]; in the top layer a readout
};

template <class Tile>
class PackedNetwork {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  // `literal_input`: layer 0 reads the input anew at every step, by weights that may move; else its drive is computed
  // once. With a gate the buffers of the ring have room for its slopes. `stays_packed`: for many batches, one after the
  // other.
  PackedNetwork(const Network<T>& network, const Batch<T>& batch, bool literal_input, Gate gate, bool stays_packed)
      : network_(network), batch_(batch) {
    const NetworkShape& shape = network.shape;
    const int64_t n = batch.size;
    x_ = keep(padded(shape.input.units()) * n);
    target_ = keep(padded(shape.classes) * n);
    for (int l = 0; l < shape.layer_count(); ++l) {
      Layer<T> layer{};
      layer.rule = network.rules[l];
      layer.units = shape.layers[l].units();
      layer.panels = panels_of(layer.units, width);
      layer.bias = keep_zeros(layer.panels * width);
      layer.below.depth = shape.units_below(l);
      if (l > 0 || literal_input)
        layer.below.weights = keep(layer.panels * layer.below.depth * width);
      else
        layer.drive = keep(layer.panels * n * width);
      if (layer.drive && stays_packed) layer.input = keep(layer.panels * layer.below.depth * width);
      if (l + 1 < shape.connection_count()) {
        layer.above.depth = shape.units_above(l + 1);
        layer.above.weights = keep(layer.panels * layer.above.depth * width);
      }
      const int64_t numbers = layer.panels * n * width;
      for (int buffer = 0; buffer < state_buffers; ++buffer) {
        T* state = keep(numbers);
        T* up = gate == Gate::none || buffer >= ring ? nullptr : keep(numbers);
        T* down = up && gate == Gate::connection ? keep(numbers) : up;
        buffers_[buffer].push_back({state, layer.rule.dynamics == Dynamics::energy ? keep(numbers) : state, up, down});
      }
      layers_.push_back(layer);
    }
    if (shape.has_readout()) {
      const int64_t top = shape.layers.back().units();
      readout_ = {keep(padded(shape.classes) * top), top};
      readout_bias_ = keep_zeros(padded(shape.classes));
    }
  }

  const std::vector<Layer<T>>& layers() const { return layers_; }
  const StateBuffer<T>& buffer(int index, int layer) const { return buffers_[index][layer]; }
  const T* input() const { return x_; }        // [panel][batch][width], rho(x) in energy dynamics
  const T* target() const { return target_; }  // [panel][batch][width]
  const Incoming<T>& readout() const { return readout_; }
  const T* readout_bias() const { return readout_bias_; }
  int64_t batch() const { return batch_.size; }
  const Network<T>& network() const { return network_; }
  const NetworkShape& shape() const { return network_.shape; }
  int64_t padded(int64_t units) const { return panels_of(units, width) * width; }

  // ---- the way in; no barrier ----

  // Packs this worker's share of the batch and of a readout.
  void load_batch(const Worker& worker) {
    const int64_t n = batch_.size, n_in = shape().input.units(), classes = shape().classes;
    const Range inputs = worker.share(panels_of(n_in, width));
    for (int64_t panel = inputs.begin; panel < inputs.end; ++panel) {
      T* to = x_ + panel * n * width;
      load_panel<Tile>(batch_.x, n, n_in, panel * width, to);
      if (network_.rules[0].dynamics == Dynamics::energy)
        apply_activation(network_.input_activation, to, to, n * width);
    }
    const Range outputs = worker.share(panels_of(classes, width));
    for (int64_t panel = outputs.begin; panel < outputs.end && batch_.target; ++panel)
      load_panel<Tile>(batch_.target, n, classes, panel * width, target_ + panel * n * width);
    for (int64_t panel = outputs.begin; panel < outputs.end && readout_.weights; ++panel) {
      load_panel_transposed<Tile>(network_.weights.back(), readout_.depth, readout_.depth, classes, panel * width,
                                  readout_.weights + panel * readout_.depth * width);
      if (network_.biases.back())
        load_panel<Tile>(network_.biases.back(), 1, classes, panel * width, readout_bias_ + panel * width);
    }
  }

  // Packs the parameters of one panel of a layer.
  void load_parameters(const Item& item) {
    const auto [l, panel] = item;
    Layer<T>& layer = layers_[l];
    const int64_t first = panel * width;
    if (network_.biases[l]) load_panel<Tile>(network_.biases[l], 1, layer.units, first, layer.bias + first);
    if (layer.below.weights) load_weights(item, layer.below.weights);
    load_above(item);
  }

  // Packs one panel of the weights into a layer from above.
  void load_above(const Item& item) {
    const auto [l, panel] = item;
    const Layer<T>& layer = layers_[l];
    if (!layer.above.weights) return;
    const int64_t first = panel * width;
    const int feedback = shape().connections[l + 1].feedback;
    const T* matrix = feedback < 0 ? network_.weights[l + 1] : network_.feedback[feedback];
    load_panel<Tile>(matrix, layer.above.depth, layer.units, first, layer.above.weights + first * layer.above.depth);
  }

  // Packs one panel of W[0], where it stays packed.
  void load_input(int64_t panel) {
    if (layers_[0].input) load_weights({0, panel}, layers_[0].input);
  }

  // Packs the states that one panel of a layer starts from; they are zeros if none are given.
  void load_states(const Item& item, const std::vector<const T*>& initial) {
    const auto [l, panel] = item;
    const Layer<T>& layer = layers_[l];
    const int64_t n = batch_.size, first = panel * width;
    const StateBuffer<T>& start = buffers_[0][l];
    if (initial.empty())
      std::memset(start.state + first * n, 0, n * width * sizeof(T));
    else
      load_panel<Tile>(initial[l], n, layer.units, first, start.state + first * n);
    if (layer.rule.dynamics == Dynamics::energy)
      apply_activation(layer.rule.activation, start.state + first * n, start.seen + first * n, n * width);
  }

  // Computes drive = b + x W[0]^T, where it is computed once, of the panels that are this worker's share. Where W[0]
  // does not stay packed, some columns of a panel are packed, used for all rows and forgotten.
  void load_input_drive(const Range& panels) {
    const Layer<T>& layer = layers_[0];
    if (!layer.drive) return;
    const int64_t n = batch_.size, n_in = layer.below.depth;
    alignas(64) T packed[products_per_sum * width];
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      T* drive = layer.drive + panel * n * width;
      for (int64_t k = 0; k < n_in; k += products_per_sum) {
        const int64_t count = n_in - k < products_per_sum ? n_in - k : products_per_sum;
        const T* weights = layer.input ? layer.input + (panel * n_in + k) * width : packed;
        if (!layer.input)
          load_panel_transposed<Tile>(network_.weights[0] + k, n_in, count, layer.units, panel * width, packed);
        const Start<T> start = k == 0 ? Start<T>{layer.bias + panel * width, 0} : Start<T>{drive, width};
        add_products<Tile>(drive, start, x_ + k * n, n * width, weights, count, n,
                           lanes_used<Tile>(layer.units, panel * width));
      }
    }
  }

  // ---- some samples of one panel of a layer, from the buffer with this number ----

  void copy_states(const Item& item, const Range& rows, int from, int to) {
    const int64_t at = offset(item, rows), bytes = (rows.end - rows.begin) * width * sizeof(T);
    std::memcpy(buffers_[to][item.layer].state + at, buffers_[from][item.layer].state + at, bytes);
    std::memcpy(buffers_[to][item.layer].seen + at, buffers_[from][item.layer].seen + at, bytes);
  }

  // Stores them in the layer's states [B, n_l].
  void store(const Item& item, const Range& rows, int buffer, T* states) const {
    const int64_t units = layers_[item.layer].units;
    store_panel<Tile>(buffers_[buffer][item.layer].state + offset(item, rows), rows.end - rows.begin, units,
                      item.panel * width, states + rows.begin * units);
  }

  // Whether no unit has moved by more than `limit` from one buffer to the other.
  bool stays_within(const Item& item, const Range& rows, T limit, int from, int to) const {
    const int64_t at = offset(item, rows), valid = lanes_used<Tile>(layers_[item.layer].units, item.panel * width);
    const T* before = buffers_[from][item.layer].state + at;
    const T* after = buffers_[to][item.layer].state + at;
    bool all = true;
    for (int64_t row = rows.begin; row < rows.end; ++row, before += width, after += width)
      for (int64_t lane = 0; lane < valid; ++lane) all &= stays(before[lane], after[lane], limit);
    return all;
  }

  // ---- what must be a number before anything is stored ----

  void note_inputs(const Worker& worker, Sanity<T>& sanity) const {
    sanity.note_inputs(worker, batch_, shape().input.units(), shape().classes);
  }

  void note_states(const Worker& worker, const Item& item, const Range& rows, int buffer, Sanity<T>& sanity) const {
    const int64_t valid = lanes_used<Tile>(layers_[item.layer].units, item.panel * width);
    for (const T* of : {buffers_[buffer][item.layer].state, buffers_[buffer][item.layer].seen})
      sanity.note(worker, Sanity<T>::states, largest_of(of + offset(item, rows), rows.end - rows.begin, valid, width));
  }

  // Notes the weights that are packed, of tied ones one copy, the biases, and the input's drive: where W[0] is not
  // packed, the drive is no number if one of its weights is none.
  void note_parameters(const Worker& worker, const Item& item, Sanity<T>& sanity) const {
    const Layer<T>& layer = layers_[item.layer];
    const auto note = [&](const T* panels, int64_t rows) {
      if (panels) note_panel(worker, panels, item.panel, layer.units, rows, sanity);
    };
    note(layer.below.weights, layer.below.depth);
    if (network_.free_feedback && item.layer < shape().output) note(layer.above.weights, layer.above.depth);
    note(layer.bias, 1);
    note(layer.drive, batch_.size);
  }

  // Notes this worker's share of a readout's parameters.
  void note_readout(const Worker& worker, Sanity<T>& sanity) const {
    if (!readout_.weights) return;
    const Range mine = worker.share(panels_of(shape().classes, width));
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      note_panel(worker, readout_.weights, panel, shape().classes, readout_.depth, sanity);
      note_panel(worker, readout_bias_, panel, shape().classes, 1, sanity);
    }
  }

 private:
  // Packs one panel of weights from below.
  void load_weights(const Item& item, T* packed) const {
    const auto [l, panel] = item;
    const int64_t depth = layers_[l].below.depth;
    load_panel_transposed<Tile>(network_.weights[l], depth, depth, layers_[l].units, panel * width,
                                packed + panel * width * depth);
  }

  int64_t offset(const Item& item, const Range& rows) const { return (item.panel * batch_.size + rows.begin) * width; }

  // Notes one panel of [panel][rows][width] parameters of so many units; lanes past the last unit do not count.
  static void note_panel(const Worker& worker, const T* panels, int64_t panel, int64_t units, int64_t rows,
                         Sanity<T>& sanity) {
    sanity.note(worker, Sanity<T>::parameters,
                largest_of(panels + panel * rows * width, rows, lanes_used<Tile>(units, panel * width), width));
  }

  T* keep(int64_t count) {
    memory_.emplace_back(count);
    return memory_.back().get();
  }
  T* keep_zeros(int64_t count) {
    memory_.push_back(Buffer<T>::zeros(count));
    return memory_.back().get();
  }

  const Network<T>& network_;
  const Batch<T>& batch_;
  std::vector<Buffer<T>> memory_;
  std::vector<Layer<T>> layers_;
  std::vector<StateBuffer<T>> buffers_[state_buffers];
  T* x_;
  T* target_;
  Incoming<T> readout_{};
  T* readout_bias_ = nullptr;
};

}  // namespace ceprop::CEPROP_SET::dense
