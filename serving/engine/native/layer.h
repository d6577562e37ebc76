// A decoder layer of the Llama kind: between two products there is no Python, and next to nothing is allocated.
//
//   x += attention(norm(x)), x += mlp(norm(x)), where each block's result is summed over the ranks

#pragma once

#include "attention.h"
#include "norm.h"
#include "product.h"

namespace {

// One rank's share of a layer. Python lays it out (`layer.Weights`). Pointers are to T; those marked may be null.
struct Layer {
  const void *input_norm, *qkv, *qkv_bias /* null */, *query_norm /* null */, *key_norm /* null */;
  const void *out, *out_bias /* null */, *attention_norm /* null */;
  const void *mlp_norm, *gate_up, *down, *down_bias /* null */, *output_norm /* null */;
  void *keys, *values;
  i64 hidden, heads, kv_heads, dim, inner, block_size, window, activation, rotation;
  float eps, norm_offset, residual, scale, softcap;  // residual: factor of what a block adds
};

// The sum over the ranks: in place, 0 when done. `add` is null for a group of one.
struct Group {
  int64_t (*add)(void* group, int is_bf16, void* data, i64 count);
  void* group;
};

struct Rotation { const float *cos, *sin; i64 size; };  // of each row: [rows][size / 2]

// What a layer keeps between its products, for `rows` tokens.
template <class T> struct Room {
  T *normed, *qkv, *mixed, *gated, *delta;
  Room(const Layer& l, i64 rows, void* room) {
    normed = (T*)room;
    qkv = normed + rows * l.hidden;
    mixed = qkv + rows * (l.heads + 2 * l.kv_heads) * l.dim;
    gated = mixed + rows * l.heads * l.dim;
    delta = gated + rows * l.inner;
  }
};

// Sums what a block gives over the ranks and adds it to the residual stream; `norm` may be null.
template <class T>
i64 add_block(const Layer& l, const Group& g, T* x, T* delta, const void* bias, const void* norm, i64 rows) {
  if (g.add)
    if (const i64 failure = g.add(g.group, std::is_same_v<T, bf16>, delta, rows * l.hidden)) return failure;
  if (norm) rms_norm(delta, (const T*)norm, delta, rows, l.hidden, l.eps, l.norm_offset);
  add_scaled(x, delta, (const T*)bias, l.residual, rows, l.hidden);
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

template <class T> i64 attention_block(const Layer& l, const Step& s, const Group& g, Room<T> room, T* x) {
  const i64 queries = l.heads * l.dim, width = queries + 2 * l.kv_heads * l.dim;
  const Cache<T> cache{(T*)l.keys, (T*)l.values, l.block_size, l.kv_heads, l.dim};
  attend(Attention<T>{cache, {l.scale, l.softcap, l.window}, room.qkv, width, l.heads, room.mixed}, s);
  product(Product<T>{room.mixed, queries, s.rows, queries, (const T*)l.out, l.hidden, nullptr, room.delta, l.hidden,
                     kNone}, (int)s.threads);
  return add_block(l, g, x, room.delta, l.out_bias, l.attention_norm, s.rows);
}

template <class T> i64 mlp_block(const Layer& l, const Step& s, const Group& g, Room<T> room, T* x) {
  const int threads = (int)s.threads;
  rms_norm(x, (const T*)l.mlp_norm, room.normed, s.rows, l.hidden, l.eps, l.norm_offset);
  product(Product<T>{room.normed, l.hidden, s.rows, l.hidden, (const T*)l.gate_up, 2 * l.inner, nullptr, room.gated,
                     l.inner, (int)l.activation}, threads);
  product(Product<T>{room.gated, l.inner, s.rows, l.inner, (const T*)l.down, l.hidden, nullptr, room.delta, l.hidden,
                     kNone}, threads);
  return add_block(l, g, x, room.delta, l.down_bias, l.output_norm, s.rows);
}

template <class T> i64 layer(const Layer& l, const Step& s, const Group& g, const Rotation& r, Room<T> room, T* x) {
  project(l, s, r, room, x);
  if (const i64 failure = attention_block(l, s, g, room, x)) return failure;
  return mlp_block(l, s, g, room, x);
}

// Of a row that nobody looks at the last layer only has to keep key and value: the wanted ones are moved together, and
// afterwards to where they belong. In `x` the others are left unfinished.
template <class T>
i64 last_layer(const Layer& l, const Step& s, const Group& g, const Rotation& r, Room<T> room, T* x) {
  if (s.wanted_rows < 0) return layer(l, s, g, r, room, x);
  project(l, s, r, room, x);
  const i64 width = (l.heads + 2 * l.kv_heads) * l.dim;
  std::vector<int64_t> positions(s.wanted_rows);
  std::vector<int32_t> table_of(s.wanted_rows);
  for (i64 i = 0; i < s.wanted_rows; i++) {
    const i64 row = s.wanted[i];  // not less than i
    memmove(x + i * l.hidden, x + row * l.hidden, l.hidden * sizeof(T));
    memmove(room.qkv + i * width, room.qkv + row * width, width * sizeof(T));
    positions[i] = s.positions[row], table_of[i] = s.table_of[row];
  }
  Step few = s;
  few.rows = s.wanted_rows, few.positions = positions.data(), few.table_of = table_of.data();
  if (const i64 failure = attention_block(l, few, g, room, x)) return failure;
  if (const i64 failure = mlp_block(l, few, g, room, x)) return failure;
  for (i64 i = s.wanted_rows - 1; i >= 0; i--)
    memmove(x + s.wanted[i] * l.hidden, x + i * l.hidden, l.hidden * sizeof(T));
  return 0;
}

}  // namespace
