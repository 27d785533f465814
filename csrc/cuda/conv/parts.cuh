// What the parts of a step, and of a contrast, consist of: jobs, their tiles, and what a tile multiplies.
#pragma once

#include "products.cuh"
#include "tables.cuh"

namespace ceprop::cuda::conv {

// What all blocks do before the next barrier.
enum class Kind {
  lift,      // states in buffer `from`: their drive of the next layer, and the next layer's states unpooled
  move,      // the states, from buffer `from` to buffer `to`, nudged by beta if it is not 0
  logits,    // of a readout, into `error`
  unpool,    // what a contrast compares, at the places picked
  contrast,  // sums for every slice
};

template <class T>
struct Part {
  Kind kind;
  int half;
  bool lifts_input;  // its weights have moved, or this is the first
  int from, to;
  T beta;
  T* error;
  // Contrasts are those of the connections from `first` to before `last`, between these buffers.
  int first, last;
  Between between;
};

// A part of one connection c, or of layer c that moves. `copy`: 0 by the weights, 1 by the feedback.
struct Job {
  int c, copy;
  bool drives, unpools, multiplies;
  int which;  // unpool: 0 the earlier state, 1 the later
};

template <class T>
class Parts {
 public:
  __device__ explicit Parts(const Problem<T>& problem) : p_(problem) {}

  __device__ bool is_vector_field() const { return p_.learns == Learns::apart; }
  // Whether feedback has a contrast of its own: shared ones only differ where they pick different maxima.
  __device__ bool has_own_contrast(int c, int copy) const {
    if (copy == 0) return true;
    return c > 0 && c < p_.layers && p_.free_feedback && (is_vector_field() || p_.links[c].pool == Pool::max);
  }
  __device__ const T* shown(int buffer, int layer) const {
    return (moves_states(p_.learns) ? p_.workspace.state : p_.workspace.seen)[buffer][layer];
  }

  __device__ int jobs_of(Kind kind) const {
    switch (kind) {
      case Kind::lift:
        return 2 * p_.layers;
      case Kind::move:
        return p_.layers;
      case Kind::logits:
        return 1;
      case Kind::unpool:
        return 4 * p_.layers;
      default:
        return 2 * (p_.layers + 1);
    }
  }

  __device__ Job job_of(const Part<T>& part, int number) const {
    Job job{};
    if (part.kind == Kind::lift) {
      job.c = number / 2;
      job.copy = number % 2;
      const bool is_max = p_.links[job.c].pool == Pool::max;
      const bool picks_apart = p_.free_feedback && is_max;  // by the feedback
      job.drives = job.copy == 0 && (job.c > 0 ? moves(part, job.c) : part.lifts_input && part.half == 0);
      job.unpools =
          job.c > 0 && p_.links[job.c].pool != Pool::none && moves(part, job.c - 1) && picks_apart == (job.copy == 1);
      job.multiplies = job.drives || (job.unpools && is_max);
    } else if (part.kind == Kind::move) {
      job.c = number;
    } else if (part.kind == Kind::logits) {
      job.c = p_.layers;
      job.drives = job.multiplies = true;
    } else {
      job.c = number / (part.kind == Kind::unpool ? 4 : 2);
      job.copy = number % 2;
      job.which = part.kind == Kind::unpool ? number / 2 % 2 : 0;
      job.unpools = p_.links[job.c].pool != Pool::none && has_own_contrast(job.c, job.copy) &&
                    !(has_one_pick(job) && job.which == 1);
      job.multiplies = job.unpools && p_.links[job.c].pool == Pool::max;
    }
    return job;
  }

  // Whether a contrast's two states are unpooled to the same places: those of the input, or of the fixed state.
  __device__ bool has_one_pick(const Job& job) const { return job.c == 0 || (is_vector_field() && job.copy == 0); }

  __device__ static int divided(int64_t count, int by) { return static_cast<int>((count + by - 1) / by); }
  __device__ int units_of(const Part<T>& part, const Job& job) const {
    if (part.kind != Kind::move) return p_.links[job.c].channels;
    const Link& link = p_.links[job.c];
    return link.channels * pixels_of_unit(job.c);
  }
  // So many pixels of layer l are units of their own to the connection above it.
  __device__ int pixels_of_unit(int l) const {
    return l + 1 < p_.layers + p_.readout ? view_pixels(p_.links[l + 1]) : 1;
  }
  __device__ int columns_of(const Part<T>& part, const Job& job) const {
    const Link& link = p_.links[job.c];
    if (part.kind == Kind::contrast) return link.depth;
    if (part.kind == Kind::move) return p_.batch * link.pixels / pixels_of_unit(job.c);
    return p_.batch * link.positions;
  }
  // A tile has room for so many columns, and takes so many: whole windows, where they are pooled.
  __device__ int pass_of(int columns) const {
    const int needed = (columns + 7) / 8 * 8;
    return needed < p_.layout.pass ? needed : p_.layout.pass;
  }
  __device__ int columns_at_once(const Part<T>& part, const Job& job) const {
    const int window = part.kind == Kind::move || part.kind == Kind::contrast ? 1 : p_.links[job.c].window;
    return pass_of(columns_of(part, job)) / window * window;
  }
  __device__ int tiles_of(const Part<T>& part, const Job& job) const {
    if (part.kind == Kind::move && !moves(part, job.c)) return 0;
    if (part.kind == Kind::contrast && (job.c < part.first || job.c >= part.last || !has_own_contrast(job.c, job.copy)))
      return 0;
    if ((part.kind == Kind::lift || part.kind == Kind::unpool) && !job.drives && !job.unpools) return 0;
    return divided(units_of(part, job), tile_units) * divided(columns_of(part, job), columns_at_once(part, job)) *
           (part.kind == Kind::contrast ? p_.links[job.c].slices : 1);
  }

