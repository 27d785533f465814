// A team takes its samples through all steps, with the weights between layers in shared memory.
#pragma once

#include "../../model/unit_math.h"
#include "continual_update.cuh"
#include "settling.cuh"

namespace ceprop::cuda::teams {

// `Moves`: weights move at every nudged step.
template <class T, int Samples, class Team, bool Moves>
class Relaxation {
 public:
  using Where = Jobs<T, Samples, Team, Moves>;

  __device__ __forceinline__ Relaxation(const Problem<T>& problem, const Layout& layout)
      : sanity(problem, problem.broken),
        jobs(problem, layout),
        p_(problem),
        copies_alone_(may_copy_alone && layout.copies_alone(jobs.warps)) {}

  Sanity<T> sanity;
  Where jobs;

  __device__ __forceinline__ void load() { jobs.load(); }

  // Runs phases `Begin` to `end` of one round, with the samples from `first_sample` on. All but the first phase begin
  // with the states that the free phase has left; if others ran that, with the input's drive that they have left.
  template <int Begin>
  __device__ __forceinline__ void run(int first_sample, int end) {
    constexpr int begin = Begin;
    jobs.first_sample = first_sample;
    jobs.for_each_own([&](const Job& job, int g) { prepare<Begin == 0>(job, g); });
    for (int index = begin; index < end; ++index) {
      const Stage& stage = p_.stages.stage[index];
      const bool starts = index == begin || stage.from != Kept::last;
      if (starts) jobs.for_each_own([&](const Job& job, int g) { start(job, g, index == 0, index == begin); });
      const T beta = static_cast<T>(stage.beta);
      const bool learns = Moves && stage.learns;
      gate_ = learns ? p_.gate : Gate::none;
      if constexpr (Moves)
        if (learns) ContinualUpdate<Where>::begin(jobs, stage.divisor);
      // Before the steps units may have to show where they start; after them weights may have to move once more.
      int count = starts ? -1 : 0;
      for (;; ++count) {
        const bool ends = count == stage.steps || (count > 0 && may_stop(count));
        if (ends && !learns) break;
        stays_ = true;
        step(beta, count < 0, learns && count > 0, ends);
        if (ends) break;
      }
      if (blockIdx.x == 0 && threadIdx.x == 0) p_.steps_used[index] = count;
      if (stage.stores < 0) continue;
      T* const* to = stage.stores == 0 ? p_.free_states : p_.nudged_states[stage.stores - 1];
      jobs.for_each_own([&](const Job& job, int g) { store(job, g, to, stage.keeps == Kept::free); });
    }
  }

  // Comes after the last round. Then nothing is on its way to this block any more.
  __device__ __forceinline__ void end() {
    if constexpr (Team::has_mail) {
      wait_for_mail(0);
      jobs.team.end();
    }
  }

  __device__ __forceinline__ void store_weights() const { ContinualUpdate<Where>::store(jobs); }
  // Stores a number of each unit of layer 0, for all blocks.
  __device__ __forceinline__ void store_for_all(Own number) const {
    jobs.for_each_own([&](const Job& job, int g) {
      if (jobs.leads() && job.layer == 0 && jobs.is_there(job, g))
        p_.sums[int64_t(jobs.sample_of(g)) * job.units + jobs.unit_of(job)] =
            jobs.memory.template get<T>(jobs.own(job, g, number));
    });
  }

 private:
  static constexpr bool may_copy_alone = Team::is_far && !Moves;
  static constexpr int bytes = sizeof(T), stride = octet_bytes(Samples, bytes), ring = ring_of(Moves);

  // ---- what happens once ----

