// The inner loop of every product: a few rows of activations times a few vectors of columns, accumulated in registers.
//
// A format says how one step along the inner dimension is stored and multiplied. Whatever the number of rows, each
// output is summed over the inner dimension in the same order by the same instructions: a row's result does not
// depend on its neighbours. That is what makes the engine batch-invariant.
#pragma once

#include "simd.h"

namespace {

// Rows of a tile and, where there are as many, its vectors of columns: accumulators and operands fit into the registers.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 14, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int MAX_ROWS = 4, VECTORS = 4;
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 6, VECTORS = 2;
#else
constexpr int MAX_ROWS = 3, VECTORS = 2;
#endif

// acc += a * w, in the register where acc is. With AVX2's 16 registers as an instruction: the compiler would rearrange a tile's
// sums, and keep some of them in memory.
inline __attribute__((always_inline)) void add_product(f32v& acc, f32v a, f32v w) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  f32v sum = acc;
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w));
  acc = sum;
#else
  acc = fma(a, w, acc);
#endif
}

// A format: A and Acc, the types of an activation and of a vector of sums; STEP, the inner dimension per step; BYTES of one
// vector of weights of a step, which is multiplied in PARTS: weights(p, part) becomes operands in registers, which
// multiply(sums, activation(a, part), operands) adds up. Few registers hold operands at a time, where there are few.

// What meets fp32 activations: one of them for each part.
struct F32Activations {
  using A = float;
  using Acc = f32v;
  static inline f32v activation(const A* a, int part) { return splat(a[part]); }
  static inline void multiply(Acc& acc, f32v a, f32v w) { add_product(acc, a, w); }
};

// fp32 activations, fp32 weights: [k][lanes]
struct F32xF32 : F32Activations {
  static constexpr int STEP = 1, PARTS = 1, BYTES = 4 * LANES;
  static inline f32v weights(const char* w, int) { return load<f32v>(w); }
};

// fp32 activations, bf16 weights: [k / 2][lanes][2], the even k in the lower half of each lane
struct F32xBF16 : F32Activations {
  static constexpr int STEP = 2, PARTS = 2, BYTES = 4 * LANES;
  static inline f32v weights(const char* w, int part) {
    if (part == 0) return bits_to_f32(load<u32v>(w) << 16);
#if defined(__AVX2__) && !defined(__AVX512F__)
    __asm__("" : "+r"(w));  // read once more: what part 0 read would take up registers meanwhile
#endif
    return bits_to_f32(load<u32v>(w) & 0xffff0000u);
  }
};

// fp32 activations, int8 weights: [k / 4][lanes][4]
struct F32xI8 : F32Activations {
  static constexpr int STEP = 4, PARTS = 4, BYTES = 4 * LANES;
  static inline f32v weights(const char* w, int part) {
    return __builtin_convertvector(load<i32v>(w) << (24 - 8 * part) >> 24, f32v);
  }
};

// fp32 activations, int8 keys or values: [k][lanes]
struct F32xI8Row : F32Activations {
  static constexpr int STEP = 1, PARTS = 1, BYTES = LANES;
  static inline f32v weights(const char* w, int) { return load_i8((const int8_t*)w); }
};

#if BLOOM_DOT_BF16
// bf16 activations and weights, products summed in fp32: [k / 2][lanes][2]
struct BF16xBF16 {
  using A = bf16;
  using Acc = f32v;
  static constexpr int STEP = 2, PARTS = 1, BYTES = 4 * LANES;
  static inline i32v weights(const char* w, int) { return load<i32v>(w); }
  static inline i32v activation(const A* a, int) { return splat(load<int32_t>(a)); }
  static inline void multiply(Acc& acc, i32v a, i32v w) {
    acc = (f32v)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)w);
  }
};
#endif

#if BLOOM_DOT_U8
// unsigned bytes of activations, signed bytes of weights, summed exactly in int32: [k / 4][lanes][4]
struct U8xI8 {
  using A = uint8_t;
  using Acc = i32v;
  static constexpr int STEP = 4, PARTS = 1, BYTES = 4 * LANES;
  static inline i32v weights(const char* w, int) { return load<i32v>(w); }
  static inline i32v activation(const A* a, int) { return splat(load<int32_t>(a)); }
  static inline void multiply(Acc& acc, i32v a, i32v w) {
    acc = (i32v)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)w);
  }
};
#endif

#if BLOOM_DOT_I16
// 16-bit activations, signed bytes of weights, summed exactly in int32: [k / 4][lanes][4], of each four the second and the
// third exchanged, so that one shift makes a pair of neighbours of the bytes at odd places, and two of the others
struct I16xI8 {
  using A = int16_t;
  using Acc = i32v;
  static constexpr int STEP = 4, PARTS = 2, BYTES = 4 * LANES;
  static inline i32v activation(const A* a, int part) { return splat(load<int32_t>(a + 2 * part)); }
#if defined(__AVX512F__)
  static inline i32v weights(const char* w, int part) {
    const __m512i quad = load<__m512i>(w);
    return (i32v)_mm512_srai_epi16(part == 0 ? _mm512_slli_epi16(quad, 8) : quad, 8);
  }
  static inline void multiply(Acc& acc, i32v a, i32v w) {
    acc += (i32v)_mm512_madd_epi16((__m512i)a, (__m512i)w);
  }
#else
  static inline i32v weights(const char* w, int part) {
    const __m256i quad = load<__m256i>(w);
    return (i32v)_mm256_srai_epi16(part == 0 ? _mm256_slli_epi16(quad, 8) : quad, 8);
  }
  static inline void multiply(Acc& acc, i32v a, i32v w) {
    i32v sum = acc, pairs;  // as in add_product
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(a), "x"(w));
    acc = sum;
  }
#endif
};
#endif

// acc[ROWS][COLS] += a (rows `lda` elements apart) times the vectors at w[0] .. w[COLS - 1], over `steps` steps that lie
// `stride` bytes apart. `ahead` is called in every step, with its number: what to fetch meanwhile.
template <class F, int ROWS, int COLS, class Ahead>
inline __attribute__((always_inline)) void tile(typename F::Acc (&acc)[ROWS][COLS], const typename F::A* a, long lda,
                                                const char* const (&w)[COLS], long stride, long steps, Ahead&& ahead) {
  for (long s = 0; s < steps; s++) {
    ahead(s);
#pragma GCC unroll 4
    for (int part = 0; part < F::PARTS; part++) {
      decltype(F::weights(w[0], 0)) operands[COLS];
#pragma GCC unroll 8
      for (int c = 0; c < COLS; c++) operands[c] = F::weights(w[c] + s * stride, part);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        const auto activation = F::activation(a + r * lda, part);
#pragma GCC unroll 8
        for (int c = 0; c < COLS; c++) F::multiply(acc[r][c], activation, operands[c]);
      }
    }
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
