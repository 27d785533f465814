// A cluster takes one sample of a chain with maps through a phase, in one launch: every block has its weights and all
// states in shared memory. In every turn of a step a block computes what its channels get from below, and parts of what
// others get; sends those parts to the owners, who move their units; and these send their new states to all.
//
// Mail has no acknowledgement. A block sends parts when it has all states of the turn before: then their owner, who has
// sent some of those, has read the last parts. It sends states into one of two buffers by turns of a layer's moves: all
// blocks have sent states since that was read last.
#pragma once

#include "../block/units.cuh"
#include "share.cuh"
#include "way_down.cuh"

namespace ceprop::cuda::maps {

#if DEVICE_HAS_CLUSTERS
template <class T>
class Phase {
 public:
  __device__ __forceinline__ explicit Phase(const Problem<T>& problem)
      : p_(problem),
        layout_(problem.layout),
        rank_(static_cast<int>(cooperative_groups::this_cluster().block_rank())),
        sample_(static_cast<int>(blockIdx.x) / problem.layout.blocks),
        thread_(static_cast<int>(threadIdx.x)),
        share_(problem, memory_, rank_, sample_) {}

  __device__ __forceinline__ void run() {
    load();
    for (int step = 0; step < p_.steps; ++step)
      for (int turn = 0; turn < layout_.turns; ++turn) {
        compute(turn, step);
        __syncthreads();  // what others of the block have computed, too; and nobody reads what is to be overwritten
        wait_for_parts(turn, step);
        move(turn, step);
        wait_for_states(turn, step);
      }
    store();
  }

 private:
  static constexpr int bytes = sizeof(T), pack = Pack<T>::size, warps = warps_of(bytes);

  // ---- what happens once ----

  __device__ __forceinline__ void load() {
    const int boxes = layout_.turns * mailbox_bytes_of_turn;
    memory_.clear(boxes, layout_.end - boxes);
    __syncthreads();
    if (thread_ == 0)
      for (int turn = 0; turn < layout_.turns; ++turn)
        for (int step = 0; step < 2; ++step) {
          if (const unsigned expected = parts_of(turn); expected > 0) memory_.open(box_of_parts(turn, step), expected);
          memory_.open(box_of_states(turn, step), states_of(turn));
        }
    share_.load();
    // Nobody sends to a block that has not begun.
    cooperative_groups::this_cluster().sync();
  }

  // All that is sent to this block has come.
  __device__ __forceinline__ void store() {
    for (int i = thread_; i < share_.packs(); i += threads()) {
      const auto own = memory_.get<Words>(layout_.packs + i * 16);
      const int l = own.v[0] >> 8, there = own.v[0] & 255;
      const int64_t at = share_.of_sample(layout_.layer[l]) + own.v[2];
      const auto state = memory_.get<Pack<T>>(layout_.own_states + own.v[3] * bytes);
      store_some(p_.next[l] + at, state, there);
      if (p_.next_seen[l]) store_some(p_.next_seen[l] + at, rho_of(p_.rules[l].activation, state), there);
    }
    if (!holds_) atomicExch(p_.broken, 1);
    if (p_.moves && !stays_) atomicExch(p_.moves, 1);
  }

  // ---- mail ----

  // Of even and of odd steps: a warp may wait for the last ones yet when the next have come.
  __device__ __forceinline__ static int box_of_parts(int turn, int step) {
    return turn * mailbox_bytes_of_turn + (step & 1) * 16;
  }
  __device__ __forceinline__ static int box_of_states(int turn, int step) { return box_of_parts(turn, step) + 2 * 16; }
  __device__ __forceinline__ unsigned parts_of(int turn) const {
    return static_cast<unsigned>(bytes_of_parts(layout_, turn, rank_, bytes));
  }
  __device__ __forceinline__ unsigned states_of(int turn) const {
    return static_cast<unsigned>(bytes_of_states(layout_, turn, bytes));
  }
  __device__ __forceinline__ void wait_for_parts(int turn, int step) const {
    const unsigned expected = parts_of(turn);
    if (expected == 0) return;
    memory_.wait(box_of_parts(turn, step), step >> 1);
    if (thread_ == 0) memory_.expect(box_of_parts(turn, step), expected);
  }
  __device__ __forceinline__ void wait_for_states(int turn, int step) const {
    memory_.wait(box_of_states(turn, step), step >> 1);
    if (thread_ == 0) memory_.expect(box_of_states(turn, step), states_of(turn));
  }

