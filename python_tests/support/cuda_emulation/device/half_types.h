// __half and __nv_bfloat16: storage and conversions; arithmetic goes through float.
#pragma once

struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(float x) : bits(cuda_emulation::same_bits<std::uint16_t>(static_cast<_Float16>(x))) {}
  operator float() const { return static_cast<float>(cuda_emulation::same_bits<_Float16>(bits)); }
};

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    const unsigned exact = __float_as_uint(x), rounding = 0x7fff + (exact >> 16 & 1);  // to nearest, ties to even
    bits = x != x ? 0x7fff : static_cast<std::uint16_t>((exact + rounding) >> 16);
  }
  operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};

using half = __half;
using nv_bfloat16 = __nv_bfloat16;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
