// What a learning step costs, and which form of the continual update costs less. A multiplication with an addition
// counts as two operations. Bytes are those of weights read and written: the states are small beside them. No torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "learning.h"
#include "network.h"

namespace ceprop {

// The costs of a step depend on this. The network is a chain of dense layers.
struct StepShape {
  const NetworkShape& network;
  bool free_feedback, symmetric, accumulate, shared_update, weight_decay;
  bool literal_input;  // whether the kernels have that form; CUDA's do not
  int64_t batch;
  int free_steps, nudged_steps;
  int64_t number_bytes;  // 4 or 8
};

struct Cost {
  double operations, bytes;
};
inline Cost operator+(const Cost& a, const Cost& b) { return {a.operations + b.operations, a.bytes + b.bytes}; }
inline Cost operator*(double times, const Cost& a) { return {times * a.operations, times * a.bytes}; }

class StepCosts {
 public:
  explicit StepCosts(const StepShape& shape) : shape_(shape) {
    const NetworkShape& network = shape.network;
    for (int c = 0; c < network.connection_count(); ++c) {
      const bool is_readout = network.connections[c].kind == Kind::readout;
      double& of = network.connections[c].below == from_input ? input_ : is_readout ? readout_ : inner_;
      of += static_cast<double>(network.weight_count(c));
    }
    for (const MapShape& layer : network.layers) units_ += static_cast<double>(layer.units());
  }

  // The phase computes the input's drive once, and every step goes both ways through all inner connections.
  Cost free_phase() const { return matrix(2, 1, input_) + shape_.free_steps * step(); }

  // All nudged phases together cost this, with the return between C-EP's.
  Cost nudged_phases(bool continual) const { return later_steps(continual) * (step() + matrix(4, 2, readout_)); }

  // EP takes the contrast of both copies of the weights, of tied and shared ones by two terms. It does so once, or
  // after every step to sum up.
  Cost contrast() const {
    const int times = shape_.accumulate && adds_up_steps(learns()) ? later_steps(false) : 1;
    return times * (matrix(2, 1, input_) + copies() * matrix(2 * terms(), 1, inner_));
  }

  // C-EP moves the input's connection. In the literal form every nudged step has an update, and every step but the
  // first, which is counted with the free phase, a product with the input. In low rank the drive follows by a B x B
  // matrix, and the weights move once.
  Cost input_update(Form form) const {
    if (form == Form::literal)
      return (shape_.free_steps + later_steps(true) - 1) * matrix(2, 1, input_) + moves() * matrix(2, 2, input_);
    const double batch = static_cast<double>(shape_.batch);
    return Cost{2 * batch * batch * static_cast<double>(shape_.network.input.units()), 0} + matrix(2, 2, input_) +
           moves() * Cost{2 * batch * batch * static_cast<double>(shape_.network.layers[0].units()), 0};
  }

  // C-EP moves the connections between layers. In the literal form all weights move at every step: tied ones once for
  // both copies, tied and shared ones by two terms. In low rank every layer has two B x B matrices and two products
  // with them, and the weights move once.
  Cost inner_update(Form form) const {
    if (form == Form::literal) return moves() * matrix(2 * terms() * copies(), shape_.free_feedback ? 4 : 3, inner_);
    const double batch = static_cast<double>(shape_.batch);
    return moves() * Cost{inner_ > 0 ? 8 * batch * batch * units_ : 0, 0} + matrix(4, 2, inner_);
  }

  // Whether the inner updates telescope: they do with tied weights and plain steps of one phase, if all layers move at
  // once.
  bool inner_has_low_rank() const {
    return !shape_.free_feedback && shape_.network.turn_count() == 1 && !shape_.symmetric && !shape_.weight_decay;
  }

  // Chooses the forms with fewer operations, or `wanted` wherever it is exact.
  Forms choose(std::optional<Form> wanted) const {
    const auto cheaper = [&](const Cost& literal, const Cost& low_rank) {
      return low_rank.operations < literal.operations ? Form::low_rank : Form::literal;
    };
    Forms forms{cheaper(input_update(Form::literal), input_update(Form::low_rank)),
                cheaper(inner_update(Form::literal), inner_update(Form::low_rank))};
    if (wanted) forms = {*wanted, *wanted};
    if (!shape_.literal_input) forms.input = Form::low_rank;
    if (!inner_has_low_rank()) forms.inner = Form::literal;
    return forms;
  }

 private:
  int later_steps(bool continual) const { return shape_.nudged_steps * (shape_.symmetric ? (continual ? 3 : 2) : 1); }
  int moves() const { return shape_.nudged_steps * (shape_.symmetric ? 2 : 1); }
  Learns learns() const { return learns_by(shape_.free_feedback, shape_.shared_update); }
  // How many copies of an inner connection's weights learn, and how many terms the contrast of one has.
  double copies() const { return shape_.free_feedback ? 2 : 1; }
  double terms() const {
    const Terms terms = terms_of(learns(), false, Copy::weights);
    return terms.above_moves + terms.below_moves;
  }
  Cost step() const { return matrix(4, 2, inner_); }

  // Each of `weights` takes `operations` for every sample and `passes` over its memory.
  Cost matrix(double operations, double passes, double weights) const {
    return {operations * static_cast<double>(shape_.batch) * weights,
            passes * static_cast<double>(shape_.number_bytes) * weights};
  }

  const StepShape& shape_;
  // Numbers of the weights of the input's connection, of those between layers, and of a readout.
  double input_ = 0, inner_ = 0, readout_ = 0;
  double units_ = 0;
};

}  // namespace ceprop
