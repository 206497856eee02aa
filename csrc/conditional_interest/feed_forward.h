// y = x + relu(x W1 + b1) W2 + b2 on rows, one block of hidden units at a time.
#pragma once

#include "feed_forward_bf16.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// x, y: [rows][D]; hidden is kept, [blocks][an even number of rows][kHidden]. `operands` is scratch
// for bfloat16 activations alone (see there).
template <int D>
void feed_forward(const PackedFfn<D>& w, const Shape& s, const float* x, int rows, float* y,
                  float* hidden, int64_t hidden_block_stride, [[maybe_unused]] float* operands) {
#ifdef MTLFAST_BF16_PRODUCTS
  if (s.bf16) return feed_forward_bf16<D>(w, s, x, rows, y, hidden, hidden_block_stride, operands);
#endif
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    float* h = hidden + block * hidden_block_stride;
    GemmTile up{};
    up.a = x;
    up.b = w.w1_t + static_cast<int64_t>(block) * s.d * kHidden;
    up.ldb = kHidden;
    up.c = h;
    up.ldc = kHidden;
    up.bias = w.b1 + block * kHidden;
    up.k = s.d;
    up.relu = true;
    gemm<D>(rows, width, up);
    GemmTile down{};
    down.a = h;
    down.b = w.w2_t + static_cast<int64_t>(block) * kHidden * D;
    down.ldb = D;
    down.c = y;
    down.ldc = D;
    down.residual = block == 0 ? x : y;
    down.ldr = D;
    down.bias = block == 0 ? w.b2 : nullptr;
    down.k = width;
    gemm<kHidden>(rows, s.d, down);
  }
}

// dh becomes zero where h is, and its sum over rows is added to `sum`, for NV vectors of columns of
// rows of kHidden.
template <int NV>
void relu_backward_columns(const float* h, int rows, float* dh, float* sum) {
  Vec total[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) total[v] = zero();
  for (int64_t i = 0; i < int64_t{rows} * kHidden; i += kHidden)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec g = relu_backward(load(h + i + v * kLanes), load(dh + i + v * kLanes));
      store(dh + i + v * kLanes, g);
      total[v] += g;
    }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) store(sum + v * kLanes, load(sum + v * kLanes) + total[v]);
}

// Given dy [rows][D], the kept hidden activations and x: dx = dy + (dy W2 * relu') W1, and the
// weight gradients. `dh` is scratch of [rows][kHidden]; dx must not alias dy.
template <int D>
void feed_forward_backward(const PackedFfn<D>& w, const Shape& s, const float* x, const float* dy,
                           int rows, float* hidden, int64_t hidden_block_stride, float* dh,
                           float* dx, const FfnGradients& grad, [[maybe_unused]] float* operands) {
#ifdef MTLFAST_BF16_PRODUCTS
  if (s.bf16)
    return feed_forward_backward_bf16<D>(w, s, x, dy, rows, hidden, hidden_block_stride, dh, dx,
                                         grad, operands);
#endif
  accumulate_rows<D>(dy, rows, s.width, grad.b2);
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    const int columns = round_up_lanes(width);
    const float* h = hidden + block * hidden_block_stride;

    GemmTile dw2{};  // dW2[d][hidden] += dy^T h
    dw2.a = dy;
    dw2.lda = D;
    dw2.b = h;
    dw2.ldb = kHidden;
    dw2.c = grad.w2 + block * kHidden;
    dw2.ldc = grad.ffn_stride;
    dw2.residual = dw2.c;
    dw2.ldr = grad.ffn_stride;
    dw2.k = rows;
    gemm<kTransposed>(s.d, width, dw2);

    GemmTile up{};  // dh = dy W2
    up.a = dy;
    up.b = w.w2 + static_cast<int64_t>(block) * s.d * kHidden;
    up.ldb = kHidden;
    up.c = dh;
    up.ldc = kHidden;
    up.k = s.d;
    gemm<D>(rows, width, up);
    float* b1 = grad.b1 + block * kHidden;
    int c = 0;
    for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
      relu_backward_columns<4>(h + c, rows, dh + c, b1 + c);
    for (; c < columns; c += kLanes) relu_backward_columns<1>(h + c, rows, dh + c, b1 + c);

    GemmTile dw1{};  // dW1[hidden][d] += dh^T x
    dw1.a = dh;
    dw1.lda = kHidden;
    dw1.b = x;
    dw1.ldb = D;
    dw1.c = grad.w1 + static_cast<int64_t>(block) * kHidden * D;
    dw1.ldc = D;
    dw1.residual = dw1.c;
    dw1.ldr = D;
    dw1.k = rows;
    gemm<kTransposed>(width, s.d, dw1);

    GemmTile down{};  // dx (+)= dh W1
    down.a = dh;
    down.b = w.w1 + static_cast<int64_t>(block) * kHidden * D;
    down.ldb = D;
    down.c = dx;
    down.ldc = D;
    down.residual = block == 0 ? dy : dx;
    down.ldr = D;
    down.k = width;
    gemm<kHidden>(rows, s.d, down);
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