  // Notes what drives the units whatever the states, and what pulls at them.
  template <bool ComputesDrive>
  __device__ __forceinline__ void prepare(const Job& job, int g) {
    const int l = job.layer, unit = min(jobs.unit_of(job), job.units - 1),
              sample = min(jobs.sample_of(g), p_.batch - 1);
    T constant = p_.biases[l] ? p_.biases[l][unit] : T(0);
    if (l == 0) {
      if constexpr (ComputesDrive)
        constant += input_drive(job, g);
      else
        constant = __ldcg(p_.sums + int64_t(sample) * job.units + unit);
    }
    jobs.memory.put(jobs.own(job, g, Own::constant), constant);
    if constexpr (Moves) jobs.memory.put(jobs.own(job, g, Own::sum), T(0));
    if (!jobs.is_output(l) || !(p_.target || p_.labels)) return;
    const T target = p_.target ? p_.target[int64_t(sample) * job.units + unit] : T(p_.labels[sample] == unit);
    sanity.look(target);
    jobs.memory.put(jobs.own(job, g, Own::target), target);
  }
  // Returns x W[0]^T of the lane. Units and samples past the last do what the last does.
  __device__ __forceinline__ T input_drive(const Job& job, int g) {
    const int inputs = p_.widths[0];
    int x[Samples], w[octet];  // where rows begin; plans refuse more than an int numbers
#pragma unroll
    for (int s = 0; s < Samples; ++s) x[s] = min(jobs.first_sample + g * Samples + s, p_.batch - 1) * inputs;
#pragma unroll
    for (int j = 0; j < octet; ++j) w[j] = min(job.first + (j ^ jobs.unit_turn()), job.units - 1) * inputs;
    T sum[octet][Samples] = {};
    // So many are on their way, as they take hundreds of clocks to come, or as there are registers for.
    constexpr int at_once = sizeof(T) == 4 ? 4 : 2;
#pragma unroll 1
    for (int first = jobs.lane; first < inputs; first += 32 * at_once) {
      T weight[at_once][octet], input[at_once][Samples];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const int k = first + 32 * i;
        const bool exists = k < inputs;
#pragma unroll
        for (int j = 0; j < octet; ++j) weight[i][j] = exists ? p_.weights[0][w[j] + k] : T(0);
#pragma unroll
        for (int s = 0; s < Samples; ++s) input[i][s] = exists ? p_.x[x[s] + k] : T(0);
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
#pragma unroll
        for (int s = 0; s < Samples; ++s) {
          sanity.look(input[i][s]);
          input[i][s] = shown_by(p_.input_activation, p_.rules[0].dynamics, input[i][s]);
        }
#pragma unroll
        for (int j = 0; j < octet; ++j)
#pragma unroll
          for (int s = 0; s < Samples; ++s) sum[j][s] += weight[i][j] * input[i][s];
      }
    }
    return added_up<Samples>(jobs.lane, sum);
  }

  // Sets the states of a phase that does not go on from where the last one of this run ended.
  __device__ __forceinline__ void start(const Job& job, int g, bool is_free_phase, bool is_first) const {
    const int l = job.layer, unit = min(jobs.unit_of(job), job.units - 1),
              sample = min(jobs.sample_of(g), p_.batch - 1);
    const int64_t at = int64_t(sample) * job.units + unit;
    T state = 0;
    if (!is_first)
      state = jobs.memory.template get<T>(jobs.own(job, g, Own::free_state));
    else if (!is_free_phase)
      state = __ldcg(p_.free_states[l] + at);
    else if (p_.initial[l] && jobs.is_there(job, g))
      state = p_.initial[l][at];
    jobs.memory.put(jobs.own(job, g, Own::state), state);
    if (is_first && !is_free_phase) jobs.memory.put(jobs.own(job, g, Own::free_state), state);
  }
  __device__ __forceinline__ void store(const Job& job, int g, T* const* to, bool keeps) const {
    const T state = jobs.memory.template get<T>(jobs.own(job, g, Own::state));
    if (keeps) jobs.memory.put(jobs.own(job, g, Own::free_state), state);
    if (jobs.leads() && jobs.is_there(job, g))
      to[job.layer][int64_t(jobs.sample_of(g)) * job.units + jobs.unit_of(job)] = state;
  }

  // ---- a step ----

