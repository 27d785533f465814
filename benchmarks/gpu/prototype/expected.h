// Random networks for the prototype, and what their states must be: by plain loops in double.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace prototype {

struct Network {
  int width, outputs, batch;
  std::vector<float> between, above, drive, bias1, bias2, target;
  float beta = 0.5f;
};

inline Network random_network(int width, int outputs, int batch, unsigned seed) {
  std::mt19937 engine(seed);
  const auto numbers = [&](std::size_t count, float scale) {
    std::normal_distribution<float> draw(0, scale);
    std::vector<float> drawn(count);
    for (float& number : drawn) number = draw(engine);
    return drawn;
  };
  const std::size_t units = std::size_t(width), classes = std::size_t(outputs), samples = std::size_t(batch);
  const float scale = 1 / std::sqrt(float(width));
  return {width,
          outputs,
          batch,
          numbers(units * units, scale),
          numbers(classes * units, scale),
          numbers(samples * units, 0.5f),
          numbers(units, 0.1f),
          numbers(classes, 0.1f),
          numbers(samples * classes, 1)};
}

using States = std::array<std::vector<double>, 3>;  // of a sample, by layer

// At the ends of the free and of the nudged phase.
inline std::array<States, 2> expected_ends(const Network& net, int sample, int free_steps, int nudged_steps) {
  const auto rho = [](double x) { return 1 / (1 + std::exp(2 - 4 * x)); };
  const std::size_t width = std::size_t(net.width), outputs = std::size_t(net.outputs), b = std::size_t(sample);
  std::array<States, 2> ends;
  States s = {std::vector<double>(width), std::vector<double>(width), std::vector<double>(outputs)};
  for (int step = 1; step <= free_steps + nudged_steps; ++step) {
    States drive = {std::vector<double>(net.drive.begin() + std::ptrdiff_t(b * width),
                                        net.drive.begin() + std::ptrdiff_t((b + 1) * width)),
                    std::vector<double>(net.bias1.begin(), net.bias1.end()),
                    std::vector<double>(net.bias2.begin(), net.bias2.end())};
    for (int above = 1; above < 3; ++above) {
      const std::vector<float>& weights = above == 1 ? net.between : net.above;
      for (std::size_t i = 0; i < s[above].size(); ++i)
        for (std::size_t k = 0; k < width; ++k) {
          drive[above][i] += double(weights[i * width + k]) * s[above - 1][k];
          drive[above - 1][k] += double(weights[i * width + k]) * s[above][i];
        }
    }
    const bool nudged = step > free_steps;
    for (std::size_t i = 0; i < outputs; ++i)
      drive[2][i] = rho(drive[2][i]) + (nudged ? net.beta * (net.target[b * outputs + i] - s[2][i]) : 0);
    for (int layer = 0; layer < 2; ++layer)
      std::transform(drive[layer].begin(), drive[layer].end(), drive[layer].begin(), rho);
    s = drive;
    if (step == free_steps) ends[0] = s;
    if (step == free_steps + nudged_steps) ends[1] = s;
  }
  return ends;
}

// got[phase][layer]: [batch][units]. The largest difference of about so many samples, or NaN.
inline double worst_error(const Network& net, int free_steps, int nudged_steps,
                          const std::array<std::array<std::vector<float>, 3>, 2>& got, int samples) {
  double worst = 0;
  const int stride = std::max(1, net.batch / samples);
  for (int b = 0; b < net.batch; b += stride) {
    const std::array<States, 2> ends = expected_ends(net, b, free_steps, nudged_steps);
    for (int phase = 0; phase < 2; ++phase)
      for (int layer = 0; layer < 3; ++layer) {
        const std::vector<double>& states = ends[phase][layer];
        for (std::size_t i = 0; i < states.size(); ++i) {
          const double error = std::abs(got[phase][layer][std::size_t(b) * states.size() + i] - states[i]);
          if (!(error <= worst)) worst = error;
          if (std::isnan(worst)) return worst;
        }
      }
  }
  return worst;
}

}  // namespace prototype
