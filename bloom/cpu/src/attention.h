// Causal ALiBi attention over a paged cache, for any mix of decodes and chunks of prompts.
//
// D = head dimension, padded to 16; a block holds the keys and values of 16 tokens. Keys of one head lie
// transposed, [D][16] (bf16 in pairs along D), values as they come, [16][D] (bf16 in pairs along the tokens), so that
// scores and outputs both come out of `tile` as vectors. int8 has a scale per token behind each part.
//
// Keys are visited in chunks of 64 at fixed positions, oldest first, with an online softmax per row: a row's result
// depends neither on the rows computed beside it nor on how its prompt was cut into steps.
// Sources: Press et al. 2022, ALiBi; Milakov and Gimelshein 2018, online softmax; Kwon et al. 2023, PagedAttention.
#pragma once

#include <algorithm>
#include <vector>

#include "linear.h"

namespace {

constexpr int BLOCK = 16;         // tokens
constexpr int IN_BLOCK = BLOCK / LANES;  // vectors of a row of a block's keys
constexpr int CHUNK = 4 * BLOCK;  // keys between two updates of the running maximum
constexpr int MAX_HEAD = 256;

extern "C" struct Cache {
  char* data;        // (layers, blocks, heads) of keys, then values
  float* key_norms;  // (layers, blocks, heads): the largest |k| of a block
  int64_t num_blocks;
  int32_t kind;  // FLOAT32, BFLOAT16 or INT8
  int32_t heads, head_dim;
};

inline long part_bytes(const Cache& c) {  // keys or values of one block and head
  const long d = padded(c.head_dim, BLOCK);
  return d * BLOCK * bytes_of(c.kind) + (c.kind == INT8 ? BLOCK * 4 : 0);
}

inline char* keys_of(const Cache& c, long layer, long block, long head) {
  return c.data + ((layer * c.num_blocks + block) * c.heads + head) * 2 * part_bytes(c);
}

inline float& key_norm(const Cache& c, long layer, long block, long head) {
  return c.key_norms[(layer * c.num_blocks + block) * c.heads + head];
}

inline float dot(const float* a, const float* b, int d) {
  f32v total{};
  int i = 0;
  for (; i + LANES <= d; i += LANES) total = fma(load<f32v>(a + i), load<f32v>(b + i), total);
  float rest = 0;
  for (; i < d; i++) rest += a[i] * b[i];
  return sum(total) + rest;
}

// d values as bf16; an odd one is followed by a zero.
inline void narrow_head(const float* x, int d, bf16* out) {
  int i = 0;
  for (; i + LANES <= d; i += LANES) store_bf16(out + i, load<f32v>(x + i));
  for (; i < d; i++) out[i] = to_bf16(x[i]);
  out[d] = 0;
}

// Quantize a head's vector to int8; returns its scale.
inline float quantize_head(const float* x, int d, int8_t* q) {
  float most = 0;
  for (int i = 0; i < d; i++) most = std::max(most, std::fabs(x[i]));
  const float inverse = most == 0 ? 0 : 127 / most;
  for (int i = 0; i < d; i++) q[i] = int8_t(std::nearbyint(x[i] * inverse));
  return most / 127;
}

// Write one token's key and value (D each) to its slot. The first token of a block clears it: what a slot held before
// must not reach a product with a zero weight (0 * NaN), nor its norm the skip bound.
inline void store_token(const Cache& c, long layer, long block, long head, int slot, const float* k, const float* v) {
  const int d = c.head_dim, dp = padded(d, BLOCK);
  char* keys = keys_of(c, layer, block, head);
  char* values = keys + part_bytes(c);
  float& norm = key_norm(c, layer, block, head);
  if (slot == 0) {
    std::memset(keys, 0, 2 * part_bytes(c));
    norm = 0;
  }
  norm = std::max(norm, std::sqrt(dot(k, k, d)));
  if (c.kind == FLOAT32) {
    for (int i = 0; i < d; i++) ((float*)keys)[i * BLOCK + slot] = k[i];
    std::memcpy((float*)values + slot * dp, v, d * 4);
  } else if (c.kind == BFLOAT16) {
    alignas(64) bf16 narrow[MAX_HEAD + LANES];
    narrow_head(k, d, narrow);
    for (int i = 0; i < d; i += 2) std::memcpy((bf16*)keys + i * BLOCK + slot * 2, narrow + i, 4);
    narrow_head(v, d, narrow);
    bf16* out = (bf16*)values + slot / 2 * 2 * dp + slot % 2;
    for (int i = 0; i < d; i++) out[2 * i] = narrow[i];
  } else {
    int8_t q[MAX_HEAD];
    ((float*)(keys + dp * BLOCK))[slot] = quantize_head(k, d, q);
    for (int i = 0; i < d; i++) ((int8_t*)keys)[i * BLOCK + slot] = q[i];
    ((float*)(values + dp * BLOCK))[slot] = quantize_head(v, d, (int8_t*)values + slot * dp);
  }
}

// The formats of keys and of values, and whether scales follow them.
struct CacheF32 {
  using Tile = F32xF32;
  static constexpr bool scaled = false;
};
struct CacheBF16 {
#if BLOOM_DOT_BF16
  using Tile = BF16xBF16;
#else
  using Tile = F32xBF16;
#endif
  static constexpr bool scaled = false;
};
struct CacheI8 {
  using Tile = F32xI8Row;
  static constexpr bool scaled = true;
};

// Rows of queries that are attended from together.
constexpr int ATTENTION_ROWS = BLOOM_AMX ? 16 : MAX_ROWS;

struct Head {  // one head of one sequence in one layer
  const Cache& cache;
  long layer, head;
  const int32_t* table;  // the sequence's blocks
  float slope, scale;    // scale = 1 / sqrt(D)
  float tolerance;       // of the share of softmax mass that whole chunks may be left out for; 0: none are
};

struct Counts {
  long chunks = 0, chunks_read = 0;
};

// A chunk that is read: its first key, and the rows (bits) that leave it out or lie before it.
struct Visit {
  long start;
  uint32_t skip;
};

// Blocks of one head to be fetched while others are computed, four lines a step. A block of one head is a page or so: too
// short for the processor to foresee the next, and fetching all of it at once would only wait.
class Fetch {
 public:
  Fetch() = default;
  Fetch(const Head& h, long head, long start, long end) {  // keys and values of start .. end - 1
    bytes_ = 2 * part_bytes(h.cache);
    for (long at = start; at < end; at += BLOCK) blocks_[count_++] = keys_of(h.cache, h.layer, h.table[at / BLOCK], head);
    if (count_) at_ = blocks_[0];
  }
  bool done() const { return next_ == count_; }
  void operator()(long) {
    if (done()) return;
    for (int i = 0; i < 4; i++) __builtin_prefetch(at_ + 64 * i, 0, 2);
    at_ += 256;
    if (at_ >= blocks_[next_] + bytes_ && ++next_ < count_) at_ = blocks_[next_];
  }

