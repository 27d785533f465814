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

template <class Jobs>
class ContinualUpdate {
 public:
  using T = typename Jobs::Number;

  // Computes x x^T, each product of two samples once: x_i x_j lies in row i of a triangle, whose rows i and B - 1 - i
  // make one of B + 1. All blocks meet before the first begin().
  __device__ __forceinline__ static void prepare(const Problem<T>& p) {
    const int inputs = p.widths[0], batch = p.batch, lane = lane_of_thread(),
              warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    const T one = p.biases[0] ? T(1) : T(0);
    const int64_t pairs = int64_t(batch + 1) / 2 * (batch + 1);
    for (int64_t pair = blockIdx.x + gridDim.x * warp_of_thread(); pair < pairs; pair += warps) {
      const int row = static_cast<int>(pair / (batch + 1)), column = static_cast<int>(pair % (batch + 1));
      if (column <= row && row == batch - 1 - row) continue;  // the one in the middle of an odd number
      const int i = column > row ? row : batch - 1 - row, j = column > row ? column - 1 : batch - 1 - column;
      const T* x = p.x + int64_t(i) * inputs;
      const T* y = p.x + int64_t(j) * inputs;
      T sum = 0;
      constexpr int at_once = 8;  // that are on their way
#pragma unroll 1
      for (int first = lane; first < inputs; first += 32 * at_once) {
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
      if (lane == 0) p.gram[int64_t(i) * batch + j] = p.gram[int64_t(j) * batch + i] = sum + one;
    }
  }

  // Notes how every connection takes a contrast over `divisor`, and brings x x^T. The next meeting ends it.
  __device__ __forceinline__ static void begin(const Jobs& jobs, double divisor) {
    const Problem<T>& p = jobs.p;
    const int row = jobs.layout.samples_at_once();  // with zeros for samples that are not there
    for (int i = static_cast<int>(threadIdx.x); jobs.layout.gram >= 0 && !gathers(jobs) && i < p.batch * row;
         i += static_cast<int>(blockDim.x)) {
      const int b = i % row;
      jobs.memory.put(jobs.layout.gram + i * bytes, b < p.batch ? __ldcg(p.gram + i / row * p.batch + b) : T(0));
    }
    for (int c = static_cast<int>(threadIdx.x); c < p.layers; c += static_cast<int>(blockDim.x)) {
      const Blend<T> blend = continual_blend<T>(p.rate[c], p.weight_decay, divisor, p.batch);
      jobs.memory.put(place_of_blend(jobs, c), blend.decay);
      jobs.memory.put(place_of_blend(jobs, c) + bytes, blend.scale);
    }
  }

  // Notes by how much the lane's unit has moved in a step: its state, or what it shows.
  __device__ __forceinline__ static void note(const Jobs& jobs, const Job& job, int g, T moved, Own as = Own::moved) {
    if (jobs.leads())
      jobs.memory.put(place_of_noted(jobs, job, g, jobs.sample(), as), jobs.is_there(job, g) ? moved : T(0));
  }
  // Notes what the lane's unit shows in a step, and if `moves`, that it has moved by as much as that has changed.
  __device__ __forceinline__ static void note_shown(const Jobs& jobs, const Job& job, int g, int step, T shown,
                                                    bool moves) {
    if (!jobs.leads()) return;
    if (moves) {
      const int before = place_of_noted(jobs, job, g, jobs.sample(), shown_in(step - 1));
      note(jobs, job, g, shown - jobs.memory.template get<T>(before));
    }
    jobs.memory.put(place_of_noted(jobs, job, g, jobs.sample(), shown_in(step)), shown);
  }

  // All warps of the block move what belongs to it, by what two steps have left: number `step` - 1 in the buffer
  // `earlier`, number `step` in `later`. Of states that are far it makes copies; of the earlier ones there are some
  // already, if there are copies of two steps.
  __device__ __forceinline__ static void move(const Jobs& jobs, int earlier, int later, int step) {
    const Layout& layout = jobs.layout;
    const int at_once = layout.copied_groups;
    int parts = 0;
    for (int i = 0; i < jobs.count; ++i) parts += parts_of(jobs.job_of(i));
    for (int first = 0; first < parts; first += static_cast<int>(blockDim.x) / 32) {
      int part = first + warp_of_thread(), i = 0;
      const bool has_part = part < parts;
      while (has_part && part >= parts_of(jobs.job_of(i))) part -= parts_of(jobs.job_of(i++));
      const Part own(jobs, has_part ? i : 0, has_part ? part : 0);
      T sum[octet][4] = {};
      for (int begin = 0; begin < layout.groups; begin += at_once) {
        const int end = min(begin + at_once, layout.groups);
        if constexpr (Jobs::Team::is_far) {
          if (first == 0 || at_once < layout.groups) {
            if (first + begin > 0) __syncthreads();  // nobody reads the copies any more
            jobs.copy(begin, end, 0, later, step, false, warp_of_thread(), static_cast<int>(blockDim.x) / 32);
            jobs.team.wait_for_brought();
          }
        }
        if (has_part) own.add(jobs, begin, end, earlier, later, step, sum);
      }
      if (has_part) own.move(jobs, sum);
    }
    jobs.for_each_own([&](const Job& job, int g) { move_constant(jobs, job, g); });
  }

  // Stores what has moved or what is gathered, but for the input's weights.
  __device__ __forceinline__ static void store(const Jobs& jobs) {
    const Problem<T>& p = jobs.p;
    T* const* const all = gathers(jobs) ? p.gradients : p.weights;
    T* const* const feedback = gathers(jobs) ? p.feedback_gradients : p.feedback;
    jobs.for_each_job([&](const Job& job) {
      jobs.for_each_weight(job, p.free_feedback, all, feedback, [&](int place, const auto& weight) {
        const auto four = jobs.memory.template get<Four<T>>(place + jobs.layout.learns);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (T* to = weight(k)) *to = four.v[k];
      });
    });
    jobs.for_each_own([&](const Job& job, int g) {
      if (!jobs.leads() || job.layer == 0 || jobs.sample_of(g) > 0 || jobs.unit_of(job) >= job.units) return;
      if (T* biases = gathers(jobs) ? p.bias_gradients[job.layer] : p.biases[job.layer])
        biases[jobs.unit_of(job)] =
            jobs.memory.template get<T>(jobs.own(job, g, gathers(jobs) ? Own::sum : Own::constant));
    });
  }

 private:
  static constexpr int bytes = sizeof(T), samples = Jobs::samples, stride = octet_bytes(samples, bytes);
  static_assert(samples == 4 || samples == 2);

  // Whether EP gathers in place of moving.
  __device__ __forceinline__ static bool gathers(const Jobs& jobs) { return jobs.layout.learns > 0; }
  __device__ __forceinline__ static int place_of_blend(const Jobs& jobs, int c) {
    return jobs.layout.blends + 2 * c * bytes;
  }
  __device__ __forceinline__ static Blend<T> blend_of(const Jobs& jobs, int c) {
    const int place = place_of_blend(jobs, c);
    return {jobs.memory.template get<T>(place), jobs.memory.template get<T>(place + bytes)};
  }
  __device__ __forceinline__ static Own shown_in(int step) { return step & 1 ? Own::shown_odd : Own::shown_even; }
  // Returns where the lane's unit has noted by how much it moved, or what it shows. A sample's units lie side by side.
  __device__ __forceinline__ static int place_of_noted(const Jobs& jobs, const Job& job, int g, int sample, Own as) {
    return jobs.owns(job.own, g, as) + sample * jobs.row + jobs.unit_turn() * bytes;
  }

  // A warp moves a part of the weights from one side: a chunk, of which a lane has four sources of each unit, or a pair
  // of octets behind the chunks, of which it has four sources of one unit.
  __device__ __forceinline__ static int parts_of(const Sources& sources) { return sources.chunks + sources.pairs; }
  __device__ __forceinline__ static int parts_of(const Job& job) {
    return parts_of(job.from_below) + parts_of(job.from_above);
  }
  struct Part {
    bool from_above, is_chunk;
    int connection, unit;
    int own, weights;     // places of the job's numbers, and of the lane's first weight
    int states, in_copy;  // places of the lane's sources in a buffer, and in a copy

    __device__ __forceinline__ Part(const Jobs& jobs, int i, int part) {
      const Job job = jobs.job_of(i);
      from_above = part >= parts_of(job.from_below);
      const Sources& sources = from_above ? job.from_above : job.from_below;
      const int index = from_above ? part - parts_of(job.from_below) : part, lane = jobs.lane;
      is_chunk = index < sources.chunks;
      unit = lane % octet;
      connection = job.layer + from_above;
      own = job.own;
      const int chunks = is_chunk ? index : sources.chunks, pairs = is_chunk ? 0 : index - sources.chunks;
      weights = job.weights + jobs.layout.learns + (from_above ? padded(job.from_below) * octet * bytes : 0) +
                chunks * chunk_bytes(bytes) + pairs * pair_bytes(bytes) + lane * 4 * bytes;
      const int fours = 2 * (chunks * chunk_octets + 2 * pairs) + (is_chunk ? lane : lane / octet);
      const int before = fours / 2 * stride + fours % 2 * 4 * bytes;
      states = jobs.layout.states[from_above ? job.layer + 1 : job.layer - 1] + before;
      in_copy = (from_above ? job.above : job.below) + before;
    }

    // Adds the contrast of some groups to sum[unit][source]; of a pair only sum[0] counts, of the lane's unit.
    __device__ __forceinline__ void add(const Jobs& jobs, int begin, int end, int earlier, int later, int step,
                                        T (&sum)[octet][4]) const {
      if (!Jobs::Team::is_far || jobs.layout.copied_steps == 2)
        add_of_learning<true>(jobs, begin, end, earlier, later, step, sum);
      else
        add_of_learning<false>(jobs, begin, end, earlier, later, step, sum);
    }
    __device__ __forceinline__ void move(const Jobs& jobs, const T (&sum)[octet][4]) const {
      const Blend<T> blend = blend_of(jobs, connection);
      const int turn = hidden(jobs.unit_turn());
#pragma unroll
      for (int u = 0; u < octet; ++u) {
        if (u > 0 && !is_chunk) continue;
        const int place = weights + (is_chunk ? (u ^ turn) * 32 * 4 * bytes : 0);
        auto four = jobs.memory.template get<Four<T>>(place);
#pragma unroll
        for (int k = 0; k < 4; ++k) four.v[k] = blend(four.v[k], sum[u][k]);
        jobs.memory.put(place, four);
      }
    }

   private:
    // `Near`: the earlier states are in the block's memory, as the later ones are.
    template <bool Near>
    __device__ __forceinline__ void add_of_learning(const Jobs& jobs, int begin, int end, int earlier, int later,
                                                    int step, T (&sum)[octet][4]) const {
      if (jobs.p.learns == Learns::apart)
        add_of_part<Near, true, false>(jobs, begin, end, earlier, later, step, sum);
      else if (from_above)
        add_of_part<Near, false, true>(jobs, begin, end, earlier, later, step, sum);
      else
        add_of_part<Near, false, false>(jobs, begin, end, earlier, later, step, sum);
    }
    template <bool Near, bool Apart, bool FromAbove>
    __device__ __forceinline__ void add_of_part(const Jobs& jobs, int begin, int end, int earlier, int later, int step,
                                                T (&sum)[octet][4]) const {
      if (is_chunk)
        add_of<octet, Near, Apart, FromAbove>(jobs, begin, end, earlier, later, step, sum);
      else
        add_of<1, Near, Apart, FromAbove>(jobs, begin, end, earlier, later, step, sum);
    }
    // Of so many units.
    template <int Count, bool Near, bool Apart, bool FromAbove>
    __device__ __forceinline__ void add_of(const Jobs& jobs, int begin, int end, int earlier, int later, int step,
                                           T (&sum)[octet][4]) const {
      constexpr bool is_far = Jobs::Team::is_far;
      const Own as = from_above && jobs.p.gate == Gate::connection ? Own::moved_for_above : Own::moved;
      const int first = Count == 1 ? unit * bytes : 0;
#pragma unroll 1
      for (int g = begin; g < end; ++g) {
        const int before_at =
            is_far && Near ? jobs.copy_of(g - begin, step - 1) + in_copy : jobs.buffer_of(g, earlier) + states;
        const int after_at = is_far ? jobs.copy_of(g - begin, step) + in_copy : jobs.buffer_of(g, later) + states;
        const int moved = jobs.owns(own, g, as) + first;
        const int shown = jobs.owns(own, g, shown_in(FromAbove ? step : step - 1)) + first;
#pragma unroll
        for (int s = 0; s < samples; ++s) {
          const auto own_moved = units_at<Count>(jobs, moved + s * jobs.row);
          const auto before = sources_at<Near>(jobs, before_at + s * jobs.row);
          if constexpr (Apart) {
#pragma unroll
            for (int u = 0; u < Count; ++u)
#pragma unroll
              for (int k = 0; k < 4; ++k) sum[u][k] += own_moved.v[u] * before.v[k];
          } else {
            const auto own_shown = units_at<Count>(jobs, shown + s * jobs.row);
            const auto after = sources_at<true>(jobs, after_at + s * jobs.row);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const T moves = after.v[k] - before.v[k];
#pragma unroll
              for (int u = 0; u < Count; ++u) {
                sum[u][k] += FromAbove ? moves * own_shown.v[u] : own_moved.v[u] * after.v[k];
                sum[u][k] += FromAbove ? before.v[k] * own_moved.v[u] : own_shown.v[u] * moves;
              }
            }
          }
        }
      }
    }
  };