  // Every layer moves once, or only `shows` its state. If `updates`, the weights move first, by the last step; if that
  // `ends` a phase, nothing else does.
  __device__ __forceinline__ void step(T beta, bool shows, [[maybe_unused]] bool updates, [[maybe_unused]] bool ends) {
    const Layout& layout = jobs.layout;
    if constexpr (Moves) jobs.work_out_anew();
    for (int turn = 0; turn < 1 + p_.asynchronous; ++turn, ++half_steps_) {
      if constexpr (!Team::has_mail) jobs.team.meet();
      if constexpr (Team::has_mail && Moves) meet_by_mail(turn);
      bool has_copies = shows || copies_alone_;
      if constexpr (Moves) {
        if (updates && turn == 0) has_copies = move_weights();
        if (ends) return;
      }
      // In as many parts as the states that are far come in.
      for (int begin = 0, end = 0, first = jobs.first_group; begin < layout.groups; begin = end) {
        end = Team::is_far && !copies_alone_ ? min(begin + layout.copied_groups, layout.groups) : layout.groups;
        if constexpr (Team::is_far)
          if (!has_copies) copy_states(begin, end, turn);
        [[maybe_unused]] bool waits = true;  // for the mail of these groups, once
        for (int i = jobs.first_job; i < jobs.count; i += jobs.warps.job_warps) {
          const Job job = jobs.job_of(i);
          if (job.is(Job::second_turn) != (turn == 1)) continue;
          for (int g = first; g < end; g += jobs.warps.group_warps) {
            if constexpr (Team::has_mail && !Moves)
              if (waits) jobs.wait(turn, g, half_steps_, steps_);
            if constexpr (may_copy_alone)
              if (copies_alone_ && !shows) copy_own_states(g, turn);
            const int slot = copies_alone_ ? jobs.first_group : g - begin;
            const int from = Team::is_far ? jobs.copy_of(slot, step_that_is_read(turn))
                                          : jobs.buffer_of(g, turn == 0 ? last_ : next_);
            take(job, g, from, beta, shows);
          }
          waits = false;
        }
        while (first < end) first += jobs.warps.group_warps;
      }
    }
    ++steps_;
    last_ = next_;
    next_ = next_ + 1 == ring ? 0 : next_ + 1;
  }
  // Waits for all that this warp's units of a turn read.
  __device__ __forceinline__ void wait_for_mail(int turn) const {
    if (met_ == half_steps_) return;
    for (int g = jobs.first_group; g < jobs.layout.groups; g += jobs.warps.group_warps)
      jobs.wait(turn, g, half_steps_, steps_);
  }
  // Afterwards the block has all that its units read, and no warp moves a unit of the last turn.
  __device__ __forceinline__ void meet_by_mail(int turn) {
    wait_for_mail(turn);
    met_ = half_steps_;
    __syncthreads();
  }
  // The first turn reads what the last step has left, the second what the first has.
  __device__ __forceinline__ int step_that_is_read(int turn) const { return steps_ - 1 + turn; }
  __device__ __forceinline__ void copy_states(int begin, int end, int turn) const {
    if (begin > 0) __syncthreads();  // nobody reads the copies any more
    jobs.copy(begin, end, 0, turn == 0 ? last_ : next_, step_that_is_read(turn), turn == 1, warp_of_thread(),
              static_cast<int>(blockDim.x) / 32);
    jobs.team.wait_for_brought();
  }
  // By this warp alone, of a group that no other warp works for.
  __device__ __forceinline__ void copy_own_states(int g, int turn) const {
    __syncwarp();  // no lane reads the last group's any more
    jobs.copy(g, g + 1, jobs.first_group, turn == 0 ? last_ : next_, step_that_is_read(turn), turn == 1, 0, 1);
    jobs.team.wait_for_own();
  }
  // Returns whether the copies have the states of the last step, of all groups.
  __device__ __forceinline__ bool move_weights() const {
    ContinualUpdate<Where>::move(jobs, last_ == 0 ? ring - 1 : last_ - 1, last_, steps_ - 1);
    __syncthreads();
    return jobs.layout.copied_groups == jobs.layout.groups;
  }
  __device__ __forceinline__ bool may_stop([[maybe_unused]] int count) const {
    if constexpr (!Team::has_mail) return teams::may_stop(p_, jobs.team, stays_, count, p_.settled);
    return false;
  }

