// A team takes its samples through all steps, with the weights between layers in shared memory.
#pragma once

#include "../../model/unit_math.h"
#include "../sanity.cuh"
#include "team.cuh"

namespace ceprop::cuda::teams {

template <class T, int Samples, class Team>
class Relaxation {
 public:
  __device__ __forceinline__ explicit Relaxation(const Problem<T>& problem)
      : sanity(problem, problem.broken),
        p_(problem),
        layout_(problem.layout),
        team_(memory_, layout_.groups),
        lane_(lane_of_thread()),
        turn_(turn(lane_)),
        sample_(teams::sample_of<Samples>(lane_)),
        leads_(teams::is_first<Samples>(lane_)),
        jobs_(layout_.first_of_block[team_.rank() + 1] - first_octet()),
        joint_(!is_of_units(p_.nudge.loss)),
        dt_(static_cast<T>(p_.rules[0].dt)) {}

  Sanity<T> sanity;

  // Nobody sends to a block of the team before this is over.
  __device__ __forceinline__ void load() {
    const int bytes = 2 * layout_.groups * layout_.buffer;
    for (int at = 4 * static_cast<int>(threadIdx.x); at < bytes; at += 4 * static_cast<int>(blockDim.x))
      memory_.put(layout_.buffers + at, 0.0f);
    if (threadIdx.x == 0) write_jobs();
    read_roles();
    __syncthreads();
    for (int i = warp_of_thread(); i < jobs_; i += layout_.warps) load_weights(job_of(i));
    if constexpr (!Team::is_alone) team_.begin();
  }

  // Runs all phases of one round, with the samples from `first_sample` on.
  __device__ __forceinline__ void run(int first_sample) {
    first_sample_ = first_sample;
    for_each_own([&](const Job& job, int g) { begin(job, g); });
    for (int index = 0; index < p_.stages.count; ++index) {
      const Stage& stage = p_.stages.stage[index];
      if (index == 0 || stage.from != Kept::last) {
        for_each_own([&](const Job& job, int g) { start(job, g, index == 0); });
        step<true>(T(0));
      }
      const T beta = static_cast<T>(stage.beta);
      for (int count = 0; count < stage.steps; ++count) {
        step<false>(beta);
      }
      T* const* to = stage.stores == 0 ? p_.free_states : p_.nudged_states[stage.stores - 1];
      for_each_own([&](const Job& job, int g) { store(job, g, to, stage.keeps == Kept::free); });
    }
  }

  // Comes after the last round. Then nothing is on its way to this block any more.
  __device__ __forceinline__ void end() {
    if constexpr (!Team::is_alone) {
      for (int g = 0; g < layout_.groups; ++g) wait(0, g);
      team_.end();
    }
  }

  __device__ __forceinline__ int team() const { return team_.index(); }

 private:
  static constexpr int bytes = sizeof(T), row = octet * bytes, job_words = sizeof(Job) / 16;

  __device__ __forceinline__ int units(int layer) const { return p_.widths[layer + 1]; }
  __device__ __forceinline__ int turn_of(int layer) const { return p_.asynchronous ? layer & 1 : 0; }
  __device__ __forceinline__ bool is_output(int layer) const { return layer + 1 == p_.layers; }
  __device__ __forceinline__ int unit_of(const Job& job) const { return job.first + turn_; }
  __device__ __forceinline__ int sample_of(int g) const { return first_sample_ + g * Samples + sample_; }
  __device__ __forceinline__ bool is_there(const Job& job, int g) const {
    return unit_of(job) < job.units && sample_of(g) < p_.batch;
  }

  // ---- the jobs of this block ----

  __device__ __forceinline__ int first_octet() const { return layout_.first_of_block[team_.rank()]; }

