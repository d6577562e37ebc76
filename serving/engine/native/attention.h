// A paged cache of one layer, and the attention of single tokens over it.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

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
  float* scores;               // [threads][4][scores_stride], a multiple of 16 and at least the longest length
  i64 scores_stride;
  i64 threads;
};

// A rank's cache of one layer. Keys lie as vectors of 16 tokens: [block][kv_head][block_size/16][D/pair][16][pair];
// values as [block][kv_head][block_size][D]. block_size is a multiple of 16, D of 16.
template <class T> struct Cache {
  T* keys; T* values;
  i64 block_size; i64 kv_heads; i64 dim;
  T* key_group(i64 block, i64 head, i64 offset) const {
    return keys + ((block * kv_heads + head) * block_size + offset / kTokens * kTokens) * dim;
  }
  T* value(i64 block, i64 head, i64 offset) const {
    return values + ((block * kv_heads + head) * block_size + offset) * dim;
  }
};

template <class T> void keep_head(const Cache<T>& c, i64 slot, i64 head, const T* key, const T* value) {
  constexpr int pair = kPair<T>;
  const i64 block = slot / c.block_size, offset = slot % c.block_size;
  T* group = c.key_group(block, head, offset) + offset % kTokens * pair;
  for (i64 d = 0; d < c.dim; d += pair) memcpy(group + d * kTokens, key + d, sizeof(T) * pair);
  memcpy(c.value(block, head, offset), value, sizeof(T) * c.dim);
}

// key, value: [rows] of kv_heads x D, rows `stride` apart.
template <class T> void keep(const Cache<T>& c, const Step& s, const T* key, i64 key_stride, const T* value, i64 value_stride) {
  for (i64 r = 0; r < s.rows; r++)
    for (i64 h = 0; h < c.kv_heads; h++)
      keep_head(c, s.slots[r], h, key + r * key_stride + h * c.dim, value + r * value_stride + h * c.dim);
}

struct Shape { float scale; float softcap; i64 window; };  // softcap 0 and window 0: none

// Products of G queries with 16 tokens each of N groups of keys: a key is loaded once for all queries.
template <int G, int N, class T>
inline void multiply_keys(const Cache<T>& c, const T* query, const T* const (&keys)[N], __m512 (&acc)[G][N]) {
  constexpr int pair = kPair<T>;
  for (int g = 0; g < G; g++)
    for (int n = 0; n < N; n++) acc[g][n] = _mm512_setzero_ps();
  for (i64 d = 0; d < c.dim; d += pair)
    for (int n = 0; n < N; n++) {
      const auto key = load_weights(keys[n] + d * kTokens);
      for (int g = 0; g < G; g++) acc[g][n] = multiply_add(acc[g][n], query + g * c.dim + d, key);
    }
}

constexpr float kMasked = -1e30f;

// A query's scores of the tokens t to t + 15: scaled, capped, and masked outside of [first, length).
inline __m512 shaped(const Shape& s, __m512 v, i64 t, i64 first, i64 length) {
  v = _mm512_mul_ps(v, _mm512_set1_ps(s.scale));
  if (s.softcap != 0.f)
    v = _mm512_mul_ps(_mm512_set1_ps(s.softcap), tanh16(_mm512_mul_ps(v, _mm512_set1_ps(1.f / s.softcap))));
  __mmask16 seen = t + kTokens <= length ? 0xffff : (__mmask16)((1u << (length - t)) - 1);
  if (t < first) seen &= (__mmask16)(0xffffu << (first - t));
  return _mm512_mask_blend_ps(seen, _mm512_set1_ps(kMasked), v);
}

// scores[first to length] become exp(score - highest); returns their sum, the softmax's denominator.
inline float exponentials(float* scores, i64 first, i64 length, float highest) {
  __m512 sum = _mm512_setzero_ps();
  for (i64 t = first / kTokens * kTokens; t < length; t += kTokens) {
    // What is masked lies far below the peak; exp16 stops at -87, so it is cleared in so many words.
    const __m512 v = load(scores + t);
    const __mmask16 seen = _mm512_cmp_ps_mask(v, _mm512_set1_ps(kMasked), _CMP_GT_OQ);
    const __m512 e = _mm512_maskz_mov_ps(seen, exp16(_mm512_sub_ps(v, _mm512_set1_ps(highest))));
    sum = _mm512_add_ps(sum, e);
    _mm512_storeu_ps(scores + t, e);
  }
  return _mm512_reduce_add_ps(sum);
}