  // ---- a turn of a step ----

  __device__ __forceinline__ bool moves_in(int turn, int l) const { return layout_.layers_of_turn[turn] >> l & 1; }
  // Returns where the newest states of a layer lie that all know.
  __device__ __forceinline__ int states_at(int l, int turn, int step) const {
    int moves = step;
    for (int before = 0; before < turn; ++before) moves += moves_in(before, l);
    return layout_.states + layout_.layer[l].states + (moves & 1) * layout_.buffer;
  }

  __device__ __forceinline__ void compute(int turn, int step) {
    if (p_.beta != 0 && moves_in(turn, layout_.layers - 1)) note_pulls(turn, step);
    // Dense connections come first, and take the last warps first: most convolutions begin with the first ones.
    for (int l = layout_.layers - 1; l > 0; --l) {
      const bool above_moves = moves_in(turn, l), below_moves = moves_in(turn, l - 1);
      if (!above_moves && !below_moves) continue;
      const Joint& joint = layout_.joint[l];
      if (!joint.is_convolution)
        multiply(l, turn, step, above_moves, below_moves);
      else if (joint.kernel == 3)
        convolve<3>(l, turn, step, above_moves, below_moves);
      else
        convolve<5>(l, turn, step, above_moves, below_moves);
    }
  }

  template <int Kernel>
  __device__ __forceinline__ void convolve(int l, int turn, int step, bool above_moves, bool below_moves) {
    const Joint& joint = layout_.joint[l];
    const Layer &below = layout_.layer[l - 1], &above = layout_.layer[l];
    const bool picks = joint.pool == Pool::max;
    // While what is below rests, its map is known.
    const bool is_new = (stale_ >> l & 1) && (above_moves || picks);
    if (is_new) {
      stale_ &= ~(1u << l);
      __syncthreads();  // nobody reads what another connection left there
      way_up<T, Kernel>(memory_, joint, below, states_at(l - 1, turn, step), layout_.scratch);
      __syncthreads();
    }
    pool(l, is_new, below_moves, states_at(l, turn, step) - above.states);
    if (!below_moves) return;
    for (int group = 0; group < joint.groups; ++group) {
      __syncthreads();  // what goes down is there, and nobody reads the sums any more
      way_down<T, Kernel>(memory_, joint, group, layout_.scratch);
      __syncthreads();
      const int channel = group * lanes + lane_of_thread();
      const bool exists = channel < below.channels;
      const int owner = exists ? memory_.get<int>(below.owners + channel * 4) : 0;
      const Peer peer(memory_, owner >> 16);
      const int to = joint.inbox + (rank_ * joint.inbox_block + (owner & 0xffff) * below.cell_channel) * bytes;
      gather_regions<T, Kernel>(memory_, joint, below, layout_.scratch, [&](int x, int y, const Pack<T>& sum) {
        if (exists) peer.push(to + (y * below.cell_row + x) * bytes, box_of_parts(turn, step), sum);
      });
    }
  }

