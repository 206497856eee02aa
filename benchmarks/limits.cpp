// What this CPU reaches on one thread at best: FMA and dot-product rates, and the speed of copying.
// Compiled by limits.py on the machine that is measured (-O3 -march=native -ffp-contract=fast);
// each function is called from one Python thread per core, all at once.
#include <chrono>
#include <cstddef>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// As many independent chains as hide the latency of two FMA units and still fit the registers.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#else
constexpr int kBytes = 16, kChains = 24;
#endif
constexpr int kSteps = 4096;

typedef float Vector __attribute__((vector_size(kBytes)));

// One block of multiply-adds; returns how many floating-point operations it did.
double fma_block(Vector* chains, Vector factor, Vector term) {
  Vector local[kChains];
  for (int c = 0; c < kChains; ++c) local[c] = chains[c];
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) local[c] = local[c] * factor + term;
  }
  for (int c = 0; c < kChains; ++c) chains[c] = local[c];
  return 2.0 * kSteps * kChains * (kBytes / sizeof(float));
}

}  // namespace

extern "C" {

// Single-precision multiply-adds per second, times two, in GFLOP/s.
double mtlfast_bench_fma(double seconds) {
  Vector chains[kChains] = {};
  Vector factor, term;
  for (std::size_t i = 0; i < kBytes / sizeof(float); ++i) {
    factor[i] = 0.5f;
    term[i] = 1.0f;
  }
  double operations = 0, elapsed = 0;
  const auto start = Clock::now();
  do {
    operations += fma_block(chains, factor, term);
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  float sum = 0;
  for (int c = 0; c < kChains; ++c) sum += chains[c][0];
  volatile float keep = sum;
  (void)keep;
  return operations / elapsed * 1e-9;
}

// bfloat16 dot-product instructions in GFLOP/s; 0 where the CPU or the compiler has none.
double mtlfast_bench_bf16(double seconds) {
#if defined(__AVX512BF16__)
  __m512 chains[kChains];
  for (int c = 0; c < kChains; ++c) chains[c] = _mm512_setzero_ps();
  const __m512 ones = _mm512_set1_ps(1.0f);
  const __m512bh a = _mm512_cvtne2ps_pbh(ones, ones), b = a;
  double operations = 0, elapsed = 0;
  const auto start = Clock::now();
  do {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
      for (int c = 0; c < kChains; ++c) chains[c] = _mm512_dpbf16_ps(chains[c], a, b);
    }
    operations += 2.0 * kSteps * kChains * 32;
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  float sum = 0;
  for (int c = 0; c < kChains; ++c) sum += _mm512_cvtss_f32(chains[c]);
  volatile float keep = sum;
  (void)keep;
  return operations / elapsed * 1e-9;
#else
  (void)seconds;
  return 0;
#endif
}

// GB/s read plus written while copying `bytes` from one buffer to another, both out of cache.
double mtlfast_bench_copy(char* to, const char* from, std::size_t bytes, double seconds) {
  double moved = 0, elapsed = 0;
  const auto start = Clock::now();
  do {
    std::memcpy(to, from, bytes);
    moved += 2.0 * static_cast<double>(bytes);
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  return moved / elapsed * 1e-9;
}

}  // extern "C"
