// Inputs times packed weights: panels of 32 output rows, fetched from memory once for all input rows.

#pragma once

#include <vector>

#include "simd.h"

namespace {

constexpr int kPanel = 32;         // output rows of a packed panel: two vectors of 16 floats
constexpr int kRows = 12;          // input rows a tile keeps in registers: 12 x 2 accumulators of 32 registers
constexpr i64 kFetchAhead = 4096;  // elements: a few kB, some hundred nanoseconds of computing

// Weights that a tile fetches into the cache while it computes: cache lines for each k or pair of them, 0 to 2.
template <class T> struct Ahead { const T* from; int lines; };

// R rows of x [R, K] times one panel [K / pair][32][pair]. Sums run over k in order, whatever R is. With many rows the
// first cache is for x: weights are fetched into the second (5 % to a quarter less time for 6 to 20 rows, measured).
template <int R, class T>
inline void multiply(const Factor<T>* x, i64 ldx, const T* panel, i64 k_size, Ahead<T> ahead, __m512 (&acc)[R][2]) {
  constexpr int pair = kPair<T>;
  for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (i64 k = 0; k < k_size; k += pair) {
    for (int line = 0; line < ahead.lines; line++, ahead.from += 16 * pair)
      _mm_prefetch((const char*)ahead.from, R < 6 ? _MM_HINT_T0 : _MM_HINT_T1);
    multiply_add<T>(acc, [&](int r) { return x + r * ldx + k; }, [&](int n) { return panel + k * kPanel + n * 16 * pair; });
  }
}

template <class T> struct Product {
  const T* x; i64 ldx; i64 rows; i64 k_size;
  const T* packed; i64 n_size;
  const T* bias;      // [n_size] or null; never together with an activation
  T* y; i64 ldy;
  int activation;     // not kNone: panels hold 16 gate rows, then 16 up rows; y = act(gate) * up, n_size / 2 columns
};

// The rows of x as they are multiplied.
template <class T> struct Inputs { const Factor<T>* x; i64 ldx; };

template <int R, class T> void tile(const Product<T>& p, Inputs<T> in, i64 row, i64 panel, Ahead<T> ahead) {
  __m512 acc[R][2];
  multiply<R, T>(in.x + row * in.ldx, in.ldx, p.packed + panel * kPanel * p.k_size, p.k_size, ahead, acc);
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

template <class T> void panel_rows(const Product<T>& p, Inputs<T> in, i64 panel) {
  const i64 tiles = (p.rows + kRows - 1) / kRows;
  i64 row = 0;
  for (i64 t = 0; t < tiles; t++) {
    const int rows = (int)(p.rows / tiles + (t < p.rows % tiles));
    const Ahead<T> ahead = fetched_by(p, panel, t, tiles);
    switch (rows) {
#define ROWS(n) case n: tile<n, T>(p, in, row, panel, ahead); break;
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
    row += rows;
  }
}

constexpr i64 kWidened = 512;  // rows that are widened at a time: a few MB, whatever the batch

// Widened, they are in memory of this thread, until its next product.
template <class T> Inputs<T> inputs(const Product<T>& p) {
  if constexpr (std::is_same_v<Factor<T>, T>) return {p.x, p.ldx};
  else {
    thread_local std::vector<Factor<T>> room;
    if ((i64)room.size() < p.rows * p.k_size) room.resize(p.rows * p.k_size);
    for (i64 row = 0; row < p.rows; row++) factors(p.x + row * p.ldx, p.k_size, room.data() + row * p.k_size);
    return {room.data(), p.k_size};
  }
}

template <class T> void product(Product<T> p, int threads) {
  const i64 panels = (p.n_size + kPanel - 1) / kPanel, all = p.rows;
  const i64 most = std::is_same_v<Factor<T>, T> ? all : kWidened;
  for (i64 row = 0; row < all; row += most, p.x += most * p.ldx, p.y += most * p.ldy) {
    p.rows = std::min(most, all - row);
    const Inputs<T> in = inputs(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (i64 panel = 0; panel < panels; panel++) panel_rows(p, in, panel);
  }
}

// w [n, k] -> [ceil(n / 32)][k / pair][32][pair], rows past n are zero.
template <class T> void pack(const T* w, i64 n_size, i64 k_size, T* out) {
  constexpr int pair = kPair<T>;
  for (i64 n = 0; n < (n_size + kPanel - 1) / kPanel * kPanel; n++)
    for (i64 k = 0; k < k_size; k++)
      out[(n / kPanel) * kPanel * k_size + (k / pair) * kPanel * pair + (n % kPanel) * pair + k % pair] =
          n < n_size ? w[n * k_size + k] : T{};
}

}  // namespace
