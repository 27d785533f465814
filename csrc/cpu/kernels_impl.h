// Every kernels_<set>.cpp consists of this. It sets the instruction set and defines what set.h says.
#pragma once

#include "conv/descent.h"
#include "conv/learning.h"
#include "dense/descent.h"
#include "dense/learning.h"
#include "entries.h"
#include "kernels.h"

namespace ceprop::CEPROP_SET {

template <class Tile>
struct Dense {
  static constexpr bool has_gates = true;
  using Scalar = typename Tile::Scalar;
  using Relaxation = dense::Relaxation<Tile>;
  using Contrast = dense::Contrast<Tile>;
  using Learning = dense::Learning<Tile>;
  using Descent = dense::Descent<Tile>;
};

template <class Tile>
struct Convolutional {
  static constexpr bool has_gates = false;
  using Scalar = typename Tile::Scalar;
  using Relaxation = conv::Relaxation<Tile>;
  using Contrast = conv::Contrast<Tile>;
  using Learning = conv::Learning<Tile>;
  using Descent = conv::Descent<Tile>;
};

// Each of these runs a call by the engine for its network.
template <class T>
struct Calls {
  using Tiles = Tile<T, CEPROP_VECTOR_BYTES>;

  static bool run_relax(const RelaxCall<T>& call, int threads) {
    return call.network.shape.has_convolutions() ? relax<Convolutional<Tiles>>(call, threads)
                                                 : relax<Dense<Tiles>>(call, threads);
  }
  static bool run_ep_step(const EpCall<T>& call, int threads) {
    return call.network.shape.has_convolutions() ? ep_step<Convolutional<Tiles>>(call, threads)
                                                 : ep_step<Dense<Tiles>>(call, threads);
  }
  static bool run_cep_step(const CepCall<T>& call, int threads) {
    return call.network.shape.has_convolutions() ? cep_step<Convolutional<Tiles>>(call, threads)
                                                 : cep_step<Dense<Tiles>>(call, threads);
  }
  static Learned run_continually(CepCall<T>& call, const DataSet<T>& data, const Batches& batches, int threads) {
    return call.network.shape.has_convolutions()
               ? learn<Convolutional<Tiles>, ContinualRule>(call, data, batches, threads)
               : learn<Dense<Tiles>, ContinualRule>(call, data, batches, threads);
  }
  static Learned run_descent(DescentCall<T>& call, const DataSet<T>& data, const Batches& batches, int threads) {
    return call.network.shape.has_convolutions()
               ? learn<Convolutional<Tiles>, DescentRule>(call, data, batches, threads)
               : learn<Dense<Tiles>, DescentRule>(call, data, batches, threads);
  }
};

template <class T>
constexpr KernelsOf<T> kernels_of = {Calls<T>::run_relax, Calls<T>::run_ep_step, Calls<T>::run_cep_step,
                                     Calls<T>::run_continually, Calls<T>::run_descent};

}  // namespace ceprop::CEPROP_SET
