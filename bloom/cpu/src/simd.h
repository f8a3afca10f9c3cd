// Vectors as wide as the processor's registers, in GCC's vector extension: 16 lanes with AVX-512, 8 with AVX2, 4 with SSE
// or NEON. Intrinsics are used only where an instruction has no operator, such as dot products of bf16 pairs and of bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define BLOOM_DOT_BF16 1
#else
#define BLOOM_DOT_BF16 0
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define BLOOM_DOT_U8 1
#else
#define BLOOM_DOT_U8 0
#endif
#if defined(__AVX2__) && !BLOOM_DOT_U8
#define BLOOM_DOT_I16 1
#else
#define BLOOM_DOT_I16 0
#endif

// Everything lives in the anonymous namespace of one translation unit, so that all of it can be inlined.
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float f32v __attribute__((vector_size(4 * LANES)));
typedef int32_t i32v __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * LANES)));
typedef int16_t i16v __attribute__((vector_size(2 * LANES)));
typedef int8_t i8v __attribute__((vector_size(LANES)));
typedef uint8_t u8v __attribute__((vector_size(LANES)));

using bf16 = uint16_t;  // its bits

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline f32v splat(float x) { return x - f32v{}; }
inline i32v splat(int32_t x) { return x - i32v{}; }

inline f32v bits_to_f32(u32v v) { return (f32v)v; }

// a * b + c with one rounding, always: results must not depend on which loop the compiler happened to contract.
inline f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;  // -ffp-contract=fast: an FMA where there is one
#endif
}

inline f32v max(f32v a, f32v b) { return a > b ? a : b; }

inline float sum(f32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s[LANES];
  store(s, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
#endif
}

inline float max(f32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float s[LANES];
  store(s, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] = s[i] > s[i + width] ? s[i] : s[i + width];
  return s[0];
#endif
}

// A bit per lane of what a comparison gave.
inline uint32_t bits(i32v v) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)v);
#else
  uint32_t set = 0;
  for (int i = 0; i < LANES; i++) set |= uint32_t(v[i] & 1) << i;
  return set;
#endif
}

// bf16 is the upper half of an fp32. Rounded to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if (x != x) return 0x7fc0;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

inline float from_bf16(bf16 x) {
  uint32_t u = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline void store_bf16(bf16* p, f32v v) {
#if BLOOM_DOT_BF16
  __m256bh r = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &r, 32);
#else
  u32v u = (u32v)v;
  u32v r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  r = (v != v) ? (u32v{} + 0x7fc0) : r;
  store(p, __builtin_convertvector(r, u16v));
#endif
}

inline f32v load_bf16(const bf16* p) {
  return bits_to_f32(__builtin_convertvector(load<u16v>(p), u32v) << 16);
}

inline f32v load_i8(const int8_t* p) {
  return __builtin_convertvector(__builtin_convertvector(load<i8v>(p), i32v), f32v);
}

inline i32v round_to_int(f32v v) {  // to nearest, ties to even, for |v| < 2^22
#if defined(__AVX512F__)
  return (i32v)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (i32v)_mm256_cvtps_epi32((__m256)v);
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth one
  return (i32v)(v + magic) - 0x4b400000;
#endif
}

// e^x to about 1 ulp; exactly 0 below -87.3, where fp32's normal numbers end. For x up to 88.
// Cody and Waite's reduction, then the minimax polynomial of Cephes' expf.
inline f32v exp(f32v x) {
  f32v clamped = x > 88.0f ? splat(88.0f) : x;
  i32v n = round_to_int((x < -87.3f ? splat(0.0f) : clamped) * 1.44269504088896341f);
  f32v nf = __builtin_convertvector(n, f32v);
  f32v r = fma(nf, splat(-0.693359375f), clamped);
  r = fma(nf, splat(2.12194440e-4f), r);
  f32v p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  f32v result = (f32v)((i32v)p + (n << 23));
  return x < -87.3f ? splat(0.0f) : result;
}

// GELU in its tanh form, as BLOOM has it: x / (1 + e^(-2u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3).
inline f32v gelu(f32v x) {
  f32v u = x * fma(x * x, splat(2 * 0.7978845608f * 0.044715f), splat(2 * 0.7978845608f));
  f32v down = -u > 87.0f ? splat(87.0f) : -u;
  return x / (1.0f + exp(down));
}

}  // namespace
