// The attention of tokens over a layer's paged cache.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <vector>

#include "kv_cache.h"
#include "simd.h"

namespace {

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

}  // namespace
