// How weights that lie packed learn. A worker moves the weights into its own units: those from below by the contrast of
// W[l], those from above by that of V[l + 1]. Tied weights are held twice: one of the owners moves them and writes both
// copies.
#pragma once

#include "contrast.h"

namespace ceprop::CEPROP_SET::dense {

// The parameters of one layer, or what is kept beside them, as they lie packed; see Layer. Null where there are none.
// W[0] is among them where it moves with a step; else it is for itself.
template <class T>
struct Panels {
  T* bias;
  T* below;
  T* above;
};

template <class Tile>
class PackedUpdate {
 public:
  using T = typename Tile::Scalar;
  using Sum = typename Contrast<Tile>::Sum;
  static constexpr int width = Tile::width;

  PackedUpdate(const Relaxation<Tile>& relaxation, const Contrast<Tile>& contrast)
      : relaxation_(relaxation), contrast_(contrast), network_(relaxation.network()) {}

  // Layer l's own parameters; those from above only where its owner moves them.
  Panels<T> parameters(int l) const {
    const Layer<T>& layer = relaxation_.layers()[l];
    return {network_.biases[l] ? layer.bias : nullptr,
            l == 0 || relaxation_.moves_from_below(l) ? layer.below.weights : nullptr,
            relaxation_.moves_from_above(l) ? layer.above.weights : nullptr};
  }

  // Blends `to` with what one panel of layer l learns: with its biases, and with the weights that its owner moves,
  // those between layers only with `inner`. blend_of(c) says how connection c does it.
  template <class BlendOf>
  void add(const Worker& worker, const Item& item, const Between& between, bool inner, const BlendOf& blend_of,
           const Panels<T>& to) const {
    const auto [l, panel] = item;
    const int64_t first = panel * width, n = relaxation_.batch();
    if (to.bias) contrast_.add_batch_sum(contrast_.moved(worker, l) + first * n, blend_of(l), to.bias + first, width);
    if (to.below && (l == 0 || inner))
      add_panel(item, contrast_.sum_of(worker, l, Copy::weights, between), false, depth_below(l), blend_of(l),
                to.below);
    if (to.above && inner)
      add_panel(item, contrast_.sum_of(worker, l + 1, Copy::feedback, between), true, depth_above(l), blend_of(l + 1),
                to.above);
  }

  // Calls body(item) for the panels of layer 0 by which W[0] moves once a batch.
  template <class Body>
  void for_each_input(const Worker& worker, const Body& body) const {
    if (!relaxation_.layers()[0].drive) return;
    const Range panels = relaxation_.input_share(worker);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) body(Item{0, panel});
  }

  // Blends one panel of packed weights into its units with a sum.
  void add_panel(const Item& item, const Sum& sum, bool upper_rows, int64_t depth, const Blend<T>& blend,
                 T* weights) const {
    // Whole vectors move: nobody reads the lanes past the last unit.
    const auto [l, panel] = item;
    const int64_t lanes = lanes_used<Tile>(relaxation_.layers()[l].units, panel * width);
    const int64_t vectors = (lanes + Tile::lanes - 1) / Tile::lanes;
    contrast_.add_rows(sum, upper_rows, 0, depth, panel, blend, weights + panel * depth * width, width,
                       vectors * Tile::lanes);
  }

  // Copies what one panel of tied weights between layers has become to where the neighbour holds the same weights. A
  // barrier must follow.
  void mirror(const Item& item) const {
    if (network_.free_feedback) return;
    const int l = item.layer;
    const Panels<T> own = parameters(l);
    if (l > 0 && own.below) mirror(item, own.below, depth_below(l), relaxation_.layers()[l - 1].above);
    if (own.above) mirror(item, own.above, depth_above(l), relaxation_.layers()[l + 1].below);
  }

  // Writes one panel of the network's parameters back: biases, weights into layer l from below, and V[l + 1]. Without
  // `inner` weights between layers stay as they are.
  void store(const Item& item, bool inner) const {
    const auto [l, panel] = item;
    const Layer<T>& layer = relaxation_.layers()[l];
    const int64_t first = panel * width;
    if (network_.biases[l]) store_panel<Tile>(layer.bias + first, 1, layer.units, first, network_.biases[l]);
    if (layer.below.weights && (l == 0 || inner)) store_weights(item, layer.below.weights, network_.weights[l]);
    if (network_.free_feedback && l < network_.shape.output)
      store_panel<Tile>(layer.above.weights + first * depth_above(l), depth_above(l), layer.units, first,
                        network_.feedback[l]);
  }

  // Writes one panel of weights into layer l from below into a matrix.
  void store_weights(const Item& item, const T* packed, T* matrix) const {
    const auto [l, panel] = item;
    const int64_t first = panel * width, depth = depth_below(l);
    store_panel_transposed<Tile>(packed + first * depth, depth, relaxation_.layers()[l].units, first, matrix, depth);
  }

  int64_t depth_below(int l) const { return relaxation_.layers()[l].below.depth; }
  int64_t depth_above(int l) const { return relaxation_.layers()[l].above.depth; }

 private:
  void mirror(const Item& item, const T* own, int64_t depth, const Incoming<T>& to) const {
    const auto [l, panel] = item;
    for (int64_t k = 0; k < depth; k += width)
      store_panel_transposed<Tile>(own + (panel * depth + k) * width, std::min<int64_t>(depth - k, width),
                                   relaxation_.layers()[l].units, panel * width, to.weights + k * to.depth, width);
  }

  const Relaxation<Tile>& relaxation_;
  const Contrast<Tile>& contrast_;
  const Network<T>& network_;
};

}  // namespace ceprop::CEPROP_SET::dense
