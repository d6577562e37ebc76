// The products, norms and attention of a decode step for processors with AVX-512 and its bfloat16 products.
//
// Plain C functions over raw pointers, called through ctypes: no torch headers, so building takes seconds. Weights are
// packed once into panels of 32 output rows; every output element is summed over k in one order that depends on nothing
// else, so a row's result is bit for bit the same in any batch. T is the element type: `bf16` (two elements a lane,
// dpbf16) or `float`. All sums are float32.

#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct bf16 { uint16_t bits; };
using i64 = int64_t;

constexpr int kPanel = 32;      // output rows of a packed panel: two vectors of 16 floats
constexpr int kRows = 12;       // input rows a tile keeps in registers: 12 x 2 accumulators of 32 registers
constexpr i64 kFetchAhead = 4096;  // elements: a few kB, some hundred nanoseconds of computing
constexpr int kTokens = 16;     // tokens of a KV block that are scored together: one vector

template <class T> constexpr int kPair = std::is_same_v<T, bf16> ? 2 : 1;  // elements of k that one lane multiplies

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
// The first n of 16, the rest zero.
inline __m512 load_first(const float* p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
inline __m512 load_first(const bf16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
inline void store(bf16* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
inline void store_first(float* p, __m512 v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
inline void store_first(bf16* p, __m512 v, int n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)_mm512_cvtneps_pbh(v));
}
// The value as T would keep it: where Hugging Face's code rounds between two operations, so does this.
template <class T> inline __m512 rounded(__m512 v) {
  if constexpr (std::is_same_v<T, float>) return v;
  else return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16));
}

// acc += the products of one k (float) or two (bf16), the input broadcast to all 16 output lanes.
inline __m512 multiply_add(__m512 acc, const float* x, __m512 w) { return _mm512_fmadd_ps(_mm512_set1_ps(*x), w, acc); }
inline __m512 multiply_add(__m512 acc, const bf16* x, __m512i w) {
  int pair;
  memcpy(&pair, x, 4);
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
}
inline __m512 load_weights(const float* p) { return _mm512_loadu_ps(p); }
inline __m512i load_weights(const bf16* p) { return _mm512_loadu_si512(p); }

// exp by range reduction and a polynomial (Cephes expf); relative error about 1e-7.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.f)), _mm512_set1_ps(88.f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504089f)), 0);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  const __m512 y = _mm512_fmadd_ps(p, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.f)));
  return _mm512_scalef_ps(y, n);
}
inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
inline __m512 tanh16(__m512 x) {  // 2 sigmoid(2x) - 1
  return _mm512_fmsub_ps(_mm512_set1_ps(2.f), sigmoid(_mm512_add_ps(x, x)), _mm512_set1_ps(1.f));
}

enum Activation : int { kNone = 0, kSilu = 1, kGeluTanh = 2 };

inline __m512 activate(__m512 x, int activation) {
  if (activation == kSilu) return _mm512_mul_ps(x, sigmoid(x));
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x);
  const __m512 t = tanh16(_mm512_mul_ps(_mm512_set1_ps(0.7978845608f), inner));
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), x), _mm512_add_ps(_mm512_set1_ps(1.f), t));
}

// ------------------------------------------------------------------------------------------------------- product

// Weights that a tile fetches into the cache while it computes: cache lines for each k or pair of them, 0 to 2.
template <class T> struct Ahead { const T* from; int lines; };

// R rows of x [R, K] times one panel [K / pair][32][pair]. Sums run over k in order, whatever R is.
template <int R, class T>
inline void multiply(const T* x, i64 ldx, const T* panel, i64 k_size, Ahead<T> ahead, __m512 (&acc)[R][2]) {
  constexpr int pair = kPair<T>;
  for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (i64 k = 0; k < k_size; k += pair) {
    const T* w = panel + k * kPanel;
    const auto w0 = load_weights(w), w1 = load_weights(w + 16 * pair);
    for (int line = 0; line < ahead.lines; line++, ahead.from += 16 * pair)
      _mm_prefetch((const char*)ahead.from, _MM_HINT_T0);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      acc[r][0] = multiply_add(acc[r][0], x + r * ldx + k, w0);
      acc[r][1] = multiply_add(acc[r][1], x + r * ldx + k, w1);
    }
  }
}

