// The body of every kernels_<set>.cpp, which sets the instruction set, then defines CEPROP_SET, its name, and
// CEPROP_VECTOR_BYTES. Each set lives in a namespace of its own, so that the linker cannot mix them.

namespace ceprop {
namespace CEPROP_SET {

#include "tile.h"

#include "panels.h"

#include "units.h"

#include "sharing.h"

#include "relaxation.h"

#include "contrast.h"

#include "continual_update.h"

#include "low_rank_update.h"

#include "phases.h"

template <class T>
constexpr KernelsOf<T> kernels_of = {relax<Tile<T, CEPROP_VECTOR_BYTES>>, ep_step<Tile<T, CEPROP_VECTOR_BYTES>>,
                                     cep_step<Tile<T, CEPROP_VECTOR_BYTES>>};

}  // namespace CEPROP_SET
}  // namespace ceprop
