// The jobs of a block: for which octets its warps work at every step, and where what they need lies.
#pragma once

#include "sanity.cuh"
#include "team.cuh"

namespace ceprop::cuda::teams {

// `Moves`: weights move.
template <class T, int Samples, class TeamType, bool Moves>
struct Jobs {
  using Number = T;
  using Team = TeamType;
  static constexpr int samples = Samples;
  static constexpr int bytes = sizeof(T), row = octet * bytes, job_words = sizeof(Job) / 16;

  __device__ __forceinline__ Jobs(const Problem<T>& problem, const Layout& where)
      : p(problem),
        layout(where),
        team(memory, where.groups, problem.exchange),
        lane(lane_of_thread()),
        count(where.first_of_block[team.rank() + 1] - first_octet()),
        warps(shares_of(count, where.groups, where.warps)),
        first_job(warp_of_thread() % warps.job_warps),
        first_group(warp_of_thread() < warps.job_warps * warps.group_warps ? warp_of_thread() / warps.job_warps
                                                                           : where.groups) {}

  const Problem<T>& p;
  const Layout& layout;
  const Memory memory;
  Team team;
  mutable int lane;
  const int count;
  const Shares warps;
  const int first_job, first_group;  // of this warp; it may have none
  int first_sample = 0;              // of those that the team takes through a phase now

  // Of an octet's units and of a group's samples, those that this lane ends up with.
  __device__ __forceinline__ int unit_turn() const { return turn(lane); }
  __device__ __forceinline__ int sample() const { return teams::sample_of<Samples>(lane); }
  // Among the lanes that end up with the same.
  __device__ __forceinline__ bool leads() const { return teams::is_first<Samples>(lane); }
  // What follows from the lane's number is worked out anew from here on: else it takes registers in the loops before.
  __device__ __forceinline__ void work_out_anew() const { lane = hidden(lane); }
  __device__ __forceinline__ Job worked_out_anew(Job job) const {
    for (int* number : {&job.layer, &job.units, &job.first, &job.kind, &job.own}) *number = hidden(*number);
    return job;
  }

  __device__ __forceinline__ int units(int layer) const { return p.widths[layer + 1]; }
  __device__ __forceinline__ int turn_of(int layer) const { return p.asynchronous ? layer & 1 : 0; }
  __device__ __forceinline__ bool is_output(int layer) const { return layer + 1 == p.layers; }
  __device__ __forceinline__ bool joint() const { return !is_of_units(p.nudge.loss); }
  __device__ __forceinline__ int unit_of(const Job& job) const { return job.first + unit_turn(); }
  __device__ __forceinline__ int sample_of(int g) const { return first_sample + g * Samples + sample(); }
  __device__ __forceinline__ bool is_there(const Job& job, int g) const {
    return unit_of(job) < job.units && sample_of(g) < p.batch;
  }

  // Writes the jobs, finds out who waits for what, and loads the weights. Nobody sends to a block of the team before
  // this is over.
  __device__ __forceinline__ void load() {
    team.clear(layout.buffers, static_cast<int>(layout.exchange_bytes()));
    write_jobs();
    if constexpr (Team::has_mail) read_roles();
    __syncthreads();
    for_each_job([&](const Job& job) { load_weights(job); });
    if constexpr (Moves)
      if (layout.learns > 0) memory.clear(layout.weights + layout.learns, layout.learns);
    if constexpr (Team::has_mail) team.begin();
  }

  __device__ __forceinline__ Job job_of(int i) const {
    Job job;
    auto* words = reinterpret_cast<Words*>(&job);
#pragma unroll
    for (int k = 0; k < job_words; ++k) words[k] = memory.template get<Words>(layout.jobs + (job_words * i + k) * 16);
    return job;
  }
  // body(job) for a share of the block's.
  template <class Body>
  __device__ __forceinline__ void for_each_job(const Body& body) const {
    for (int i = warp_of_thread(); i < count; i += static_cast<int>(blockDim.x) / 32) body(job_of(i));
  }
  // body(job, g) for what this warp works on.
  template <class Body>
  __device__ __forceinline__ void for_each_own(const Body& body) const {
    for (int i = hidden(first_job); i < count; i += warps.job_warps) {
      const Job job = job_of(i);
      for (int g = hidden(first_group); g < layout.groups; g += warps.group_warps) body(job, g);
    }
  }

  // Returns where the numbers of all lanes are, of a job whose numbers begin at `first`, and where that of this lane
  // is.
  __device__ __forceinline__ int owns(int first, int g, Own number) const {
    return first + (g * own_numbers(Moves) + static_cast<int>(number)) * 32 * bytes;
  }
  __device__ __forceinline__ int own(const Job& job, int g, Own number) const {
    return owns(job.own, g, number) + lane * bytes;
  }

