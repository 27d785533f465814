// How EP's gradients move packed weights of dense layers at the end of a batch: model/network.h says by which rule.
#pragma once

#include "../descent.h"
#include "packed_update.h"

namespace ceprop::CEPROP_SET::dense {

template <class Tile>
class Descent {
 public:
  using T = typename Tile::Scalar;
  static constexpr int width = Tile::width;

  // `gathers`: the gradients of several steps add up; with momentum those of batches do.
  Descent(const DescentCall<T>& call, Relaxation<Tile>& relaxation, Contrast<Tile>& contrast, bool gathers, int)
      : call_(call),
        relaxation_(relaxation),
        contrast_(contrast),
        packed_(relaxation, contrast),
        gathers_(gathers || call.momentum != 0) {
    const auto like = [&](const T* parameters, int l, int64_t depth) {
      if (!parameters || !gathers_) return static_cast<T*>(nullptr);
      memory_.push_back(Buffer<T>::zeros(relaxation.layers()[l].panels * width * depth));
      return memory_.back().get();
    };
    for (int l = 0; l < call.network.shape.layer_count(); ++l) {
      const Panels<T> of = packed_.parameters(l);
      gathered_.push_back(
          {like(of.bias, l, 1), like(of.below, l, packed_.depth_below(l)), like(of.above, l, packed_.depth_above(l))});
    }
    if (gathers_ && !packs_input() && call.momentum != 0)
      gathered_input_ = call.weight_momenta[0];
    else
      gathered_input_ = like(input(), 0, packed_.depth_below(0));
  }

  // Packs the momenta of this part. No barrier.
  void load(const Worker& worker, const Part& part) const {
    if (call_.momentum == 0) return;
    relaxation_.for_each_item(part, [&](const Item& item) {
      const auto [l, panel] = item;
      const Panels<T>& to = gathered_[l];
      const int64_t first = panel * width, units = relaxation_.layers()[l].units;
      const int64_t below = packed_.depth_below(l), above = packed_.depth_above(l);
      if (to.bias) load_panel<Tile>(call_.bias_momenta[l], 1, units, first, to.bias + first);
      if (to.below)
        load_panel_transposed<Tile>(call_.weight_momenta[l], below, below, units, first, to.below + first * below);
      if (to.above) load_panel<Tile>(above_of(l), above, units, first, to.above + first * above);
    });
    if (!packs_input()) return;
    packed_.for_each_input(worker, [&](const Item& item) {
      const int64_t depth = packed_.depth_below(0), first = item.panel * width;
      load_panel_transposed<Tile>(call_.weight_momenta[0], depth, depth, relaxation_.layers()[0].units, first,
                                  gathered_input_ + first * depth);
    });
  }

  // Takes the gradient between two states, `first` of its batch, where those of several steps add up. No barrier.
  void gather(const Worker& worker, const Part& part, const Between& between, double divisor, bool first) {
    contrast_.differ(worker, between);
    const Blend<T> blend = gathering_blend<T>(call_.momentum, divisor, batch(), first);
    relaxation_.for_each_item(part, [&](const Item& item) { gather(worker, item, between, blend); });
    packed_.for_each_input(worker, [&](const Item& item) { add_input(worker, item, between, blend, gathered_input_); });
  }

  // Moves what this part owns, by the gradient between two states or, with none, by what was gathered. A barrier must
  // follow.
  void move(const Worker& worker, const Part& part, const Between* between, double divisor) {
    if (between && gathers_) gather(worker, part, *between, divisor, true);
    if (between && !gathers_) contrast_.differ(worker, *between);
    const auto blend = [&](int c) { return continual_blend<T>(call_.lr[c], call_.weight_decay, divisor, batch()); };
    relaxation_.for_each_item(part, [&](const Item& item) {
      if (gathers_)
        descend(item);
      else
        packed_.add(worker, item, *between, true, blend, packed_.parameters(item.layer));
      packed_.mirror(item);
    });
    packed_.for_each_input(worker, [&](const Item& item) {
      if (gathers_)
        descend(item.panel, input(), gathered_input_, packed_.depth_below(0), 0,
                packs_input() ? width : units_of(item));
      else
        add_input(worker, item, *between, blend(0), input());
    });
  }

