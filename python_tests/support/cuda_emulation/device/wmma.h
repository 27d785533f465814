// nvcuda::wmma with float accumulators: half and bfloat16 in tiles of 16x16x16 and their two siblings, tf32 in 16x16x8.
//
// As on a device, the elements of a tile are spread over the lanes of a warp. Which lane holds what is drawn from the
// seed, since CUDA leaves it open. Loads and stores move only the elements of the calling lane and do not make the
// warp meet, so that a missing __syncwarp before or after them stays one.
#pragma once

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32 {};
}  // namespace precision

// 10 bits of mantissa, to nearest, ties away from zero.
inline float __float_to_tf32(float x) {
  return std::isfinite(x) ? __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1fffu) : x;
}

template <class T>
struct storage {
  using type = T;
};
template <>
struct storage<precision::tf32> {
  using type = float;
};

template <class T>
constexpr bool has_tile(int m, int n, int k) {
  if (std::is_same_v<T, precision::tf32>) return m == 16 && n == 16 && k == 8;
  const bool has_size = (m == 16 && n == 16) || (m == 32 && n == 8) || (m == 8 && n == 32);
  return (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) && has_size && k == 16;
}

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr bool is_a = std::is_same_v<Use, matrix_a>, is_b = std::is_same_v<Use, matrix_b>;
  static constexpr bool is_tf32 = std::is_same_v<T, precision::tf32>, is_half = std::is_same_v<T, __half>;
  static constexpr bool is_sum = std::is_same_v<Use, accumulator> && std::is_same_v<T, float>;
  static_assert(is_sum ? has_tile<__half>(M, N, K) || has_tile<precision::tf32>(M, N, K) : has_tile<T>(M, N, K));

  using element_type = T;
  using storage_element_type = typename storage<T>::type;
  static constexpr int rows = is_b ? K : M, columns = is_a ? K : N, count = rows * columns;
  static constexpr unsigned kind = (is_a ? 0u : is_b ? 1u : 2u) + 4u * sizeof(storage_element_type);
  enum { num_elements = count / 32 * (is_half ? 2 : 1) };  // of half, every element is held by two lanes

  storage_element_type x[num_elements];
  const void* origin = nullptr;  // where the lane loaded from: only in the emulation
};

template <class Use, int M, int N, int K, class T, class Layout, class Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, const Value& value) {
  for (auto& element : f.x) element = value;
  f.origin = nullptr;
}

namespace emulation {

template <class T>
void check_address(const T* pointer, unsigned stride) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 32) cuda_emulation::fail("a tile is not aligned to 32 bytes");
  if (stride * sizeof(T) % 16) cuda_emulation::fail("rows of a tile are no multiple of 16 bytes apart");
}

// The elements of the calling lane, as visit(place in the fragment, offset from the first element of the tile).
template <class Fragment, class Visit>
__forceinline__ void for_own_elements(unsigned stride, bool column_major, Visit visit) {
  const std::uint16_t* order = cuda_emulation::fragment_order(Fragment::kind, Fragment::count);
  const unsigned first = cuda_emulation::lane_index() * Fragment::num_elements;
  for (unsigned i = 0; i < Fragment::num_elements; ++i) {
    const unsigned element = order[(first + i) % Fragment::count];
    const std::size_t row = element / Fragment::columns, column = element % Fragment::columns;
    visit(i, column_major ? column * stride + row : row * stride + column);
  }
}

template <class Fragment>
__forceinline__ void load(Fragment& f, const typename Fragment::storage_element_type* from, unsigned stride,
                          bool column_major) {
  check_address(from, stride);
  cuda_emulation::note_tile(from, stride, sizeof *from, false, column_major == Fragment::is_a);
  for_own_elements<Fragment>(stride, column_major, [&](unsigned i, std::size_t at) { f.x[i] = from[at]; });
  f.origin = from;
}

template <class Fragment>
Fragment& fragment_of(void** arguments, int lane, int which) {
  return *static_cast<Fragment*>(static_cast<void**>(arguments[lane])[which]);
}

template <class Fragment>
void gather(float* tile, void** arguments, int which) {
  const std::uint16_t* order = cuda_emulation::fragment_order(Fragment::kind, Fragment::count);
  const void* origin = fragment_of<Fragment>(arguments, 0, which).origin;
  for (int lane = 0; lane < 32; ++lane) {
    const Fragment& f = fragment_of<Fragment>(arguments, lane, which);
    if (f.origin != origin) cuda_emulation::fail("wmma::mma_sync: the lanes of a warp loaded different tiles");
    for (int i = 0; i < Fragment::num_elements; ++i) {
      float x = static_cast<float>(f.x[i]);
      if (Fragment::is_tf32) x = __uint_as_float(__float_as_uint(x) & ~0x1fffu);  // a device ignores the other bits
      tile[order[(lane * Fragment::num_elements + i) % Fragment::count]] = x;
    }
  }
}

template <class A, class B, class C>
void multiply(void** arguments, unsigned lanes) {
  if (lanes != 0xffffffffu) cuda_emulation::fail("wmma::mma_sync needs all 32 lanes of a warp");
  constexpr int m = A::rows, n = B::columns, depth = A::columns;
  float a[m * depth], b[depth * n], c[m * n];
  gather<A>(a, arguments, 0);
  gather<B>(b, arguments, 1);
  gather<C>(c, arguments, 2);
  for (int i = 0; i < m; ++i)
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < n; ++j) c[i * n + j] += a[i * depth + k] * b[k * n + j];
  const std::uint16_t* order = cuda_emulation::fragment_order(C::kind, C::count);
  for (int lane = 0; lane < 32; ++lane) {
    C& d = fragment_of<C>(arguments, lane, 3);
    for (int i = 0; i < C::num_elements; ++i) d.x[i] = c[order[lane * C::num_elements + i]];
  }
}

}  // namespace emulation

template <class Use, int M, int N, int K, class T, class Layout>
__forceinline__ void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const typename storage<T>::type* from,
                                      unsigned stride) {
  emulation::load(f, from, stride, std::is_same_v<Layout, col_major>);
}

template <int M, int N, int K, class T>
__forceinline__ void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* from, unsigned stride,
                                      layout_t layout) {
  emulation::load(f, from, stride, layout == mem_col_major);
}

template <int M, int N, int K, class T>
__forceinline__ void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride,
                                       layout_t layout) {
  emulation::check_address(to, stride);
  cuda_emulation::note_tile(to, stride, sizeof *to, true, layout == mem_row_major);
  emulation::for_own_elements<fragment<accumulator, M, N, K, T>>(stride, layout == mem_col_major,
                                                                 [&](unsigned i, std::size_t at) { to[at] = f.x[i]; });
}

template <int M, int N, int K, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
              CUDA_EMULATION_HERE) {
  using A = fragment<matrix_a, M, N, K, T, LayoutA>;
  using B = fragment<matrix_b, M, N, K, T, LayoutB>;
  using C = fragment<accumulator, M, N, K, float>;
  void* own[] = {const_cast<A*>(&a), const_cast<B*>(&b), const_cast<C*>(&c), &d};
  cuda_emulation::warp_collective(0xffffffffu, "wmma::mma_sync", own, emulation::multiply<A, B, C>, file, line);
}

}  // namespace nvcuda::wmma
