// C[M, N] = act(init + A[M, K] B[K, N]) on small row-major blocks that live in cache.
//
// A is read one element at a time and broadcast, B in whole vectors: N is rounded up to the lane
// count, so B and C rows must be padded (C's padding is overwritten). A register tile of MR rows by
// NV vectors is kept through the whole K loop; rows are split evenly over tiles, so that a
// remainder never runs at the throughput of a single row.
#pragma once

#include "simd.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// Row strides of A are compile-time constants: with 24 rows in flight every broadcast is then one
// base register plus a displacement. kTransposed reads A[k * lda + m] instead.
constexpr int kTransposed = 0;
// For strides that are only known at run time; tiles have few enough rows to keep a pointer each.
constexpr int kStrided = -1;
constexpr int kMaxStridedRows = 6;

struct GemmTile {
  const float* a;
  int64_t lda;  // only for kTransposed and kStrided
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  const float* residual;  // added to the product, or null; may be C itself to accumulate
  int64_t ldr;
  const float* bias;      // one row added to every row, or null
  const float* row_bias;  // one number per row, or null
  int k;
  bool relu;
};

#if defined(__AVX512F__)
constexpr int kAccumulators = 16;
constexpr int kMaxVectors = 4;
constexpr int kChainedRows = 6;
#elif defined(__AVX2__)
constexpr int kAccumulators = 12;
constexpr int kMaxVectors = 2;
constexpr int kChainedRows = 3;
#else
constexpr int kAccumulators = 8;
constexpr int kMaxVectors = 2;
constexpr int kChainedRows = 2;
#endif

// How many sums an element of a product is made of. A product of few columns gets several, as in
// the library behind PyTorch, which adds up lanes there: one chain of additions would err twice as
// much. Tiles then have kChainedRows rows.
template <int NV, int LDA>
constexpr int kChains = NV == 1 && LDA == kStrided ? 4 : 1;

template <int MR, int NV, int LDA>
void gemm_tile(const GemmTile& g) {
  constexpr int kSums = kChains<NV, LDA>;
  Vec sums[kSums][MR][NV];
#pragma GCC unroll 4
  for (int s = 0; s < kSums; ++s)
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[s][m][v] = zero();
  const float* __restrict a = g.a;
  const float* __restrict b = g.b;
  const int64_t a_step = LDA == kTransposed ? g.lda : 1;
  const auto add_step = [&](Vec(&sum)[MR][NV]) __attribute__((always_inline)) {
    Vec bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * kLanes);
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m) {
      const Vec am = broadcast(a[LDA == kTransposed ? m : LDA == kStrided ? m * g.lda : m * LDA]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[m][v] += am * bv[v];
    }
    a += a_step;
    b += g.ldb;
  };
  int k = 0;
  for (; k + kSums <= g.k; k += kSums) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) add_step(sums[s]);
  }
  for (; k < g.k; ++k) add_step(sums[0]);
#pragma GCC unroll 2
  for (int half = kSums / 2; half > 0; half /= 2)
#pragma GCC unroll 2
    for (int s = 0; s < half; ++s)
#pragma GCC unroll 32
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[s][m][v] += sums[s + half][m][v];
  Vec(&acc)[MR][NV] = sums[0];
  // What was there before is added last: sums over many blocks then round once per block, which
  // keeps long contractions as accurate as a blocked library product.
  if (g.bias != nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec bias = load(g.bias + v * kLanes);
#pragma GCC unroll 32
      for (int m = 0; m < MR; ++m) acc[m][v] += bias;
    }
  }
  if (g.row_bias != nullptr) {
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += broadcast(g.row_bias[m]);
  }
  if (g.residual != nullptr) {
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += load(g.residual + m * g.ldr + v * kLanes);
  }
  if (g.relu) {
#pragma GCC unroll 32
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = relu(acc[m][v]);
  }
#pragma GCC unroll 32
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(g.c + m * g.ldc + v * kLanes, acc[m][v]);
}

template <int NV, int LDA, int MR>
MTLFAST_INLINE void gemm_tile_rows(int rows, const GemmTile& g) {
  if (rows == MR) return gemm_tile<MR, NV, LDA>(g);
  if constexpr (MR > 1) return gemm_tile_rows<NV, LDA, MR - 1>(rows, g);
}

template <int NV, int LDA>
void gemm_columns(int rows, GemmTile g) {
  constexpr int kTileRows = kChains<NV, LDA> > 1 ? kChainedRows : kAccumulators / NV;
  constexpr int kMaxRows =
      LDA == kStrided && kTileRows > kMaxStridedRows ? kMaxStridedRows : kTileRows;
  const int tiles = (rows + kMaxRows - 1) / kMaxRows;
  for (int tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = (rows - row + tiles - tile - 1) / (tiles - tile);
    gemm_tile_rows<NV, LDA, kMaxRows>(count, g);
    row += count;
    g.a += LDA == kTransposed ? count : LDA == kStrided ? count * g.lda : count * LDA;
    g.c += count * g.ldc;
    if (g.residual != nullptr) g.residual += count * g.ldr;
    if (g.row_bias != nullptr) g.row_bias += count;
  }
}

constexpr int kMaxDepth = 128;  // longer contractions are summed in blocks

// The general call. `g` describes the whole block; M rows, N columns (rounded up to full vectors).
template <int LDA>
void gemm(int rows, int columns, GemmTile g) {
  if (g.k > kMaxDepth) {
    const bool relu = g.relu;
    for (int left = g.k; left > 0;) {
      const int blocks = (left + kMaxDepth - 1) / kMaxDepth;
      g.k = (left + blocks - 1) / blocks;
      left -= g.k;
      g.relu = relu && left == 0;
      gemm<LDA>(rows, columns, g);
      g.a += LDA == kTransposed ? g.k * g.lda : g.k;
      g.b += g.k * g.ldb;
      g.bias = nullptr;
      g.row_bias = nullptr;
      g.residual = g.c;
      g.ldr = g.ldc;
    }
    return;
  }
  int vectors = (columns + kLanes - 1) / kLanes;
  while (vectors > 0) {
    const int nv = vectors < kMaxVectors ? vectors : kMaxVectors;
    if (nv == 4)
      gemm_columns<(kMaxVectors >= 4 ? 4 : 1), LDA>(rows, g);
    else if (nv == 3)
      gemm_columns<(kMaxVectors >= 3 ? 3 : 1), LDA>(rows, g);
    else if (nv == 2)
      gemm_columns<2, LDA>(rows, g);
    else
      gemm_columns<1, LDA>(rows, g);
    g.b += nv * kLanes;
    g.c += nv * kLanes;
    if (g.residual != nullptr) g.residual += nv * kLanes;
    if (g.bias != nullptr) g.bias += nv * kLanes;
    vectors -= nv;
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