  __device__ __forceinline__ void write_jobs() const {
    int weights = layout_.weights;
    for (int i = 0; i < jobs_; ++i) {
      Job job{};
      const int l = job.layer = layout_.layer_of(first_octet() + i);
      const UnitRule& rule = p_.rules[l];
      job.units = units(l);
      job.first = (first_octet() + i - layout_.first_octet[l]) * octet;
      job.kind = static_cast<int>(rule.activation) | (rule.dynamics == Dynamics::energy ? Job::energy : 0) |
                 (is_output(l) ? Job::output : 0) | (turn_of(l) == 1 ? Job::second_turn : 0);
      job.to = layout_.states[l] + job.first / octet * octet_bytes(Samples, bytes);
      job.own = layout_.own + i * layout_.groups * own_numbers * 32 * bytes;
      job.readers = layout_.readers[l];
      job.weights = weights;
      if (l > 0) {
        job.below = layout_.states[l - 1];
        job.from_below = sources_of(units(l - 1));
      }
      if (!is_output(l)) {
        job.above = layout_.states[l + 1];
        job.from_above = sources_of(units(l + 1));
      }
      weights += (padded(job.from_below) + padded(job.from_above)) * octet * bytes;
      const auto* words = reinterpret_cast<const Words*>(&job);
#pragma unroll
      for (int k = 0; k < job_words; ++k) memory_.put(layout_.jobs + (job_words * i + k) * 16, words[k]);
    }
  }
  __device__ __forceinline__ Job job_of(int i) const {
    Job job;
    auto* words = reinterpret_cast<Words*>(&job);
#pragma unroll
    for (int k = 0; k < job_words; ++k) words[k] = memory_.get<Words>(layout_.jobs + (job_words * i + k) * 16);
    return job;
  }

  // Finds out what this warp waits for, and what comes to this block.
  __device__ __forceinline__ void read_roles() {
    int even = most_warps(bytes), odd = even, output = even;  // the first warp that has units of such a layer
    for (int i = 0; i < jobs_; ++i) {
      const int layer = layout_.layer_of(first_octet() + i);
      const int warp = i % layout_.warps, turn = turn_of(layer);
      (turn == 0 ? even : odd) = min(turn == 0 ? even : odd, warp);
      if (is_output(layer)) output = min(output, warp);
      if (warp != warp_of_thread()) continue;
      roles_ |= works(turn) | (is_output(layer) ? works_on_output : 0);
    }
    const int warp = warp_of_thread();
    roles_ |= (even == warp ? is_first(0) : 0) | (odd == warp ? is_first(1) : 0);
    roles_ |= output == warp ? is_first_of_output : 0;
    unsigned in_even = 0, in_odd = 0;  // half-steps
    for (int l = 0; l < p_.layers; ++l) {
      if (!(layout_.readers[l] >> team_.rank() & 1)) continue;
      if (!p_.asynchronous || turn_of(l) == 0) in_even += bytes_of(l);
      if (!p_.asynchronous || turn_of(l) == 1) in_odd += bytes_of(l);
    }
    team_.open(Channel::states, in_even, in_odd);
    const unsigned outputs = joint_ && layout_.output_readers >> team_.rank() & 1 ? bytes_of(p_.layers - 1) : 0;
    team_.open(Channel::outputs, outputs, outputs);
  }
  // Returns the bytes that a layer's states of a group have on their way.
  __device__ __forceinline__ unsigned bytes_of(int layer) const { return (units(layer) + 3) / 4 * 4 * Samples * bytes; }

  // These bits say what this warp does: it has units that move in a turn; it is the first one; the same of outputs.
  __device__ __forceinline__ static unsigned works(int turn) { return 1u << turn; }
  __device__ __forceinline__ static unsigned is_first(int turn) { return 4u << turn; }
  static constexpr unsigned works_on_output = 16, is_first_of_output = 32;

  template <class Body>
  __device__ __forceinline__ void for_each_own(const Body& body) const {
    for (int i = warp_of_thread(); i < jobs_; i += layout_.warps) {
      const Job job = job_of(i);
      for (int g = 0; g < layout_.groups; ++g) body(job, g);
    }
  }

  __device__ __forceinline__ int own(const Job& job, int g, Own number) const {
    return job.own + ((g * own_numbers + static_cast<int>(number)) * 32 + lane_) * bytes;
  }

  // ---- what happens once ----

  __device__ __forceinline__ void load_weights(const Job& job) const {
    const int l = job.layer, n = units(l);
    int to = job.weights;
    if (l > 0) {
      const T* from = p_.weights[l];
      const int below = units(l - 1);
      load_side(job, to, job.from_below,
                [&](int unit, int k) { return k < below ? from[int64_t(unit) * below + k] : T(0); });
    }
    if (!is_output(l)) {
      const T* from = p_.free_feedback ? p_.feedback[l] : p_.weights[l + 1];
      const int above = units(l + 1);
      load_side(job, to, job.from_above,
                [&](int unit, int k) { return k < above ? from[int64_t(k) * n + unit] : T(0); });
    }
  }
  template <class From>
  __device__ __forceinline__ void load_side(const Job& job, int& to, const Sources& sources, const From& from) const {
    const auto weight = [&](int slot, int k) {
      const int unit = job.first + (slot ^ turn_);
      return unit < units(job.layer) ? from(unit, k) : T(0);
    };
#pragma unroll 1
    for (int c = 0; c < sources.chunks; ++c, to += chunk_bytes(bytes))
#pragma unroll 2
      for (int j = 0; j < octet; ++j) {
        Four<T> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.v[i] = weight(j, c * chunk_sources + 4 * lane_ + i);
        memory_.put(to + (j * 32 + lane_) * 4 * bytes, four);
      }
#pragma unroll 1
    for (int c = 0; c < sources.tails; ++c, to += tail_bytes(bytes))
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        Four<T> four;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          four.v[i] = weight(4 * half + i, sources.chunks * chunk_sources + c * tail_sources + lane_);
        memory_.put(to + (half * 32 + lane_) * 4 * bytes, four);
      }
  }

