// Sums over the columns of rows, those of several rows at once.
#pragma once

#include "../common/columns.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// Sums the vectors of a row; wide rows in blocks, so that rounding errors stay small.
template <int NV>
struct RowSum {
  Vec block = zero(), total = zero();
  MTLFAST_INLINE void add(int64_t v, Vec value) {
    // 0 + value would be an instruction: it is not value for value = -0.
    block = NV > 0 && v == 0 ? value : block + value;
    if (NV == 0 && (v & 31) == 31) {
      total += block;
      block = zero();
    }
  }
  MTLFAST_INLINE Vec get() const { return NV == 0 ? total + block : block; }
};

// What rows add up to, one row per lane: two sums for the price of reading once.
struct Pair {
  Vec first, second;
};

// Half-way from N / 2 summed rows in each of a and b to N in one vector; see sum_each.
template <int N>
MTLFAST_INLINE Vec join(Vec a, Vec b) {
#if defined(__AVX512F__)
  if constexpr (N <= 4) return _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD);
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD);
#elif defined(__AVX2__)
  if constexpr (N <= 4) return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD);
  return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
#else
  return a + b;  // never used
#endif
}
template <int N>
MTLFAST_INLINE Pair join(Pair a, Pair b) {
  return {join<N>(a.first, b.first), join<N>(a.second, b.second)};
}

// Depth first, so that few vectors are alive at a time and none goes through memory.
template <int First, int N, class Value>
MTLFAST_INLINE auto sum_tree(Value value) {
  if constexpr (N == 1)
    return value(First);
  else
    return join<N>(sum_tree<First, N / 2>(value), sum_tree<First + N / 2, N / 2>(value));
}

// Lane r of the result (of its two members) is the sum over the lanes of value(r), for r < count.
template <int NV, class Value>
MTLFAST_INLINE auto sum_rows(int count, Value value) {
  if constexpr (NV >= 1 && NV <= 4 && kLanes >= 8) {
    return sum_tree<0, kLanes>(value);
  } else if constexpr (__is_same(decltype(value(0)), Pair)) {
    Vec first[kLanes] = {}, second[kLanes] = {};
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r) {
      const Pair p = value(r);
      first[r] = p.first;
      second[r] = p.second;
    }
    return Pair{sum_each(first), sum_each(second)};
  } else {
    Vec all[kLanes] = {};
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r) all[r] = value(r);
    return sum_each(all);
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
