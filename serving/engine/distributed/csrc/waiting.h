// Says to another thread of this process that a sum waits for other ranks, as a stack in Python cannot.

#pragma once

#include <atomic>

#include "reduce.h"

namespace {

class Waiting {
  std::atomic<i64>& told_;

 public:
  explicit Waiting(std::atomic<i64>& told) : told_(told) { told_.store(1, std::memory_order_relaxed); }
  ~Waiting() { told_.store(0, std::memory_order_relaxed); }
};

}  // namespace
