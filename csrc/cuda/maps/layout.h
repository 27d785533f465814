// The planner decides, and the kernel reads, how the blocks of a cluster hold a chain with maps and take one sample
// through a phase. No torch, no device code.
//
// A block owns channels of every map and units of every dense layer. Of a convolution it has the weights of its
// channels above, of a dense connection those of its units below: so it computes what they get from below, and a part
// of what everybody below them gets, or above.
#pragma once

#include <cstdint>

#include "../../model/network.h"

namespace ceprop::cuda::maps {

inline constexpr int most_layers = 8, most_blocks = 16;
// A block has so many warps; one of float64 takes twice the registers.
CEPROP_INLINE constexpr int warps_of(int number_bytes) { return number_bytes == 4 ? 16 : 8; }
inline constexpr int lanes = 32;         // channels below a convolution that the way down has at once
inline constexpr int of_lanes = 33;      // numbers of a tap: odd, so that channels above lie in different banks
inline constexpr int tile_channels = 4;  // a lane on the way up has so many channels and positions of a row
inline constexpr int tile_positions = 8;
inline constexpr int most_parts = 8;                  // of channels, which warps have at once
inline constexpr int mailbox_bytes_of_turn = 4 * 16;  // two for parts of drives, two for states
inline constexpr int patch = 4;                       // a warp on the way down has patch x patch positions

// A layer. Places are bytes of shared memory, the rest are numbers. Its states, which all blocks of the cluster have,
// lie with a margin of zeros. What its owner alone has of a unit lies in a cell: rows are filled up to 16 bytes.
struct Layer {
  bool is_map, in_packs;        // in_packs: its states lie so that 16 bytes of them are pushed at once
  int channels, height, width;  // of a dense layer its units, 1, 1
  int margin, row, channel;     // of states: units before a row; from row to row; from channel to channel
  int states;                   // within a buffer of states
  int first_own[most_blocks + 1];
  int most_own;                            // channels of a block
  int first_cell, cell_row, cell_channel;  // of a dense layer a channel is a cell
  int owners;                              // place: of each channel its block, and its number there
  int downs;                               // place: what dense layers above bring to own units, one after another

  CEPROP_INLINE int own(int block) const { return first_own[block + 1] - first_own[block]; }
  CEPROP_INLINE int packs_of_row(int pack) const { return (width + pack - 1) / pack; }
};

// What joins layer l - 1 to layer l, number l.
struct Joint {
  bool is_convolution;
  int weights;  // place: [group of 32 channels below][own channel above][tap][33], or [unit above][own number below]
  int inbox;    // place: [block][cell], what others bring to own units: below a convolution, above a dense connection
  int inbox_block;  // numbers
  // Of a dense connection.
  int numbers;  // of a row of weights
  // Of a convolution.
  int kernel;  // 3 or 5, both ways
  Pool pool;
  int window_height, window_width;
  int height, positions;    // of the map before its pooling: rows, and positions of a row
  int own_channels;         // above, filled up to whole tiles
  int groups;               // of 32 channels below
  int tile_sets, tiles;     // 32 tiles each; place: of a lane's tile, where its input, weights and sums begin
  int up_shift, of_up;      // channels below are split in 1 << up_shift parts of so many
  int segments;             // of a row: so many tiles lie side by side
  int map_row, map;         // numbers: of a row of sums; of all sums of a part
  int spots;                // place: of every own unit, where its window begins
  int patch_columns;        // of the map
  int patches;              // all
  int spread;               // place: [patch][own channel][patch x patch], what goes down
  int down_shift, of_down;  // own channels are split so
};

struct Layout {
  int blocks;  // of a cluster
  int layers, turns;
  unsigned layers_of_turn[most_layers];  // bit l: layer l moves in it
  Layer layer[most_layers];
  Joint joint[most_layers];  // from 1 on
  int buffer;                // bytes of a buffer of states, of which there are two
  // Places. Mailboxes come first.
  int states, packs, constants, own_states, pulls, ups, picks, scratch;
  int end;
};

// Returns the bytes that come to a block in a turn as parts of drives.
CEPROP_INLINE int64_t bytes_of_parts(const Layout& layout, int turn, int block, int number_bytes) {
  int64_t numbers = 0;
  for (int l = 0; l < layout.layers; ++l) {
    if (!(layout.layers_of_turn[turn] >> l & 1)) continue;
    const Layer& layer = layout.layer[l];
    if (l + 1 < layout.layers && layout.joint[l + 1].is_convolution)
      numbers += layer.own(block) * layer.height * layer.cell_row;
    if (l > 0 && !layout.joint[l].is_convolution) numbers += layer.own(block);
  }
  return numbers * layout.blocks * number_bytes;
}
// Returns the bytes that come to every block in a turn as states.
CEPROP_INLINE int64_t bytes_of_states(const Layout& layout, int turn, int number_bytes) {
  int64_t numbers = 0;
  for (int l = 0; l < layout.layers; ++l) {
    const Layer& layer = layout.layer[l];
    if (layout.layers_of_turn[turn] >> l & 1) numbers += int64_t(layer.channels) * layer.height * layer.width;
  }
  return numbers * number_bytes;
}

}  // namespace ceprop::cuda::maps