  // Writes what this part owns back into the network's parameters and momenta. No barrier.
  void store(const Worker& worker, const Part& part) const {
    packed_.for_each_input(worker, [&](const Item& item) {
      if (!packs_input()) return;
      packed_.store_weights(item, input(), call_.network.weights[0]);
      if (call_.momentum != 0) packed_.store_weights(item, gathered_input_, call_.weight_momenta[0]);
    });
    relaxation_.for_each_item(part, [&](const Item& item) {
      packed_.store(item, true);
      if (call_.momentum == 0) return;
      const auto [l, panel] = item;
      const Panels<T>& from = gathered_[l];
      const int64_t first = panel * width, units = relaxation_.layers()[l].units;
      const int64_t above = packed_.depth_above(l);
      if (from.bias) store_panel<Tile>(from.bias + first, 1, units, first, call_.bias_momenta[l]);
      if (from.below) packed_.store_weights(item, from.below, call_.weight_momenta[l]);
      if (from.above) store_panel<Tile>(from.above + first * above, above, units, first, above_of(l));
    });
  }

 private:
  double batch() const { return static_cast<double>(relaxation_.batch()); }

  // The momenta of what layer l holds from above: of V[l + 1], of tied weights W[l + 1].
  T* above_of(int l) const {
    return call_.network.free_feedback ? call_.feedback_momenta[l] : call_.weight_momenta[l + 1];
  }

  // W[0] lies packed for many batches; for one it moves, after all has been looked at, where it was given.
  bool packs_input() const { return relaxation_.layers()[0].input != nullptr; }
  T* input() const { return packs_input() ? relaxation_.layers()[0].input : call_.network.weights[0]; }
  int64_t units_of(const Item& item) const {
    return lanes_used<Tile>(relaxation_.layers()[item.layer].units, item.panel * width);
  }

  void gather(const Worker& worker, const Item& item, const Between& between, const Blend<T>& blend) const {
    packed_.add(worker, item, between, true, [&](int) { return blend; }, gathered_[item.layer]);
  }
  void add_input(const Worker& worker, const Item& item, const Between& between, const Blend<T>& blend, T* to) const {
    const auto sum = contrast_.sum_of(worker, 0, Copy::weights, between);
    const int64_t depth = packed_.depth_below(0);
    if (packs_input())
      packed_.add_panel(item, sum, false, depth, blend, to);
    else
      contrast_.add_row_panel(sum, item.panel, relaxation_.layers()[0].units, depth, blend, to);
  }

  void descend(const Item& item) const {
    const auto [l, panel] = item;
    const Panels<T> parameters = packed_.parameters(l);
    const Panels<T>& gathered = gathered_[l];
    descend(panel, parameters.bias, gathered.bias, 1, l, width);
    descend(panel, parameters.below, gathered.below, packed_.depth_below(l), l, width);
    descend(panel, parameters.above, gathered.above, packed_.depth_above(l), l + 1, width);
  }
  // Of one panel, packed or of so many rows.
  void descend(int64_t panel, T* p, T* g, int64_t depth, int connection, int64_t rows) const {
    if (!p) return;
    const int64_t first = panel * width * depth;
    CEPROP_SET::descend(depth * rows, call_.lr[connection], call_.weight_decay, p + first, g + first);
  }

  const DescentCall<T>& call_;
  Relaxation<Tile>& relaxation_;
  Contrast<Tile>& contrast_;
  const PackedUpdate<Tile> packed_;
  const bool gathers_;
  std::vector<Buffer<T>> memory_;
  std::vector<Panels<T>> gathered_;  // g, per layer
  T* gathered_input_;                // that of W[0]
};

}  // namespace ceprop::CEPROP_SET::dense