  // Takes every own unit's window from the sums, if those are new, and spreads out what goes down. `states`: where
  // those lie of the layers that all know.
  __device__ __forceinline__ void pool(int l, bool is_new, bool spreads, int states) const {
    const Joint& joint = layout_.joint[l];
    const Layer& above = layout_.layer[l];
    const int units = above.own(rank_) * above.height * above.width, parts = 1 << joint.up_shift;
    const int window_height = joint.window_height, window_width = joint.window_width, of_part = joint.map * bytes;
    const int map_row = joint.map_row, patch_columns = joint.patch_columns, own_channels = joint.own_channels;
    const bool picks = joint.pool == Pool::max;
    for (int i = thread_; i < units; i += threads()) {
      const auto spot = memory_.get<Words>(joint.spots + i * 16);
      const int cell = spot.v[3];
      if (is_new) {
        const T bias = memory_.get<T>(layout_.constants + cell * bytes);
        T pooled = 0;
        int picked = 0, place = 0;
        for (int y = 0; y < window_height; ++y)
          for (int x = 0; x < window_width; ++x, ++place) {
            const int at = layout_.scratch + (spot.v[0] + y * map_row + x) * bytes;
            T number = bias;
#pragma unroll
            for (int part = 0; part < most_parts; ++part)
              if (part < parts) number += memory_.get<T>(at + part * of_part);
            if (!picks) {
              pooled += number;
            } else if (place == 0 || number > pooled || number != number) {  // the first of equal ones
              pooled = number;
              picked = place;
            }
          }
        memory_.put(layout_.ups + cell * bytes, picks ? pooled : pooled / T(place));
        memory_.put(layout_.picks + cell * 4, picked);
      }
      if (!spreads) continue;
      const T state = memory_.get<T>(states + spot.v[2]);
      const int picked = picks ? memory_.get<int>(layout_.picks + cell * 4) : 0;
      const T part = picks ? state : state / T(window_height * window_width);
      const unsigned c = spot.v[1] >> 20, first_y = spot.v[1] >> 10 & 1023, first_x = spot.v[1] & 1023;
      int place = 0;
      for (unsigned y = first_y; y < first_y + window_height; ++y)
        for (unsigned x = first_x; x < first_x + window_width; ++x, ++place) {
          const unsigned at = ((y / patch * patch_columns + x / patch) * own_channels + c) * patch * patch;
          memory_.put(joint.spread + static_cast<int>(at + y % patch * patch + x % patch) * bytes,
                      !picks || place == picked ? part : T(0));
        }
    }
  }

  // A dense connection: a part of what every unit above gets, and all of what own units below get.
  __device__ __forceinline__ void multiply(int l, int turn, int step, bool above_moves, bool below_moves) const {
    const Joint& joint = layout_.joint[l];
    const Layer &below = layout_.layer[l - 1], &above = layout_.layer[l];
    const int own = below.own(rank_) * below.channel, lane = lane_of_thread();
    if (above_moves) {
      const int states = states_at(l - 1, turn, step) + below.first_own[rank_] * below.channel * bytes;
      for (int row = warps - 1 - warp_of_thread(); row < above.channels; row += warps) {
        T sum = 0;
#pragma unroll 4
        for (int i = lane; i < own; i += 32)
          sum += memory_.get<T>(joint.weights + (row * joint.numbers + i) * bytes) * memory_.get<T>(states + i * bytes);
#pragma unroll
        for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
        const int owner = memory_.get<int>(above.owners + row * 4);
        if (lane == 0)
          Peer(memory_, owner >> 16)
              .push(joint.inbox + (rank_ * joint.inbox_block + (owner & 0xffff)) * bytes, box_of_parts(turn, step),
                    sum);
      }
    }
    if (!below_moves) return;
    const int states = states_at(l, turn, step);
    for (int i = threads() - 1 - thread_; i < own; i += threads()) {
      T sum = 0;
#pragma unroll 4
      for (int row = 0; row < above.channels; ++row)
        sum += memory_.get<T>(joint.weights + (row * joint.numbers + i) * bytes) * memory_.get<T>(states + row * bytes);
      memory_.put(below.downs + i * bytes, sum);
    }
  }

  // By how much own output units are pulled: at the states that all know.
  __device__ __forceinline__ void note_pulls(int turn, int step) const {
    const int l = layout_.layers - 1, states = states_at(l, turn, step);
    const Layer& layer = layout_.layer[l];
    const int first = layer.first_own[rank_], of_batch = sample_ < p_.batch ? sample_ : sample_ - p_.batch;
    const T beta = sample_ < p_.batch ? p_.beta : -p_.beta;
    for (int i = thread_; i < layer.own(rank_); i += threads()) {
      const T target = p_.target[int64_t(of_batch) * layer.channels + first + i];
      const T state = memory_.get<T>(layout_.own_states + (layer.first_cell + i) * bytes);
      const T error = is_of_units(p_.loss) ? unit_error(p_.loss, target, state)
                                           : sample_error_of(layer.channels, state, target, [&](int64_t c) {
                                               return memory_.get<T>(states + static_cast<int>(c) * bytes);
                                             });
      memory_.put(layout_.pulls + i * bytes, beta * error);
    }
  }