  __device__ __forceinline__ int buffer_of(int g, int number) const {
    return layout.buffers + (ring_of(Moves) * g + number) * layout.buffer;
  }
  // Returns where the copy of a group's states is, that is number `slot` of those copied at once, of one step or two.
  __device__ __forceinline__ int copy_of(int slot, int step) const {
    return layout.copies + ((step & (layout.copied_steps - 1)) * layout.copied_groups + slot) * layout.copy;
  }
  // Copies what the block reads of the states that a step has left in a buffer, of groups `begin` to `end` to slots
  // from `slot` on; if the step is `half` done, of layers that have moved. This is one of so many warps, which take
  // layers and groups in turn.
  __device__ __forceinline__ void copy(int begin, int end, int slot, int buffer, int step, bool half, int warp,
                                       int warps_that_copy) const {
    constexpr int stride = octet_bytes(Samples, bytes), pieces = samples * row / 16;  // without the row that is empty
    static_assert(32 % pieces == 0);
    int skip = warp;
    for (int l = 0, to = 0; l < p.layers; ++l) {
      if (!reads(l)) continue;
      const int size = layout.states[l + 1] - layout.states[l];
      for (int g = begin; g < end && !(half && turn_of(l) == 1); ++g) {
        if (skip-- > 0) continue;
        skip = warps_that_copy - 1;
        const int own = hidden(lane) / pieces * stride + hidden(lane) % pieces * 16;
        const int from = buffer_of(g, buffer) + layout.states[l], target = copy_of(slot + g - begin, step) + to;
#pragma unroll 4
        for (int at = own; at < size; at += 32 / pieces * stride) team.bring(target + at, from + at);
      }
      to += size;
    }
  }

  // Waits for the mail that a group's turn needs.
  __device__ __forceinline__ void wait(int turn, int g, int half_steps, int steps AND_CALLED_FROM) const {
    team.wait(Channel::states, g, half_steps, roles_ & works_in(turn), roles_ & is_first(turn) AND_CALLER);
    if (joint() && turn == turn_of(p.layers - 1))
      team.wait(Channel::outputs, g, steps, roles_ & works_on_output, roles_ & is_first_of_output AND_CALLER);
  }

  // body(place, slot, source) for all that this lane has of a side's weights, four at a time: it has there the weights
  // of slot(i) from source(i), i below 4. Moves `place` on behind them.
  template <class Body>
  __device__ __forceinline__ void for_each_four(int& place, const Sources& sources, const Body& body) const {
#pragma unroll 1
    for (int c = 0; c < sources.chunks; ++c, place += chunk_bytes(bytes))
#pragma unroll 4  // so many are on their way at once: they take hundreds of clocks to come
      for (int j = 0; j < octet; ++j)
        body(
            place + (j * 32 + lane) * 4 * bytes, [&](int) { return j; },
            [&](int i) { return c * chunk_sources + 4 * lane + i; });
#pragma unroll 1
    for (int c = 0; c < sources.pairs; ++c, place += pair_bytes(bytes))
      body(
          place + lane * 4 * bytes, [&](int) { return lane % octet ^ unit_turn(); },
          [&](int i) { return sources.chunks * chunk_sources + c * pair_sources + lane / octet * 4 + i; });
  }

  // body(four, weight) as above for the weights of a job, where weight(i) is the place of number i among all weights
  // and their feedback, which may be null, or null; from below, and `from_above` as well.
  template <class Body>
  __device__ __forceinline__ void for_each_weight(const Job& job, bool from_above, T* const* all, T* const* feedback,
                                                  const Body& body) const {
    const int l = job.layer, n = job.units, below = units(l - 1);
    int place = job.weights;
    const auto unit = [&](int slot) { return job.first + (slot ^ unit_turn()); };
    for_each_four(place, job.from_below, [&](int four, const auto& slot, const auto& source) {
      body(four, [&](int i) -> T* {
        const int to = unit(slot(i)), from = source(i);
        return to < n && from < below ? all[l] + int64_t(to) * below + from : nullptr;
      });
    });
    if (!from_above || is_output(l)) return;
    T* const weights = p.free_feedback ? feedback[l] : all[l + 1];
    const int above = units(l + 1);
    for_each_four(place, job.from_above, [&](int four, const auto& slot, const auto& source) {
      body(four, [&](int i) -> T* {
        const int to = unit(slot(i)), from = source(i);
        return to < n && from < above ? weights + int64_t(from) * n + to : nullptr;
      });
    });
  }

 private:
  __device__ __forceinline__ int first_octet() const { return layout.first_of_block[team.rank()]; }

