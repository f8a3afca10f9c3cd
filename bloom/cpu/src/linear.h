// Weights packed once, and their product with a step's activations.
//
// N = output columns (rows of the weight), K = inner dimension, M = rows of activations. A panel holds 32 output columns
// as strips, one behind the other, as wide as a tile of many rows: [32 / STRIP][K / STEP][STRIP][STEP]. So one vector holds
// STEP consecutive inputs of as many outputs as it has lanes, and a tile reads its weights as they lie in memory.
#pragma once

#include <algorithm>
#include <climits>

#include "amx.h"
#include "pool.h"
#include "tile.h"

namespace {

constexpr int PANEL = 32, STRIP = VECTORS * LANES;

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT8_DYNAMIC = 3 };

inline int step_of(int kind) { return kind == FLOAT32 ? 1 : kind == BFLOAT16 ? 2 : 4; }
inline int bytes_of(int kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }
inline long padded(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

extern "C" struct Linear {
  int64_t rows, columns;  // N, K
  int32_t kind;
  char* panels;        // ceil(N / 32) panels of 32 * padded(K, STEP) elements; zero where padded
  const float* bias;   // (N) or null
  float* scales;       // (N) of int8: weight = scale * q
  int32_t* sums;       // (N) of int8: sum of q over K
};

inline long panel_bytes(const Linear& w) { return padded(w.columns, step_of(w.kind)) * PANEL * bytes_of(w.kind); }

// What the activations of a product look like: (M, K) in the row format that its weights ask for.
struct Activations {
  void* data;     // rows `stride` bytes apart
  void* low;      // INT8 with dot products of bytes: the lower bytes of 16-bit activations, `data` has the upper
  float* scales;  // (M) where activations are quantized
  long stride;
};

// Bytes of a row; 64 more than a multiple of 128, or the rows of a tile would share few sets of the cache.
inline long row_stride(long columns, int element_bytes) { return padded(columns * element_bytes, 128) + 64; }

// What int8 weights are multiplied by: bytes, or 16-bit numbers, where the processor sums such products. Else they are
// expanded to fp32 and meet fp32 activations.
constexpr bool dot_bytes = BLOOM_DOT_U8;
constexpr bool dot_words = BLOOM_DOT_I16;
constexpr bool dot_bf16 = BLOOM_DOT_BF16;

inline int activation_bytes(int kind) {
  if (kind == BFLOAT16 && dot_bf16) return 2;
  if (kind >= INT8 && dot_bytes) return 1;
  if (kind >= INT8 && dot_words) return 2;
  return 4;
}

// Where column `column` of row `row` lies in its panel, in elements.
inline long place(const Linear& w, long row, long column) {
  const int step = step_of(w.kind);
  const long strip = row % PANEL / STRIP * STRIP * padded(w.columns, step);
  long within = column % step;
  if (w.kind >= INT8 && dot_words && (within == 1 || within == 2)) within = 3 - within;
  return strip + column / step * step * STRIP + row % STRIP * step + within;
}

// Element (row, column) of the packed weight, as fp32.
inline float element(const Linear& w, long row, long column) {
  const char* panel = w.panels + row / PANEL * panel_bytes(w);
  const long index = place(w, row, column);
  switch (w.kind) {
    case FLOAT32: return ((const float*)panel)[index];
    case BFLOAT16: return from_bf16(((const bf16*)panel)[index]);
    default: return w.scales[row] * ((const int8_t*)panel)[index];
  }
}

template <class Source>
inline float to_float(Source x) {
  if constexpr (std::is_same_v<Source, bf16>) return from_bf16(x);
  return float(x);
}

// Put row `row` of the weight, `source` (K), into its panel. int8 from floats: scale = max|w| / 127, to nearest.
// False, for int8, where the row has no scale because something in it is not finite.
template <class Source>
bool pack_row(const Linear& w, long row, const Source* source) {
  char* panel = w.panels + row / PANEL * panel_bytes(w);
  float scale = 1;
  if (w.kind >= INT8 && !std::is_same_v<Source, int8_t>) {
    float most = 0;
    for (long k = 0; k < w.columns; k++) {
      const float size = std::fabs(to_float(source[k]));
      if (!(size <= 3.4e38f)) return false;
      most = std::max(most, size);
    }
    scale = w.scales[row] = most / 127;
    if (scale == 0) scale = 1;
  }
  int32_t total = 0;
  for (long k = 0; k < w.columns; k++) {
    const long index = place(w, row, k);
    if (w.kind == FLOAT32) {
      ((float*)panel)[index] = to_float(source[k]);
    } else if (w.kind == BFLOAT16) {
      if constexpr (std::is_same_v<Source, bf16>) ((bf16*)panel)[index] = source[k];
      else ((bf16*)panel)[index] = to_bf16(to_float(source[k]));
    } else {
      int q;
      if constexpr (std::is_same_v<Source, int8_t>) q = source[k];
      else q = int(std::nearbyint(to_float(source[k]) / scale));
      ((int8_t*)panel)[index] = int8_t(q);
      total += q;
    }
  }
  if (w.kind >= INT8) w.sums[row] = total;
  return true;
}

// Are activations for these weights quantized, row by row? Then none can be written before its whole row is known.
inline bool quantizes(int kind) { return kind == INT8_DYNAMIC || (kind == INT8 && (dot_bytes || dot_words)); }

inline int levels(int kind) { return kind == INT8 ? 32767 : 127; }

// max |x| of `count` values.
inline float most_of(const float* x, long count) {
  f32v lanes{};
  long k = 0;
  for (; k + LANES <= count; k += LANES) lanes = max(lanes, max(load<f32v>(x + k), -load<f32v>(x + k)));
  float most = max(lanes);
  for (; k < count; k++) most = std::max(most, std::fabs(x[k]));
  return most;
}

// Columns first .. end - 1 of row `row` of activations that are not quantized, from the fp32 row x.
inline void put_columns(const Activations& a, int kind, long row, const float* x, long first, long end) {
  char* out = (char*)a.data + row * a.stride;
  if (activation_bytes(kind) == 4) {
    std::memcpy((float*)out + first, x + first, (end - first) * 4);
    return;
  }
  long k = first;
  for (; k + LANES <= end; k += LANES) store_bf16((bf16*)out + k, load<f32v>(x + k));
  for (; k < end; k++) ((bf16*)out)[k] = to_bf16(x[k]);
}

// Columns first .. end - 1, whole vectors, of row `row` of quantized activations; most: max |x| of the whole row.
inline void put_quantized(const Activations& a, int kind, long row, const float* x, long first, long end, float most) {
  char* out = (char*)a.data + row * a.stride;
  const float scale = most / levels(kind), inverse = scale == 0 ? 0 : 1 / scale;
  if (!dot_bytes && !dot_words) {  // the values that quantized activations stand for
    for (long k = first; k < end; k += LANES)
      store((float*)out + k, scale * __builtin_convertvector(round_to_int(load<f32v>(x + k) * inverse), f32v));
    return;
  }
  if (first == 0) a.scales[row] = scale;
  if (dot_words) {
    for (long k = first; k < end; k += LANES)
      store((int16_t*)out + k, __builtin_convertvector(round_to_int(load<f32v>(x + k) * inverse), i16v));
    return;
  }
  char* low = (char*)a.low + row * a.stride;
  for (long k = first; k < end; k += LANES) {
    u32v q = (u32v)(round_to_int(load<f32v>(x + k) * inverse) + (levels(kind) + 1));  // 1 or more
    if (kind == INT8) {
      store(low + k, __builtin_convertvector(q & 0xff, u8v));
      q >>= 8;
    }
    store(out + k, __builtin_convertvector(q, u8v));
  }
}

// Write fp32 values (K) as row `row` of activations for weights of this kind. x has room for whole vectors, zero
// behind K.
inline void put_row(const Activations& a, int kind, long row, const float* x, long columns) {
  const long end = padded(columns, LANES);
  if (quantizes(kind)) put_quantized(a, kind, row, x, 0, end, most_of(x, end));
  else put_columns(a, kind, row, x, 0, end);
}

// What becomes of the outputs: handed a vector at a time to `use(row, first column, values)`, bias included.
// values: (rows, vectors), those of the panel from vector `first` on.
template <class Use>
inline void use_panel(const Linear& w, long panel, int first, int vectors, int row, int rows, const f32v* values,
                      Use& use) {
  for (int c = 0; c < vectors; c++) {
    const long column = panel * PANEL + (first + c) * LANES;
    if (column >= w.rows) return;
    f32v bias{};
    if (w.bias) {
      float b[LANES] = {};
      std::memcpy(b, w.bias + column, std::min<long>(LANES, w.rows - column) * 4);
      bias = load<f32v>(b);
    }
    for (int r = 0; r < rows; r++) use(row + r, column, values[r * vectors + c] + bias);
  }
}

// Fetches weights early. Where there are several tiles only the first reads the panel from memory: the others fetch the
// next panel meanwhile (3 % at 32 rows). A single tile leaves it to the processor, which is faster at 2 to 8 rows.
struct Prefetch {
  static constexpr long LINE = 64;
  const char* from;
  long per_step = 0;  // without anything to fetch: the same line again and again

  Prefetch(const char* panel, long bytes, long steps, int number, int tiles) : from(panel) {
    if (number == 0) return;
    const long share = padded(bytes / (tiles - 1), LINE);
    from = panel + bytes + (number - 1) * share;
    per_step = padded((share + steps - 1) / steps, LINE);
  }

  inline __attribute__((always_inline)) void operator()(long step) const {  // no branch: it is in the innermost loop
    __builtin_prefetch(from + step * per_step, 0, 2);
    __builtin_prefetch(from + step * per_step + LINE, 0, 2);
  }
};

// The weights that a tile meets: COLS vectors of a panel, from vector `first` on.
struct Part {
  const Linear& w;
  long panel;
  int first;
  static constexpr long VECTOR = 4 * LANES, STRIDE = 4 * STRIP;  // bytes of a vector, of a step: the same in all formats

  long column() const { return panel * PANEL + first * LANES; }

  template <int COLS>
  void vectors(long step, const char* (&columns)[COLS]) const {
    const long strip_bytes = panel_bytes(w) / (PANEL / STRIP);
    const char* base = w.panels + panel * panel_bytes(w) + step * STRIDE;
    for (int c = 0; c < COLS; c++)
      columns[c] = base + (first + c) / VECTORS * strip_bytes + (first + c) % VECTORS * VECTOR;
  }
};

// One tile: `values` (ROWS, COLS) of fp32. Not inlined, so that it is compiled once and not for every use of it.
template <class F, int ROWS, int COLS>
__attribute__((noinline)) void panel_tile(const Part& part, const Activations& a, int row, const Prefetch& prefetch,
                                          f32v* values) {
  const Linear& w = part.w;
  const long lda = a.stride / sizeof(typename F::A);
  const Prefetch ahead = prefetch;
  typename F::Acc acc[ROWS][COLS] = {};
  const char* columns[COLS];
  part.vectors(0, columns);
  tile<F>(acc, (const typename F::A*)a.data + row * lda, lda, columns, Part::STRIDE,
          padded(w.columns, F::STEP) / F::STEP, ahead);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLS; c++) {
      values[r * COLS + c] = acc[r][c];
      if constexpr (std::is_same_v<F, F32xI8>) values[r * COLS + c] *= load<f32v>(w.scales + part.column() + c * LANES);
    }
}

