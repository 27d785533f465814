// Runs the example kernels under many seeds and prints what came of each, in columns:
//
//   example_test SEEDS        case, skipped barrier or "-", wrong results, reports, the first report
//   example_test shift WHERE  one write out of bounds, for a sanitizer to end the program
//
// What each build must find is in test_cuda_emulation.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "example_kernels.cuh"

namespace {

using namespace examples;
using cuda_emulation::DeviceArray;
using cuda_emulation::launch;
using cuda_emulation::options;

// Whether the result is right; reports are thrown.
using Run = std::function<bool()>;

void print(const std::string& name, const std::string& skipped, int seeds, const Run& run) {
  int wrong = 0, reports = 0;
  std::string first = "-";
  for (int seed = 0; seed < seeds; ++seed) {
    options.seed = static_cast<std::uint64_t>(seed);
    options.skipped_site = skipped == "-" ? "" : skipped;
    try {
      wrong += !run();
    } catch (const cuda_emulation::Error& error) {
      if (!reports++) first = error.what();
    }
  }
  options = {};
  for (char& c : first)
    if (c == '\n') c = '|';
  std::printf("%s\t%s\t%d\t%d\t%s\n", name.c_str(), skipped.c_str(), wrong, reports, first.c_str());
}

// As it is, and without each of its barriers in turn.
void print_with_barriers(const std::string& name, int seeds, const Run& run) {
  cuda_emulation::reset_barrier_sites();
  print(name, "-", seeds, run);
  const std::set<std::string> sites = cuda_emulation::barrier_sites();
  for (const std::string& site : sites) print(name, site, seeds, run);
}

std::vector<float> random_values(int count, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = scale * (static_cast<float>(generator()) / 2147483648.0f - 1.0f);
  return values;
}

template <class Values>
bool agrees(const Values& values, std::size_t at, const std::vector<double>& expected, double tolerance) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (values[at + i] - expected[i]) * (values[at + i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return error <= tolerance * tolerance * norm;  // false for NaN
}

// [units] after so many steps of s <- sigmoid(W s + b).
std::vector<double> relaxed(const std::vector<float>& weights, const std::vector<float>& bias,
                            const std::vector<float>& start, int steps) {
  const std::size_t units = bias.size();
  std::vector<double> state(start.begin(), start.end()), next(state.size());
  for (int step = 0; step < steps; ++step) {
    for (std::size_t j = 0; j < units; ++j) {
      double sum = bias[j];
      for (std::size_t k = 0; k < units; ++k) sum += double(weights[j * units + k]) * state[k];
      next[j] = 1 / (1 + std::exp(-sum));
    }
    state.swap(next);
  }
  return state;
}

template <Fault fault>
Run relaxation(int steps) {
  return [steps] {
    constexpr int units = 64;
    constexpr unsigned blocks = 4;
    const auto weights = random_values(units * units, 1, 0.3f), bias = random_values(units, 2);
    const auto start = random_values(units, 3);
    const auto expected = relaxed(weights, bias, start, steps);
    DeviceArray<float> w(weights), b(bias), states(2 * units);
    states.set(start);
    const std::size_t shared_bytes = (units / blocks + 1) * units * sizeof(float);
    launch({.grid = blocks, .block = 128, .dynamic_shared_bytes = shared_bytes, .cooperative = true}, relax<fault>,
           w.get(), b.get(), states.get(), units, steps);
    return agrees(states, fault == Fault::one_buffer ? 0 : steps % 2 * units, expected, 1e-6);
  };
}

template <bool waits_at_the_end>
Run sums_of_clusters(unsigned size) {
  return [size] {
    const unsigned blocks = 2 * size;
    DeviceArray<float> in(random_values(int(blocks) * 64, 8)), out(blocks * 64);
    launch({.grid = blocks, .block = 64, .dynamic_shared_bytes = 64 * sizeof(float), .cluster = size},
           cluster_sum<waits_at_the_end>, in.get(), out.get());
    bool right = true;
    for (unsigned i = 0; i < blocks * 64; ++i) {
      float sum = 0;
      for (unsigned rank = 0; rank < size; ++rank) sum += in[(i / 64 / size * size + rank) * 64 + i % 64];
      right = right && out[i] == sum;
    }
    return right;
  };
}

template <Post post>
bool swaps_by_mail() {
  constexpr int rounds = 7;
  const auto values = random_values(4 * 32, 10);
  DeviceArray<float> in(values), out(4 * 32);
  launch({.grid = 4, .block = 32, .dynamic_shared_bytes = sizeof(Letters), .cluster = 2}, swap_by_mail<post>, in.get(),
         out.get(), rounds);
  std::vector<double> expected(values.begin(), values.end());
  for (int round = 0; round < rounds; ++round) {
    const auto before = expected;
    for (std::size_t i = 0; i < expected.size(); ++i)
      expected[i] = 0.5 * before[i] + before[(i / 32 ^ 1) * 32 + (i + 1) % 32];
  }
  return agrees(out, 0, expected, 1e-6);
}

bool is_late_for_mail() {
  launch({.block = 32, .dynamic_shared_bytes = 8}, late_for_mail);
  return true;
}

template <int left>
bool sum_of_tiles() {
  constexpr int tiles = 7;
  DeviceArray<float> in(random_values(tiles * 128, 9)), out(128);
  launch({.block = 32, .dynamic_shared_bytes = 1024}, pipelined_sum<left>, in.get(), out.get(), tiles);
  bool right = true;
  for (int i = 0; i < 128; ++i) {
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) sum += in[tile * 128 + i];
    right = right && out[i] == sum;
  }
  return right;
}

template <bool fences>
bool sum_by_last_block() {
  DeviceArray<float> in(16 * 32, 1.0f), partial(16), out(1);
  DeviceArray<unsigned> counter(1, 0u);
  launch({.grid = 16, .block = 32, .dynamic_shared_bytes = 4}, last_block_sum<fences>, in.get(), partial.get(),
         counter.get(), out.get());
  return out[0] == 512.0f;
}

template <bool atomic>
bool counts() {
  DeviceArray<int> counter(1, 0);
  launch({.grid = 4, .block = 64}, count<atomic>, counter.get());
  return counter[0] == 256;
}

bool exchanges_vectors() {
  DeviceArray<float4> fours(128);
  DeviceArray<Pair> pairs(128);
  DeviceArray<double2> doubles(128);
  DeviceArray<int> found(3);
  launch({.block = 128}, exchange, fours.get(), pairs.get(), doubles.get(), found.get());
  return found[0] == 0 && found[1] == 1 && found[2] == 128;
}

std::vector<int> tickets(std::uint64_t seed) {
  DeviceArray<int> next(1, 0), who(128);
  options.seed = seed;
  launch({.grid = 2, .block = 64}, take_tickets, next.get(), who.get());
  return who.values();
}
bool same_seed_same_order() {
  const std::uint64_t seed = options.seed;
  return tickets(seed) == tickets(seed) && tickets(seed) != tickets(seed + 1);
}

Run diverges(Divergence how) {
  return [how] {
    options.spin_limit = 100'000;
    DeviceArray<float> out(64);
    DeviceArray<unsigned> flag(1, 0u);
    launch({.block = 64, .cooperative = true}, diverge, out.get(), flag.get(), how);
    return true;
  };
}

Run shifts(Where where, int by) {
  return [where, by] {
    DeviceArray<float> out(64);
    launch({.grid = 2, .block = 64, .dynamic_shared_bytes = 256}, shift, out.get(), where, by);
    return true;
  };
}

Run launches(cuda_emulation::LaunchConfiguration configuration) {
  return [configuration] {
    DeviceArray<int> counter(1, 0);
    launch(configuration, count<true>, counter.get());
    return true;
  };
}

bool ignores_a_race() {
  DeviceArray<int> counter(1, 0);
  cuda_emulation::ignore_races(counter.get(), sizeof(int));
  launch({.block = 64}, count<false>, counter.get());
  return true;
}

void print_all(int seeds) {
  print_with_barriers("relaxation", seeds, relaxation<Fault::none>(10));
  print_with_barriers("clusters of 4", seeds, sums_of_clusters<true>(4));
  print_with_barriers("clusters of 16", seeds, sums_of_clusters<true>(16));
  print_with_barriers("mail", seeds, swaps_by_mail<Post::right>);
  print_with_barriers("pipeline", seeds, sum_of_tiles<1>);
  print_with_barriers("last block", seeds, sum_by_last_block<true>);
  print_with_barriers("atomic count", seeds, counts<true>);
  print_with_barriers("vectors", seeds, exchanges_vectors);
  print("same seed, same order", "-", seeds, same_seed_same_order);
  print("no shift", "-", seeds, shifts(Where::shared, 0));
  print("no divergence", "-", seeds, diverges(Divergence::none));
  print("ignored race", "-", seeds, ignores_a_race);

  print("no block barrier", "-", seeds, relaxation<Fault::no_block_barrier>(10));
  print("no grid barrier", "-", seeds, relaxation<Fault::no_grid_barrier>(10));
  print("block barrier for grid barrier", "-", seeds, relaxation<Fault::block_for_grid_barrier>(10));
  print("one buffer, few steps", "-", seeds, relaxation<Fault::one_buffer>(3));
  print("one buffer, many steps", "-", seeds, relaxation<Fault::one_buffer>(20));
  print("no wait at the end of a cluster", "-", seeds, sums_of_clusters<false>(4));
  print("no wait for mail", "-", seeds, swaps_by_mail<Post::no_wait>);
  print("no wait for a copy", "-", seeds, sum_of_tiles<2>);
  print("no fences", "-", seeds, sum_by_last_block<false>);
  print("count without atomics", "-", seeds, counts<false>);

  print("some exit", "-", seeds, diverges(Divergence::some_exit));
  print("two barriers", "-", seeds, diverges(Divergence::two_barriers));
  print("block and grid barrier", "-", seeds, diverges(Divergence::block_and_grid));
  print("missing lane", "-", seeds, diverges(Divergence::missing_lane));
  print("a byte missing", "-", seeds, swaps_by_mail<Post::byte_missing>);
  print("late for mail", "-", seeds, is_late_for_mail);
  print("polling", "-", seeds, diverges(Divergence::polling));

  print("133 cooperative blocks", "-", 1, launches({.grid = 133, .cooperative = true}));
  print("clusters of 17", "-", 1, launches({.grid = 17, .cluster = 17}));
  print("1025 threads", "-", 1, launches({.block = 1025}));
  print("228 KiB", "-", 1, launches({.dynamic_shared_bytes = 228 * 1024}));
#if !defined(__SANITIZE_ADDRESS__)  // which would end the program
  print("shift", "-", seeds, shifts(Where::shared, 1));
#endif
}

}  // namespace

int main(int count, char** words) {
  if (count == 3)
    shifts(static_cast<Where>(std::atoi(words[2])), 1)();
  else
    print_all(std::atoi(words[1]));
}
