// Products of rows with bfloat16 operands and float32 accumulation, for instruction sets that
// multiply pairs: c[m][n] = sum over k of a[m][2k] * b[2k][n] + a[m][2k + 1] * b[2k + 1][n].
//
// A matrix of bfloat16 rows is an A as it lies in memory, [rows][depth / 2] pairs of neighbours.
// With two rows interleaved, [rows / 2][columns] pairs, it is a B, or an A that is read transposed
// where a gradient contracts over rows.
#pragma once

#include "../common/gemm_bf16.h"

#ifdef MTLFAST_BF16_PRODUCTS

namespace mtlfast {
namespace MTLFAST_ISA {

struct Bf16Product {
  const Bf16Pair* a;
  int64_t lda;  // only for kTransposed: A[k * lda + m]
  const Bf16Pair* b;
  int64_t ldb;
  int k;  // pairs
};

// finish(sums, row, column) with the tile's Vec[MR][NV] and its place in the result.
template <int MR, int NV, int LDA, typename Finish>
void bf16_product_tile(const Bf16Product& g, int row, int column, Finish& finish) {
  Vec sums[MR][NV];
  const int64_t start = LDA == kTransposed ? row : int64_t{row} * LDA;
  multiply_pairs<MR, NV, LDA>(g.a + start, g.lda, g.b + column, g.ldb, g.k, sums);
  finish(sums, row, column);
}

template <int NV, int LDA, int PAIRS, typename Finish>
MTLFAST_INLINE void bf16_product_rows(int pairs, const Bf16Product& g, int row, int column,
                                      Finish& finish) {
  if (pairs == PAIRS) return bf16_product_tile<2 * PAIRS, NV, LDA>(g, row, column, finish);
  if constexpr (PAIRS > 1)
    return bf16_product_rows<NV, LDA, PAIRS - 1>(pairs, g, row, column, finish);
}

template <int NV, int LDA, typename Finish>
void bf16_product_columns(int rows, const Bf16Product& g, int column, Finish& finish) {
  constexpr int kPairs = kAccumulators / NV / 2;
  const int pairs = rows / 2, tiles = (pairs + kPairs - 1) / kPairs;
  for (int tile = 0, at = 0; tile < tiles; ++tile) {
    const int count = (pairs - at + tiles - tile - 1) / (tiles - tile);
    bf16_product_rows<NV, LDA, kPairs>(count, g, 2 * at, column, finish);
    at += count;
  }
}

// `rows` is even; columns are rounded up to whole vectors.
template <int LDA, typename Finish>
void bf16_product(int rows, int columns, const Bf16Product& g, Finish finish) {
  const int vectors = (columns + kLanes - 1) / kLanes;
  int v = 0;
  for (; v + 4 <= vectors; v += 4) bf16_product_columns<4, LDA>(rows, g, v * kLanes, finish);
  const int left = vectors - v;
  if (left >= 2) bf16_product_columns<2, LDA>(rows, g, v * kLanes, finish);
  if (left % 2 == 1) bf16_product_columns<1, LDA>(rows, g, (vectors - 1) * kLanes, finish);
}

// One vector's lanes as bfloat16, eight pairs.
MTLFAST_INLINE void store_neighbours(Bf16Pair* to, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

// A tile's rows as bfloat16 rows, and interleaved by twos; strides in pairs.
template <int MR, int NV>
MTLFAST_INLINE void store_bf16_rows(const Vec (&x)[MR][NV], Bf16Pair* rows, int64_t ld,
                                    Bf16Pair* interleaved, int64_t ld_interleaved) {
#pragma GCC unroll 32
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v + 1 < NV; v += 2)
      _mm512_storeu_si512(rows + m * ld + v * (kLanes / 2),
                          (__m512i)_mm512_cvtne2ps_pbh(x[m][v + 1], x[m][v]));
    if constexpr (NV % 2 == 1)
      store_neighbours(rows + m * ld + (NV - 1) * (kLanes / 2), x[m][NV - 1]);
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR / 2; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      _mm512_storeu_si512(interleaved + m * ld_interleaved + v * kLanes,
                          to_bf16_pairs(x[2 * m][v], x[2 * m + 1][v]));
}

// Rows of `columns` floats (whole vectors), `ld` apart, as bfloat16 rows of `ld` columns. An odd
// count gets a row of zeros behind it.
inline void rows_to_bf16(const float* x, int rows, int columns, int64_t ld, Bf16Pair* to) {
  for (int64_t r = 0; r < rows + rows % 2; ++r)
    for (int c = 0; c < columns; c += kLanes)
      store_neighbours(to + (r * ld + c) / 2, r < rows ? load(x + r * ld + c) : zero());
}

// The same, interleaved by twos: [(rows + 1) / 2][ld].
inline void interleave_rows(const float* x, int rows, int columns, int64_t ld, Bf16Pair* to) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int c = 0; c < columns; c += kLanes)
      _mm512_storeu_si512(
          to + r / 2 * ld + c,
          to_bf16_pairs(load(x + r * ld + c), r + 1 < rows ? load(x + (r + 1) * ld + c) : zero()));
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast

#endif
