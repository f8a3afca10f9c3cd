// One step of a BLOOM, or of a rank's share of one, and the C interface that bloom/cpu/library.py declares.
//
// T = tokens of the step, S = sequences, H = hidden size, N = heads here, D = head dimension, L = layers here.
// A step is a row of stages; with tensor parallelism the caller sums `partial` over the ranks between some of them.

#include <cstdlib>
#include <memory>
#include <new>

#include <sys/mman.h>

#include "attention.h"
#include "pool.h"

extern "C" {

struct Layer {
  const float *norm1, *norm1_bias, *norm2, *norm2_bias;  // (H)
  Linear qkv;                                            // (3 N D, H): of each head its query, key and value
  Linear dense;                                          // (H, N D)
  Linear up;                                             // (F, H)
  Linear down;                                           // (H, F)
};

struct Model {
  int64_t hidden, layers, first_token;  // first_token: of the vocabulary's rows that are here
  float epsilon, tolerance;
  int32_t parallel;                     // 1: dense and down leave partial sums instead of adding to x
  const float *embed_norm, *embed_norm_bias, *final_norm, *final_norm_bias;
  const float* slopes;  // (N)
  Linear embedding;     // also the head
  const Layer* layer;   // (L)
  Cache cache;
};

struct Step {
  int32_t tokens;                 // fewer once the last layer has left out those that are not needed
  int32_t sequences, table_stride;
  const int64_t* ids;             // (T)
  const int32_t* query_starts;    // (S + 1)
  const int32_t* context_lens;    // (S), the step's tokens included
  const int32_t* block_tables;    // (S, table_stride)
  const int32_t* num_needed;      // (S) of how many tokens, a sequence's last, hidden states are needed; null: of all
  float* x;                       // (T, H) the residual stream, in and out: the needed rows in front
  float* partial;                 // (T, H) with parallel
  int64_t chunks, chunks_read;    // out: chunks of keys that could have been left out, and those that were read
};

}  // extern "C"