template <class T> struct Product {
  const T* x; i64 ldx; i64 rows; i64 k_size;
  const T* packed; i64 n_size;
  const T* bias;      // [n_size] or null; never together with an activation
  T* y; i64 ldy;
  int activation;     // not kNone: panels hold 16 gate rows, then 16 up rows; y = act(gate) * up, n_size / 2 columns
};

template <int R, class T> void tile(const Product<T>& p, i64 row, i64 panel, Ahead<T> ahead) {
  __m512 acc[R][2];
  multiply<R, T>(p.x + row * p.ldx, p.ldx, p.packed + panel * kPanel * p.k_size, p.k_size, ahead, acc);
  for (int r = 0; r < R; r++) {
    T* y = p.y + (row + r) * p.ldy;
    if (p.activation != kNone) {
      const __m512 gate = rounded<T>(activate(rounded<T>(acc[r][0]), p.activation));
      store(y + panel * 16, _mm512_mul_ps(gate, rounded<T>(acc[r][1])));
      continue;
    }
    for (int half = 0; half < 2; half++) {
      const i64 column = panel * kPanel + half * 16;
      const int left = (int)std::min<i64>(16, p.n_size - column);
      if (left <= 0) break;
      __m512 value = acc[r][half];
      if (p.bias) {
        value = _mm512_add_ps(rounded<T>(value), load_first(p.bias + column, left));
      }
      left == 16 ? store(y + column, value) : store_first(y + column, value, left);
    }
  }
}

// A lone tile fetches a little ahead of itself; of several, the first two fetch half of the next panel each, so that
// the memory is never idle while the later ones compute from the cache. What lies past the weights is never read.
template <class T> Ahead<T> fetched_by(const Product<T>& p, i64 panel, i64 t, i64 tiles) {
  const T* mine = p.packed + panel * kPanel * p.k_size;
  if (tiles == 1) return {mine + kFetchAhead, 2};
  return {mine + (2 + t) * kPanel * p.k_size / 2, t < 2 ? 1 : 0};
}

template <class T> void panel_rows(const Product<T>& p, i64 panel) {
  const i64 tiles = (p.rows + kRows - 1) / kRows;
  i64 row = 0;
  for (i64 t = 0; t < tiles; t++) {
    const int rows = (int)(p.rows / tiles + (t < p.rows % tiles));
    const Ahead<T> ahead = fetched_by(p, panel, t, tiles);
    switch (rows) {
#define ROWS(n) case n: tile<n, T>(p, row, panel, ahead); break;
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
    row += rows;
  }
}

template <class T> void product(const Product<T>& p, int threads) {
  const i64 panels = (p.n_size + kPanel - 1) / kPanel;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 panel = 0; panel < panels; panel++) panel_rows(p, panel);
}

// w [n, k] -> [ceil(n / 32)][k / pair][32][pair], rows past n are zero.
template <class T> void pack(const T* w, i64 n_size, i64 k_size, T* out) {
  constexpr int pair = kPair<T>;
  for (i64 n = 0; n < (n_size + kPanel - 1) / kPanel * kPanel; n++)
    for (i64 k = 0; k < k_size; k++)
      out[(n / kPanel) * kPanel * k_size + (k / pair) * kPanel * pair + (n % kPanel) * pair + k % pair] =
          n < n_size ? w[n * k_size + k] : T{};
}

// ---------------------------------------------------------------------------------------------------------- norm

// x += delta (when given), y = x / rms(x) * (weight + offset); width must be a multiple of 16.
template <class T>
void add_rms_norm(T* x, const T* delta, const T* weight, T* y, i64 rows, i64 width, float eps, float offset) {
  const __m512 shift = _mm512_set1_ps(offset);
  for (i64 r = 0; r < rows; r++, x += width, y += width) {
    __m512 sum = _mm512_setzero_ps();
    for (i64 i = 0; i < width; i += 16) {
      __m512 v = load(x + i);
      if (delta) store(x + i, v = rounded<T>(_mm512_add_ps(v, load(delta + r * width + i))));
      sum = _mm512_fmadd_ps(v, v, sum);
    }
    const __m512 scale = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(sum) / width + eps));
    for (i64 i = 0; i < width; i += 16) {
      // Llama's code rounds before it multiplies by the weight, Gemma's (offset 1) after.
      const __m512 v = _mm512_mul_ps(load(x + i), scale);
      store(y + i, _mm512_mul_ps(offset == 0.f ? rounded<T>(v) : v, _mm512_add_ps(load(weight + i), shift)));
    }
  }
}

