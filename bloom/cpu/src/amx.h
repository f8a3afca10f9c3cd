// Products on Intel's AMX: tile registers of up to 16 rows of 64 bytes, one instruction for 16 rows by 16 outputs by 16 steps.
//
// A panel's weights are used as they lie: 16 steps of one vector are a tile, its rows a step apart. Each row of a product is
// summed by itself, in an order that the format alone decides; so one row and 32 give the same bits, as elsewhere.
#pragma once

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define BLOOM_AMX 1
#else
#define BLOOM_AMX 0
#endif

#if BLOOM_AMX
namespace {

constexpr int TILE_ROWS = 16, TILE_STEPS = 16, TILE_BYTES = 64;  // a row's bytes: 16 steps of 4, or 16 sums

// Tiles 0 to 3 sum, 4 and 5 hold activations, 6 and 7 weights. Tile 4 meets both vectors of weights in 0 and 1, tile 5 in 2
// and 3. Their heights are set before; to set them costs as much as a few products and forgets what is summed.
class TileHeights {
 public:
  static void set(int upper, int lower) {
    const int wanted = upper << 8 | lower;
    if (wanted == current) return;
    alignas(64) Config config{};
    for (int tile : {0, 1, 4}) config.rows[tile] = upper;
    for (int tile : {2, 3, 5}) config.rows[tile] = lower ? lower : 1;
    for (int tile : {6, 7}) config.rows[tile] = TILE_STEPS;
    for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = TILE_BYTES;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    current = wanted;
  }

  // Give the registers back: while they are in use, each switch of threads saves eight kilobytes of them.
  static void release() {
    _tile_release();
    current = 0;
  }

 private:
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static inline thread_local int current = 0;
};

struct TileBF16 {
  static void multiply_upper() { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); }
  static void multiply_lower() { _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7); }
};

struct TileU8xI8 {
  static void multiply_upper() { _tile_dpbusd(0, 4, 6); _tile_dpbusd(1, 4, 7); }
  static void multiply_lower() { _tile_dpbusd(2, 5, 6); _tile_dpbusd(3, 5, 7); }
};

// Sums of `upper` (and with LOWER `lower`) rows of activations, `stride` bytes apart, times two vectors of a panel, over
// `blocks` blocks of 16 steps: to rows of 128 bytes at sums and sums_lower. `ahead(block)`: what to fetch meanwhile.
template <class Format, bool LOWER, class Ahead>
inline __attribute__((always_inline)) void tile_products(const char* upper, const char* lower, long stride,
                                                         const char* weights, long blocks, char* sums,
                                                         char* sums_lower, Ahead&& ahead) {
  constexpr long STEP = 2 * TILE_BYTES;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (LOWER) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long b = 0; b < blocks; b++) {
    ahead(b);
    _tile_loadd(6, weights, STEP);
    _tile_loadd(4, upper + b * TILE_BYTES, stride);
    _tile_loadd(7, weights + TILE_BYTES, STEP);
    Format::multiply_upper();
    if constexpr (LOWER) {
      _tile_loadd(5, lower + b * TILE_BYTES, stride);
      Format::multiply_lower();
    }
    weights += TILE_STEPS * STEP;
  }
  _tile_stored(0, sums, STEP);
  _tile_stored(1, sums + TILE_BYTES, STEP);
  if constexpr (LOWER) {
    _tile_stored(2, sums_lower, STEP);
    _tile_stored(3, sums_lower + TILE_BYTES, STEP);
  }
}

}  // namespace
#endif
