// Root-mean-square norms, and what a block adds to the residual stream.

#pragma once

#include "simd.h"

namespace {

// y = x / rms(x) * (weight + offset), row by row; y may be x, width must be a multiple of 16.
template <class T> void rms_norm(const T* x, const T* weight, T* y, i64 rows, i64 width, float eps, float offset) {
  const __m512 shift = _mm512_set1_ps(offset);
  for (i64 r = 0; r < rows; r++, x += width, y += width) {
    __m512 sum = _mm512_setzero_ps();
    for (i64 i = 0; i < width; i += 16) {
      const __m512 v = load(x + i);
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

// x += (delta + bias) * factor; bias may be null, width must be a multiple of 16.
template <class T> void add_scaled(T* x, const T* delta, const T* bias, float factor, i64 rows, i64 width) {
  const __m512 scale = _mm512_set1_ps(factor);
  for (i64 r = 0; r < rows; r++, x += width, delta += width)
    for (i64 i = 0; i < width; i += 16) {
      __m512 v = load(delta + i);
      if (bias) v = rounded<T>(_mm512_add_ps(v, load(bias + i)));
      if (factor != 1.f) v = rounded<T>(_mm512_mul_ps(v, scale));
      store(x + i, _mm512_add_ps(load(x + i), v));
    }
}

}  // namespace
