// The functions of one number that units compute, on host and device: the exponential, the two sigmoids and what they
// need. They have no branches, so that compilers turn loops of them into vector code.
#pragma once

#include <cmath>
#include <cstdint>
#ifndef __CUDA_ARCH__
#include <bit>
#endif

// The host has to inline these, so that no copy compiled for one instruction set is shared with another.
#ifdef __CUDACC__
#define CEPROP_INLINE __host__ __device__ __forceinline__
#else
#define CEPROP_INLINE inline __attribute__((always_inline))
#endif

// The host inlines these as well. A device never calls them: they read vectors.
#define CEPROP_HOST inline __attribute__((always_inline))

// A function that calls what it is handed belongs to the side that is compiled: a lambda of the device cannot be called
// from a function that is also the host's.
#ifdef __CUDACC__
#define CEPROP_CALLS __device__ __forceinline__
#else
#define CEPROP_CALLS inline __attribute__((always_inline))
#endif

namespace ceprop {

#if defined(__CUDA_ARCH__) && !defined(CUDA_EMULATION)
// 1 / x to one unit in the last place, without a branch. The emulation has one that is as far off as a GPU's may be.
__device__ __forceinline__ float rough_reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}
#endif

// In these selections a NaN fails every comparison and is passed on, so that a diverged state stays visible.
template <class T>
CEPROP_INLINE T clip(T x, T low, T high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// These turn numbers into their bits, and back.
#ifdef __CUDA_ARCH__
CEPROP_INLINE int32_t bits_of(float x) { return __float_as_int(x); }
CEPROP_INLINE int64_t bits_of(double x) { return __double_as_longlong(x); }
CEPROP_INLINE float of_bits(int32_t bits) { return __int_as_float(bits); }
CEPROP_INLINE double of_bits(int64_t bits) { return __longlong_as_double(bits); }
#else
CEPROP_INLINE int32_t bits_of(float x) { return std::bit_cast<int32_t>(x); }
CEPROP_INLINE int64_t bits_of(double x) { return std::bit_cast<int64_t>(x); }
CEPROP_INLINE float of_bits(int32_t bits) { return std::bit_cast<float>(bits); }
CEPROP_INLINE double of_bits(int64_t bits) { return std::bit_cast<double>(bits); }
#endif

// a / b, for 1 <= b < 2^126.
template <class T>
CEPROP_INLINE T quotient(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    // A division of IEEE has a branch for rare operands, across which several of them do not overlap. Here b has none.
    const float inverse = rough_reciprocal(b), near = a * inverse;
    return fmaf(fmaf(-b, near, a), inverse, near);
  }
#endif
  return a / b;
}

template <class T>
struct ExpFormat;
template <>
struct ExpFormat<float> {
  using Bits = int32_t;
  static constexpr float low = -87.0f, high = 87.0f;          // 2^n and 1 / (1 + 2^n) stay normal numbers
  static constexpr float round = 12582912.0f;                 // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375f;             // 10 bits: n * ln2_high is exact
  static constexpr float ln2_low = -2.12194440054690583e-4f;  // ln 2 - ln2_high
  static constexpr int mantissa = 23, bias = 127, terms = 7;
};
template <>
struct ExpFormat<double> {
  using Bits = int64_t;
  static constexpr double low = -708.0, high = 709.0;
  static constexpr double round = 6755399441055744.0;       // 1.5 * 2^52
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;  // 32 bits: n * ln2_high is exact
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
};

// e^x = power (1 + fraction), with power = 2^n and |fraction| < 0.42. They are kept apart for the sake of e^x - 1.
template <class T>
struct SplitExp {
  T power, fraction;
};

// The fraction is e^r - 1 by its Taylor series, |r| <= ln(2) / 2, cut where the next term is below rounding.
template <class T>
CEPROP_INLINE SplitExp<T> split_exp(T x) {
  using Format = ExpFormat<T>;
  using Bits = typename Format::Bits;
  x = clip(x, Format::low, Format::high);
  const T shifted = x * T(1.44269504088896340736) + Format::round;
  const T n = shifted - Format::round;
  const T r = (x - n * Format::ln2_high) - n * Format::ln2_low;
  constexpr double inverse_factorial[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  T series = T(inverse_factorial[Format::terms]);
  for (int k = Format::terms - 1; k >= 2; --k) series = series * r + T(inverse_factorial[k]);
  const Bits exponent = bits_of(shifted) - bits_of(T(Format::round)) + Format::bias;
  const T power = of_bits(static_cast<Bits>(exponent << Format::mantissa));
  return {power, r + r * r * series};
}

template <class T>
CEPROP_INLINE T exponential(T x) {
  const SplitExp<T> e = split_exp(x);
  return e.power + e.power * e.fraction;
}

// 1 / (1 + e^(-4 (x - 1/2)))
template <class T>
CEPROP_INLINE T steep_sigmoid(T x) {
  return quotient(T(1), T(1) + exponential(T(2) - T(4) * x));
}

// (e^2x - 1) / (e^2x + 1), from e^2x - 1 without cancellation near 0
template <class T>
CEPROP_INLINE T hyperbolic_tangent(T x) {
  const SplitExp<T> e = split_exp(T(2) * x);
  const T minus_one = e.power * e.fraction + (e.power - T(1));
  return quotient(minus_one, minus_one + T(2));
}

}  // namespace ceprop
