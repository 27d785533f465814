// The planner decides, and the kernel reads, how a team of blocks holds a network's weights and takes samples through
// their phases. No torch, no device code.
//
// A team is one block, the blocks of a cluster, or all blocks of the grid. It has all weights between layers in shared
// memory, and takes its samples through all steps: while weights rest, samples do not meet, so teams know nothing of
// each other. A block of a team has octets of units, with the weights into them. A warp takes octets of units and
// groups of samples.
#pragma once

#include <cstdint>

#include "../../model/network.h"

namespace ceprop::cuda::teams {

inline constexpr int most_layers = 8, most_blocks = 256;  // what a kernel argument has room for
inline constexpr int octet = 8;                           // units
inline constexpr int chunk_octets = 16, chunk_sources = octet * chunk_octets, pair_sources = 2 * octet;
inline constexpr int most_cluster_blocks = 16;
inline constexpr int most_groups = 32;  // of a block or cluster
// A block has so many warps at most; one of float64 takes twice the registers.
CEPROP_INLINE constexpr int most_warps(int number_bytes) { return number_bytes == 4 ? 12 : 8; }

// A group has so many samples at most.
CEPROP_INLINE constexpr int most_samples(int number_bytes) { return number_bytes == 4 ? 4 : 2; }
// Steps go round in so many buffers of a group. Weights move by the last two steps, while others store the next.
CEPROP_INLINE constexpr int ring_of(bool continual) { return continual ? 3 : 2; }

// So many of a block's warps share its octets, and so many its groups.
struct Shares {
  int job_warps, group_warps;
};
CEPROP_INLINE Shares shares_of(int octets, int groups, int warps) {
  const int job_warps = octets < 1 ? 1 : octets < warps ? octets : warps, rest = warps / job_warps;
  return {job_warps, groups < rest ? groups : rest};
}

// A tile of a contrast has so many units above and below, and takes so many samples at once from shared memory.
inline constexpr int tile_above = 32, tile_below = 128, tile_samples = 16;
inline constexpr int tile_numbers = 2 * tile_samples * (tile_above + tile_below);

// A layer whose states are read is cut into chunks of 16 octets, then pairs of octets.
struct Sources {
  int chunks, pairs;
};
CEPROP_INLINE Sources sources_of(int units) {
  const int chunks = units / chunk_sources, rest = units % chunk_sources;
  const bool as_chunk = rest > chunk_sources / 2;  // which takes less time then
  return {chunks + as_chunk, as_chunk ? 0 : (rest + pair_sources - 1) / pair_sources};
}
CEPROP_INLINE int padded(const Sources& sources) {
  return sources.chunks * chunk_sources + sources.pairs * pair_sources;
}

CEPROP_INLINE constexpr int octet_bytes(int samples, int number_bytes) { return octet * (samples | 1) * number_bytes; }
CEPROP_INLINE constexpr int chunk_bytes(int number_bytes) { return octet * chunk_sources * number_bytes; }
CEPROP_INLINE constexpr int pair_bytes(int number_bytes) { return octet * pair_sources * number_bytes; }

// The input's products x x^T lie in shared memory as well, where they take no more than this.
inline constexpr int most_gram_bytes = 1 << 14;

// Who reads what a block shows. Blocks that are no cluster's find it where it is, so that one reader stands for all.
struct Readers {
  unsigned mask;     // bit b: block b reads
  int count;         // of the bits
  unsigned list[2];  // their numbers, four bits each

  CEPROP_INLINE void add(int block) {
    if (has(block)) return;
    mask |= 1u << block;
    list[count / 8] |= static_cast<unsigned>(block) << (4 * (count % 8));
    ++count;
  }
  CEPROP_INLINE bool has(int block) const { return mask >> block & 1; }
};

// A job is what a warp does at every step for an octet of units. It holds all that the warp asks for in a step, as one
// load brings four numbers. Places are bytes of shared memory.
struct alignas(16) Job {
  int layer, units;    // of the layer
  int first;           // of the octet's units
  int kind;            // see Job::is()
  int weights;         // from below, then from above
  int own;             // what its lanes know, [group][Own][lane]
  int to;              // its states, within a buffer
  int below, above;    // the states that it reads, within a buffer, of a grid within a copy
  Sources from_below;  // none in layer 0: its input is constant
  Sources from_above;
  int reader_count;
  unsigned readers[2];  // of the layer's states, as in Readers::list

  // `usual`: units of most networks, for which steps have a way without questions.
  static constexpr int energy = 1 << 8, output = 1 << 9, second_turn = 1 << 10, usual = 1 << 11;
  CEPROP_INLINE bool is(int bit) const { return kind & bit; }
  CEPROP_INLINE Activation activation() const { return static_cast<Activation>(kind & 255); }
};
static_assert(sizeof(Job) == 64);

// A lane knows these numbers of its unit and sample; from the sum on only where weights move. A unit has moved by so
// much for the weights from below; with a gate by connection, by so much for those from above. It has shown so much in
// even and in odd steps.
enum class Own { constant, target, state, free_state, sum, moved, moved_for_above, shown_even, shown_odd };

CEPROP_INLINE constexpr int own_numbers(bool continual) { return continual ? 9 : 4; }

enum class TeamKind { block, cluster, grid };

struct Layout {
  TeamKind kind;
  bool continual;                            // weights move at every nudged step
  int blocks;                                // of a team
  int teams;                                 // of the grid
  int warps;                                 // of a block
  int samples;                               // of a group, which a warp multiplies at once
  int groups;                                // which a team takes through a phase at once
  int rounds;                                // how often it does, with other samples each time
  int first_octet[most_layers + 1];          // of each layer, numbered through all of them
  uint16_t first_of_block[most_blocks + 1];  // octets of each block
  Readers readers[most_layers];              // of each layer's states
  Readers output_readers;                    // blocks that have output units, which a loss takes together
  int states[most_layers + 1];               // of each layer within a buffer; behind the last those of output_readers
  int buffer;                                // bytes of a buffer
  int copied_steps, copied_groups;           // a block of a grid has copies of so many steps, of so many groups at once
  int copy;                                  // bytes of a copy of a group
  int buffers, jobs, own, blends, gram, copies, weights;  // places in shared memory; a grid's buffers are global
  int learns;  // from a weight to where its updates go: 0, the weight itself, or to a sum that EP gathers

  CEPROP_INLINE int samples_at_once() const { return samples * groups; }
  CEPROP_INLINE int64_t exchange_bytes() const { return int64_t(groups) * ring_of(continual) * buffer; }
  // Whether every warp of such a block is the only one that works for its groups, and has room for a copy of one.
  CEPROP_INLINE bool copies_alone(const Shares& shares) const {
    return kind == TeamKind::grid && !continual && shares.job_warps == 1 && shares.group_warps <= copied_groups;
  }
  CEPROP_INLINE int64_t global_bytes() const { return kind == TeamKind::grid ? exchange_bytes() : 0; }
  CEPROP_INLINE int layer_of(int octet) const {
    int layer = 0;
    while (octet >= first_octet[layer + 1]) ++layer;
    return layer;
  }
};

}  // namespace ceprop::cuda::teams