 private:
  const char* blocks_[CHUNK / BLOCK];
  const char* at_ = nullptr;
  long bytes_ = 0;
  int count_ = 0, next_ = 0;
};

const f32v LANE = [] {
  f32v lane{};
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane;
}();

// Call f<ROWS>() with the largest of MOST, MOST / 2, ..., 1 that is not more than `left`: prompts are long, so that few
// sizes suffice, and each takes the compiler a second.
template <int MOST, class Function>
inline void with_few_sizes(int left, Function&& f) {
  if constexpr (MOST > 1) {
    if (left < MOST) return with_few_sizes<MOST / 2>(left, f);
  }
  f.template operator()<MOST>();
}

template <class A>
inline void put_query(A* out, const float* q, int d) {
  int i = 0;
  if constexpr (std::is_same_v<A, bf16>) {
    for (; i + LANES <= d; i += LANES) store_bf16(out + i, load<f32v>(q + i));
    for (; i < d; i++) out[i] = to_bf16(q[i]);
  } else {
    for (; i < d; i++) out[i] = q[i];
  }
}

// Which chunks the queries at `position` and the `rows` - 1 after it read, oldest first. A lane is a row: `reach` is
// |q| scale, `own` the score of its own key.
//
// Leaving chunks out. The score of a key j in chunk c is at most b = |q| max|k| scale - slope (position - last of c),
// by Cauchy and Schwarz; the query's own position scores s, which is known from the start. So chunk c holds at most
// 64 e^(b - s) of the softmax's mass relative to a sum that is at least e^s. Going from the oldest chunk on, one is
// left out while the sum of these bounds stays below the tolerance t: the mass dropped is at most t of the whole,
// and the output, a mean of values, moves by at most 2 t max|v|. Chunks with large keys fail the bound and are read.
// A row decides for itself, and what it leaves out gets no weight though its neighbours may read it.
inline const std::vector<Visit>& choose_chunks(const Head& h, long position, int rows, f32v reach, f32v own,
                                               Counts& counts) {
  thread_local std::vector<Visit> visits;
  visits.clear();
  f32v dropped{};
  const f32v at = LANE + float(position);
  const uint32_t all = (1u << rows) - 1;
  for (long start = 0; start < position + rows; start += CHUNK) {
    const f32v behind = at - float(start + CHUNK - 1);  // distance to the chunk's nearest key
    uint32_t skip = all & bits(at < float(start));
    const uint32_t past = all & bits(behind > 0.0f);
    if (h.tolerance > 0 && past) {
      float norm = 0;
      for (int b = 0; b < CHUNK / BLOCK && start + b * BLOCK < position + rows; b++)
        norm = std::max(norm, key_norm(h.cache, h.layer, h.table[start / BLOCK + b], h.head));
      const f32v bound = reach * norm - behind * h.slope - own;
      // NaN, of a model that computes it, compares as false and is read.
      const f32v share = bound < 0.0f ? float(CHUNK) * exp(bound) : splat(2.0f);
      const f32v total = dropped + share;
      const i32v left_out = (total <= h.tolerance) & (behind > 0.0f);
      dropped = left_out ? total : dropped;
      const uint32_t left = all & bits(left_out);
      skip |= left;
      counts.chunks += __builtin_popcount(past);
      counts.chunks_read += __builtin_popcount(past & ~left);
    }
    if (skip != all) visits.push_back({start, skip});
  }
  return visits;
}

// What a vector of products becomes; ahead: the first one's key less the query.
inline void put_score(float* out, f32v dot, f32v scale, float slope, long ahead) {
  const f32v distance = LANE + float(ahead);
  store(out, distance > 0.0f ? splat(-INFINITY) : fma(dot, scale, distance * slope));
}

constexpr int attention_vectors(int rows) {
  const int room = std::max(1, (LANES == 16 ? MAX_ROWS : MAX_ROWS * VECTORS) / rows);
  int vectors = 1;
  while (2 * vectors <= std::min(room, 64 / LANES)) vectors *= 2;
  return vectors;
}

#if BLOOM_AMX
// Scores of `queries` (rows of dp) with `blocks` blocks of keys, to rows of CHUNK floats. Shapes: TileShapes' for attention.
inline void score_tiles(const bf16* queries, int dp, const char* const* keys, int blocks, float* scores, Fetch& ahead) {
  constexpr int WHOLE = 32;  // of the head's dimensions, in pairs
  with_tiles(CHUNK / BLOCK, []<int B>() { zero_tile<B>(); });
  int i = 0;
  for (; i + WHOLE <= dp; i += WHOLE) {
    load_tile<4>(queries + i, dp * 2);
    with_tiles(blocks, [&]<int B>() {
      load_tile<6>(keys[B] + i * BLOCK * 2, TILE_BYTES);
      TileBF16::multiply<B, 4, 6>();
    });
    for (int n = 0; n < 8; n++) ahead(n);
  }
  if (i < dp) {
    load_tile<5>(queries + i, dp * 2);
    with_tiles(blocks, [&]<int B>() {
      load_tile<7>(keys[B] + i * BLOCK * 2, TILE_BYTES);
      TileBF16::multiply<B, 5, 7>();
    });
  }
  with_tiles(CHUNK / BLOCK, [&]<int B>() { store_tile<B>(scores + B * BLOCK, CHUNK * 4); });
}

// sums (rows of MAX_HEAD) += weights (rows of CHUNK) times the values, dp wide, of `blocks` blocks.
inline void value_tiles(const bf16* weights, const char* const* keys, long part, int dp, int blocks, float* sums,
                        Fetch& ahead) {
  constexpr int AT_ONCE = 4 * LANES;
  for (int first = 0; first < dp; first += AT_ONCE) {
    const int vectors = std::min(AT_ONCE, dp - first) / LANES;
    with_tiles(vectors, [&]<int V>() { load_tile<V>(sums + first + V * LANES, MAX_HEAD * 4); });
    for (int b = 0; b < blocks; b++) {
      load_tile<5>(weights + b * BLOCK, CHUNK * 2);
      const char* values = keys[b] + part + first * 4;
      with_tiles(vectors, [&]<int V>() {
        load_tile<7>(values + V * TILE_BYTES, dp * 4);
        TileBF16::multiply<V, 5, 7>();
      });
      for (int n = 0; n < 8; n++) ahead(n);
    }
    with_tiles(vectors, [&]<int V>() { store_tile<V>(sums + first + V * LANES, MAX_HEAD * 4); });
  }
}
#endif

// Rows `position` to `position + ROWS - 1` of a sequence. q and k: their vectors, `stride` apart; out likewise.
template <class C, int ROWS>
void attend_rows(const Head& h, long position, const float* q, const float* k, long stride, float* out,
                 long out_stride, Counts& counts) {
  using F = typename C::Tile;
  using A = typename F::A;
  // Vectors of keys, or of outputs, at once: a sum is a chain of dependent instructions, and few rows are few chains.
  constexpr int COLS = attention_vectors(ROWS);
  constexpr bool IN_TILES = BLOOM_AMX && std::is_same_v<A, bf16>;
  const int d = h.cache.head_dim, dp = padded(d, BLOCK);
  alignas(64) A queries[ROWS * MAX_HEAD] = {};
  alignas(64) float scores[ROWS][CHUNK], sums[ROWS][MAX_HEAD];
  alignas(64) A weights[ROWS][CHUNK];
  float most[ROWS];
  f32v mass[ROWS] = {}, own{}, reach{};
  for (int r = 0; r < ROWS; r++) {
    put_query(queries + r * dp, q + r * stride, d);
    std::memset(sums[r], 0, dp * sizeof(float));
    most[r] = own[r] = dot(q + r * stride, k + r * stride, d) * h.scale;
    reach[r] = std::sqrt(dot(q + r * stride, q + r * stride, d)) * h.scale;
  }
  const long last = position + ROWS - 1, part = part_bytes(h.cache);
  const std::vector<Visit>& visits = choose_chunks(h, position, ROWS, reach, own, counts);
  for (size_t visit = 0; visit < visits.size(); visit++) {
    const long start = visits[visit].start;
    const uint32_t skip = visits[visit].skip;
    const int blocks = int(std::min<long>(CHUNK, last + 1 - start) + BLOCK - 1) / BLOCK;
    const int32_t* table = h.table + start / BLOCK;
    Fetch ahead;
    if (visit + 1 < visits.size())
      ahead = Fetch(h, h.head, visits[visit + 1].start, std::min(last + 1, visits[visit + 1].start + CHUNK));
    else if (ROWS == 1 && h.head + 1 < h.cache.heads)  // the thread's next task is likely to begin where this one did
      ahead = Fetch(h, h.head + 1, visits[0].start, std::min(last + 1, visits[0].start + CHUNK));
    const char* keys[CHUNK / BLOCK];  // of a block that is not there: the last one's, and the result is not used
    for (int b = 0; b < CHUNK / BLOCK; b++)
      keys[b] = keys_of(h.cache, h.layer, table[std::min(b, blocks - 1)], h.head);
    const int vectors = blocks * IN_BLOCK;
#if BLOOM_AMX
    if constexpr (IN_TILES) {
      TileShapes::set_for_attention(ROWS);
      score_tiles(queries, dp, keys, blocks, &scores[0][0], ahead);
      for (int at = 0; at < blocks * BLOCK; at += LANES)
        for (int r = 0; r < ROWS; r++) put_score(&scores[r][at], load<f32v>(&scores[r][at]), splat(h.scale), h.slope,
                                                 start + at - (position + r));
    }
#endif
    for (int first = 0; first < vectors && !IN_TILES; first += COLS) {
      typename F::Acc acc[ROWS][COLS] = {};
      const char* columns[COLS];
      for (int c = 0; c < COLS; c++) columns[c] = keys[(first + c) / IN_BLOCK] + (first + c) % IN_BLOCK * F::BYTES;
      tile<F>(acc, queries, dp, columns, F::BYTES * IN_BLOCK, dp / F::STEP, ahead);
      for (int c = 0; c < COLS; c++) {
        const int at = (first + c) * LANES;  // in the chunk
        f32v scale = splat(h.scale);
        if constexpr (C::scaled) scale *= load<f32v>(keys[at / BLOCK] + dp * BLOCK + at % BLOCK * 4);
        for (int r = 0; r < ROWS; r++)
          put_score(&scores[r][at], acc[r][c], scale, h.slope, start + at - (position + r));
      }
    }
    for (int r = 0; r < ROWS; r++) {
      if (skip >> r & 1) {
        std::memset(weights[r], 0, sizeof weights[r]);
        continue;
      }
      f32v top = splat(most[r]);
      for (int i = 0; i < blocks * BLOCK; i += LANES) top = max(top, load<f32v>(&scores[r][i]));
      const float now = max(top);
      if (now > most[r]) {
        const f32v shrink = exp(splat(most[r] - now));
        mass[r] *= shrink;
        for (int i = 0; i < dp; i += LANES) store(&sums[r][i], load<f32v>(&sums[r][i]) * shrink);
        most[r] = now;
      }
      for (int i = 0; i < blocks * BLOCK; i += LANES) {
        f32v p = exp(load<f32v>(&scores[r][i]) - most[r]);
        mass[r] += p;
        if constexpr (C::scaled) p *= load<f32v>(keys[i / BLOCK] + part + dp * BLOCK + i % BLOCK * 4);
        if constexpr (std::is_same_v<A, bf16>) store_bf16(&weights[r][i], p);
        else store(&weights[r][i], p);
      }
    }
    // A step takes F::STEP tokens (bf16: a pair), a row of values apart.
    constexpr int STEP = F::STEP;
    const long value_stride = long(dp) * F::BYTES / LANES;
#if BLOOM_AMX
    if constexpr (IN_TILES) value_tiles(&weights[0][0], keys, part, dp, blocks, &sums[0][0], ahead);
#endif
    for (int first = 0; first < dp && !IN_TILES; first += LANES * COLS) {
      typename F::Acc acc[ROWS][COLS];
      int column[COLS];  // one that is not there: the last, computed twice
      for (int c = 0; c < COLS; c++) column[c] = std::min(first + c * LANES, dp - LANES);
      for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) acc[r][c] = load<f32v>(&sums[r][column[c]]);
      for (int b = 0; b < blocks; b++) {
        const char* columns[COLS];
        for (int c = 0; c < COLS; c++) columns[c] = keys[b] + part + column[c] * F::BYTES / LANES;
        tile<F>(acc, &weights[0][b * BLOCK], CHUNK, columns, value_stride, BLOCK / STEP, ahead);
      }
      for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) store(&sums[r][column[c]], acc[r][c]);
    }
    while (!ahead.done()) ahead(0);
  }
  for (int r = 0; r < ROWS; r++) {
    const float inverse = 1 / sum(mass[r]);
    for (int i = 0; i < d; i++) out[r * out_stride + i] = sums[r][i] * inverse;
  }
}