  // What a contrast compares above connection c: the earlier state or the later.
  __device__ const T* above(const Part<T>& part, const Job& job, int which) const {
    const Between& between = part.between;
    if (is_vector_field() && job.copy == 1) return p_.workspace.seen[between.fixed][job.c];
    return shown(which == 0 ? between.earlier : between.later, job.c);
  }

  // Returns product number `term` of those that add up to a tile; there is none where begin is end.
  __device__ Operands<T> operands(const Part<T>& part, const Job& job, int term, int slice) const {
    const Workspace<T>& w = p_.workspace;
    Operands<T> of{};
    of.stride_y = of.stride_x = 1;
    const int c = part.kind == Kind::move ? job.c + 1 : job.c;
    if (c == p_.layers + p_.readout) return of;
    const Link& link = p_.links[c];
    if (part.kind == Kind::move) {
      if (term > 0 || (c == p_.layers && part.beta == 0)) return of;  // a readout pulls only while nudged
      of.left = weights(c, p_.free_feedback && c < p_.layers);
      of.left_stride = link.dense ? 1 : link.taps;
      of.end = link.channels * (link.dense ? 1 : link.taps);
      of.row_spots = w.taps_down[c];
      of.column_spots = w.cells[c];
      const int neighbours = part.half == 0 ? part.from : part.to;
      of.rows = c == p_.layers ? w.error : link.pool == Pool::none ? w.seen[neighbours][c] : w.unpooled[0][0][c];
      of.height = spread_height(link);
      of.width = spread_width(link);
      of.stride_y = link.stride_y;
      of.stride_x = link.stride_x;
      return of;
    }
    of.height = link.height_below;
    of.width = link.width_below;
    if (part.kind != Kind::contrast) {
      if (term > 0 || !job.multiplies) return of;
      of.left = weights(c, job.copy);
      of.left_stride = of.end = link.depth;
      of.row_spots = w.taps[c];
      of.column_spots = w.positions[c];
      of.rows = below(part, job);
      return of;
    }
    of.left_stride = p_.batch * link.positions;
    of.row_spots = w.positions[c];
    of.column_spots = w.taps[c];
    const int64_t all = int64_t(p_.batch) * link.positions;
    const int begin = static_cast<int>(all * slice / link.slices),
              end = static_cast<int>(all * (slice + 1) / link.slices);
    if (c == p_.layers) {  // a readout's, of one phase or two
      if (term == 1 && p_.stages.nudged == 1) return of;
      of.left = w.end_error[term];
      of.rows = w.state[term == 0 && p_.stages.nudged == 2 ? kept_plus : part.from][c - 1];
    } else if (has_one_pick(job)) {
      if (term == 1) return of;
      of.left = spread(part, job, link.pool == Pool::none);
      if (link.pool == Pool::none) of.less_left = spread(part, job, 0);
      of.rows = c == 0 ? w.x : w.seen[part.between.fixed][c - 1];
    } else if (term == 0) {
      of.left = spread(part, job, 1);
      of.less_left = spread(part, job, 0);
      if (of.left == of.less_left) return of;
      of.rows = shown(part.between.later, c - 1);
    } else {
      of.left = spread(part, job, 0);
      of.rows = shown(part.between.later, c - 1);
      of.less_rows = shown(part.between.earlier, c - 1);
    }
    of.begin = begin;
    of.end = end;
    return of;
  }

 private:
  __device__ bool moves(const Part<T>& part, int layer) const { return !p_.asynchronous || layer % 2 == part.half; }
  __device__ const T* weights(int c, int copy) const { return copy == 0 ? p_.weights[c] : p_.feedback[c - 1]; }

  // What connection c multiplies on its way up: the map below it.
  __device__ const T* below(const Part<T>& part, const Job& job) const {
    const Workspace<T>& w = p_.workspace;
    const int c = job.c, neighbours = part.half == 0 ? part.from : part.to;
    if (c == 0) return w.x;
    if (part.kind == Kind::lift) return w.seen[moves(part, c - 1) ? part.from : neighbours][c - 1];
    if (part.kind == Kind::logits) return w.state[part.from][c - 1];
    if (has_one_pick(job)) return w.seen[part.between.fixed][c - 1];
    return shown(job.which == 0 ? part.between.earlier : part.between.later, c - 1);
  }

  // A contrast's map above connection c at the places picked, of the earlier state or the later.
  __device__ const T* spread(const Part<T>& part, const Job& job, int which) const {
    if (p_.links[job.c].pool != Pool::none) return p_.workspace.unpooled[job.copy][which][job.c];
    return above(part, job, which);
  }

  const Problem<T>& p_;
};

}  // namespace ceprop::cuda::conv