  __device__ __forceinline__ void write_jobs() const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      Job job{};
      const int l = job.layer = layout.layer_of(first_octet() + i);
      const UnitRule& rule = p.rules[l];
      job.units = units(l);
      job.first = (first_octet() + i - layout.first_octet[l]) * octet;
      const bool energy = rule.dynamics == Dynamics::energy, joins = joint() && is_output(l);
      job.kind = static_cast<int>(rule.activation) | (energy ? Job::energy : 0) | (is_output(l) ? Job::output : 0) |
                 (turn_of(l) == 1 ? Job::second_turn : 0) |
                 (rule.activation == Activation::sigmoid && !energy && !joins ? Job::usual : 0);
      job.to = layout.states[l] + job.first / octet * octet_bytes(Samples, bytes);
      job.own = layout.own + i * layout.groups * own_numbers(Moves) * 32 * bytes;
      const Readers& readers = layout.readers[l];
      job.reader_count = readers.count;
      job.readers[0] = readers.list[0];
      job.readers[1] = readers.list[1];
      if (l > 0) {
        job.below = place_of_read(l - 1);
        job.from_below = sources_of(units(l - 1));
      }
      if (!is_output(l)) {
        job.above = place_of_read(l + 1);
        job.from_above = sources_of(units(l + 1));
      }
      job.weights = layout.weights + weight_bytes_before(i);
      const auto* words = reinterpret_cast<const Words*>(&job);
#pragma unroll
      for (int k = 0; k < job_words; ++k) memory.put(layout.jobs + (job_words * i + k) * 16, words[k]);
    }
  }
  // Whether the block has units of a layer, and whether units of it read a layer.
  __device__ __forceinline__ bool has(int layer) const {
    return layer >= 0 && layer < p.layers &&
           max(first_octet(), layout.first_octet[layer]) < min(first_octet() + count, layout.first_octet[layer + 1]);
  }
  __device__ __forceinline__ bool reads(int layer) const { return has(layer - 1) || has(layer + 1); }
  // Returns where units find the states of a layer: within a buffer, or in a copy, which has the layers that are read.
  __device__ __forceinline__ int place_of_read(int layer) const {
    if constexpr (!Team::is_far) return layout.states[layer];
    int place = 0;
    for (int l = 0; l < layer; ++l)
      if (reads(l)) place += layout.states[l + 1] - layout.states[l];
    return place;
  }
  // Returns how many bytes the weights of the block's octets before number i take.
  __device__ __forceinline__ int weight_bytes_before(int i) const {
    const int begin = first_octet(), end = begin + i;
    int all = 0;
    for (int l = 0; l < p.layers && layout.first_octet[l] < end; ++l) {
      const int octets = max(min(end, layout.first_octet[l + 1]) - max(begin, layout.first_octet[l]), 0);
      const int sources =
          (l > 0 ? padded(sources_of(units(l - 1))) : 0) + (is_output(l) ? 0 : padded(sources_of(units(l + 1))));
      all += octets * sources * octet * bytes;
    }
    return all;
  }

  __device__ __forceinline__ void load_weights(const Job& job) const {
    for_each_weight(job, true, p.weights, p.feedback, [&](int place, const auto& weight) {
      Four<T> four;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* from = weight(i);
        four.v[i] = from ? *from : T(0);
      }
      memory.put(place, four);
    });
  }

  // Finds out what this warp waits for, and what comes to this block.
  __device__ __forceinline__ void read_roles() {
    int even = most_warps(bytes), odd = even,
        output = even;  // the first warp of a group that has units of such a layer
    for (int i = 0; i < count; ++i) {
      const int layer = layout.layer_of(first_octet() + i);
      const int warp = i % warps.job_warps, turn = turn_of(layer);
      (turn == 0 ? even : odd) = min(turn == 0 ? even : odd, warp);
      if (is_output(layer)) output = min(output, warp);
      if (warp != first_job) continue;
      roles_ |= works_in(turn) | (is_output(layer) ? works_on_output : 0);
    }
    roles_ |= (even == first_job ? is_first(0) : 0) | (odd == first_job ? is_first(1) : 0);
    roles_ |= output == first_job ? is_first_of_output : 0;
    unsigned in_even = 0, in_odd = 0;  // half-steps
    for (int l = 0; l < p.layers; ++l) {
      if (!layout.readers[l].has(team.rank())) continue;
      if (!p.asynchronous || turn_of(l) == 0) in_even += bytes_of(l);
      if (!p.asynchronous || turn_of(l) == 1) in_odd += bytes_of(l);
    }
    team.open(Channel::states, in_even, in_odd);
    const unsigned outputs = joint() && layout.output_readers.has(team.rank()) ? bytes_of(p.layers - 1) : 0;
    team.open(Channel::outputs, outputs, outputs);
  }
  // Returns the bytes that a layer's states of a group have on their way.
  __device__ __forceinline__ unsigned bytes_of(int layer) const { return (units(layer) + 3) / 4 * 4 * Samples * bytes; }

  // These bits say what this warp does: it has units that move in a turn; it is the first one; the same of outputs.
  __device__ __forceinline__ static unsigned works_in(int turn) { return 1u << turn; }
  __device__ __forceinline__ static unsigned is_first(int turn) { return 4u << turn; }
  static constexpr unsigned works_on_output = 16, is_first_of_output = 32;

  unsigned roles_ = 0;
};

}  // namespace ceprop::cuda::teams
