// feed_forward.h with bfloat16 operands, for activations that are bfloat16: sums, biases, residuals
// and gradients stay float32. Hidden units are kept twice, as rows and interleaved by twos.
#pragma once

#include "gemm_bf16_rows.h"
#include "packing.h"

#ifdef MTLFAST_BF16_PRODUCTS

namespace mtlfast {
namespace MTLFAST_ISA {

// `rows` rows of kHidden units inside as many floats; an odd row has a partner of zeros or finite
// numbers that meet zeros.
struct HiddenPairs {
  Bf16Pair* rows;         // [rows][kHidden / 2]
  Bf16Pair* interleaved;  // [rows / 2][kHidden]

  HiddenPairs(float* memory, int even_rows)
      : rows(reinterpret_cast<Bf16Pair*>(memory)),
        interleaved(rows + static_cast<int64_t>(even_rows) * (kHidden / 2)) {}
};

// As feed_forward; `operands` is scratch for three matrices
// of [rows + 1][D] bfloat16.
template <int D>
void feed_forward_bf16(const PackedFfn<D>& w, const Shape& s, const float* x, int rows, float* y,
                       float* hidden, int64_t hidden_block_stride, float* operands) {
  const int even = rows + rows % 2;
  auto* x_rows = reinterpret_cast<Bf16Pair*>(operands);
  rows_to_bf16(x, rows, s.width.columns, D, x_rows);
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    const HiddenPairs h(hidden + block * hidden_block_stride, even);
    const float* bias = w.b1 + block * kHidden;
    const Bf16Product up{x_rows, 0, w.w1_t_twos + int64_t{block} * (s.d / 2) * kHidden, kHidden,
                         s.d / 2};
    bf16_product<D / 2>(even, width, up,
                        [&]<int ROWS, int VECTORS>(Vec(&sums)[ROWS][VECTORS], int row, int column) {
#pragma GCC unroll 4
                          for (int v = 0; v < VECTORS; ++v) {
                            const Vec b = load(bias + column + v * kLanes);
#pragma GCC unroll 32
                            for (int m = 0; m < ROWS; ++m) sums[m][v] = relu(sums[m][v] + b);
                          }
                          store_bf16_rows(
                              sums, h.rows + int64_t{row} * (kHidden / 2) + column / 2, kHidden / 2,
                              h.interleaved + int64_t{row} / 2 * kHidden + column, kHidden);
                        });
    const Bf16Product down{h.rows, 0, w.w2_t_twos + int64_t{block} * (kHidden / 2) * D, D,
                           width / 2};
    const float* residual = block == 0 ? x : y;
    bf16_product<kHidden / 2>(
        even, s.d, down,
        [&]<int ROWS, int VECTORS>(Vec(&sums)[ROWS][VECTORS], int row, int column) {
          const int64_t at = int64_t{row} * D + column;
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) {
            const Vec b = block == 0 ? load(w.b2 + column + v * kLanes) : zero();
#pragma GCC unroll 32
            for (int m = 0; m < ROWS; ++m)
              store(y + at + m * D + v * kLanes,
                    sums[m][v] + b + load(residual + at + m * D + v * kLanes));
          }
        });
  }
}

// As feed_forward_backward, after feed_forward_bf16 with the same x; `dh` is scratch of [rows +
// 1][kHidden], `operands` as there.
template <int D>
void feed_forward_backward_bf16(const PackedFfn<D>& w, const Shape& s, const float* x,
                                const float* dy, int rows, float* hidden,
                                int64_t hidden_block_stride, float* dh, float* dx,
                                const FfnGradients& grad, float* operands) {
  const int even = rows + rows % 2;
  const int64_t half = static_cast<int64_t>(even) * (D / 2);
  auto* x_pairs = reinterpret_cast<Bf16Pair*>(operands);
  Bf16Pair *dy_rows = x_pairs + half, *dy_pairs = dy_rows + half;
  interleave_rows(x, rows, s.width.columns, D, x_pairs);
  interleave_rows(dy, rows, s.width.columns, D, dy_pairs);
  rows_to_bf16(dy, rows, s.width.columns, D, dy_rows);
  accumulate_rows<D>(dy, rows, s.width, grad.b2);
  const HiddenPairs g(dh, even);
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    const HiddenPairs h(hidden + block * hidden_block_stride, even);

    auto add_to = [&](float* to, int64_t ld) {
      return [to, ld]<int ROWS, int VECTORS>(Vec(&sums)[ROWS][VECTORS], int row, int column) {
#pragma GCC unroll 32
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) {
            float* at = to + (row + m) * ld + column + v * kLanes;
            store(at, load(at) + sums[m][v]);
          }
      };
    };
    // dW2[d][hidden] += dy^T h
    bf16_product<kTransposed>(s.d, width, {dy_pairs, D, h.interleaved, kHidden, even / 2},
                              add_to(grad.w2 + block * kHidden, grad.ffn_stride));

    float* b1 = grad.b1 + block * kHidden;  // dh = dy W2 where h is positive
    const Bf16Product up{dy_rows, 0, w.w2_twos + int64_t{block} * (s.d / 2) * kHidden, kHidden,
                         s.d / 2};
    bf16_product<D / 2>(even, width, up,
                        [&]<int ROWS, int VECTORS>(Vec(&sums)[ROWS][VECTORS], int row, int column) {
                          const int64_t at = int64_t{row} / 2 * kHidden + column;
#pragma GCC unroll 4
                          for (int v = 0; v < VECTORS; ++v) {
                            Vec total = zero();
#pragma GCC unroll 16
                            for (int m = 0; m < ROWS / 2; ++m) {
                              const __m512i pair =
                                  _mm512_loadu_si512(h.interleaved + at + m * kHidden + v * kLanes);
                              const Vec first = (Vec)_mm512_slli_epi32(pair, 16);
                              const Vec second =
                                  (Vec)_mm512_and_si512(pair, _mm512_set1_epi32(~0xffff));
                              sums[2 * m][v] = relu_backward(first, sums[2 * m][v]);
                              sums[2 * m + 1][v] = relu_backward(second, sums[2 * m + 1][v]);
                              total += sums[2 * m][v] + sums[2 * m + 1][v];
                            }
                            float* sum = b1 + column + v * kLanes;
                            store(sum, load(sum) + total);
                          }
                          store_bf16_rows(sums, g.rows + int64_t{row} * (kHidden / 2) + column / 2,
                                          kHidden / 2, g.interleaved + at, kHidden);
                        });

    // dW1[hidden][d] += dh^T x
    bf16_product<kTransposed>(width, s.d, {g.interleaved, kHidden, x_pairs, D, even / 2},
                              add_to(grad.w1 + int64_t{block} * kHidden * D, D));

    const float* residual = block == 0 ? dy : dx;  // dx (+)= dh W1
    const Bf16Product down{g.rows, 0, w.w1_twos + int64_t{block} * (kHidden / 2) * D, D, width / 2};
    bf16_product<kHidden / 2>(
        even, s.d, down,
        [&]<int ROWS, int VECTORS>(Vec(&sums)[ROWS][VECTORS], int row, int column) {
          const int64_t at = int64_t{row} * D + column;
#pragma GCC unroll 32
          for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
              store(dx + at + m * D + v * kLanes,
                    sums[m][v] + load(residual + at + m * D + v * kLanes));
        });
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast

#endif