namespace {

// The stages, in order. Those of a layer repeat.
enum Stage { EMBED = 0, EMBED_NORM = 1, LAYERS = 2, PER_LAYER = 4 };
constexpr int HEADS_AT_ONCE = 4;  // of a sequence, by one thread: they lie side by side in a block
enum LayerStage { ATTENTION = 0, ADD_ATTENTION = 1, MLP = 2, ADD_MLP = 3 };
inline int final_stage(const Model& m) { return LAYERS + PER_LAYER * m.layers; }

template <class T>
struct Buffer {  // grows, never shrinks; contents are not kept
  ~Buffer() { std::free(data); }
  T* get(size_t count) {
    if (count > size) {
      std::free(data);
      data = (T*)std::aligned_alloc(64, padded(count * sizeof(T), 64));
      if (!data) throw std::bad_alloc();
      size = count;
    }
    return data;
  }
  T* data = nullptr;
  size_t size = 0;
};

struct Scratch {
  Buffer<char> activations, low;
  Buffer<float> scales, qkv, attended, wide, most;
  Buffer<f32v> most_lanes;
};

inline void layer_norm(const float* x, const float* weight, const float* bias, long h, float epsilon, float* out) {
  f32v total{};
  long i = 0;
  float rest = 0;
  for (; i + LANES <= h; i += LANES) total += load<f32v>(x + i);
  for (; i < h; i++) rest += x[i];
  const float mean = (sum(total) + rest) / h;
  f32v squares{};
  rest = 0;
  for (i = 0; i + LANES <= h; i += LANES) {
    f32v v = load<f32v>(x + i) - mean;
    squares = fma(v, v, squares);
  }
  for (; i < h; i++) rest += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1 / std::sqrt((sum(squares) + rest) / h + epsilon);
  for (i = 0; i + LANES <= h; i += LANES)
    store(out + i, fma((load<f32v>(x + i) - mean) * inverse, load<f32v>(weight + i), load<f32v>(bias + i)));
  for (; i < h; i++) out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

// One head of a sequence: new keys and values to the cache, then attention, from the needed tokens alone with
// `num_needed`.
inline void attend_task(const Cache& cache, const float* slopes, float tolerance, const Step& step, long layer,
                        const int32_t* num_needed, long seq, long head, const float* qkv, long width, float* out,
                        long out_stride, Counts& counts) {
  const int start = step.query_starts[seq], tokens = step.query_starts[seq + 1] - start;
  const float scale = 1 / std::sqrt(float(cache.head_dim));
  const Head h{cache, layer, head, step.block_tables + seq * step.table_stride, slopes[head], scale, tolerance};
  attend(h, tokens, num_needed ? num_needed[seq] : tokens, step.context_lens[seq], qkv + start * width, width,
         out + start * out_stride, out_stride, counts);
}

class Runner {
 public:
  Runner(const Model& model, Step& step, Pool& pool, Scratch& scratch)
      : m_(model), s_(step), pool_(pool), scratch_(scratch) {
    const long t = s_.tokens, h = m_.hidden;
    long widest = h, stride = row_stride(h, 4), narrow = 0;
    for (long l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      widest = std::max(widest, layer.up.rows);
      for (const Linear* w : {&layer.qkv, &layer.dense, &layer.down})
        stride = std::max(stride, row_stride(w->columns, 4));
      narrow = std::max(narrow, layer.qkv.rows);
    }
    a_ = {scratch_.activations.get(t * stride), scratch_.low.get(t * stride), scratch_.scales.get(t), 0};
    qkv_ = scratch_.qkv.get(t * narrow);
    attended_ = scratch_.attended.get(t * (narrow / 3 + LANES));
    most_stride_ = padded(t, LANES);
    most_ = scratch_.most.get(most_stride_ * pool_.size());
    most_lanes_ = scratch_.most_lanes.get(t * pool_.size());
    wide_ = scratch_.wide.get(t * std::max(padded(widest, LANES), row_stride(widest, 2) / 4));
  }

  void run(int first, int last) {
    taken_ = std::vector<Taken>(MOST_PHASES * (last - first + 1) * pool_.size());
    counts_.assign(pool_.size(), {});
    pool_.run([&](int thread) {
      Worker me{thread};
      for (int stage = first; stage <= last; stage++) run_stage(stage, me);
      release_tiles();
    });
    for (const Counts& counts : counts_) {
      s_.chunks += counts.chunks;
      s_.chunks_read += counts.chunks_read;
    }
  }

 private:
  static constexpr int MOST_PHASES = 8;  // of work to share out, in a stage

  struct Worker {
    int thread;
    int phase = 0;
  };

  void run_stage(int stage, Worker& me) {
    if (s_.tokens == 0) return;
    if (stage == EMBED) return embed(me);
    if (stage == EMBED_NORM) return norm_in_place(m_.embed_norm, m_.embed_norm_bias, me);
    if (stage == final_stage(m_)) return norm_in_place(m_.final_norm, m_.final_norm_bias, me);
    const long index = (stage - LAYERS) / PER_LAYER;
    const Layer& layer = m_.layer[index];
    switch ((stage - LAYERS) % PER_LAYER) {
      case ATTENTION: return attention(index, layer, me);
      case ADD_ATTENTION: return add_partial(layer.dense.bias, me);
      case MLP: return mlp(layer, me);
      case ADD_MLP: return add_partial(layer.down.bias, me);
    }
  }

  Taken* next_phase(Worker& me) { return &taken_[pool_.size() * me.phase++]; }

  // Share out 0 .. count - 1 in pieces of `take`, then meet.
  template <class F>
  void share(long count, long take, Worker& me, F&& f) {
    share_out(count, take, me.thread, pool_.size(), next_phase(me), [&](long first, long end) {
      for (long i = first; i < end; i++) f(i);
    });
    pool_.barrier();
  }

  long rows_at_once() const { return std::max<long>(1, std::min<long>(16, s_.tokens / (2 * pool_.size()))); }

  void embed(Worker& me) {
    share(s_.tokens, 1, me, [&](long t) {
      float* x = s_.x + t * m_.hidden;
      const long row = s_.ids[t] - m_.first_token;
      const bool here = row >= 0 && row < m_.embedding.rows;  // else another rank adds it
      for (long i = 0; i < m_.hidden; i++) x[i] = here ? element(m_.embedding, row, i) : 0;
    });
  }

  void norm_in_place(const float* weight, const float* bias, Worker& me) {
    share(s_.tokens, rows_at_once(), me, [&](long t) {
      float* x = s_.x + t * m_.hidden;
      layer_norm(x, weight, bias, m_.hidden, m_.epsilon, x);
    });
  }

  // The rows (T, columns) that `row(t, out)` makes become the activations of a product with w.
  template <class F>
  void prepare(const Linear& w, Worker& me, F&& row) {
    a_.stride = row_stride(w.columns, activation_bytes(w.kind));
    Activations a = a_;
    share(s_.tokens, rows_at_once(), me, [&](long t) { put_row(a, w.kind, t, row(t), w.columns); });
  }

  void normalize(const Linear& w, const float* weight, const float* bias, Worker& me) {
    thread_local Buffer<float> buffer;
    float* normed = buffer.get(padded(m_.hidden, LANES));
    for (long i = m_.hidden; i < padded(m_.hidden, LANES); i++) normed[i] = 0;
    prepare(w, me, [&](long t) {
      layer_norm(s_.x + t * m_.hidden, weight, bias, m_.hidden, m_.epsilon, normed);
      return normed;
    });
  }

  void attention(long index, const Layer& layer, Worker& me) {
    normalize(layer.qkv, layer.norm1, layer.norm1_bias, me);
    const long width = layer.qkv.rows;
    store_product(layer.qkv, qkv_, width, me);
    const long out_stride = padded(m_.cache.heads * m_.cache.head_dim, LANES);
    Counts& counts = counts_[me.thread];
    const int32_t* num_needed = index == m_.layers - 1 ? s_.num_needed : nullptr;
    const int kind = layer.dense.kind;
    float* most = most_ + me.thread * most_stride_;
    if (!num_needed) {
      a_.stride = row_stride(layer.dense.columns, activation_bytes(kind));
      std::fill_n(most, s_.tokens, 0.0f);
    }
    // By heads first: most of a head's queries, keys and values are where the same thread computed them.
    const long heads = m_.cache.heads, groups = (heads + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
    share(groups * s_.sequences, 1, me, [&](long i) {
      const long seq = i % s_.sequences, head = i / s_.sequences * HEADS_AT_ONCE;
      const long end = std::min(head + HEADS_AT_ONCE, heads);
      for (long h = head; h < end; h++)
        attend_task(m_.cache, m_.slopes, m_.tolerance, s_, index, num_needed, seq, h, qkv_, width, attended_,
                    out_stride, counts);
      if (num_needed) return;
      for (long t = s_.query_starts[seq]; t < s_.query_starts[seq + 1]; t++)
        attended(kind, t, attended_ + t * out_stride, head * m_.cache.head_dim, end * m_.cache.head_dim, out_stride,
                 most);
    });
    if (num_needed) {  // what comes after the last attention depends on its own row alone
      share(1, 1, me, [&](long) { keep_needed(out_stride); });
      if (s_.tokens == 0) return;
      prepare(layer.dense, me, [&](long t) {
        float* row = attended_ + t * out_stride;
        for (long i = layer.dense.columns; i < out_stride; i++) row[i] = 0;
        return row;
      });
    } else if (quantizes(kind)) {
      quantize(layer.dense, attended_, out_stride, me);
    }
    to_residual(layer.dense, me);
  }

  // Columns first .. end - 1 of row t of attention's output, x, are there: the next product's activations, or, where
  // they are quantized, the row's maximum.
  void attended(int kind, long t, float* x, long first, long end, long stride, float* most) {
    const bool last = end == m_.cache.heads * m_.cache.head_dim;
    if (last) std::fill(x + end, x + stride, 0.0f);
    if (!quantizes(kind)) return put_columns(a_, kind, t, x, first, last ? stride : end);
    most[t] = std::max(most[t], most_of(x + first, end - first));
  }

  // Rows (T, columns) whose maxima are in most_ become the activations of a product with w. Each thread writes some
  // columns of all rows: about those that it computed.
  void quantize(const Linear& w, const float* rows, long stride, Worker& me) {
    a_.stride = row_stride(w.columns, activation_bytes(w.kind));
    const long lines = (w.columns + 63) / 64, threads = pool_.size(), whole = padded(w.columns, LANES);
    const long first = lines * me.thread / threads * 64, end = std::min(lines * (me.thread + 1) / threads * 64, whole);
    for (long t = 0; t < s_.tokens && first < end; t++) {
      float most = 0;
      for (long i = 0; i < threads; i++) most = std::max(most, most_[i * most_stride_ + t]);
      put_quantized(a_, w.kind, t, rows + t * stride, first, end, most);
    }
    pool_.barrier();
  }

  // Move the needed rows of x and of attention's output to the front.
  void keep_needed(long out_stride) {
    long kept = 0;
    for (long seq = 0; seq < s_.sequences; seq++) {
      const long end = s_.query_starts[seq + 1], count = s_.num_needed[seq];
      if (kept != end - count) {
        std::memmove(s_.x + kept * m_.hidden, s_.x + (end - count) * m_.hidden, count * m_.hidden * sizeof(float));
        std::memmove(attended_ + kept * out_stride, attended_ + (end - count) * out_stride,
                     count * out_stride * sizeof(float));
      }
      kept += count;
    }
    s_.tokens = kept;
  }

  void mlp(const Layer& layer, Worker& me) {
    normalize(layer.up, layer.norm2, layer.norm2_bias, me);
    const long width = layer.up.rows, stride = padded(width, LANES);
    if (layer.down.kind == BFLOAT16 && dot_bf16) {  // straight into the next product's activations
      Activations next = a_;
      next.data = (char*)wide_;
      next.stride = row_stride(width, 2);
      product(layer.up, a_, me, [&](long t, long column, f32v v) {
        store_bf16((bf16*)((char*)next.data + t * next.stride) + column, gelu(v));
      });
      to_residual(layer.down, me, next);
      return;
    }
    if (!quantizes(layer.down.kind)) {
      product(layer.up, a_, me, [&](long t, long column, f32v v) { store(wide_ + t * stride + column, gelu(v)); });
      prepare(layer.down, me, [&](long t) { return wide_ + t * stride; });
    } else {
      f32v* most = most_lanes_ + me.thread * s_.tokens;
      std::fill_n(most, s_.tokens, f32v{});
      multiply_shared(layer.up, a_, me, [&](long t, long column, f32v v) {
        v = gelu(v);
        store(wide_ + t * stride + column, v);
        most[t] = max(most[t], max(v, -v));
      });
      for (long t = 0; t < s_.tokens; t++) most_[me.thread * most_stride_ + t] = max(most[t]);
      pool_.barrier();
      quantize(layer.down, wide_, stride, me);
    }
    to_residual(layer.down, me);
  }

  template <class Use>
  void multiply_shared(const Linear& w, const Activations& a, Worker& me, Use use) {
    multiply(w, a, s_.tokens, me.thread, pool_.size(), next_phase(me), use);
  }

  template <class Use>
  void product(const Linear& w, const Activations& a, Worker& me, Use use) {
    multiply_shared(w, a, me, use);
    pool_.barrier();
  }

  void store_product(const Linear& w, float* out, long stride, Worker& me) {
    product(w, a_, me, [&](long t, long column, f32v v) { put(out + t * stride + column, v, w.rows - column); });
  }

  static void put(float* out, f32v v, long room) {
    if (room >= LANES) store(out, v);
    else std::memcpy(out, &v, room * 4);
  }

  void to_residual(const Linear& w, Worker& me) { to_residual(w, me, a_); }

  void to_residual(const Linear& w, Worker& me, const Activations& a) {
    if (m_.parallel) {
      Linear plain = w;
      plain.bias = nullptr;  // added once, after the sum over ranks
      product(plain, a, me, [&](long t, long column, f32v v) {
        put(s_.partial + t * m_.hidden + column, v, m_.hidden - column);
      });
      return;
    }
    product(w, a, me, [&](long t, long column, f32v v) {
      float* x = s_.x + t * m_.hidden + column;
      const long room = m_.hidden - column;
      if (room >= LANES) {
        store(x, load<f32v>(x) + v);
      } else {
        for (long i = 0; i < room; i++) x[i] += v[i];
      }
    });
  }

  void add_partial(const float* bias, Worker& me) {
    if (!m_.parallel) return;
    share(s_.tokens, rows_at_once(), me, [&](long t) {
      float *x = s_.x + t * m_.hidden, *partial = s_.partial + t * m_.hidden;
      for (long i = 0; i < m_.hidden; i++) x[i] += partial[i] + bias[i];
    });
  }

  const Model& m_;
  Step& s_;
  Pool& pool_;
  Scratch& scratch_;
  Activations a_;
  float *qkv_, *attended_, *wide_;
  // max |x| of rows, as far as each thread has seen them: (threads, most_stride_), and (threads, T) by lanes.
  float* most_;
  f32v* most_lanes_;
  long most_stride_;
  std::vector<Taken> taken_;  // of each phase, one for each thread
  std::vector<Counts> counts_;
};

struct Context {
  explicit Context(int threads) : pool(threads) {}
  Pool pool;
  Scratch scratch;
};

template <class Source>
bool pack(Context& c, const Linear& w, long first, long rows, const Source* source, long stride) {
  std::atomic<long> next{first / PANEL};
  std::atomic<bool> finite{true};
  c.pool.run([&](int) {
    for (;;) {
      const long panel = next.fetch_add(1);
      if (panel * PANEL >= first + rows) break;
      for (long r = std::max(first, panel * PANEL); r < std::min(first + rows, (panel + 1) * PANEL); r++)
        if (!pack_row(w, r, source + (r - first) * stride)) finite = false;
    }
  });
  return finite;
}

}  // namespace

extern "C" {

Context* bloom_open(int threads) { return new Context(threads); }

void bloom_close(Context* context) { delete context; }

// Zeroed memory, in huge pages where the system has them: weights are read from end to end in every step.
char* bloom_allocate(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  madvise(p, bytes, MADV_HUGEPAGE);
  return (char*)p;
}

void bloom_free(char* p, size_t bytes) { munmap(p, bytes); }

// Have the system hand out every page of what bloom_allocate gave, which stays zero.
void bloom_touch(Context* c, char* p, size_t bytes) {
  constexpr size_t page = 4096, piece = 16 << 20;
  std::atomic<size_t> next{0};
  c->pool.run([&](int) {
    for (size_t first; (first = next.fetch_add(piece)) < bytes;)
      for (size_t i = first; i < std::min(first + piece, bytes); i += page) *(volatile char*)(p + i) = 0;
  });
}

int64_t bloom_panels_bytes(const Linear* w) { return (w->rows + PANEL - 1) / PANEL * panel_bytes(*w); }

int64_t bloom_block_bytes(const Cache* cache) { return 2 * part_bytes(*cache) * cache->heads; }

// Rows first .. first + rows - 1 of a weight from `source` (rows, K): 0 fp32, 1 bf16, 2 int8 (scales are set by the caller).
// False where int8 is made of something that is not finite.
bool bloom_pack(Context* c, const Linear* w, int64_t first, int64_t rows, const void* source, int64_t stride, int kind) {
  if (kind == FLOAT32) return pack(*c, *w, first, rows, (const float*)source, stride);
  if (kind == BFLOAT16) return pack(*c, *w, first, rows, (const bf16*)source, stride);
  return pack(*c, *w, first, rows, (const int8_t*)source, stride);
}

int bloom_final_stage(const Model* model) { return final_stage(*model); }

// Stages first .. last of a step, both included.
void bloom_run(Context* c, const Model* model, Step* step, int first, int last) {
  Runner(*model, *step, c->pool, c->scratch).run(first, last);
}

// Attention alone: qkv (T, N, 3, D) to out (T, N, D), over layer 0 of a cache.
void bloom_attend(Context* c, const Cache* cache, const float* slopes, float tolerance, Step* step, const float* qkv,
                  float* out) {
  const long width = long(cache->heads) * cache->head_dim;
  std::atomic<long> next{0}, chunks{0}, chunks_read{0};
  c->pool.run([&](int) {
    Counts counts;
    for (long task; (task = next.fetch_add(1)) < long(step->sequences) * cache->heads;)
      attend_task(*cache, slopes, tolerance, *step, 0, nullptr, task / cache->heads, task % cache->heads, qkv,
                  3 * width, out, width, counts);
    chunks += counts.chunks;
    chunks_read += counts.chunks_read;
    release_tiles();
  });
  step->chunks += chunks;
  step->chunks_read += chunks_read;
}

// Blocks source -> target of every layer, `pairs` (count, 2).
void bloom_copy_blocks(const Model* model, const int32_t* pairs, int64_t count) {
  const Cache& cache = model->cache;
  const size_t bytes = bloom_block_bytes(&cache);
  for (int64_t i = 0; i < count; i++)
    for (long l = 0; l < model->layers; l++) {
      const long source = pairs[2 * i], target = pairs[2 * i + 1];
      std::memcpy(keys_of(cache, l, target, 0), keys_of(cache, l, source, 0), bytes);
      std::memcpy(&key_norm(cache, l, target, 0), &key_norm(cache, l, source, 0), cache.heads * 4);
    }
}

// out (M, N), `out_stride` floats a row, = hidden (M, K) times w transposed, plus its bias.
void bloom_linear(Context* c, const Linear* w, const float* hidden, int64_t m, int64_t stride, float* out,
                  int64_t out_stride) {
  const long k = padded(w->columns, LANES);
  Activations a{nullptr, nullptr, c->scratch.scales.get(m), row_stride(w->columns, activation_bytes(w->kind))};
  a.data = c->scratch.activations.get(m * a.stride);
  a.low = c->scratch.low.get(m * a.stride);
  const int threads = c->pool.size();
  std::vector<Taken> rows(threads), panels(threads);
  c->pool.run([&](int thread) {
    Buffer<float> row;
    float* x = row.get(k);
    share_out(m, 1, thread, threads, rows.data(), [&](long t, long) {
      std::memcpy(x, hidden + t * stride, w->columns * 4);
      for (long i = w->columns; i < k; i++) x[i] = 0;
      put_row(a, w->kind, t, x, w->columns);
    });
    c->pool.barrier();
    multiply(*w, a, int(m), thread, threads, panels.data(), [&](long t, long column, f32v v) {
      float* y = out + t * out_stride + column;
      std::memcpy(y, &v, std::min<long>(LANES, w->rows - column) * 4);
    });
    release_tiles();
  });
}

}  // extern "C"