// ----------------------------------------------------------------------------------------------------- attention

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

template <class T> void keep(const Cache<T>& c, i64 slot, i64 head, const T* key, const T* value) {
  constexpr int pair = kPair<T>;
  const i64 block = slot / c.block_size, offset = slot % c.block_size;
  T* group = c.key_group(block, head, offset) + offset % kTokens * pair;
  for (i64 d = 0; d < c.dim; d += pair) memcpy(group + d * kTokens, key + d, sizeof(T) * pair);
  memcpy(c.value(block, head, offset), value, sizeof(T) * c.dim);
}

struct Shape { float scale; float softcap; i64 window; };  // softcap 0 and window 0: none

// scores[length] of one query against a sequence; returns the softmax's denominator, scores become exp(score - max).
template <class T>
float score(const Cache<T>& c, const Shape& s, const T* query, i64 head, const int32_t* blocks, i64 first, i64 length,
            float* scores) {
  constexpr int pair = kPair<T>;
  const __m512 low = _mm512_set1_ps(-1e30f);
  __m512 highest = low;
  for (i64 t = first / kTokens * kTokens; t < length; t += kTokens) {
    const T* group = c.key_group(blocks[t / c.block_size], head, t % c.block_size);
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (i64 d = 0; d < c.dim; d += 2 * pair) {
      even = multiply_add(even, query + d, load_weights(group + d * kTokens));
      odd = multiply_add(odd, query + d + pair, load_weights(group + (d + pair) * kTokens));
    }
    __m512 v = _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(s.scale));
    if (s.softcap != 0.f)
      v = _mm512_mul_ps(_mm512_set1_ps(s.softcap), tanh16(_mm512_mul_ps(v, _mm512_set1_ps(1.f / s.softcap))));
    __mmask16 seen = t + kTokens <= length ? 0xffff : (__mmask16)((1u << (length - t)) - 1);
    if (t < first) seen &= (__mmask16)(0xffffu << (first - t));
    v = _mm512_mask_blend_ps(seen, low, v);
    highest = _mm512_max_ps(highest, v);
    _mm512_storeu_ps(scores + t, v);
  }
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  __m512 sum = _mm512_setzero_ps();
  for (i64 t = first / kTokens * kTokens; t < length; t += kTokens) {
    // What is masked lies far below the peak; exp16 stops at -87, so it is cleared in so many words.
    const __m512 v = load(scores + t);
    const __mmask16 seen = _mm512_cmp_ps_mask(v, low, _CMP_GT_OQ);
    const __m512 e = _mm512_maskz_mov_ps(seen, exp16(_mm512_sub_ps(v, peak)));
    sum = _mm512_add_ps(sum, e);
    _mm512_storeu_ps(scores + t, e);
  }
  return _mm512_reduce_add_ps(sum);
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
  T* out;                                 // [rows][heads][D]
  const int32_t* blocks; i64 table_stride; const int32_t* table_of;  // block tables, and which one each row uses
  const int64_t* positions;               // of each row in its sequence
  i64 rows; i64 heads;
};

template <class T> void attend_row(const Attention<T>& a, i64 row, i64 head, float* scores, i64 stride) {
  constexpr int kGroup = 4;
  const i64 group = a.heads / a.cache.kv_heads, length = a.positions[row] + 1;
  const i64 first = a.shape.window > 0 ? std::max<i64>(0, length - a.shape.window) : 0;
  const int32_t* blocks = a.blocks + a.table_of[row] * a.table_stride;
  for (i64 g = 0; g < group; g += kGroup) {
    const int count = (int)std::min<i64>(kGroup, group - g);
    const i64 q = head * group + g;
    float denominator[kGroup];
    for (int i = 0; i < count; i++)
      denominator[i] = score(a.cache, a.shape, a.query + row * a.query_stride + (q + i) * a.cache.dim, head, blocks,
                             first, length, scores + i * stride);
    T* out = a.out + (row * a.heads + q) * a.cache.dim;
    switch (count) {
#define GROUP(n) case n: mix_columns<n, T>(a.cache, head, blocks, first, length, scores, stride, denominator, out); break;
      GROUP(1) GROUP(2) GROUP(3) GROUP(4)
#undef GROUP
    }
  }
}

