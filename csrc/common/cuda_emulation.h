// Enough of CUDA to run a kernel on the CPU, slowly: one fiber per thread of a block, blocks one
// after another. A fiber runs until it meets a barrier or a warp exchange, so every run is the
// same.
//
// Finds wrong indices and results; finds no race, and says nothing of speed. Kernels must keep all
// lanes of a warp together at exchanges, as they must on a GPU.
#pragma once

#define MTLFAST_ISA portable
#include "half.h"
#undef MTLFAST_ISA

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct uint2 {
  unsigned x, y;
};
struct float4 {
  float x, y, z, w;
};

namespace mtlfast {
namespace emulation {

constexpr int kWarp = 32;

struct Barrier {
  int waiting = 0;
  int generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

struct Block {
  int64_t index = 0;
  int threads = 0;
  int current = 0;
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<float> exchanged;
  std::function<void()> body;
};

inline Block*& block() {
  static thread_local Block* current = nullptr;
  return current;
}

inline void yield() {
  Block& b = *block();
  swapcontext(&b.fibers[b.current].context, &b.scheduler);
}

inline void wait(Barrier& barrier, int members) {
  const int generation = barrier.generation;
  if (++barrier.waiting == members) {
    barrier.waiting = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  Block& b = *block();
  b.body();
  b.fibers[b.current].done = true;
  yield();
}

inline void run(int64_t blocks, int threads, std::function<void()> body) {
  constexpr size_t kStack = 64 << 10;
  Block b;
  b.threads = threads;
  b.body = std::move(body);
  b.fibers.resize(threads);
  for (Fiber& fiber : b.fibers) fiber.stack.reset(new char[kStack]);
  block() = &b;
  for (b.index = 0; b.index < blocks; ++b.index) {
    b.warps.assign((threads + kWarp - 1) / kWarp, Barrier{});
    b.all = Barrier{};
    b.exchanged.assign(threads, 0.0f);
    for (Fiber& fiber : b.fibers) {
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
    for (int left = threads; left > 0;) {
      for (b.current = 0; b.current < threads; ++b.current) {
        Fiber& fiber = b.fibers[b.current];
        if (fiber.done) continue;
        swapcontext(&b.scheduler, &fiber.context);
        left -= fiber.done;
      }
    }
  }
  block() = nullptr;
}

struct ThreadIndex {
  struct X {
    operator int() const { return block()->current; }
  } x;
};
struct BlockIndex {
  struct X {
    operator int64_t() const { return block()->index; }
  } x;
};

}  // namespace emulation
}  // namespace mtlfast

static constexpr mtlfast::emulation::ThreadIndex threadIdx;
static constexpr mtlfast::emulation::BlockIndex blockIdx;

inline void __syncthreads() {
  mtlfast::emulation::Block& b = *mtlfast::emulation::block();
  mtlfast::emulation::wait(b.all, b.threads);
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  mtlfast::emulation::Block& b = *mtlfast::emulation::block();
  const int me = b.current, warp = me / mtlfast::emulation::kWarp;
  b.exchanged[me] = value;
  mtlfast::emulation::wait(b.warps[warp], mtlfast::emulation::kWarp);
  const float other = b.exchanged[me ^ mask];
  mtlfast::emulation::wait(b.warps[warp], mtlfast::emulation::kWarp);
  return other;
}

// Lane `lane` of every `width` lanes gives its 32 bits to the others.
template <class T>
inline T __shfl_sync(unsigned, T value, int lane, int width) {
  static_assert(sizeof(T) == sizeof(float));
  mtlfast::emulation::Block& b = *mtlfast::emulation::block();
  const int me = b.current, warp = me / mtlfast::emulation::kWarp;
  std::memcpy(&b.exchanged[me], &value, sizeof(value));
  mtlfast::emulation::wait(b.warps[warp], mtlfast::emulation::kWarp);
  std::memcpy(&value, &b.exchanged[me / width * width + lane], sizeof(value));
  mtlfast::emulation::wait(b.warps[warp], mtlfast::emulation::kWarp);
  return value;
}
