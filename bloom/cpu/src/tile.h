// The inner loop of every product: a few rows of activations times a panel of columns, accumulated in registers.
//
// A format says how one step along the inner dimension is stored and multiplied. Whatever the number of rows, each
// output is summed over the inner dimension in the same order by the same instructions: a row's result does not
// depend on its neighbours. That is what makes the engine batch-invariant.
#pragma once

#include "simd.h"

namespace {

// Rows of one tile, such that accumulators and operands fit into the registers.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 14;
#elif defined(__aarch64__)
constexpr int MAX_ROWS = 3;
#else
constexpr int MAX_ROWS = 2;
#endif

// fp32 activations, fp32 weights: [k][lanes]
struct F32xF32 {
  using A = float;
  using Acc = f32x16;
  static constexpr int STEP = 1;    // inner dimension per step
  static constexpr int BYTES = 64;  // of one vector of weights
  static inline void dot(Acc& acc, const A* a, const char* w) { acc = fma(splat(*a), load<f32x16>(w), acc); }
};

// fp32 activations, bf16 weights: [k / 2][lanes][2], the even k in the lower half of each lane
struct F32xBF16 {
  using A = float;
  using Acc = f32x16;
  static constexpr int STEP = 2;
  static constexpr int BYTES = 64;
  static inline void dot(Acc& acc, const A* a, const char* w) {
    u32x16 pair = load<u32x16>(w);
    acc = fma(splat(a[0]), bits_to_f32(pair << 16), acc);
    acc = fma(splat(a[1]), bits_to_f32(pair & 0xffff0000u), acc);
  }
};

// fp32 activations, int8 weights: [k / 4][lanes][4]
struct F32xI8 {
  using A = float;
  using Acc = f32x16;
  static constexpr int STEP = 4;
  static constexpr int BYTES = 64;
  static inline void dot(Acc& acc, const A* a, const char* w) {
    i32x16 quad = load<i32x16>(w);
    acc = fma(splat(a[0]), __builtin_convertvector(quad << 24 >> 24, f32x16), acc);
    acc = fma(splat(a[1]), __builtin_convertvector(quad << 16 >> 24, f32x16), acc);
    acc = fma(splat(a[2]), __builtin_convertvector(quad << 8 >> 24, f32x16), acc);
    acc = fma(splat(a[3]), __builtin_convertvector(quad >> 24, f32x16), acc);
  }
};

// fp32 activations, int8 keys or values: [k][lanes]
struct F32xI8Row {
  using A = float;
  using Acc = f32x16;
  static constexpr int STEP = 1;
  static constexpr int BYTES = 16;
  static inline void dot(Acc& acc, const A* a, const char* w) {
    acc = fma(splat(*a), load_i8((const int8_t*)w), acc);
  }
};

#if BLOOM_DOT_BF16
// bf16 activations and weights, products summed in fp32: [k / 2][lanes][2]
struct BF16xBF16 {
  using A = bf16;
  using Acc = f32x16;
  static constexpr int STEP = 2;
  static constexpr int BYTES = 64;
  static inline void dot(Acc& acc, const A* a, const char* w) {
    __m512bh x = (__m512bh)(splat(load<int32_t>(a)));
    acc = (f32x16)_mm512_dpbf16_ps((__m512)acc, x, (__m512bh)load<i32x16>(w));
  }
};
#endif

#if BLOOM_DOT_U8
// unsigned bytes of activations, signed bytes of weights, summed exactly in int32: [k / 4][lanes][4]
struct U8xI8 {
  using A = uint8_t;
  using Acc = i32x16;
  static constexpr int STEP = 4;
  static constexpr int BYTES = 64;
  static inline void dot(Acc& acc, const A* a, const char* w) {
    acc = (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)splat(load<int32_t>(a)), (__m512i)load<i32x16>(w));
  }
};
#endif

// acc[ROWS][COLS] += a (rows `lda` elements apart) times the vectors at w[0] .. w[COLS - 1], over `steps` steps that lie
// `stride` bytes apart. `ahead` is called in every step, with its number: what to fetch meanwhile.
template <class F, int ROWS, int COLS, class Ahead>
inline __attribute__((always_inline)) void tile(typename F::Acc (&acc)[ROWS][COLS], const typename F::A* a, long lda,
                                                const char* const (&w)[COLS], long stride, long steps, Ahead&& ahead) {
  for (long s = 0; s < steps; s++) {
    ahead(s);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int c = 0; c < COLS; c++) F::dot(acc[r][c], a + r * lda, w[c] + s * stride);
    a += F::STEP;
  }
}

template <class F, int ROWS, int COLS>
inline __attribute__((always_inline)) void tile(typename F::Acc (&acc)[ROWS][COLS], const typename F::A* a, long lda,
                                                const char* const (&w)[COLS], long stride, long steps) {
  tile<F>(acc, a, lda, w, stride, steps, [](long) {});
}

// Call f<ROWS>() for a number of rows known at run time, 1 to MOST.
template <int MOST, class Function>
inline void with_rows(int rows, Function&& f) {
  if constexpr (MOST > 1) {
    if (rows < MOST) return with_rows<MOST - 1>(rows, f);
  }
  f.template operator()<MOST>();
}

// Rows of the next tile when `left` rows remain: tiles of nearly equal height.
inline int tile_rows(int left, int most) {
  const int tiles = (left + most - 1) / most;
  return (left + tiles - 1) / tiles;
}

}  // namespace