  // Moves the lane's unit, if it does not only `show` its state: `from` has what neighbours show.
  __device__ __forceinline__ void take(const Job& job, int g, int from, T beta, bool shows) {
    const int place = jobs.own(job, g, Own::state), to = hidden(jobs.buffer_of(g, next_));
    const bool exists = jobs.is_there(job, g);
    T state = jobs.memory.template get<T>(place);
    if (!shows) {
      state = next_state_of(job, g, from, beta, state, exists);
      jobs.memory.put(place, state);
    }
    [[maybe_unused]] const T shown = show(job, g, to, state, exists);
    if constexpr (Moves) ContinualUpdate<Where>::note_shown(jobs, job, g, steps_, shown, !shows && !notes_state(job));
  }
  __device__ __forceinline__ T next_state_of(const Job& job, int g, int from, T beta, T state, bool exists) {
    const int below = job.from_below.chunks, above = job.from_above.chunks;
    const int weights_above = job.weights + padded(job.from_below) * octet * bytes;
    T from_below = jobs.memory.template get<T>(jobs.own(job, g, Own::constant)), from_above = 0;
    if (below + above > 0) {
      T sum[octet][Samples] = {};
      multiply<Samples>(jobs.memory, jobs.lane, from + job.below, job.weights, below, sum);
      if (has_gate(Gate::connection)) {
        from_below += added_up<Samples>(jobs.lane, sum);
#pragma unroll
        for (int j = 0; j < octet; ++j)
#pragma unroll
          for (int s = 0; s < Samples; ++s) sum[j][s] = 0;
      }
      multiply<Samples>(jobs.memory, jobs.lane, from + job.above, weights_above, above, sum);
      if constexpr (Moves) jobs.work_out_anew();
      from_above = added_up<Samples>(jobs.lane, sum);
    }
    if (job.from_below.pairs + job.from_above.pairs > 0) {
      const auto own_product = [&](int states, int weights, const Sources& sources) {
        return multiply_own<Samples, T>(jobs.memory, jobs.lane, from + states + sources.chunks * chunk_octets * stride,
                                        weights + sources.chunks * chunk_bytes(bytes), sources.pairs);
      };
      from_below += own_product(job.below, job.weights, job.from_below);
      from_above += own_product(job.above, weights_above, job.from_above);
    }
    const T drive = from_above + from_below;
    T next = 0, inside = 0;
    const bool is_nudged = beta != 0 && job.is(Job::output);
    if (job.is(Job::usual) && !is_nudged) {
      next = next_state<Activation::sigmoid, Dynamics::prototypical>(drive, state, Pull<T>{}, false, false, T(0));
    } else {
      const Job any = jobs.worked_out_anew(job);
      const Pull<T> pull = pull_at(p_.nudge.at, is_nudged ? beta * error(any, g, state) : T(0));
      next = next_of(any, drive, state, pull);
      inside = pull.inside;
    }
    if constexpr (Moves)
      if (notes_state(job)) note(job, g, next - state, from_below, from_above, drive + inside);
    if (exists) sanity.look(size_of(drive, next));
    if constexpr (!Team::has_mail)
      if (p_.limit >= 0 && exists) stays_ = stays_ && stays(state, next, p_.limit);
    return next;
  }
  __device__ __forceinline__ bool has_gate(Gate gate) const { return Moves && gate_ == gate; }
  // Notes a move through the gate, if there is one.
  __device__ __forceinline__ void note(const Job& job, int g, T moved, T from_below, T from_above, T drive) const {
    if (has_gate(Gate::none)) return ContinualUpdate<Where>::note(jobs, job, g, moved);
    const bool by_unit = has_gate(Gate::unit);
    const Job gated = jobs.worked_out_anew(job);
    with_activation(gated.activation(), [&]<Activation A>() {
      ContinualUpdate<Where>::note(jobs, gated, g, rho_prime<A>(by_unit ? drive : from_below) * moved);
      if (!by_unit)
        ContinualUpdate<Where>::note(jobs, gated, g, rho_prime<A>(from_above) * moved, Own::moved_for_above);
    });
  }
  // Whether what counts as a unit's move is that of its state.
  __device__ __forceinline__ bool notes_state(const Job& job) const {
    return moves_states(p_.learns) || !job.is(Job::energy);
  }
  __device__ __forceinline__ T next_of(const Job& job, T drive, T state, const Pull<T>& pull) const {
    T next = 0;
    with_activation(job.activation(), [&]<Activation A>() {
      if (!job.is(Job::energy)) {
        next = next_state<A, Dynamics::prototypical>(drive, state, pull, false, false, T(0));
      } else {
        const UnitRule& rule = p_.rules[job.layer];
        next = next_state<A, Dynamics::energy>(drive, state, pull, rule.gain, rule.clip, static_cast<T>(rule.dt));
      }
    });
    return next;
  }
  __device__ __forceinline__ T error(const Job& job, int g, T state) const {
    const T target = jobs.memory.template get<T>(jobs.own(job, g, Own::target));
    if (!jobs.joint()) return unit_error(p_.nudge.loss, target, state);
    const int logits = jobs.buffer_of(g, last_) + jobs.layout.states[p_.layers] + Where::row * jobs.sample();
    return sample_error_of(job.units, state, target, [&](int64_t c) {
      const int unit = static_cast<int>(c);
      return jobs.team.template shown<T>(logits + unit / octet * octet_bytes(Samples, bytes) + unit % octet * bytes);
    });
  }

