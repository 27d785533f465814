// What planners count with, in clocks of an H100 at 1980 MHz. They serve the choice between layouts only. No torch, no
// CUDA.
//
// measured   on an H100, benchmarks/results/gpu_micro.csv, under the name that is given
// simulated  fitted to what benchmarks/sass/ says of the kernels' machine code for sm_90
// assumed    neither
#pragma once

namespace ceprop::cuda::pace {

inline constexpr double clocks_of_a_microsecond = 1980;
inline constexpr int schedulers = 4;           // of a multiprocessor
inline constexpr double of_float64 = 3;        // instructions in place of one of float32; assumed
inline constexpr double exchange = 700;        // from a push within a cluster to its arrival; measured: mailbox-6kB
inline constexpr double barrier = 60;          // of a block's threads; assumed
inline constexpr double grid_barrier = 2200;   // measured: grid-barrier
inline constexpr double copying = 300;         // until the first bytes from L2 are there; measured: l2-latency
inline constexpr double copied_of_clock = 46;  // bytes that come after them; measured: l2-80kB-rate

// Of teams, simulated: instructions of an octet and a group beside products, and to add up sums over lanes; of products
// with a chunk for each sample, and with a pair; and the clocks of a scheduler for an instruction. A warp alone takes
// some clocks and then some for each.
namespace teams {
inline constexpr double of_octet = 190, adding_up = 70, chunk = 8, chunk_of_sample = 33, pair = 28;
inline constexpr double issue = 1.4, alone = 500, alone_issue = 1.5;
// To move weights, for each group: of a part, and of a chunk or pair for each sample; and of a constant in all, whose
// clocks are those of its warp.
inline constexpr double part = 15, chunk_moved = 77, pair_moved = 21, constant = 110, constant_alone = 560;
}  // namespace teams

// Of clusters with maps, simulated: clocks of a scheduler for an instruction on the way up and down, for 32 numbers of
// a region, for a position of a window, for 16 bytes of all regions, and to move 16 bytes of units.
namespace maps {
inline constexpr double up = 1.15, down = 1.36, stored = 8, pooling = 300, summing = 480, moving = 1300;
}

}  // namespace ceprop::cuda::pace
