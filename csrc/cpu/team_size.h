// How many threads a kind of call gets, found out by trying: the cores may be busy with something else, and then a team
// whose workers wait for each other is slower than one worker alone. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace ceprop {

// Of one kind of call. Times are seconds on any clock.
class TeamSize {
 public:
  // Tries `most` first; then halves of it down to 1, where these are faster.
  explicit TeamSize(int most) {
    for (int threads = most; threads > 1; threads /= 2) sizes_.push_back({threads});
    sizes_.push_back({1});
  }

  // For the next call.
  int threads() const { return sizes_[trying_ < 0 ? best_ : trying_].threads; }
  // Whether fewer than the most are faster, and the next larger number was tried again since that was found.
  bool gave_up_threads() const { return is_confirmed_; }

  // That call took so long, and ended then; or so many that were one took so long each.
  void note(double seconds, double now, int64_t calls = 1) {
    if (sizes_.size() == 1) return;
    calls_ += calls;
    if (trying_ >= 0) return note_trial(seconds, now, calls);
    Size& best = sizes_[best_];
    if (best.seconds < 0 && calls_ <= calls_to_warm_up) return;  // the very first ones
    const double kept = best.seconds < 0 ? 0 : std::pow(0.9, calls);
    best.seconds = kept * best.seconds + (1 - kept) * seconds;
    slow_ = seconds > 1.3 * usual_ ? slow_ + calls : std::max<int64_t>(0, slow_ - 2 * calls);
    if (slow_ >= calls_before_trial) best.seconds = seconds;  // something has changed
    if (calls_ >= calls_before_trial && (now >= next_trial_ || slow_ >= calls_before_trial)) begin_trial();
  }

 private:
  struct Size {
    int threads;
    double seconds = -1;  // that a call takes; below 0: not known
  };
  static constexpr int64_t calls_before_trial = 10, calls_of_trial = 12, calls_to_warm_up = 4;
  static constexpr double calls_between = 50;  // times as long as a trial: slow ones must not add up

  void begin_trial() {
    const int last = static_cast<int>(sizes_.size()) - 1;
    direction_ = best_ == 0 ? 1 : best_ == last ? -1 : direction_;
    trying_ = best_ + direction_;
    calls_ = slow_ = measured_calls_ = 0;
    measured_ = spent_ = 0;
  }

  // The first calls of a trial find workers asleep and caches cold.
  void note_trial(double seconds, double now, int64_t calls) {
    const double of_all = seconds * static_cast<double>(calls);
    spent_ += of_all;
    if (calls_ > calls_to_warm_up) {
      measured_ += of_all;
      measured_calls_ += calls;
    }
    if (calls_ < calls_of_trial) return;
    Size& tried = sizes_[trying_];
    tried.seconds = measured_ / static_cast<double>(measured_calls_);
    // Fewer threads have to be much faster: a virtual machine may need a second of steady use to give its cores away.
    const bool is_better = tried.seconds < (direction_ > 0 ? 0.8 : 0.95) * sizes_[best_].seconds;
    is_confirmed_ = !is_better && best_ > 0 && (direction_ < 0 || is_confirmed_);
    if (is_better)
      best_ = trying_;
    else
      direction_ = -direction_;
    next_trial_ = is_better ? now : now + calls_between * spent_;
    usual_ = sizes_[best_].seconds;
    trying_ = -1;
    calls_ = 0;
  }

  std::vector<Size> sizes_;  // the largest first
  int best_ = 0, trying_ = -1, direction_ = 1;
  // Since the last trial began or ended; those that were slow lately; those that a trial goes by.
  int64_t calls_ = 0, slow_ = 0, measured_calls_ = 0;
  bool is_confirmed_ = false;
  double measured_ = 0, spent_ = 0, next_trial_ = 0, usual_ = 0;
};

// Those of all kinds of call, for any thread.
class TeamSizes {
 public:
  using Kind = std::vector<int64_t>;  // all that a call's time depends on; the first is the most threads

  int threads(const Kind& kind) {
    const std::lock_guard lock(mutex_);
    return of(kind).threads();
  }
  // Returns whether this kind now gets fewer threads than it was first given.
  bool note(const Kind& kind, int threads, double seconds, double now, int64_t calls) {
    const std::lock_guard lock(mutex_);
    TeamSize& size = of(kind);
    if (size.threads() == threads) size.note(seconds, now, calls);  // else another thread's call has come between
    return size.gave_up_threads();
  }

 private:
  TeamSize& of(const Kind& kind) {
    if (sizes_.size() > 4096) sizes_.clear();  // of a program whose calls never come again
    return sizes_.try_emplace(kind, static_cast<int>(kind[0])).first->second;
  }

  std::mutex mutex_;
  std::map<Kind, TeamSize> sizes_;
};

}  // namespace ceprop
