// A paged cache of one layer, and which of its places a step's tokens have.

#pragma once

#include "simd.h"

namespace {

constexpr int kTokens = 16;  // tokens of a KV block that are scored together: one vector

// The rows of a batch, one token each, and where they belong. Python lays it out (`abi.Step`).
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

}  // namespace
