// The sum over the ranks of one machine, through memory that all of them map.
//
// Each rank copies its part into a slot of its own, raises its flag, waits for the others' flags, and adds all parts in
// rank order, so every rank ends with the same bits. Two sums at most are begun and not ended: a rank that begins sum n
// has seen everyone's flag of sum n - 2, so everyone has ended sum n - 4 and its slot is free. A rank that waits gives
// its core away after a few microseconds: gateway and ranks may share cores, and a spinning rank would hold up the one
// it waits for.

#include <sched.h>
#include <time.h>
#include <atomic>
#include <vector>

#include "reduce.h"
#include "waiting.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

// The ranks of one machine, as each of them lays it out (`shared_memory.Ranks`).
struct SharedRanks {
  char* base;      // the mapped segment, zeroed when made
  i64 rank, world, slot_bytes;
  uint64_t next;   // number of the next sum to begin, from 1; one is used for each slot_bytes of data
  uint64_t oldest;  // number of the next sum to end
  double timeout_s;
  std::atomic<i64> waiting;  // 1 while another rank is waited for
};

namespace {

constexpr i64 kSlots = 4;         // of each rank
constexpr i64 kLine = 64;         // a flag has a cache line to itself
constexpr int kSpins = 400;       // about ten microseconds, more than a sum takes when nobody is late
constexpr int kYieldsPerLook = 256;  // yields between two looks at the clock

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// [flags: world x 64 bytes][slots: world x kSlots x slot_bytes]
struct Segment {
  char* base; i64 world; i64 slot_bytes;
  std::atomic<uint64_t>& flag(i64 rank) const { return *(std::atomic<uint64_t>*)(base + rank * kLine); }
  char* slot(i64 rank, uint64_t sum) const { return base + world * kLine + (rank * kSlots + (i64)(sum % kSlots)) * slot_bytes; }
};

bool wait_for(const Segment& s, i64 rank, uint64_t sum, SharedRanks& ranks) {
  for (int i = 0; i < kSpins; i++) {
    if (s.flag(rank).load(std::memory_order_acquire) >= sum) return true;
    PAUSE();
  }
  const Waiting waiting(ranks.waiting);
  const double deadline = now() + ranks.timeout_s;
  do {
    for (int i = 0; i < kYieldsPerLook; i++) {
      if (s.flag(rank).load(std::memory_order_acquire) >= sum) return true;
      sched_yield();
    }
  } while (now() < deadline);
  return false;
}

Segment segment(const SharedRanks& ranks) { return {ranks.base, ranks.world, ranks.slot_bytes}; }

template <class T> void begin(SharedRanks& ranks, const T* data, i64 count) {
  const Segment s = segment(ranks);
  memcpy(s.slot(ranks.rank, ranks.next), data, count * sizeof(T));
  s.flag(ranks.rank).store(ranks.next++, std::memory_order_release);
}

template <class T> i64 end(SharedRanks& ranks, T* data, i64 count) {
  const Segment s = segment(ranks);
  std::vector<const T*> parts(s.world);
  for (i64 r = 0; r < s.world; r++) {
    if (!wait_for(s, r, ranks.oldest, ranks)) return 1 + r;
    parts[r] = (const T*)s.slot(r, ranks.oldest);
  }
  ranks.oldest++;
  add(data, parts.data(), s.world, count);
  return 0;
}

template <class T> i64 reduce(SharedRanks& ranks, T* data, i64 count) {
  const i64 most = ranks.slot_bytes / (i64)sizeof(T);
  for (i64 first = 0; first < count; first += most) {
    const i64 n = std::min(most, count - first);
    begin(ranks, data + first, n);
    if (const i64 failure = end(ranks, data + first, n)) return failure;
  }
  return 0;
}

}  // namespace

extern "C" {

// Sums `count` elements of `data` (bfloat16 or float) over the ranks, in place. Returns 0, or 1 + the rank that was not
// heard of for timeout_s.
int64_t gw_shared_sum(SharedRanks* ranks, int is_bf16, void* data, i64 count) {
  return is_bf16 ? reduce(*ranks, (uint16_t*)data, count) : reduce(*ranks, (float*)data, count);
}

// The same in two, for data that fits into a slot: `data` may be used otherwise in between. Two sums may be underway.
void gw_shared_begin(SharedRanks* ranks, int is_bf16, const void* data, i64 count) {
  is_bf16 ? begin(*ranks, (const uint16_t*)data, count) : begin(*ranks, (const float*)data, count);
}

int64_t gw_shared_end(SharedRanks* ranks, int is_bf16, void* data, i64 count) {
  return is_bf16 ? end(*ranks, (uint16_t*)data, count) : end(*ranks, (float*)data, count);
}

}  // extern "C"