#if BLOOM_DOT_U8
// Outputs `column` and on, from the sums over the activations' bytes, which are too large by 128 each.
inline f32v from_bytes(const Linear& w, long column, i32v dots, i32v low_dots, float scale) {
  f32v dot = __builtin_convertvector(dots - load<i32v>(w.sums + column) * 128, f32v);
  if (w.kind == INT8) dot = fma(dot, splat(256.0f), __builtin_convertvector(low_dots, f32v));
  return dot * (load<f32v>(w.scales + column) * scale);
}

// INT8_DYNAMIC: activations are bytes 128 + q. INT8 (WIDE): two bytes of 32768 + q, so that weight-only int8 keeps 16
// bits of the activations and still runs on dot products of bytes; both halves meet each loaded vector of weights.
template <bool WIDE, int ROWS, int COLS>
__attribute__((noinline)) void panel_tile_bytes(const Part& part, const Activations& a, int row,
                                                const Prefetch& prefetch, f32v* values) {
  const Linear& w = part.w;
  const char* p[COLS];
  part.vectors(0, p);
  const long steps = padded(w.columns, 4) / 4;
  const Prefetch ahead = prefetch;
  i32v acc[ROWS][COLS] = {}, acc_low[ROWS][COLS] = {};
  const uint8_t* x = (const uint8_t*)a.data + row * a.stride;
  const uint8_t* x_low = (const uint8_t*)a.low + row * a.stride;
  for (long s = 0; s < steps; s++) {
    ahead(s);
    i32v operands[COLS];
    for (int c = 0; c < COLS; c++) operands[c] = U8xI8::weights(p[c] + s * Part::STRIDE, 0);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 2
      for (int c = 0; c < COLS; c++) {
        U8xI8::multiply(acc[r][c], U8xI8::activation(x + r * a.stride + s * 4, 0), operands[c]);
        if constexpr (WIDE)
          U8xI8::multiply(acc_low[r][c], U8xI8::activation(x_low + r * a.stride + s * 4, 0), operands[c]);
      }
    }
  }
  for (int c = 0; c < COLS; c++)
    for (int r = 0; r < ROWS; r++)
      values[r * COLS + c] = from_bytes(w, part.column() + c * LANES, acc[r][c], acc_low[r][c], a.scales[row + r]);
}
#endif