  // Notes what drives the units whatever the states, and what pulls at them.
  __device__ __forceinline__ void begin(const Job& job, int g) {
    const int l = job.layer, unit = min(unit_of(job), units(l) - 1), sample = min(sample_of(g), p_.batch - 1);
    const T bias = p_.biases[l] ? p_.biases[l][unit] : T(0);
    memory_.put(own(job, g, Own::constant), l == 0 ? bias + input_drive(job, g) : bias);
    if (!is_output(l) || !p_.target) return;
    const T target = p_.target[int64_t(sample) * units(l) + unit];
    sanity.look(target);
    memory_.put(own(job, g, Own::target), target);
  }
  // Returns x W[0]^T of the lane. Units and samples past the last do what the last does.
  __device__ __forceinline__ T input_drive(const Job& job, int g) {
    const int inputs = p_.widths[0];
    int x[Samples], w[octet];  // where rows begin; plans refuse more than an int numbers
#pragma unroll
    for (int s = 0; s < Samples; ++s) x[s] = min(first_sample_ + g * Samples + s, p_.batch - 1) * inputs;
#pragma unroll
    for (int j = 0; j < octet; ++j) w[j] = min(job.first + (j ^ turn_), units(0) - 1) * inputs;
    T sum[octet][Samples] = {};
#pragma unroll 1
    for (int k = lane_; k < inputs; k += 32) {
      T weight[octet], input[Samples];
#pragma unroll
      for (int j = 0; j < octet; ++j) weight[j] = p_.weights[0][w[j] + k];
#pragma unroll
      for (int s = 0; s < Samples; ++s) input[s] = p_.x[x[s] + k];
#pragma unroll
      for (int s = 0; s < Samples; ++s) {
        sanity.look(input[s]);
        input[s] = shown_by(p_.input_activation, p_.rules[0].dynamics, input[s]);
      }
#pragma unroll
      for (int j = 0; j < octet; ++j)
#pragma unroll
        for (int s = 0; s < Samples; ++s) sum[j][s] += weight[j] * input[s];
    }
    return added_up<Samples>(sum);
  }

  // Sets the states of a phase that does not go on from where the last one ended.
  __device__ __forceinline__ void start(const Job& job, int g, bool is_first_phase) const {
    T state = 0;
    if (!is_first_phase) {
      state = memory_.get<T>(own(job, g, Own::free_state));
    } else if (p_.initial[job.layer] && is_there(job, g)) {
      state = p_.initial[job.layer][int64_t(sample_of(g)) * units(job.layer) + unit_of(job)];
    }
    memory_.put(own(job, g, Own::state), state);
  }
  __device__ __forceinline__ void store(const Job& job, int g, T* const* to, bool keeps) const {
    const T state = memory_.get<T>(own(job, g, Own::state));
    if (keeps) memory_.put(own(job, g, Own::free_state), state);
    if (leads_ && is_there(job, g)) to[job.layer][int64_t(sample_of(g)) * units(job.layer) + unit_of(job)] = state;
  }

  // ---- a step ----

  __device__ __forceinline__ void wait(int turn, int g AND_CALLED_FROM) const {
    team_.wait(Channel::states, g, half_steps_, roles_ & works(turn), roles_ & is_first(turn) AND_CALLER);
    if (joint_ && turn == turn_of(p_.layers - 1))
      team_.wait(Channel::outputs, g, steps_, roles_ & works_on_output, roles_ & is_first_of_output AND_CALLER);
  }

