// C-EP moves weights between steps, where they are: every block those into its own units, by the last two steps of all
// samples. `Jobs` has all samples at once.
//
// Every term of a contrast is a product of what one end of a connection has moved by and of what the other end shows.
// Both copies of tied weights get the same bits, as their sums have the same products in the same order.
//
// The input never changes, so its weights need not move before the end: their drive follows
//   drive <- drive - decay drive + scale (x x^T + 1) moved,        1: the bias
// and the updates gather in  sum <- sum - decay sum + scale moved.  In the end W[0] moves by sum^T x once.
#pragma once

#include "jobs.cuh"

namespace ceprop::cuda::teams {

// What a lane has of a chunk, or of a tail.
template <class T, int Width>
struct Some {
  T v[Width];
};

template <class Jobs>
class ContinualUpdate {
 public:
  using T = typename Jobs::Number;

  // Computes x x^T, each product of two samples once: x_i x_j lies in row i of a triangle, whose rows i and B - 1 - i
  // make one of B + 1. The next meeting ends it.
  __device__ __forceinline__ static void prepare(const Jobs& jobs) {
    const Problem<T>& p = jobs.p;
    const int inputs = p.widths[0], batch = p.batch, warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    const T one = p.biases[0] ? T(1) : T(0);
    const int64_t pairs = int64_t(batch + 1) / 2 * (batch + 1);
    for (int64_t pair = blockIdx.x + gridDim.x * warp_of_thread(); pair < pairs; pair += warps) {
      const int row = static_cast<int>(pair / (batch + 1)), column = static_cast<int>(pair % (batch + 1));
      const int i = column > row ? row : batch - 1 - row, j = column > row ? column - 1 : batch - 1 - column;
      const T* x = p.x + int64_t(i) * inputs;
      const T* y = p.x + int64_t(j) * inputs;
      T sum = 0;
      constexpr int at_once = 8;  // that are on their way
#pragma unroll 1
      for (int first = jobs.lane; first < inputs; first += 32 * at_once) {
        T of_x[at_once], of_y[at_once];
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          const int k = first + 32 * n;
          of_x[n] = k < inputs ? x[k] : T(0);
          of_y[n] = k < inputs ? y[k] : T(0);
        }
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          const auto shown = [&](T number) { return shown_by(p.input_activation, p.rules[0].dynamics, number); };
          if (first + 32 * n < inputs) sum += shown(of_x[n]) * shown(of_y[n]);
        }
      }
#pragma unroll
      for (int bit = 16; bit > 0; bit /= 2) sum += with_partner(sum, bit);
      if (jobs.lane == 0) p.gram[int64_t(i) * batch + j] = p.gram[int64_t(j) * batch + i] = sum + one;
    }
  }

  // Notes how every connection takes a contrast over `divisor`, and brings x x^T. The next meeting ends it.
  __device__ __forceinline__ static void begin(const Jobs& jobs, double divisor) {
    const Problem<T>& p = jobs.p;
    for (int i = static_cast<int>(threadIdx.x); jobs.layout.gram >= 0 && i < p.batch * p.batch;
         i += static_cast<int>(blockDim.x))
      jobs.memory.put(jobs.layout.gram + i * bytes, __ldcg(p.gram + i));
    for (int c = static_cast<int>(threadIdx.x); c < p.layers; c += static_cast<int>(blockDim.x)) {
      const Blend<T> blend = continual_blend<T>(p.rate[c], p.weight_decay, divisor, p.batch);
      jobs.memory.put(place_of_blend(jobs, c), blend.decay);
      jobs.memory.put(place_of_blend(jobs, c) + bytes, blend.scale);
    }
  }

  // Notes by how much the lane's unit has moved in a step: its state, or what it shows.
  __device__ __forceinline__ static void note(const Jobs& jobs, const Job& job, int g, T moved, Own as = Own::moved) {
    if (jobs.leads)
      jobs.memory.put(place_of_moved(jobs, job, g, jobs.sample, as), jobs.is_there(job, g) ? moved : T(0));
  }
  // `before` is the buffer of the step before.
  __device__ __forceinline__ static void note_shown(const Jobs& jobs, const Job& job, int g, int before, T shown) {
    const int unit = jobs.row * jobs.sample + jobs.unit_turn * bytes;
    note(jobs, job, g, shown - jobs.team.template shown<T>(before + job.to + unit));
  }

  // All warps of the block move what belongs to it. Between names buffers.
  __device__ __forceinline__ static void move(const Jobs& jobs, const Between& between) {
    int skip = warp_of_thread();  // so many parts are those of other warps
    for (int i = 0; jobs.works && i < jobs.count; ++i) {
      const Job job = jobs.job_of(i);
      const int below = job.from_below.chunks + job.from_below.tails;
      const int parts = below + job.from_above.chunks + job.from_above.tails;
      for (int part = 0; part < parts; ++part) {
        if (skip-- > 0) continue;
        skip = jobs.layout.warps() - 1;
        move_part(jobs, job, part >= below, part >= below ? part - below : part, between);
      }
    }
    jobs.for_each_own([&](const Job& job, int g) { move_constant(jobs, job, g); });
  }

  // Stores what has moved, but for the input's weights: the sums by which they move, for all blocks.
  __device__ __forceinline__ static void store(const Jobs& jobs) {
    const Problem<T>& p = jobs.p;
    jobs.for_each_job([&](const Job& job) {
      jobs.for_each_weight(job, p.free_feedback, [&](int place, const auto& weight) {
        const auto four = jobs.memory.template get<Four<T>>(place);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (T* to = weight(k)) *to = four.v[k];
      });
    });
    jobs.for_each_own([&](const Job& job, int g) {
      if (!jobs.leads || job.layer == 0 || jobs.sample_of(g) > 0 || jobs.unit_of(job) >= job.units) return;
      if (T* biases = p.biases[job.layer])
        biases[jobs.unit_of(job)] = jobs.memory.template get<T>(jobs.own(job, g, Own::constant));
    });
  }
  __device__ __forceinline__ static void store_sums(const Jobs& jobs) {
    jobs.for_each_own([&](const Job& job, int g) {
      if (jobs.leads && job.layer == 0 && jobs.is_there(job, g))
        jobs.p.sums[int64_t(jobs.sample_of(g)) * job.units + jobs.unit_of(job)] =
            jobs.memory.template get<T>(jobs.own(job, g, Own::sum));
    });
  }

 private:
  static constexpr int bytes = sizeof(T), samples = Jobs::samples, stride = octet_bytes(samples, bytes);
  static_assert(samples == 4 || samples == 2);

  __device__ __forceinline__ static int place_of_blend(const Jobs& jobs, int c) {
    return jobs.layout.blends + 2 * c * bytes;
  }
  __device__ __forceinline__ static Blend<T> blend_of(const Jobs& jobs, int c) {
    const int place = place_of_blend(jobs, c);
    return {jobs.memory.template get<T>(place), jobs.memory.template get<T>(place + bytes)};
  }
  // Returns where the lane's unit has noted by how much it moved. A sample's units lie side by side.
  __device__ __forceinline__ static int place_of_moved(const Jobs& jobs, const Job& job, int g, int sample,
                                                       Own as = Own::moved) {
    return jobs.owns(job, g, as) + sample * jobs.row + jobs.unit_turn * bytes;
  }

  // One warp moves a chunk or a tail of a side's weights.
  __device__ __forceinline__ static void move_part(const Jobs& jobs, const Job& job, bool from_above, int index,
                                                   const Between& between) {
    const int chunks = from_above ? job.from_above.chunks : job.from_below.chunks, tail = index - chunks;
    int weights = job.weights + (from_above ? padded(job.from_below) * octet * bytes : 0) + jobs.lane * 4 * bytes;
    int states = from_above ? job.above : job.below;
    const Blend<T> blend = blend_of(jobs, job.layer + from_above);
    const bool apart = jobs.p.learns == Learns::apart;
    const Own moved = from_above && jobs.p.gate == Gate::connection ? Own::moved_for_above : Own::moved;
    if (tail < 0) {
      weights += index * chunk_bytes(bytes);
      states += index * (chunk_sources / octet) * stride;
      T sum[octet][4] = {};
      add<4>(jobs, job, states, moved, apart, from_above, between, sum);
#pragma unroll
      for (int u = 0; u < octet; ++u) {
        const int place = weights + (u ^ jobs.unit_turn) * 32 * 4 * bytes;
        auto four = jobs.memory.template get<Four<T>>(place);
#pragma unroll
        for (int k = 0; k < 4; ++k) four.v[k] = blend(four.v[k], sum[u][k]);
        jobs.memory.put(place, four);
      }
    } else {
      weights += chunks * chunk_bytes(bytes) + tail * tail_bytes(bytes);
      states += (chunks * (chunk_sources / octet) + tail * (tail_sources / octet)) * stride;
      T sum[octet][1] = {};
      add<1>(jobs, job, states, moved, apart, from_above, between, sum);
#pragma unroll
      for (int u = 0; u < octet; ++u) {
        const int slot = u ^ jobs.unit_turn, place = weights + slot / 4 * 32 * 4 * bytes + slot % 4 * bytes;
        jobs.memory.put(place, blend(jobs.memory.template get<T>(place), sum[u][0]));
      }
    }
  }

  // Adds the contrast of all samples to sum[unit][source], of the sources that this lane has of a chunk (4) or of a
  // tail (1). `states`: of the first source, within a buffer.
  template <int Width>
  __device__ __forceinline__ static void add(const Jobs& jobs, const Job& job, int states, Own moved, bool apart,
                                             bool from_above, const Between& between, T (&sum)[octet][Width]) {
    if (apart)
      add_of<Width, true, false>(jobs, job, states, moved, between, sum);
    else if (from_above)
      add_of<Width, false, true>(jobs, job, states, moved, between, sum);
    else
      add_of<Width, false, false>(jobs, job, states, moved, between, sum);
  }
  template <int Width, bool Apart, bool FromAbove>
  __device__ __forceinline__ static void add_of(const Jobs& jobs, const Job& job, int states, Own own,
                                                const Between& between, T (&sum)[octet][Width]) {
    constexpr int octets = Width == 4 ? chunk_sources / octet : tail_sources / octet, part = octets * stride;
    const Layout& layout = jobs.layout;
    const int room = layout.staging + warp_of_thread() * staging_bytes(samples, bytes);  // for two groups
    // Brings what the sources show before and after the step, and what the own units show.
    const auto bring = [&](int g) {
      const int to = room + g % 2 * (staging_bytes(samples, bytes) / 2);
      const int buffers = layout.buffers + ring_of(true) * g * layout.buffer;
      const int earlier = buffers + between.earlier * layout.buffer, later = buffers + between.later * layout.buffer;
      bring_octets(jobs, to, earlier + states, octets);
      if constexpr (!Apart) {
        bring_octets(jobs, to + part, later + states, octets);
        bring_octets(jobs, to + 2 * part, (FromAbove ? later : earlier) + job.to, 1);
      }
      jobs.team.brings();
    };
    bring(0);
#pragma unroll 1
    for (int g = 0; g < layout.groups; ++g) {
      if (g + 1 < layout.groups)
        bring(g + 1);
      else
        jobs.team.brings();  // nothing, so that the wait is for the same number
      jobs.team.wait_for_brought();
      const int from = room + g % 2 * (staging_bytes(samples, bytes) / 2);
      const int source = from + (Width == 4 ? jobs.lane / 2 * stride + jobs.lane % 2 * 4 * bytes
                                            : jobs.lane / octet * stride + jobs.lane % octet * bytes);
      const int moved = jobs.owns(job, g, own);
#pragma unroll
      for (int s = 0; s < samples; ++s) {
        const Units own_moved = units_at(jobs, moved + s * jobs.row);
        const auto before = sources_at<Width>(jobs, source + s * jobs.row);
        if constexpr (Apart) {
#pragma unroll
          for (int u = 0; u < octet; ++u)
#pragma unroll
            for (int k = 0; k < Width; ++k) sum[u][k] += own_moved.v[u] * before.v[k];
        } else {
          const Units own_shown = units_at(jobs, from + 2 * part + s * jobs.row);
          const auto after = sources_at<Width>(jobs, source + part + s * jobs.row);
#pragma unroll
          for (int k = 0; k < Width; ++k) {
            const T moves = after.v[k] - before.v[k];
#pragma unroll
            for (int u = 0; u < octet; ++u) {
              sum[u][k] += FromAbove ? moves * own_shown.v[u] : own_moved.v[u] * after.v[k];
              sum[u][k] += FromAbove ? before.v[k] * own_moved.v[u] : own_shown.v[u] * moves;
            }
          }
        }
      }
      __syncwarp();  // nobody reads what is brought next over this
    }
  }

  // The lanes of a warp bring what octets show, without the row that is empty.
  __device__ __forceinline__ static void bring_octets(const Jobs& jobs, int to, int from, int octets) {
    constexpr int pieces = samples * Jobs::row / 16;
    for (int i = jobs.lane; i < octets * pieces; i += 32) {
      const int at = i / pieces * stride + i % pieces * 16;
      jobs.team.bring(to + at, from + at);
    }
  }

  struct Units {
    T v[octet];
  };
  __device__ __forceinline__ static Units units_at(const Jobs& jobs, int place) {
    const auto low = jobs.memory.template get<Four<T>>(place),
               high = jobs.memory.template get<Four<T>>(place + 4 * bytes);
    return {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
  }
  template <int Width>
  __device__ __forceinline__ static Some<T, Width> sources_at(const Jobs& jobs, int place) {
    if constexpr (Width == 1) {
      return {jobs.memory.template get<T>(place)};
    } else {
      const auto four = jobs.memory.template get<Four<T>>(place);
      return {four.v[0], four.v[1], four.v[2], four.v[3]};
    }
  }

  // Moves a bias, in layer 0 with the input's drive, and the sum by which the input's weights move.
  __device__ __forceinline__ static void move_constant(const Jobs& jobs, const Job& job, int g) {
    const Problem<T>& p = jobs.p;
    if (job.layer > 0 && !p.biases[job.layer]) return;
    const int sample = min(jobs.sample_of(g), p.batch - 1);
    T sum = 0;
    if (job.layer > 0)
      sum = sum_of_moves(jobs, job, [](int) { return T(1); });
    else if (jobs.layout.gram >= 0)
      sum = sum_of_moves(jobs, job, [&](int b) {
        return jobs.memory.template get<T>(jobs.layout.gram + (b * p.batch + sample) * bytes);
      });
    else
      sum = sum_of_moves(jobs, job, [&](int b) { return __ldcg(p.gram + int64_t(b) * p.batch + sample); });
    const Blend<T> blend = blend_of(jobs, job.layer);
    const auto move = [&](Own number, T by) {
      const int place = jobs.own(job, g, number);
      jobs.memory.put(place, blend(jobs.memory.template get<T>(place), by));
    };
    move(Own::constant, sum);
    if (job.layer == 0) move(Own::sum, jobs.memory.template get<T>(place_of_moved(jobs, job, g, jobs.sample)));
  }
  // Returns the sum over all samples b of what the lane's unit has moved by, times factor(b).
  template <class Factor>
  __device__ __forceinline__ static T sum_of_moves(const Jobs& jobs, const Job& job, const Factor& factor) {
    T sum = 0;
#pragma unroll 4
    for (int b = 0; b < jobs.p.batch; ++b)
      sum += factor(b) * jobs.memory.template get<T>(place_of_moved(jobs, job, b / samples, b % samples));
    return sum;
  }
};

}  // namespace ceprop::cuda::teams