// The exponentials of G queries that share a KV head, `stride` apart in `scores`, and their denominators.
template <int G, class T>
void score(const Cache<T>& c, const Shape& s, const T* query, i64 head, const int32_t* blocks, i64 first, i64 length,
           float* scores, i64 stride, float* denominator) {
  __m512 highest[G];
  for (int g = 0; g < G; g++) highest[g] = _mm512_set1_ps(kMasked);
  const auto keys_of = [&](i64 t) { return c.key_group(blocks[t / c.block_size], head, t % c.block_size); };
  const auto keep_scores = [&](int g, i64 t, __m512 v) {
    v = shaped(s, v, t, first, length);
    highest[g] = _mm512_max_ps(highest[g], v);
    _mm512_storeu_ps(scores + g * stride + t, v);
  };
  i64 t = first / kTokens * kTokens;
  for (; t + kTokens < length; t += 2 * kTokens) {
    const T* keys[2] = {keys_of(t), keys_of(t + kTokens)};
    __m512 acc[G][2];
    multiply_keys(c, query, keys, acc);
    for (int g = 0; g < G; g++) keep_scores(g, t, acc[g][0]), keep_scores(g, t + kTokens, acc[g][1]);
  }
  if (t < length) {
    const T* keys[1] = {keys_of(t)};
    __m512 acc[G][1];
    multiply_keys(c, query, keys, acc);
    for (int g = 0; g < G; g++) keep_scores(g, t, acc[g][0]);
  }
  for (int g = 0; g < G; g++)
    denominator[g] = exponentials(scores + g * stride, first, length, _mm512_reduce_max_ps(highest[g]));
}

// out[g][V * 16 columns] = sum over tokens of weight * value, for G queries that share a KV head.
template <int G, int V, class T>
void mix(const Cache<T>& c, i64 head, const int32_t* blocks, i64 first, i64 length, i64 column, const float* scores,
         i64 stride, const float* denominator, T* out) {
  __m512 acc[G][V];
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) acc[g][v] = _mm512_setzero_ps();
  for (i64 t = first; t < length; t++) {
    const T* value = c.value(blocks[t / c.block_size], head, t % c.block_size) + column;
    __m512 row[V];
    for (int v = 0; v < V; v++) row[v] = load(value + v * 16);
    for (int g = 0; g < G; g++) {
      const __m512 weight = _mm512_set1_ps(scores[g * stride + t]);
      for (int v = 0; v < V; v++) acc[g][v] = _mm512_fmadd_ps(weight, row[v], acc[g][v]);
    }
  }
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++)
      store(out + g * c.dim + column + v * 16, _mm512_mul_ps(acc[g][v], _mm512_set1_ps(1.f / denominator[g])));
}

template <int G, class T>
void mix_columns(const Cache<T>& c, i64 head, const int32_t* blocks, i64 first, i64 length, const float* scores,
                 i64 stride, const float* denominator, T* out) {
  i64 column = 0;
  for (; column + 64 <= c.dim; column += 64)
    mix<G, 4, T>(c, head, blocks, first, length, column, scores, stride, denominator, out);
  for (; column < c.dim; column += 16)
    mix<G, 1, T>(c, head, blocks, first, length, column, scores, stride, denominator, out);
}

template <class T> struct Attention {
  Cache<T> cache; Shape shape;
  const T* query; i64 query_stride;       // [rows] of heads x D
  i64 heads;
  T* out;                                 // [rows][heads][D]
};

template <class T> void attend_row(const Attention<T>& a, const Step& s, i64 row, i64 head, float* scores) {
  constexpr int kGroup = 4;
  const i64 group = a.heads / a.cache.kv_heads, length = s.positions[row] + 1;
  const i64 first = a.shape.window > 0 ? std::max<i64>(0, length - a.shape.window) : 0;
  const int32_t* blocks = s.tables + s.table_of[row] * s.table_stride;
  for (i64 g = 0; g < group; g += kGroup) {
    const int count = (int)std::min<i64>(kGroup, group - g);
    const i64 q = head * group + g;
    float denominator[kGroup];
    const T* query = a.query + row * a.query_stride + q * a.cache.dim;
    T* out = a.out + (row * a.heads + q) * a.cache.dim;
    switch (count) {
#define GROUP(n)                                                                                                     \
  case n:                                                                                                            \
    score<n, T>(a.cache, a.shape, query, head, blocks, first, length, scores, s.scores_stride, denominator);         \
    mix_columns<n, T>(a.cache, head, blocks, first, length, scores, s.scores_stride, denominator, out);              \
    break;
      GROUP(1) GROUP(2) GROUP(3) GROUP(4)
#undef GROUP
    }
  }
}

template <class T> void attend(const Attention<T>& a, const Step& s) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(s.threads) if (s.threads > 1)
  for (i64 i = 0; i < s.rows * a.cache.kv_heads; i++) {
#ifdef _OPENMP
    float* mine = s.scores + (s.threads > 1 ? omp_get_thread_num() : 0) * 4 * s.scores_stride;
#else
    float* mine = s.scores;
#endif
    attend_row(a, s, i / a.cache.kv_heads, i % a.cache.kv_heads, mine);
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
