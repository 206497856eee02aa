// What the torch side of every op needs: scratch memory, and work for torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mtlfast {

// Memory for kernels, aligned to a cache line; grows, and is kept by its thread between calls so
// that small requests do not fault pages in again.
class Scratch {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      memory_.reset(static_cast<float*>(
          std::aligned_alloc(64, static_cast<size_t>((floats + 31) / 16 * 64))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = floats;
    }
    return memory_.get();
  }
  // Large blocks (very long sequences) go back to the system.
  void trim() {
    if (size_ > kKeep) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  static constexpr int64_t kKeep = int64_t{1} << 22;  // floats: 16 MiB
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

inline Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

// A thread's scratch memory while this lives; one at a time.
class BorrowedScratch {
 public:
  explicit BorrowedScratch(int64_t bytes) : memory_(thread_scratch().reserve((bytes + 3) / 4)) {}
  BorrowedScratch(const BorrowedScratch&) = delete;
  ~BorrowedScratch() { thread_scratch().trim(); }
  float* get() const { return memory_; }

 private:
  float* const memory_;
};

// Runs body(item, scratch) for every item; threads take the next item when they are done with one,
// so which thread runs what never shows in the results.
template <typename Body>
void for_each_item(int64_t items, int64_t scratch_floats, const Body& body) {
  if (items == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    const BorrowedScratch scratch(4 * scratch_floats);
    for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1))
      body(item, scratch.get());
  });
}

// Runs body(begin, end) on ranges that make up [0, n). Ranges get shorter towards the end, down to
// `grain`, and threads take the next one when they are done: a thread that starts late or is held
// up by others on its core delays nobody. Which thread runs what, and where ranges end, must not
// show in the results.
template <typename Body>
void for_each_range(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t threads =
      std::min<int64_t>((n + grain - 1) / grain, torch::stable::get_num_threads());
  if (threads <= 1) return body(int64_t{0}, n);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t begin = next.load();
    while (begin < n) {
      const int64_t end = std::min(n, begin + std::max(grain, (n - begin) / (4 * threads)));
      if (!next.compare_exchange_weak(begin, end)) continue;
      body(begin, end);
      begin = next.load();
    }
  });
}

// A float32 copy only where the tensor is not already contiguous float32.
inline torch::stable::Tensor as_float(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  const torch::stable::Tensor f =
      t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
  return f.is_contiguous() ? f : torch::stable::contiguous(f);
}

}  // namespace mtlfast
