// Sixteen floats at a time: loads and stores of both element types, products, exp and the activations built on it.

#pragma once

#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

struct bf16 { uint16_t bits; };
using i64 = int64_t;

// T is the element type: `bf16` (two elements a lane, dpbf16) or `float`. All sums are float32.
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

// What inputs are multiplied as. A bfloat16 dot product does the work of two multiplications of 16 floats, and where it
// takes longer than they do (`library.products`), weights are widened as they are loaded, inputs before.
#ifdef GANGWAY_WIDEN
template <class T> using Factor = float;
#else
template <class T> using Factor = T;
#endif

// 16 lanes of weights: what each multiplies with the input `place` of a pair.
inline __m512 load_weights(const float* w, int) { return _mm512_loadu_ps(w); }
inline __m512 load_weights(const bf16* w, int place) {
  const __m512i pairs = _mm512_loadu_si512(w);
  return _mm512_castsi512_ps(place ? _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)) : _mm512_slli_epi32(pairs, 16));
}

// acc[r][n] += the products of one k (float) or two (bf16), in order: the inputs at x(r), each broadcast, with the 16
// lanes of weights at w(n).
template <class T, int R, int N, class X, class W> inline void multiply_add(__m512 (&acc)[R][N], X x, W w) {
  if constexpr (std::is_same_v<Factor<T>, bf16>) {
    __m512i lanes[N];
    for (int n = 0; n < N; n++) lanes[n] = _mm512_loadu_si512(w(n));
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      int pair;
      memcpy(&pair, x(r), 4);
      for (int n = 0; n < N; n++)
        acc[r][n] = _mm512_dpbf16_ps(acc[r][n], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)lanes[n]);
    }
  } else {
    for (int place = 0; place < kPair<T>; place++) {
      __m512 lanes[N];
      for (int n = 0; n < N; n++) lanes[n] = load_weights(w(n), place);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) acc[r][n] = _mm512_fmadd_ps(_mm512_set1_ps(x(r)[place]), lanes[n], acc[r][n]);
    }
  }
}

// A row of inputs as it is multiplied: itself, or widened into `room`.
template <class T> inline const Factor<T>* factors(const T* x, i64 count, Factor<T>* room) {
  if constexpr (std::is_same_v<Factor<T>, T>) return x;
  else {
    for (i64 i = 0; i < count; i += 16) {
      const int n = (int)std::min<i64>(16, count - i);
      store_first(room + i, load_first(x + i, n), n);
    }
    return room;
  }
}

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

}  // namespace