#if BLOOM_DOT_I16
// Activations of 16 bits (8 of them used in INT8_DYNAMIC). Exact sums of up to 512 products, 32767 * 127 each at most,
// fit into 31 bits; those are summed in fp32.
template <int ROWS, int COLS>
__attribute__((noinline)) void panel_tile_words(const Part& part, const Activations& a, int row,
                                                const Prefetch& prefetch, f32v* values) {
  constexpr long EXACT = 512 / I16xI8::STEP;
  const Linear& w = part.w;
  const long lda = a.stride / 2, steps = padded(w.columns, I16xI8::STEP) / I16xI8::STEP;
  const int16_t* x = (const int16_t*)a.data + row * lda;
  f32v total[ROWS][COLS] = {};
  for (long step = 0; step < steps; step += EXACT) {
    i32v acc[ROWS][COLS] = {};
    const char* columns[COLS];
    part.vectors(step, columns);
    tile<I16xI8>(acc, x + step * I16xI8::STEP, lda, columns, Part::STRIDE, std::min(EXACT, steps - step),
                 [&](long s) { prefetch(step + s); });
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLS; c++) total[r][c] += __builtin_convertvector(acc[r][c], f32v);
  }
  for (int c = 0; c < COLS; c++) {
    const f32v scales = load<f32v>(w.scales + part.column() + c * LANES);
    for (int r = 0; r < ROWS; r++) values[r * COLS + c] = total[r][c] * (scales * a.scales[row + r]);
  }
}
#endif

