// The forward works on columns: [feature][token] blocks with one token (or decoder row) per lane.
// Norms and softmaxes are then vertical, and every product has weights to broadcast and tokens to
// fill whole vectors with, however narrow the model is.
#pragma once

#include "packing.h"

namespace mtlfast {
namespace MTLFAST_ISA {

struct Segment {  // one sequence inside a batch of tokens
  int begin;
  int length;
};

constexpr int kBlock = 64;  // tokens that go through the FFN together

// Columns `first .. first + kLanes` of dst [columns][ld] from kLanes rows of stride D.
template <int D>
void rows_to_columns(const float* rows, Width w, float* dst, int64_t ld) {
  for (int c = 0; c < w.columns; c += kLanes) transpose_block(rows + c, D, dst + c * ld, ld);
}

// `count` rows of stride D from columns; rows are written up to the next multiple of kLanes.
template <int D>
void columns_to_rows(const float* src, int64_t ld, int count, Width w, float* rows) {
  for (int r = 0; r < count; r += kLanes)
    for (int c = 0; c < w.columns; c += kLanes)
      transpose_block(src + c * ld + r, ld, rows + static_cast<int64_t>(r) * D + c, D);
}

// c [out][n] = W [out][D] x [d][n] (+ residual), n columns.
template <int LDA>
void multiply(const float* weight, int out, int depth, const float* x, int64_t ldx, int n, float* c,
              int64_t ldc, const float* residual = nullptr, int64_t ldr = 0,
              const float* row_bias = nullptr, bool relu = false) {
  GemmTile g{};
  g.a = weight;
  g.b = x;
  g.ldb = ldx;
  g.c = c;
  g.ldc = ldc;
  g.residual = residual;
  g.ldr = ldr;
  g.row_bias = row_bias;
  g.k = depth;
  g.relu = relu;
  gemm<LDA>(out, n, g);
}

// y = (x - mean) / sqrt(var + eps) down each of n columns, in place; rstd [n] where it is wanted.
template <int NV>
void normalize_vectors(float* x, int64_t ld, int d, float eps, float* rstd) {
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(d));
  Vec mean[NV], sum[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) mean[v] = sum[v] = zero();
  for (int k = 0; k < d; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) mean[v] += load(x + k * ld + v * kLanes);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) mean[v] *= inverse_d;
  for (int k = 0; k < d; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec y = load(x + k * ld + v * kLanes) - mean[v];
      store(x + k * ld + v * kLanes, y);
      sum[v] += y * y;
    }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    sum[v] = broadcast(1.0f) / square_root(sum[v] * inverse_d + broadcast(eps));
    if (rstd != nullptr) store(rstd + v * kLanes, sum[v]);
  }
  for (int k = 0; k < d; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      store(x + k * ld + v * kLanes, load(x + k * ld + v * kLanes) * sum[v]);
}

// The same for the ROWS rows of one vector of columns that are in registers; returns rstd.
template <int ROWS>
MTLFAST_INLINE Vec normalize_registers(Vec* v, float eps) {
  const Vec inverse_d = broadcast(1.0f / ROWS);
  Vec sum[4] = {zero(), zero(), zero(), zero()};
#pragma GCC unroll 16
  for (int k = 0; k < ROWS; ++k) sum[k % 4] += v[k];
  const Vec mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse_d;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) sum[i] = zero();
#pragma GCC unroll 16
  for (int k = 0; k < ROWS; ++k) {
    v[k] -= mean;
    sum[k % 4] += v[k] * v[k];
  }
  const Vec variance = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse_d;
  const Vec rstd = broadcast(1.0f) / square_root(variance + broadcast(eps));
#pragma GCC unroll 16
  for (int k = 0; k < ROWS; ++k) v[k] *= rstd;
  return rstd;
}