template <class T> void attend(const Attention<T>& a, float* scratch, i64 stride, int threads) {
  // A thread's scratch holds the scores of four queries.
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (i64 i = 0; i < a.rows * a.cache.kv_heads; i++) {
#ifdef _OPENMP
    float* mine = scratch + (threads > 1 ? omp_get_thread_num() : 0) * 4 * stride;
#else
    float* mine = scratch;
#endif
    attend_row(a, i / a.cache.kv_heads, i % a.cache.kv_heads, mine, stride);
  }
}

// Rotates the first `rotary` elements of each head by halves (NeoX order), in float32.
template <class T> void rotate(T* x, i64 heads, i64 dim, i64 rotary, const float* cos, const float* sin) {
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

// Calls f with a null pointer of the element type: the one place where a type code becomes a type.
template <class F> void typed(int is_bf16, F f) {
  if (is_bf16) f((bf16*)nullptr);
  else f((float*)nullptr);
}

}  // namespace

// Strides and sizes count elements. Every tensor is of the element type, unless said otherwise.
extern "C" {

void gw_pack(int is_bf16, const void* w, i64 n, i64 k, void* out) {
  typed(is_bf16, [&](auto* t) { using T = std::remove_pointer_t<decltype(t)>; pack((const T*)w, n, k, (T*)out); });
}

void gw_product(int is_bf16, const void* x, i64 ldx, i64 rows, i64 k, const void* packed, i64 n, const void* bias,
                void* y, i64 ldy, int activation, int threads) {
  typed(is_bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    product(Product<T>{(const T*)x, ldx, rows, k, (const T*)packed, n, (const T*)bias, (T*)y, ldy, activation}, threads);
  });
}

void gw_add_rms_norm(int is_bf16, void* x, const void* delta, const void* weight, void* y, i64 rows, i64 width,
                     float eps, float offset) {
  typed(is_bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    add_rms_norm((T*)x, (const T*)delta, (const T*)weight, (T*)y, rows, width, eps, offset);
  });
}

// cos, sin: float [rows][rotary / 2].
void gw_rotate(int is_bf16, void* x, i64 stride, i64 rows, i64 heads, i64 dim, i64 rotary, const float* cos,
               const float* sin) {
  typed(is_bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    for (i64 r = 0; r < rows; r++)
      rotate((T*)x + r * stride, heads, dim, rotary, cos + r * rotary / 2, sin + r * rotary / 2);
  });
}

// key, value: [rows] of kv_heads x dim, rows `stride` apart; slots: int64 [rows].
void gw_keep(int is_bf16, void* keys, void* values, i64 block_size, i64 kv_heads, i64 dim, const int64_t* slots,
             const void* key, i64 key_stride, const void* value, i64 value_stride, i64 rows) {
  typed(is_bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Cache<T> cache{(T*)keys, (T*)values, block_size, kv_heads, dim};
    for (i64 r = 0; r < rows; r++)
      for (i64 h = 0; h < kv_heads; h++)
        keep(cache, slots[r], h, (const T*)key + r * key_stride + h * dim, (const T*)value + r * value_stride + h * dim);
  });
}

// scratch: float [threads][4][scratch_stride], scratch_stride a multiple of 16 and at least the longest length.
void gw_attend(int is_bf16, void* keys, void* values, i64 block_size, i64 kv_heads, i64 dim, float scale, float softcap,
               i64 window, const void* query, i64 query_stride, void* out, const int32_t* blocks, i64 table_stride,
               const int32_t* table_of, const int64_t* positions, i64 rows, i64 heads, float* scratch,
               i64 scratch_stride, int threads) {
  typed(is_bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    attend(Attention<T>{{(T*)keys, (T*)values, block_size, kv_heads, dim}, {scale, softcap, window}, (const T*)query,
                        query_stride, (T*)out, blocks, table_stride, table_of, positions, rows, heads},
           scratch, scratch_stride, threads);
  });
}

}  // extern "C"