// Vectors of columns of a tile: few rows leave room for more, which are read in the order they lie in memory.
constexpr int tile_vectors(int rows) {
  int vectors = VECTORS;
  while (vectors < PANEL / LANES && 2 * vectors * rows <= MAX_ROWS * VECTORS - VECTORS) vectors *= 2;
  return vectors;
}

struct Range {
  int first, end;
};

// The tiles of one panel and a range of rows, each of at most MOST of them: compute<ROWS, COLS>(part, first row, what to
// fetch, values).
template <int MOST, class Compute, class Use>
inline void multiply_panel(const Linear& w, Range m, long panel, Use& use, Compute&& compute) {
  const int tiles = (m.end - m.first + MOST - 1) / MOST;
  const long steps = padded(w.columns, step_of(w.kind)) / step_of(w.kind);
  for (int row = m.first, number = 0, rows; row < m.end; row += rows, number++) {
    rows = tile_rows(m.end - row, MOST);
    const Prefetch ahead(w.panels + panel * panel_bytes(w), panel_bytes(w), steps, number, tiles);
    with_rows<MOST>(rows, [&]<int ROWS>() {
      constexpr int COLS = tile_vectors(ROWS);
      for (int first = 0; first < PANEL / LANES; first += COLS) {
        f32v values[ROWS * COLS];
        compute.template operator()<ROWS, COLS>(Part{w, panel, first}, row, ahead, values);
        use_panel(w, panel, first, COLS, row, ROWS, values, use);
      }
    });
  }
}

template <class F, class Use>
void multiply_as(const Linear& w, const Activations& a, Range m, long panel, Use& use) {
  multiply_panel<MAX_ROWS>(
      w, m, panel, use, [&]<int ROWS, int COLS>(const Part& part, int row, const Prefetch& ahead, f32v* values) {
        panel_tile<F, ROWS, COLS>(part, a, row, ahead, values);
      });
}