inline void normalize_columns(float* x, int64_t ld, int n, int d, float eps, float* rstd) {
  int c = 0;
  for (; c + 4 * kLanes <= round_up_lanes(n); c += 4 * kLanes)
    normalize_vectors<4>(x + c, ld, d, eps, rstd == nullptr ? nullptr : rstd + c);
  for (; c < n; c += kLanes)
    normalize_vectors<1>(x + c, ld, d, eps, rstd == nullptr ? nullptr : rstd + c);
}

// dst[k][.] = src[k][.] * scale[k] + shift[k] over n columns (written up to a multiple of kLanes).
inline void affine_columns(const float* src, int64_t lds, int n, int d, const float* scale,
                           const float* shift, float* dst, int64_t ldd) {
  for (int k = 0; k < d; ++k) {
    const Vec g = broadcast(scale[k]), b = broadcast(shift[k]);
    for (int c = 0; c < n; c += kLanes) store(dst + k * ldd + c, load(src + k * lds + c) * g + b);
  }
}

#ifdef MTLFAST_BF16_PRODUCTS
// pairs [d / 2][kBlock] of n <= kBlock columns.
inline void columns_to_pairs(const float* x, int64_t ld, int n, int d, Bf16Pair* pairs) {
  for (int k = 0; k < d / 2; ++k)
    for (int c = 0; c < n; c += kLanes)
      _mm512_storeu_si512(pairs + k * kBlock + c,
                          to_bf16_pairs(load(x + 2 * k * ld + c), load(x + (2 * k + 1) * ld + c)));
}

// The same with bfloat16 operands; accumulation, bias and residual stay float32.
template <int D>
void feed_forward_columns_bf16(const PackedFfn<D>& w, const Shape& s, const float* x, int64_t ldx,
                               int n, float* y, int64_t ldy, float* scratch) {
  Bf16Pair* hidden = reinterpret_cast<Bf16Pair*>(scratch);  // [kHidden / 2][kBlock]
  Bf16Pair input[D / 2 * kBlock];
  columns_to_pairs(x, ldx, n, s.d, input);
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    Bf16Tile up{};
    up.a = w.w1_pairs + static_cast<int64_t>(block) * kHidden * D / 2;
    up.b = input;
    up.ldb = kBlock;
    up.pairs = hidden;
    up.ldc = kBlock;
    up.row_bias = w.b1 + block * kHidden;
    up.k = s.d / 2;
    bf16_gemm<D / 2>(width, n, up);
    Bf16Tile down{};
    down.a = w.w2_pairs + static_cast<int64_t>(block) * s.d * kHidden / 2;
    down.b = hidden;
    down.ldb = kBlock;
    down.c = y;
    down.ldc = ldy;
    down.residual = block == 0 ? x : y;
    down.ldr = block == 0 ? ldx : ldy;
    down.row_bias = block == 0 ? w.b2 : nullptr;
    down.k = width / 2;
    bf16_gemm<kHidden / 2>(s.d, n, down);
  }
}
#endif

// y [d][n] = x + W2 relu(W1 x + b1) + b2 for n <= kBlock columns; hidden is [kHidden][kBlock].
template <int D>
void feed_forward_columns(const PackedFfn<D>& w, const Shape& s, const float* x, int64_t ldx, int n,
                          float* y, int64_t ldy, float* hidden) {
#ifdef MTLFAST_BF16_PRODUCTS
  if (s.bf16) return feed_forward_columns_bf16<D>(w, s, x, ldx, n, y, ldy, hidden);
#endif
  for (int block = 0; block < s.blocks; ++block) {
    const int width = s.hidden_in(block);
    multiply<D>(w.w1 + static_cast<int64_t>(block) * kHidden * D, width, s.d, x, ldx, n, hidden,
                kBlock, nullptr, 0, w.b1 + block * kHidden, true);
    multiply<kHidden>(w.w2 + static_cast<int64_t>(block) * s.d * kHidden, s.d, width, hidden,
                      kBlock, n, y, ldy, block == 0 ? x : y, block == 0 ? ldx : ldy,
                      block == 0 ? w.b2 : nullptr);
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
