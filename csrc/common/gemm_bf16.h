// The product of gemm.h with bfloat16 operands and float32 accumulation, for instruction sets that
// multiply pairs: c[m][n] += a[m][2k] * b[2k][n] + a[m][2k + 1] * b[2k + 1][n].
//
// A holds weights, [out][depth / 2] pairs; B holds activations, [depth / 2][tokens] pairs.
#pragma once

#include "gemm.h"

#if defined(__AVX512BF16__)
#define MTLFAST_BF16_PRODUCTS 1

namespace mtlfast {
namespace MTLFAST_ISA {

using Bf16Pair = uint32_t;  // low half: the even index

MTLFAST_INLINE Bf16Pair bf16_pair(float even, float odd) {
  return static_cast<Bf16Pair>(float_to_bf16(even)) | static_cast<Bf16Pair>(float_to_bf16(odd))
                                                          << 16;
}

// Lane i holds the pair (even[i], odd[i]).
MTLFAST_INLINE __m512i to_bf16_pairs(Vec even, Vec odd) {
  const __m512i joined = (__m512i)_mm512_cvtne2ps_pbh(odd, even);  // even in the low half
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, joined);
}

struct Bf16Tile {
  const Bf16Pair* a;
  const Bf16Pair* b;
  int64_t ldb;
  float* c;  // float32 result, or
  int64_t ldc;
  Bf16Pair* pairs;  // the result after ReLU as pairs of rows, [rows / 2][ldc]
  const float* residual;
  int64_t ldr;
  const float* row_bias;
  int k;               // pairs
  float scale = 1.0f;  // of the product, before anything is added
};

// sums[m][v] = the products of `depth` pairs in a register tile. LDA as in gemm.h, in pairs; `lda`
// for kTransposed alone: A[k * lda + m].
template <int MR, int NV, int LDA>
MTLFAST_INLINE void multiply_pairs(const Bf16Pair* __restrict a, int64_t lda,
                                   const Bf16Pair* __restrict b, int64_t ldb, int depth,
                                   Vec (&sums)[MR][NV]) {
#pragma GCC unroll 32
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = zero();
  for (int k = 0; k < depth; ++k) {
    __m512bh bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = (__m512bh)_mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m) {
      const Bf16Pair pair = a[LDA == kTransposed ? m : m * LDA];
      const __m512bh am = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], am, bv[v]);
    }
    a += LDA == kTransposed ? lda : 1;
    b += ldb;
  }
}

template <int MR, int NV, int LDA>
void bf16_tile(const Bf16Tile& g) {
  Vec acc[MR][NV];
  multiply_pairs<MR, NV, LDA>(g.a, 0, g.b, g.ldb, g.k, acc);
  if (g.scale != 1.0f) {
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] *= broadcast(g.scale);
  }
  if (g.row_bias != nullptr) {
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += broadcast(g.row_bias[m]);
  }
  if (g.pairs != nullptr) {
#pragma GCC unroll 16
    for (int m = 0; m < MR / 2; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        _mm512_storeu_si512(g.pairs + m * g.ldc + v * kLanes,
                            to_bf16_pairs(relu(acc[2 * m][v]), relu(acc[2 * m + 1][v])));
    return;
  }
#pragma GCC unroll 32
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (g.residual != nullptr) acc[m][v] += load(g.residual + m * g.ldr + v * kLanes);
      store(g.c + m * g.ldc + v * kLanes, acc[m][v]);
    }
}

template <int NV, int LDA, int PAIRS>
MTLFAST_INLINE void bf16_tile_rows(int pairs, const Bf16Tile& g) {
  if (pairs == PAIRS) return bf16_tile<2 * PAIRS, NV, LDA>(g);
  if constexpr (PAIRS > 1) return bf16_tile_rows<NV, LDA, PAIRS - 1>(pairs, g);
}

// `rows` is even: tiles never split a pair of output rows.
template <int LDA>
void bf16_gemm(int rows, int columns, const Bf16Tile& whole) {
  constexpr int kPairs = 3;
  const int vectors = (columns + kLanes - 1) / kLanes;
  for (int first = 0; first < vectors; first += 4) {
    const int nv = vectors - first < 4 ? vectors - first : 4;
    Bf16Tile g = whole;
    g.b += first * kLanes;
    if (g.c != nullptr) g.c += first * kLanes;
    if (g.pairs != nullptr) g.pairs += first * kLanes;
    if (g.residual != nullptr) g.residual += first * kLanes;
    const int pairs = rows / 2, tiles = (pairs + kPairs - 1) / kPairs;
    for (int tile = 0, at = 0; tile < tiles; ++tile) {
      const int count = (pairs - at + tiles - tile - 1) / (tiles - tile);
      if (nv == 4)
        bf16_tile_rows<4, LDA, kPairs>(count, g);
      else if (nv == 3)
        bf16_tile_rows<3, LDA, kPairs>(count, g);
      else if (nv == 2)
        bf16_tile_rows<2, LDA, kPairs>(count, g);
      else
        bf16_tile_rows<1, LDA, kPairs>(count, g);
      at += count;
      g.a += 2 * count * LDA;
      if (g.c != nullptr) g.c += 2 * count * g.ldc;
      if (g.pairs != nullptr) g.pairs += count * g.ldc;
      if (g.residual != nullptr) g.residual += 2 * count * g.ldr;
      if (g.row_bias != nullptr) g.row_bias += 2 * count;
    }
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast

#endif