#if BLOOM_DOT_U8
template <bool WIDE, class Use>
void multiply_bytes(const Linear& w, const Activations& a, Range m, long panel, Use& use) {
  constexpr int MOST = WIDE ? MAX_ROWS / 2 : MAX_ROWS;
  multiply_panel<MOST>(
      w, m, panel, use, [&]<int ROWS, int COLS>(const Part& part, int row, const Prefetch& ahead, f32v* values) {
        panel_tile_bytes<WIDE, ROWS, COLS>(part, a, row, ahead, values);
      });
}
#endif

#if BLOOM_DOT_I16
template <class Use>
void multiply_words(const Linear& w, const Activations& a, Range m, long panel, Use& use) {
  constexpr int MOST = MAX_ROWS - 1;  // a product needs a register before it is added
  multiply_panel<MOST>(
      w, m, panel, use, [&]<int ROWS, int COLS>(const Part& part, int row, const Prefetch& ahead, f32v* values) {
        panel_tile_words<ROWS, COLS>(part, a, row, ahead, values);
      });
}
#endif

#if BLOOM_AMX
// Are products with these weights computed in tile registers? Not where the inner dimension ends within a tile, which no
// BLOOM's does.
inline bool in_tiles(const Linear& w) {
  return w.kind != FLOAT32 && w.columns % (TILE_STEPS * step_of(w.kind)) == 0;
}

// What of the weights to fetch while some rows meet a slice of a panel: the first rows the slice itself, early, as loads of
// tiles run behind the memory otherwise; the others the slice that comes next, each its share.
struct TilePrefetch {
  static constexpr long LINE = 64, EARLY = 8 << 10, LINES = 2 * TILE_STEPS;  // of a block of steps
  const char* from;
  long lines = LINES;

  TilePrefetch(const char* slice, const char* next, long blocks, int number, int parts) : from(slice + EARLY) {
    if (number == 0) return;
    lines = (LINES + parts - 2) / (parts - 1);
    from = next + (number - 1) * lines * blocks * LINE;
  }

  void operator()(long block) const {
    for (long i = 0; i < lines; i++) __builtin_prefetch(from + (block * lines + i) * LINE, 0, 2);
  }
};

// Panels first .. end - 1 by tiles. Many rows meet a slice of each panel, then of each the next slice: what of the activations
// they need stays in the second cache meanwhile, and what of a panel in the first. The sums between two slices are exact.
// INT8's rows are in two bytes, which take the places of upper and lower rows.
template <class Use>
class PanelTiles {
 public:
  PanelTiles(const Linear& w, const Activations& a, Range m, long first, long end, Use& use)
      : w_(w), a_(a), m_(m), first_(first), end_(end), use_(use), wide_(w.kind == INT8),
        most_(wide_ ? TILE_ROWS : 2 * TILE_ROWS), parts_((m.end - m.first + most_ - 1) / most_),
        blocks_(w.columns / (TILE_STEPS * step_of(w.kind))), panel_sums_((wide_ ? 2 : 1) * (m.end - m.first) * VECS) {}

  void run() {
    thread_local std::vector<f32v> buffer;
    if (long(buffer.size()) < (end_ - first_) * panel_sums_) buffer.resize((end_ - first_) * panel_sums_);
    sums_ = buffer.data();
    const long slice = parts_ == 1 ? blocks_ : SLICE;
    for (long block = 0; block < blocks_; block += slice)
      for (long panel = first_; panel < end_; panel++) multiply(panel, block, std::min(slice, blocks_ - block));
  }

 private:
  static constexpr int VECS = PANEL / LANES;
  static constexpr long SLICE = 8, BLOCK_BYTES = 2 * TILE_STEPS * TILE_BYTES;

  const char* weights(long panel, long block) const {
    return w_.panels + panel * panel_bytes(w_) + block * BLOCK_BYTES;
  }