  // Every layer moves once; or, `Shows`, only shows its state.
  template <bool Shows>
  __device__ __forceinline__ void step(T beta) {
    const int to = steps_ & 1;
    for (int turn = 0; turn < 1 + p_.asynchronous; ++turn, ++half_steps_)
      for (int g = 0; g < layout_.groups; ++g) {
        wait(turn, g);
        const int buffers = layout_.buffers + 2 * g * layout_.buffer;
        const int from = buffers + (turn == 0 ? 1 - to : to) * layout_.buffer;  // what neighbours show last
        for (int i = warp_of_thread(); i < jobs_; i += layout_.warps) {
          const Job job = job_of(i);
          if (job.is(Job::second_turn) != (turn == 1)) continue;
          T state = memory_.get<T>(own(job, g, Own::state));
          if constexpr (!Shows) {
            state = moved(job, g, from, buffers + (1 - to) * layout_.buffer, state, beta);
            memory_.put(own(job, g, Own::state), state);
          }
          show(job, g, buffers + to * layout_.buffer, state);
        }
      }
    ++steps_;
  }

  // Returns the state after a step. `before` is the buffer of the last step.
  __device__ __forceinline__ T moved(const Job& job, int g, int from, int before, T state, T beta) {
    T sum[octet][Samples] = {};
    int weights = job.weights;
    multiply<Samples>(memory_, from + job.below, weights, job.from_below, sum);
    multiply<Samples>(memory_, from + job.above, weights, job.from_above, sum);
    const T drive = added_up<Samples>(sum) + memory_.get<T>(own(job, g, Own::constant));
    const T pull = beta != 0 && job.is(Job::output) ? beta * error(job, g, before, state) : T(0);
    const T next = next_of(job, drive, state, pull_at(p_.nudge.at, pull));
    if (is_there(job, g)) sanity.look(size_of(drive, next));
    return next;
  }
  __device__ __forceinline__ T next_of(const Job& job, T drive, T state, const Pull<T>& pull) const {
    T next = 0;
    with_activation_of(job, [&]<Activation A>() {
      if (!job.is(Job::energy)) {
        next = next_state<A, Dynamics::prototypical>(drive, state, pull, false, false, dt_);
      } else {
        const UnitRule& rule = p_.rules[job.layer];
        next = next_state<A, Dynamics::energy>(drive, state, pull, rule.gain, rule.clip, dt_);
      }
    });
    return next;
  }
  // The sigmoid comes first, as most networks have it and every comparison takes its time.
  template <class Body>
  __device__ __forceinline__ static void with_activation_of(const Job& job, const Body& body) {
    if (job.activation() == Activation::sigmoid)
      body.template operator()<Activation::sigmoid>();
    else
      with_activation(job.activation(), body);
  }
  __device__ __forceinline__ T error(const Job& job, int g, int before, T state) const {
    const T target = memory_.get<T>(own(job, g, Own::target));
    if (!joint_) return unit_error(p_.nudge.loss, target, state);
    const int logits = before + layout_.states[p_.layers] + row * sample_;
    return sample_error_of(units(job.layer), state, target, [&](int64_t c) {
      const int unit = static_cast<int>(c);
      return memory_.get<T>(logits + unit / octet * octet_bytes(Samples, bytes) + unit % octet * bytes);
    });
  }

  // Hands a lane's state to who reads it. Units past the last show zero.
  __device__ __forceinline__ void show(const Job& job, int g, int buffer, T state) const {
    const bool exists = unit_of(job) < job.units;
    T shown = state;
    if (job.is(Job::energy)) with_activation_of(job, [&]<Activation A>() { shown = rho<A>(state); });
    const Four<T> four = with_neighbours(exists ? shown : T(0));
    // What comes tells other blocks that no lane reads the step's states any more.
    if constexpr (!Team::is_alone) __syncwarp();
    const int second = lane_ & 16 ? 4 : 0, at = row * sample_ + second * bytes;
    const bool sends = leads_ && job.first + second < job.units;
    team_.push(Channel::states, g, half_steps_, sends ? job.readers : 0, buffer + job.to + at, four);
    if (!joint_ || !job.is(Job::output)) return;
    const Four<T> logits = with_neighbours(exists ? state : T(0));
    const int octets = layout_.states[p_.layers] + job.first / octet * octet_bytes(Samples, bytes);
    team_.push(Channel::outputs, g, steps_, sends ? layout_.output_readers : 0, buffer + octets + at, logits);
  }

  const Problem<T>& p_;
  const Layout& layout_;
  const Memory memory_;
  Team team_;
  const int lane_;
  const int turn_, sample_;  // of an octet's units and of a group's samples, those that this lane ends up with
  const bool leads_;         // among the lanes that end up with the same
  const int jobs_;
  const bool joint_;
  const T dt_;
  unsigned roles_ = 0;
  int first_sample_ = 0, half_steps_ = 0, steps_ = 0;
};

}  // namespace ceprop::cuda::teams
