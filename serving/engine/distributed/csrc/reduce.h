// Adds the ranks' parts of a tensor: in rank order and in float32, so the bits are the same wherever it is done.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using i64 = int64_t;

inline float widen(float value) { return value; }

inline float widen(uint16_t bits) {  // bfloat16
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

inline void narrow(float value, float& out) { out = value; }

inline void narrow(float value, uint16_t& out) {  // to nearest, ties to even; a NaN stays one
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out = value != value ? (uint16_t)((bits >> 16) | 0x40) : (uint16_t)rounded;
}

// `out` may be one of the parts.
template <class T> void add(T* out, const T* const* parts, i64 ranks, i64 count) {
  constexpr i64 kChunk = 256;
  float total[kChunk];
  for (i64 first = 0; first < count; first += kChunk) {
    const i64 n = std::min(kChunk, count - first);
    for (i64 i = 0; i < n; i++) total[i] = widen(parts[0][first + i]);
    for (i64 r = 1; r < ranks; r++)
      for (i64 i = 0; i < n; i++) total[i] += widen(parts[r][first + i]);
    for (i64 i = 0; i < n; i++) narrow(total[i], out[first + i]);
  }
}

}  // namespace