  void multiply(long panel, long block, long blocks) {
    const char* next = panel + 1 < end_ ? weights(panel + 1, block) : weights(first_, block + blocks);
    for (int row = m_.first, number = 0, rows; row < m_.end; row += rows, number++) {
      rows = tile_rows(m_.end - row, most_);
      const int upper = wide_ || rows <= TILE_ROWS ? rows : (rows + 1) / 2, lower = wide_ ? rows : rows - upper;
      TileShapes::set_for_panels(upper, lower);
      f32v* sums = sums_ + (panel - first_) * panel_sums_ + (row - m_.first) * VECS * (wide_ ? 2 : 1);
      const TilePrefetch ahead(weights(panel, block), next, blocks, number, parts_);
      const long offset = row * a_.stride + block * TILE_BYTES;
      const char* x = (const char*)a_.data + offset;
      const char* x_lower = wide_ ? (const char*)a_.low + offset : x + upper * a_.stride;
      const auto add = [&]<class Format, bool LOWER, bool FRESH>() {
        tile_products<Format, LOWER, FRESH>(x, x_lower, a_.stride, weights(panel, block), blocks, (char*)sums,
                                            (char*)(sums + upper * VECS), ahead);
      };
      const auto add_as = [&]<class Format>() {
        if (block == 0) lower ? add.template operator()<Format, true, true>() : add.template operator()<Format, false, true>();
        else lower ? add.template operator()<Format, true, false>() : add.template operator()<Format, false, false>();
      };
      w_.kind == BFLOAT16 ? add_as.template operator()<TileBF16>() : add_as.template operator()<TileU8xI8>();
      if (block + blocks == blocks_) finish(panel, row, rows, sums);
    }
  }

  void finish(long panel, int row, int rows, f32v* sums) {
    for (int i = 0; i < rows * VECS && w_.kind != BFLOAT16; i++) {
      const i32v low = wide_ ? (i32v)sums[rows * VECS + i] : i32v{};
      sums[i] = from_bytes(w_, panel * PANEL + i % VECS * LANES, (i32v)sums[i], low, a_.scales[row + i / VECS]);
    }
    use_panel(w_, panel, 0, VECS, row, rows, sums, use_);
  }

  const Linear& w_;
  const Activations& a_;
  const Range m_;
  const long first_, end_;
  Use& use_;
  const bool wide_;
  const int most_, parts_;
  const long blocks_, panel_sums_;
  f32v* sums_ = nullptr;
};
#endif

template <class Use>
void multiply_rows(const Linear& w, const Activations& a, Range m, long panel, Use& use) {
  switch (w.kind) {
    case FLOAT32: multiply_as<F32xF32>(w, a, m, panel, use); break;
#if BLOOM_DOT_BF16
    case BFLOAT16: multiply_as<BF16xBF16>(w, a, m, panel, use); break;
#else
    case BFLOAT16: multiply_as<F32xBF16>(w, a, m, panel, use); break;
#endif
#if BLOOM_DOT_U8
    case INT8: multiply_bytes<true>(w, a, m, panel, use); break;
    default: multiply_bytes<false>(w, a, m, panel, use); break;
#elif BLOOM_DOT_I16
    default: multiply_words(w, a, m, panel, use); break;
#else
    default: multiply_as<F32xI8>(w, a, m, panel, use); break;
#endif
  }
}

// Rows that meet some panels before the next rows do. Small tiles go over the activations often, and would have to fetch
// many rows from beyond the second cache each time.
inline int block_rows(int m, long stride) {
  constexpr long BYTES = LANES == 16 ? LONG_MAX : 128 << 10;
  const int blocks = int((m * stride - 1) / BYTES + 1), tiles = (m - 1) / (blocks * MAX_ROWS) + 1;
  return tiles * MAX_ROWS;
}

// Multiply the panels that fall to this thread; all threads call it, then meet at a barrier.
template <class Use>
void multiply(const Linear& w, const Activations& a, int m, int thread, int threads, Taken* taken, Use use) {
  const long panels = (w.rows + PANEL - 1) / PANEL;
#if BLOOM_AMX
  if (in_tiles(w)) {
    constexpr int ROWS = 512;
    const long several = std::clamp<long>(panels / (2 * threads), 1, 4);
    share_out(panels, several, thread, threads, taken, [&](long first, long end) {
      for (int row = 0; row < m; row += ROWS)
        PanelTiles(w, a, Range{row, std::min(row + ROWS, m)}, first, end, use).run();
    });
    return;
  }
#endif
  const long take = std::max<long>(1, std::min<long>(panels / 16, (256 << 10) / panel_bytes(w)));
  const int rows = block_rows(m, a.stride);
  share_out(panels, take, thread, threads, taken, [&](long first, long end) {
    for (int row = 0; row < m; row += rows)
      for (long panel = first; panel < end; panel++)
        multiply_rows(w, a, Range{row, std::min(row + rows, m)}, panel, use);
  });
}

}  // namespace
