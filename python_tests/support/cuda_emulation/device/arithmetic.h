// Intrinsics of arithmetic. The approximate ones are exact here.
#pragma once

inline float __expf(float x) { return ::expf(x); }
inline float __exp10f(float x) { return ::powf(10.0f, x); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }

namespace cuda_emulation {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace cuda_emulation

inline int __float_as_int(float x) { return cuda_emulation::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_emulation::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulation::same_bits<double>(x); }

namespace ceprop {
// Of csrc/model/elementary.h: by its bits one unit in the last place too high, right, or one too low; 0 if no normal
// number.
inline float rough_reciprocal(float x) {
  const float inverse = 1.0f / x;
  if (!(::fabsf(inverse) >= 1.17549435e-38f)) return x != x ? x : 0.0f;
  const unsigned drawn = __float_as_uint(x) * 2654435761u >> 16;
  return __int_as_float(__float_as_int(inverse) + static_cast<int>(drawn % 3) - 1);
}
}  // namespace ceprop

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t(a) * b >> 32); }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}
