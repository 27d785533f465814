// The body of every kernels_<set>.cpp, which sets the instruction set, then defines CEPROP_SET, its name, and
// CEPROP_VECTOR_BYTES. Each set lives in a namespace of its own, so that the linker cannot mix them.

namespace ceprop {
namespace CEPROP_SET {

#include "tile.h"

#include "panels.h"

#include "units.h"

#include "sharing.h"

#include "settling.h"

#include "sanity.h"

#include "relaxation.h"

#include "contrast.h"

#include "continual_update.h"

#include "low_rank_update.h"

#include "learning.h"

namespace conv {

#include "conv/tile.h"

#include "conv/maps.h"

#include "conv/weights.h"

#include "conv/passes.h"

#include "conv/relaxation.h"

#include "conv/contrast.h"

#include "conv/learning.h"

}  // namespace conv

#include "phases.h"

template <class Tile>
struct Dense {
  using Scalar = typename Tile::Scalar;
  using Relaxation = CEPROP_SET::Relaxation<Tile>;
  using Contrast = CEPROP_SET::Contrast<Tile>;
  using Learning = CEPROP_SET::Learning<Tile>;
};

template <class Tile>
struct Convolutional {
  using Scalar = typename Tile::Scalar;
  using Relaxation = conv::Relaxation<Tile>;
  using Contrast = conv::Contrast<Tile>;
  using Learning = conv::Learning<Tile>;
};

// A call, by the engine for its network.
template <class T>
struct Calls {
  using Tiles = Tile<T, CEPROP_VECTOR_BYTES>;

  static bool run_relax(const RelaxCall<T>& call, int threads) {
    return call.network.convolutions.empty() ? relax<Dense<Tiles>>(call, threads)
                                             : relax<Convolutional<Tiles>>(call, threads);
  }
  static bool run_ep_step(const EpCall<T>& call, int threads) {
    return call.network.convolutions.empty() ? ep_step<Dense<Tiles>>(call, threads)
                                             : ep_step<Convolutional<Tiles>>(call, threads);
  }
  static bool run_cep_step(const CepCall<T>& call, int threads) {
    return call.network.convolutions.empty() ? cep_step<Dense<Tiles>>(call, threads)
                                             : cep_step<Convolutional<Tiles>>(call, threads);
  }
};

template <class T>
constexpr KernelsOf<T> kernels_of = {Calls<T>::run_relax, Calls<T>::run_ep_step, Calls<T>::run_cep_step};

}  // namespace CEPROP_SET
}  // namespace ceprop
