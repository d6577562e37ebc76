// Rotary positions.

#pragma once

#include "simd.h"

namespace {

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