  // Moves own units, 16 bytes of them at once, and tells all blocks.
  __device__ __forceinline__ void move(int turn, int step) {
    const int box = box_of_states(turn, step), next_states = layout_.states + ((step + 1) & 1) * layout_.buffer;
    for (int i = thread_; i < share_.packs(); i += threads()) {
      const auto own = memory_.get<Words>(layout_.packs + i * 16);
      const int l = own.v[0] >> 8, there = own.v[0] & 255, number = own.v[1], cell = own.v[3];
      if (!moves_in(turn, l)) continue;
      const Layer& layer = layout_.layer[l];
      const UnitRule& rule = p_.rules[l];
      Pack<T> drive = from_below(l, cell);
      if (l + 1 < layout_.layers) drive += from_above(l, cell, number, there);
      const auto state = memory_.get<Pack<T>>(layout_.own_states + cell * bytes);
      Pack<T> pull{};
      if (l + 1 == layout_.layers && p_.beta != 0)
        pull = memory_.get<Pack<T>>(layout_.pulls + (cell - layer.first_cell) * bytes);
      const Pack<T> next = next_of(rule, drive, state, pull, p_.at);
      memory_.put(layout_.own_states + cell * bytes, next);
      T size = 0;
#pragma unroll
      for (int k = 0; k < pack; ++k) size += k < there ? size_of(drive.v[k], next.v[k]) : T(0);
      holds_ = holds_ && size <= p_.largest;
      if (p_.moves && step + 1 == p_.steps)
#pragma unroll
        for (int k = 0; k < pack; ++k) stays_ = stays_ && (k >= there || stays(state.v[k], next.v[k], p_.limit));
      const Pack<T> shown = rule.dynamics == Dynamics::energy ? rho_of(rule.activation, next) : next;
      const int to = next_states + layer.states + number * bytes;
      for (int block = 0; block < layout_.blocks; ++block) {
        const Peer peer(memory_, block);
        if (layer.in_packs) {
          peer.push(to, box, shown);
        } else {
#pragma unroll
          for (int k = 0; k < pack; ++k)
            if (k < there) peer.push(to + k * bytes, box, shown.v[k]);
        }
      }
    }
    // The maps of those that are above what has moved.
    stale_ |= layout_.layers_of_turn[turn] << 1;
  }
  __device__ __forceinline__ Pack<T> from_below(int l, int cell) const {
    const Joint& joint = layout_.joint[l];
    if (l > 0 && joint.is_convolution) return memory_.get<Pack<T>>(layout_.ups + cell * bytes);
    auto drive = memory_.get<Pack<T>>(layout_.constants + cell * bytes);
    if (l == 0) return drive;
    const int own = layout_.layer[l].own(rank_), first = cell - layout_.layer[l].first_cell;
    for (int block = 0; block < layout_.blocks; ++block)
#pragma unroll
      for (int k = 0; k < pack; ++k)
        if (first + k < own)
          drive.v[k] += memory_.get<T>(joint.inbox + (block * joint.inbox_block + first + k) * bytes);
    return drive;
  }
  __device__ __forceinline__ Pack<T> from_above(int l, int cell, int number, int there) const {
    const Joint& joint = layout_.joint[l + 1];
    const Layer& layer = layout_.layer[l];
    Pack<T> sum{};
    if (!joint.is_convolution) {
      const int first = layer.downs + (number - layer.first_own[rank_] * layer.channel) * bytes;
#pragma unroll
      for (int k = 0; k < pack; ++k)
        if (k < there) sum.v[k] = memory_.get<T>(first + k * bytes);
      return sum;
    }
    const int first = joint.inbox + (cell - layer.first_cell) * bytes;
#pragma unroll 4
    for (int block = 0; block < layout_.blocks; ++block)
      sum += memory_.get<Pack<T>>(first + block * joint.inbox_block * bytes);
    return sum;
  }

  __device__ __forceinline__ static int threads() { return 32 * warps; }

  const Problem<T>& p_;
  const Layout& layout_;
  const Memory memory_;
  const int rank_, sample_, thread_;
  Share<T> share_;
  unsigned stale_ = ~0u;  // bit l: what is below connection l has moved since its map was computed
  bool holds_ = true, stays_ = true;
};
#endif

template <class T>
__global__ void __launch_bounds__(32 * warps_of(sizeof(T)), 1) relax_maps(const __grid_constant__ Problem<T> problem) {
  static_assert(sizeof(Problem<T>) <= 4096, "what a kernel argument may have");
#if DEVICE_HAS_CLUSTERS
  Phase<T>(problem).run();
#else
  __trap();
#endif
}

}  // namespace ceprop::cuda::maps