  template <int Count>
  struct Units {
    T v[Count];
  };
  template <int Count>
  __device__ __forceinline__ static Units<Count> units_at(const Jobs& jobs, int place) {
    if constexpr (Count == 1) {
      return {jobs.memory.template get<T>(place)};
    } else {
      const auto low = jobs.memory.template get<Four<T>>(place),
                 high = jobs.memory.template get<Four<T>>(place + 4 * bytes);
      return {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
    }
  }
  template <bool Near>
  __device__ __forceinline__ static Four<T> sources_at(const Jobs& jobs, int place) {
    if constexpr (Near)
      return jobs.memory.template get<Four<T>>(place);
    else
      return jobs.team.template shown<Four<T>>(place);
  }

  // Moves a bias, in layer 0 with the input's drive, and the sum by which the input's weights move; or gathers for
  // them.
  __device__ __forceinline__ static void move_constant(const Jobs& jobs, const Job& job, int g) {
    const Problem<T>& p = jobs.p;
    if (job.layer > 0 && !p.biases[job.layer]) return;
    const int sample = min(jobs.sample_of(g), p.batch - 1);
    T sum = 0;
    if (job.layer > 0) {
      sum = sum_of_moves(jobs, job, [](int) { return ones(); });
    } else if (gathers(jobs)) {
      // The input's drive stays.
    } else if (jobs.layout.gram >= 0) {
      const int row = jobs.layout.gram + sample * jobs.layout.samples_at_once() * bytes;
      sum = sum_of_moves(jobs, job, [&](int b) { return jobs.memory.template get<Pack<T>>(row + b * bytes); });
    } else {
      const T* const row = p.gram + int64_t(sample) * p.batch;
      sum = sum_of_moves(jobs, job, [&](int b) {
        Pack<T> pack;
#pragma unroll
        for (int s = 0; s < samples; ++s) pack.v[s] = b + s < p.batch ? __ldcg(row + b + s) : T(0);
        return pack;
      });
    }
    const Blend<T> blend = blend_of(jobs, job.layer);
    const auto move = [&](Own number, T by) {
      const int place = jobs.own(job, g, number);
      jobs.memory.put(place, blend(jobs.memory.template get<T>(place), by));
    };
    if (!gathers(jobs))
      move(Own::constant, sum);
    else if (job.layer > 0)
      move(Own::sum, sum);
    if (job.layer == 0)
      move(Own::sum, jobs.memory.template get<T>(place_of_noted(jobs, job, g, jobs.sample(), Own::moved)));
  }
  __device__ __forceinline__ static Pack<T> ones() {
    Pack<T> pack;
#pragma unroll
    for (int s = 0; s < samples; ++s) pack.v[s] = 1;
    return pack;
  }
  // Returns the sum over all samples of what the lane's unit has moved by, times their factors: factors(b) has those
  // of a group, whose first sample is b.
  template <class Factors>
  __device__ __forceinline__ static T sum_of_moves(const Jobs& jobs, const Job& job, const Factors& factors) {
    static_assert(Pack<T>::size == samples);
    T sum = 0;
#pragma unroll 2
    for (int g = 0; g < jobs.layout.groups; ++g) {
      const Pack<T> factor = factors(g * samples);
#pragma unroll
      for (int s = 0; s < samples; ++s)
        sum += factor.v[s] * jobs.memory.template get<T>(place_of_noted(jobs, job, g, s, Own::moved));
    }
    return sum;
  }
};

}  // namespace ceprop::cuda::teams
