// Products on Intel's AMX: tile registers of up to 16 rows of 64 bytes, one instruction for 16 rows by 16 outputs by 16 steps.
//
// A panel's weights are used as they lie: 16 steps of one vector are a tile, its rows a step apart. Each row of a product is
// summed by itself, in an order that the format alone decides; so one row and 32 give the same bits, as elsewhere.
#pragma once

#include <initializer_list>

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define BLOOM_AMX 1
#else
#define BLOOM_AMX 0
#endif

#if BLOOM_AMX
namespace {

constexpr int TILE_ROWS = 16, TILE_STEPS = 16, TILE_BYTES = 64;  // a row's bytes: 16 steps of 4, or 16 sums

// The shapes of this thread's eight tiles. To set them costs as much as a few products, and forgets what is summed.
class TileShapes {
 public:
  // For a panel's products: 0 to 3 sum, 4 and 5 hold activations, 6 and 7 weights. Tile 4, of `upper` rows, meets both vectors
  // of weights in 0 and 1, tile 5, of `lower` rows, in 2 and 3.
  static void set_for_panels(int upper, int lower) {
    set(upper << 8 | lower, [&](Config& config) {
      for (int tile : {0, 1, 4}) config.rows[tile] = upper;
      for (int tile : {2, 3, 5}) config.rows[tile] = lower ? lower : 1;
    });
  }

  // For attention of `rows` queries: 0 to 3 sum, 4 holds what meets the whole tile 6, and 5 what meets the half one, 7.
  static void set_for_attention(int rows) {
    set(1 << 16 | rows, [&](Config& config) {
      for (int tile = 0; tile < 6; tile++) config.rows[tile] = rows;
      config.row_bytes[5] = TILE_BYTES / 2;
      config.rows[7] = TILE_STEPS / 2;
    });
  }

  static void release() {
    __asm__ volatile("tilerelease");
    current = 0;
  }

 private:
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  static inline thread_local int current = 0;

  template <class Shape>
  static void set(int wanted, Shape&& shape) {
    if (wanted == current) return;
    alignas(64) Config config;
    for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = TILE_BYTES, config.rows[tile] = TILE_STEPS;
    shape(config);
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    current = wanted;
  }
};

// The instructions, on tiles by number. "memory": the compiler must not move what it stores behind them.
template <int TILE>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

template <int TILE>
inline void load_tile(const void* rows, long stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(TILE), "r"(rows), "r"(stride) : "memory");
}

template <int TILE>
inline void store_tile(void* rows, long stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(TILE), "r"(rows), "r"(stride) : "memory");
}

struct TileBF16 {
  template <int SUMS, int A, int W>
  static void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(W));
  }
};

struct TileU8xI8 {
  template <int SUMS, int A, int W>
  static void multiply() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(W));
  }
};

// f<0>() to f<count - 1>(), at most four: for tiles' numbers, which are part of the instructions.
template <class Function>
inline __attribute__((always_inline)) void with_tiles(int count, Function&& f) {
  f.template operator()<0>();
  if (count > 1) f.template operator()<1>();
  if (count > 2) f.template operator()<2>();
  if (count > 3) f.template operator()<3>();
}

// sums += `upper` (and with LOWER sums_lower += `lower`) rows of activations, `stride` bytes apart, times two vectors of a
// panel, over `blocks` blocks of 16 steps; FRESH: sums are zero before. A row of sums is 128 bytes. `ahead(block)`: what to
// fetch meanwhile.
template <class Format, bool LOWER, bool FRESH, class Ahead>
inline __attribute__((always_inline)) void tile_products(const char* upper, const char* lower, long stride,
                                                         const char* weights, long blocks, char* sums,
                                                         char* sums_lower, Ahead&& ahead) {
  constexpr long STEP = 2 * TILE_BYTES;
  char* const corners[] = {sums, sums + TILE_BYTES, sums_lower, sums_lower + TILE_BYTES};
  with_tiles(LOWER ? 4 : 2, [&]<int SUMS>() {
    if constexpr (FRESH) zero_tile<SUMS>();
    else load_tile<SUMS>(corners[SUMS], STEP);
  });
  for (long b = 0; b < blocks; b++) {
    ahead(b);
    load_tile<6>(weights, STEP);
    load_tile<4>(upper + b * TILE_BYTES, stride);
    Format::template multiply<0, 4, 6>();
    load_tile<7>(weights + TILE_BYTES, STEP);
    Format::template multiply<1, 4, 7>();
    if constexpr (LOWER) {
      load_tile<5>(lower + b * TILE_BYTES, stride);
      Format::template multiply<2, 5, 6>();
      Format::template multiply<3, 5, 7>();
    }
    weights += TILE_STEPS * STEP;
  }
  with_tiles(LOWER ? 4 : 2, [&]<int SUMS>() { store_tile<SUMS>(corners[SUMS], STEP); });
}

}  // namespace
#endif

namespace {

// Give this thread's tile registers back: while they are in use, each switch of threads saves eight kilobytes of them.
inline void release_tiles() {
#if BLOOM_AMX
  TileShapes::release();
#endif
}

}  // namespace
