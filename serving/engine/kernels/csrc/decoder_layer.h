// A decoder layer of the Llama kind: between two products there is no Python, and next to nothing is allocated.
//
//   x += attention(norm(x)), x += mlp(norm(x)), where each block's result is summed over the ranks

#pragma once

#include "attention.h"
#include "gemm.h"
#include "kv_cache.h"
#include "norm.h"
#include "rope.h"

namespace {

// One rank's share of a layer. Python lays it out (`abi.Weights`). Pointers are to T; those marked may be null.
struct Layer {
  const void *input_norm, *qkv, *qkv_bias /* null */, *query_norm /* null */, *key_norm /* null */;
  const void *out, *out_bias /* null */, *attention_norm /* null */;
  const void *mlp_norm, *gate_up, *down, *down_bias /* null */, *output_norm /* null */;
  void *keys, *values;
  i64 hidden, heads, kv_heads, dim, inner, block_size, window, activation, rotation;
  float eps, norm_offset, residual, scale, softcap;  // residual: factor of what a block adds
};

// The sum over the ranks: in place, 0 when done. `add` is null for a group of one. Where `begin` is not null, a sum of
// at most `most` bytes can also be begun and ended apart, two of them at a time; they end in the order they began in.
struct Group {
  int64_t (*add)(void* ranks, int is_bf16, void* data, i64 count);
  void (*begin)(void* ranks, int is_bf16, const void* data, i64 count);
  int64_t (*end)(void* ranks, int is_bf16, void* data, i64 count);
  void* ranks;
  i64 most;
};

struct Rotation { const float *cos, *sin; i64 size; };  // of each row: [rows][size / 2]

// What a layer keeps between its products, for `rows` tokens.
template <class T> struct Room {
  T *normed, *qkv, *mixed, *gated, *delta;
  Room(const Layer& l, i64 rows, T* room) {
    normed = room;
    qkv = normed + rows * l.hidden;
    mixed = qkv + rows * (l.heads + 2 * l.kv_heads) * l.dim;
    gated = mixed + rows * l.heads * l.dim;
    delta = gated + rows * l.inner;
  }
  static i64 elements(const Layer& l) { return 2 * l.hidden + 2 * (l.heads + l.kv_heads) * l.dim + l.inner; }
};

// Rows that go through the layers together, and what their last block gave: its sum over the ranks may still be underway.
template <class T> struct Part {
  Step step;
  i64 first;  // of its rows, in the whole step
  T* x; T* memory;
  T* delta = nullptr; const Layer* of = nullptr; const void *bias = nullptr, *norm = nullptr;
  std::vector<int64_t> wanted{}, positions{}; std::vector<int32_t> table_of{};
};

// Leaves what a block gave to be summed over the ranks; `norm` may be null.
template <class T> void give(const Layer& l, const Group& g, bool apart, Part<T>& p, T* delta, const void* bias, const void* norm) {
  p.of = &l, p.delta = delta, p.bias = bias, p.norm = norm;
  if (apart) g.begin(g.ranks, std::is_same_v<T, bf16>, delta, p.step.rows * l.hidden);
}

// Adds the sum of what was given to the residual stream.
template <class T> i64 take(const Group& g, bool apart, Part<T>& p) {
  if (!p.of) return 0;
  const Layer& l = *p.of;
  if (g.add)
    if (const i64 failure = (apart ? g.end : g.add)(g.ranks, std::is_same_v<T, bf16>, p.delta, p.step.rows * l.hidden))
      return failure;
  if (p.norm) rms_norm(p.delta, (const T*)p.norm, p.delta, p.step.rows, l.hidden, l.eps, l.norm_offset);
  add_scaled(p.x, p.delta, (const T*)p.bias, l.residual, p.step.rows, l.hidden);
  p.of = nullptr;
  return 0;
}

// Queries, keys and values of all rows: the first stay in the room, the others go into the cache.
template <class T> void project(const Layer& l, const Step& s, const Rotation& r, Room<T> room, const T* x) {
  const i64 queries = l.heads * l.dim, keys = l.kv_heads * l.dim, width = queries + 2 * keys;
  const Cache<T> cache{(T*)l.keys, (T*)l.values, l.block_size, l.kv_heads, l.dim};
  const int threads = (int)s.threads;
  rms_norm(x, (const T*)l.input_norm, room.normed, s.rows, l.hidden, l.eps, l.norm_offset);
  product(Product<T>{room.normed, l.hidden, s.rows, l.hidden, (const T*)l.qkv, width, (const T*)l.qkv_bias, room.qkv,
                     width, kNone}, threads);
  if (l.query_norm)
    for (i64 row = 0; row < s.rows; row++) {
      T* query = room.qkv + row * width;
      rms_norm(query, (const T*)l.query_norm, query, l.heads, l.dim, l.eps, l.norm_offset);
      rms_norm(query + queries, (const T*)l.key_norm, query + queries, l.kv_heads, l.dim, l.eps, l.norm_offset);
    }
  rotate(room.qkv, width, s.rows, l.heads + l.kv_heads, l.dim, r.size, r.cos, r.sin);
  keep(cache, s, room.qkv + queries, width, room.qkv + queries + keys, width);
}

// Returns what attention gives, before the sum.
template <class T> T* attention_block(const Layer& l, const Step& s, Room<T> room) {
  const i64 queries = l.heads * l.dim, width = queries + 2 * l.kv_heads * l.dim;
  const Cache<T> cache{(T*)l.keys, (T*)l.values, l.block_size, l.kv_heads, l.dim};
  attend(Attention<T>{cache, {l.scale, l.softcap, l.window}, room.qkv, width, l.heads, room.mixed}, s);
  product(Product<T>{room.mixed, queries, s.rows, queries, (const T*)l.out, l.hidden, nullptr, room.delta, l.hidden,
                     kNone}, (int)s.threads);
  return room.delta;
}

template <class T> T* mlp_block(const Layer& l, const Step& s, Room<T> room, const T* x) {
  const int threads = (int)s.threads;
  rms_norm(x, (const T*)l.mlp_norm, room.normed, s.rows, l.hidden, l.eps, l.norm_offset);
  product(Product<T>{room.normed, l.hidden, s.rows, l.hidden, (const T*)l.gate_up, 2 * l.inner, nullptr, room.gated,
                     l.inner, (int)l.activation}, threads);
  product(Product<T>{room.gated, l.inner, s.rows, l.inner, (const T*)l.down, l.hidden, nullptr, room.delta, l.hidden,
                     kNone}, threads);
  return room.delta;
}

// In the last layer a row that nobody looks at only has to keep its key and value: the wanted ones are moved together,
// and when the layer is done to where they belong. In `x` the others are left unfinished.
template <class T> void gather_wanted(const Layer& l, Part<T>& p, T* qkv) {
  const i64 width = (l.heads + 2 * l.kv_heads) * l.dim;
  for (i64 i = 0; i < p.step.wanted_rows; i++) {
    const i64 row = p.step.wanted[i] - p.first;
    if (row < 0 || row >= p.step.rows) continue;
    const i64 place = (i64)p.wanted.size();  // not more than row
    memmove(p.x + place * l.hidden, p.x + row * l.hidden, l.hidden * sizeof(T));
    memmove(qkv + place * width, qkv + row * width, width * sizeof(T));
    p.wanted.push_back(row), p.positions.push_back(p.step.positions[row]), p.table_of.push_back(p.step.table_of[row]);
  }
  p.step.rows = (i64)p.wanted.size(), p.step.positions = p.positions.data(), p.step.table_of = p.table_of.data();
}

template <class T> void scatter_wanted(const Layer& l, Part<T>& p) {
  for (i64 i = (i64)p.wanted.size() - 1; i >= 0; i--)
    memmove(p.x + p.wanted[i] * l.hidden, p.x + i * l.hidden, l.hidden * sizeof(T));
}

constexpr i64 kHalf = 96;  // rows from which on a half computes as fast as the whole, though weights are read twice

// One part, or two that take turns: while the sum of one half is underway the other half is computed, so that a rank
// waits only for one that is late by half a block.
template <class T>
std::vector<Part<T>> divide(const Layer* layers, i64 count, const Step& s, const Group& g, T* x, T* memory) {
  i64 elements = 0;
  for (i64 l = 0; l < count; l++) elements = std::max(elements, Room<T>::elements(layers[l]));
  const i64 hidden = layers->hidden, half = s.rows / 2;
  const bool apart = g.begin && half >= kHalf && (s.rows - half) * hidden * (i64)sizeof(T) <= g.most;
  const auto part = [&](i64 first, i64 rows) {
    Step step = s;
    step.rows = rows, step.slots += first, step.positions += first, step.table_of += first;
    return Part<T>{step, first, x + first * hidden, memory + first * elements};
  };
  if (!apart) return {part(0, s.rows)};
  return {part(0, half), part(half, s.rows - half)};
}

// All layers, in place.
template <class T>
i64 decode(const Layer* layers, i64 count, const Step& s, const Group& g, const Rotation* rotations, T* x, T* memory) {
  std::vector<Part<T>> parts = divide(layers, count, s, g, x, memory);
  const bool apart = parts.size() > 1;
  for (const Layer* l = layers; l < layers + count; l++) {
    for (Part<T>& p : parts) {
      if (const i64 failure = take(g, apart, p)) return failure;
      const Rotation& r = rotations[l->rotation];
      const Room<T> room(*l, p.step.rows, p.memory);
      project(*l, p.step, {r.cos + p.first * r.size / 2, r.sin + p.first * r.size / 2, r.size}, room, p.x);
      if (l + 1 == layers + count && s.wanted_rows >= 0) gather_wanted(*l, p, room.qkv);
      give(*l, g, apart, p, attention_block(*l, p.step, room), l->out_bias, l->attention_norm);
    }
    for (Part<T>& p : parts) {
      if (const i64 failure = take(g, apart, p)) return failure;
      give(*l, g, apart, p, mlp_block(*l, p.step, Room<T>(*l, p.step.rows, p.memory), p.x), l->down_bias, l->output_norm);
    }
  }
  for (Part<T>& p : parts) {
    if (const i64 failure = take(g, apart, p)) return failure;
    scatter_wanted(layers[count - 1], p);
  }
  return 0;
}

}  // namespace
