// A paged cache of one layer, and the attention of tokens over it.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <vector>

#include "vector.h"

namespace {

constexpr int kTokens = 16;  // tokens of a KV block that are scored together: one vector

// The rows of a batch, one token each, and where they belong. Python lays it out (`ops.Step`).
struct Step {
  i64 rows;
  const int64_t* slots;        // where each row's key and value are kept
  const int64_t* positions;    // of each row in its sequence
  const int32_t* tables;       // block tables, table_stride apart
  i64 table_stride;
  const int32_t* table_of;     // which table each row uses
  float* scores;               // [threads][kQueries][scores_stride], a multiple of 16 and at least the longest length
  i64 scores_stride;
  i64 threads;
  const int64_t* wanted;       // ascending: the rows whose result of the last layer is looked at
  i64 wanted_rows;             // -1: all
};

// A rank's cache of one layer. Keys lie as vectors of 16 tokens: [block][kv_head][block_size/16][D/pair][16][pair];
// values as vectors of 16 columns: [block][kv_head][block_size/pair][D][pair]. block_size is a multiple of 16, D of 16.
template <class T> struct Cache {
  T* keys; T* values;
  i64 block_size; i64 kv_heads; i64 dim;
  T* key_group(i64 block, i64 head, i64 offset) const {
    return keys + ((block * kv_heads + head) * block_size + offset / kTokens * kTokens) * dim;
  }
  T* value_pair(i64 block, i64 head, i64 offset) const {
    return values + ((block * kv_heads + head) * block_size + offset / kPair<T> * kPair<T>) * dim;
  }
};

template <class T> void keep_head(const Cache<T>& c, i64 slot, i64 head, const T* key, const T* value) {
  constexpr int pair = kPair<T>;
  const i64 block = slot / c.block_size, offset = slot % c.block_size;
  T* group = c.key_group(block, head, offset) + offset % kTokens * pair;
  for (i64 d = 0; d < c.dim; d += pair) memcpy(group + d * kTokens, key + d, sizeof(T) * pair);
  T* column = c.value_pair(block, head, offset) + offset % pair;
  for (i64 d = 0; d < c.dim; d++) column[d * pair] = value[d];
}

// key, value: [rows] of kv_heads x D, rows `stride` apart.
template <class T> void keep(const Cache<T>& c, const Step& s, const T* key, i64 key_stride, const T* value, i64 value_stride) {
  for (i64 r = 0; r < s.rows; r++)
    for (i64 h = 0; h < c.kv_heads; h++)
      keep_head(c, s.slots[r], h, key + r * key_stride + h * c.dim, value + r * value_stride + h * c.dim);
}

struct Shape { float scale; float softcap; i64 window; };  // softcap 0 and window 0: none

constexpr int kQueries = 6;  // computed together: 6 x 4 accumulators of 32 registers

// Queries of one sequence that share a KV head: heads of a row, of several rows where these follow one another. A key
// or value is loaded once for all of them. What a query does not see has the weight 0, so that its result is the same
// bit for bit, whatever rows it is computed with.
template <class T> struct Queries {
  const Factor<T>* query[kQueries]; T* out[kQueries];
  i64 first[kQueries], length[kQueries];  // each sees the tokens [first, length)
  i64 begin, end;                         // what any of them sees
  const int32_t* blocks; i64 head;
  float* scores; i64 stride;              // room for the scores of each, `stride` apart
  bool fetch;                             // whether keys and values are likely not in the cache
};

// Keys of 16 tokens, and what may be fetched into the cache meanwhile: keys needed soon, and the same tokens' values.
// The first row of a sequence does so, or it waits for memory a third of its time; later rows find what that one left.
template <class T> struct KeyGroup { const T *keys, *soon, *values; };

// Products of Q queries with 16 tokens each of N groups of keys.
template <int Q, int N, class T>
inline void multiply_keys(i64 dim, const Queries<T>& qs, const KeyGroup<T> (&groups)[N], __m512 (&acc)[Q][N]) {
  constexpr int pair = kPair<T>;
  for (int q = 0; q < Q; q++)
    for (int n = 0; n < N; n++) acc[q][n] = _mm512_setzero_ps();
  for (i64 d = 0; d < dim; d += pair) {
    if (qs.fetch)
      for (int n = 0; n < N; n++) {
        _mm_prefetch((const char*)(groups[n].soon + d * kTokens), _MM_HINT_T0);
        _mm_prefetch((const char*)(groups[n].values + d * kTokens), _MM_HINT_T0);
      }
    multiply_add<T>(acc, [&](int q) { return qs.query[q] + d; }, [&](int n) { return groups[n].keys + d * kTokens; });
  }
}

constexpr i64 kAhead = 4 * kTokens;  // tokens between a key that is multiplied and the one that is fetched
constexpr float kMasked = -1e30f;

// Bits n to 15, for any n.
inline __mmask16 from_bit(i64 n) { return n <= 0 ? 0xffff : n >= kTokens ? 0 : (__mmask16)(0xffffu << n); }

// A query's scores of the tokens t to t + 15: scaled, capped, and masked outside of [first, length).
inline __m512 shaped(const Shape& s, __m512 v, i64 t, i64 first, i64 length) {
  v = _mm512_mul_ps(v, _mm512_set1_ps(s.scale));
  if (s.softcap != 0.f)
    v = _mm512_mul_ps(_mm512_set1_ps(s.softcap), tanh16(_mm512_mul_ps(v, _mm512_set1_ps(1.f / s.softcap))));
  const __mmask16 seen = from_bit(first - t) & ~from_bit(length - t);
  return _mm512_mask_blend_ps(seen, _mm512_set1_ps(kMasked), v);
}

// scores[begin to end] become weights, exp(score - highest), as they are multiplied and from the same address on; returns their sum, the
// softmax's denominator.
template <class T> float exponentials(float* scores, i64 begin, i64 end, float highest) {
  __m512 sum = _mm512_setzero_ps();
  for (i64 t = begin / kTokens * kTokens; t < end; t += kTokens) {
    // What is masked lies far below the peak; exp16 stops at -87, so it is cleared in so many words.
    const __m512 v = load(scores + t);
    const __mmask16 seen = _mm512_cmp_ps_mask(v, _mm512_set1_ps(kMasked), _CMP_GT_OQ);
    const __m512 e = _mm512_maskz_mov_ps(seen, exp16(_mm512_sub_ps(v, _mm512_set1_ps(highest))));
    sum = _mm512_add_ps(sum, e);
    store((Factor<T>*)scores + t, e);  // never past what has been read
  }
  return _mm512_reduce_add_ps(sum);
}

// The exponentials of Q queries and their denominators.
template <int Q, class T>
void score(const Cache<T>& c, const Shape& s, const Queries<T>& qs, float* denominator) {
  __m512 highest[Q];
  for (int q = 0; q < Q; q++) highest[q] = _mm512_set1_ps(kMasked);
  const auto keys_of = [&](i64 t) { return c.key_group(qs.blocks[t / c.block_size], qs.head, t % c.block_size); };
  const auto keep_scores = [&](int q, i64 t, __m512 v) {
    v = shaped(s, v, t, qs.first[q], qs.length[q]);
    highest[q] = _mm512_max_ps(highest[q], v);
    _mm512_storeu_ps(qs.scores + q * qs.stride + t, v);
  };
  const auto group = [&](i64 t) {
    return KeyGroup<T>{keys_of(t), keys_of(std::min(t + kAhead, qs.end - 1)),
                       c.value_pair(qs.blocks[t / c.block_size], qs.head, t % c.block_size)};
  };
  const auto together = [&](i64 t, auto n) {
    constexpr int N = decltype(n)::value;
    KeyGroup<T> groups[N];
    for (int i = 0; i < N; i++) groups[i] = group(t + i * kTokens);
    __m512 acc[Q][N];
    multiply_keys(c.dim, qs, groups, acc);
    for (int q = 0; q < Q; q++)
      for (int i = 0; i < N; i++) keep_scores(q, t + i * kTokens, acc[q][i]);
  };
  i64 t = qs.begin / kTokens * kTokens;
  for (; t + 3 * kTokens < qs.end; t += 4 * kTokens) together(t, std::integral_constant<int, 4>());
  for (; t < qs.end; t += kTokens) together(t, std::integral_constant<int, 1>());
  for (int q = 0; q < Q; q++)
    denominator[q] = exponentials<T>(qs.scores + q * qs.stride, qs.begin, qs.end, _mm512_reduce_max_ps(highest[q]));
}

// out[q][V * 16 columns] = sum over tokens of weight * value.
template <int Q, int V, class T>
void mix(const Cache<T>& c, const Queries<T>& qs, i64 column, const float* denominator) {
  constexpr int pair = kPair<T>;
  __m512 acc[Q][V];
  for (int q = 0; q < Q; q++)
    for (int v = 0; v < V; v++) acc[q][v] = _mm512_setzero_ps();
  for (i64 t = qs.begin / pair * pair; t < qs.end;) {
    const T* values = c.value_pair(qs.blocks[t / c.block_size], qs.head, t % c.block_size) + column * pair;
    for (const i64 last = std::min(qs.end, (t / c.block_size + 1) * c.block_size); t < last; t += pair) {
      multiply_add<T>(acc, [&](int q) { return (const Factor<T>*)(qs.scores + q * qs.stride) + t; },
                      [&](int v) { return values + v * 16 * pair; });
      values += c.dim * pair;
    }
  }
  for (int q = 0; q < Q; q++)
    for (int v = 0; v < V; v++)
      store(qs.out[q] + column + v * 16, _mm512_mul_ps(acc[q][v], _mm512_set1_ps(1.f / denominator[q])));
}

template <int Q, class T> void attend_queries(const Cache<T>& c, const Shape& s, const Queries<T>& qs) {
  float denominator[Q];
  score<Q, T>(c, s, qs, denominator);
  i64 column = 0;
  for (; column + 64 <= c.dim; column += 64) mix<Q, 4, T>(c, qs, column, denominator);
  for (; column < c.dim; column += 16) mix<Q, 1, T>(c, qs, column, denominator);
}

template <class T> struct Attention {
  Cache<T> cache; Shape shape;
  const T* query; i64 query_stride;       // [rows] of heads x D
  i64 heads;
  T* out;                                 // [rows][heads][D]
};

// Rows [row, row + rows) of one sequence, and `count` query heads from head `q` on, that share the KV head `head`.
template <class T>
void attend_tile(const Attention<T>& a, const Step& s, i64 row, i64 rows, i64 head, i64 q, i64 count, float* scores) {
  Queries<T> qs;
  thread_local std::vector<Factor<T>> room;
  if ((i64)room.size() < kQueries * a.cache.dim) room.resize(kQueries * a.cache.dim);
  int n = 0;
  for (i64 r = row; r < row + rows; r++)
    for (i64 h = q; h < q + count; h++, n++) {
      qs.query[n] = factors(a.query + r * a.query_stride + h * a.cache.dim, a.cache.dim, room.data() + n * a.cache.dim);
      qs.out[n] = a.out + (r * a.heads + h) * a.cache.dim;
      qs.length[n] = s.positions[r] + 1;
      qs.first[n] = a.shape.window > 0 ? std::max<i64>(0, qs.length[n] - a.shape.window) : 0;
    }
  qs.begin = qs.first[0], qs.end = qs.length[n - 1];
  qs.blocks = s.tables + s.table_of[row] * s.table_stride, qs.head = head;
  qs.scores = scores, qs.stride = s.scores_stride;
  qs.fetch = row == 0 || s.table_of[row - 1] != s.table_of[row];
  switch (n) {
#define QUERIES(n) case n: attend_queries<n, T>(a.cache, a.shape, qs); break;
    QUERIES(1) QUERIES(2) QUERIES(3) QUERIES(4) QUERIES(5) QUERIES(6)
#undef QUERIES
  }
}

// Rows from `row` on that can be computed together: of one sequence, one position after the other.
inline i64 rows_together(const Step& s, i64 row, i64 most) {
  i64 rows = 1;
  while (rows < most && row + rows < s.rows && s.table_of[row + rows] == s.table_of[row] &&
         s.positions[row + rows] == s.positions[row] + rows)
    rows++;
  return rows;
}

template <class T> void attend(const Attention<T>& a, const Step& s) {
  const i64 kv_heads = a.cache.kv_heads, group = a.heads / kv_heads;
  const i64 parts = (group + kQueries - 1) / kQueries, most = std::max<i64>(1, kQueries / group);
  std::vector<i64> starts;
  for (i64 row = 0; row < s.rows; row += rows_together(s, row, most)) starts.push_back(row);
  starts.push_back(s.rows);
#pragma omp parallel for schedule(dynamic, 4) num_threads(s.threads) if (s.threads > 1)
  for (i64 i = 0; i < (i64)(starts.size() - 1) * kv_heads * parts; i++) {
#ifdef _OPENMP
    float* mine = s.scores + (s.threads > 1 ? omp_get_thread_num() : 0) * kQueries * s.scores_stride;
#else
    float* mine = s.scores;
#endif
    const i64 tile = i / (kv_heads * parts), head = i / parts % kv_heads, part = i % parts;
    const i64 skipped = group * part / parts, count = group * (part + 1) / parts - skipped;
    attend_tile(a, s, starts[tile], starts[tile + 1] - starts[tile], head, head * group + skipped, count, mine);
  }
}

// Rotates the first `rotary` elements of each head by halves (NeoX order), in float32.
template <class T> void rotate_row(T* x, i64 heads, i64 dim, i64 rotary, const float* cos, const float* sin) {
  const i64 half = rotary / 2;
  for (i64 h = 0; h < heads; h++, x += dim)
    for (i64 i = 0; i < half; i += 16) {
      const int n = (int)std::min<i64>(16, half - i);
      const __m512 a = load_first(x + i, n), b = load_first(x + half + i, n);
      const __m512 c = load_first(cos + i, n), s = load_first(sin + i, n);
      store_first(x + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), n);
      store_first(x + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)), n);
    }
}

// The same for rows `stride` apart; cos, sin: float [rows][rotary / 2].
template <class T>
void rotate(T* x, i64 stride, i64 rows, i64 heads, i64 dim, i64 rotary, const float* cos, const float* sin) {
  for (i64 r = 0; r < rows; r++)
    rotate_row(x + r * stride, heads, dim, rotary, cos + r * rotary / 2, sin + r * rotary / 2);
}

}  // namespace