  // Hands a lane's state to who reads it, and returns what it shows. Units and samples past the last show zero.
  __device__ __forceinline__ T show(const Job& job, int g, int buffer, T state, bool exists) const {
    T shown = exists ? state : T(0);
    if (job.is(Job::energy))
      with_activation(job.activation(), [&]<Activation A>() { shown = exists ? rho<A>(state) : T(0); });
    const Four<T> four = with_neighbours(jobs.lane, shown);
    // What comes tells other blocks that no lane reads the step's states any more.
    if constexpr (Team::has_mail) __syncwarp();
    const int second = jobs.lane & 16 ? 4 : 0, at = Where::row * jobs.sample() + second * bytes;
    const bool sends = jobs.leads() && job.first + second < job.units;
    jobs.team.push(Channel::states, g, half_steps_, jobs.lane, sends, job.reader_count, job.readers,
                   buffer + job.to + at, four);
    if (job.is(Job::usual) || !job.is(Job::output) || !jobs.joint()) return shown;
    const Four<T> logits = with_neighbours(jobs.lane, exists ? state : T(0));
    const int octets = jobs.layout.states[p_.layers] + job.first / octet * octet_bytes(Samples, bytes);
    const Readers& readers = jobs.layout.output_readers;
    jobs.team.push(Channel::outputs, g, steps_, jobs.lane, sends, readers.count, readers.list, buffer + octets + at,
                   logits);
    return shown;
  }

  const Problem<T>& p_;
  const bool copies_alone_;  // each warp the states of its own groups, while others work: the block need not meet
  int half_steps_ = 0, steps_ = 0;
  int met_ = -1;  // the half-step for which mail has been waited for, where a block meets; mail is waited for once
  int last_ = ring - 1, next_ = 0;  // buffers of a group: of the last step, and of this one
  Gate gate_ = Gate::none;          // of this phase
  bool stays_ = true;               // no unit of this lane has moved by more than the tolerance
};

}  // namespace ceprop::cuda::teams