// Store the new tokens of one sequence and head, then attend from the last `needed` of them. qkv: (tokens, heads, 3, D),
// `stride` floats a token; `context` tokens are in the cache when these are.
inline void attend(const Head& h, int tokens, int needed, long context, const float* qkv, long stride, float* out,
                   long out_stride, Counts& counts) {
  const Cache& c = h.cache;
  const float* q = qkv + h.head * 3 * c.head_dim;
  const float *k = q + c.head_dim, *v = k + c.head_dim;
  for (int t = 0; t < tokens; t++) {
    const long position = context - tokens + t;
    store_token(c, h.layer, h.table[position / BLOCK], h.head, position % BLOCK, k + t * stride, v + t * stride);
  }
  for (int row = tokens - needed; row < tokens;) {
    with_few_sizes<ATTENTION_ROWS>(tokens - row, [&]<int ROWS>() {
      const long position = context - tokens + row;
      const float *rq = q + row * stride, *rk = k + row * stride;
      float* ro = out + row * out_stride + h.head * c.head_dim;
      if (c.kind == FLOAT32) attend_rows<CacheF32, ROWS>(h, position, rq, rk, stride, ro, out_stride, counts);
      else if (c.kind == BFLOAT16) attend_rows<CacheBF16, ROWS>(h, position, rq, rk, stride, ro, out_stride, counts);
      else attend_rows<CacheI8, ROWS>(h, position, rq, rk, stride, ro, out_stride, counts);
      row += ROWS;
    });
  }
}

}  // namespace
