// Products of columns followed by a norm.
//
// Where a model has as many features as a vector has lanes (d = 16 with AVX-512), a vector of
// tokens is as many registers, and goes from one product through the norm to the next without a way
// through memory. Sums are taken in the order of gemm.h.
#pragma once

#include "columns.h"

namespace mtlfast {
namespace MTLFAST_ISA {

template <int D>
constexpr bool kNarrow = D == 16 && kLanes == 16;  // and s.d == D

constexpr int kUnits = 8;  // outputs of a product whose operand fills half of the registers

template <int D>
MTLFAST_INLINE void load_tokens(const float* src, int64_t ld, Vec* x) {
#pragma GCC unroll 16
  for (int k = 0; k < D; ++k) x[k] = load(src + k * ld);
}
template <int D>
MTLFAST_INLINE void store_tokens(const Vec* x, float* dst, int64_t ld) {
#pragma GCC unroll 16
  for (int k = 0; k < D; ++k) store(dst + k * ld, x[k]);
}

#ifdef MTLFAST_BF16_PRODUCTS
// sum + the products of x with one pair of weights for all lanes, read as part of the instruction
// (which the compiler does not do by itself).
MTLFAST_INLINE Vec multiply_pair(Vec sum, const Bf16Pair* weight, __m512bh x) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*weight));
  return sum;
}

// hidden = relu(W1 x + b1) for one block of hidden units, in pairs: [units / 2][kLanes].
template <int D>
MTLFAST_INLINE void hidden_tokens_bf16(const Bf16Pair* w1, const float* b1, int units,
                                       const float* x, Bf16Pair* hidden) {
  __m512bh pairs[D / 2];
#pragma GCC unroll 8
  for (int k = 0; k < D / 2; ++k)
    pairs[k] = (__m512bh)to_bf16_pairs(load(x + 2 * k * kLanes), load(x + (2 * k + 1) * kLanes));
  for (int first = 0; first < units; first += kUnits) {
    Vec sum[kUnits];
#pragma GCC unroll 8
    for (int j = 0; j < kUnits; ++j) sum[j] = zero();
#pragma GCC unroll 8
    for (int k = 0; k < D / 2; ++k)
#pragma GCC unroll 8
      for (int j = 0; j < kUnits; ++j)
        sum[j] = multiply_pair(sum[j], w1 + (first + j) * (D / 2) + k, pairs[k]);
#pragma GCC unroll 8
    for (int j = 0; j < kUnits; ++j) sum[j] = relu(sum[j] + broadcast(b1[first + j]));
#pragma GCC unroll 4
    for (int j = 0; j < kUnits; j += 2)
      _mm512_storeu_si512(hidden + (first + j) / 2 * kLanes, to_bf16_pairs(sum[j], sum[j + 1]));
  }
}

template <int D>
MTLFAST_INLINE void output_tokens_bf16(const Bf16Pair* w2, int units, const Bf16Pair* hidden,
                                       Vec* y) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i) y[i] = zero();
  for (int k = 0; k < units / 2; ++k) {
    const __m512bh v = (__m512bh)_mm512_loadu_si512(hidden + k * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < D; ++i) y[i] = multiply_pair(y[i], w2 + i * (kHidden / 2) + k, v);
  }
}
#endif

// hidden = relu(W1 x + b1) for one block of hidden units, [units][kLanes].
template <int D>
MTLFAST_INLINE void hidden_tokens(const float* w1, const float* b1, int units, const float* input,
                                  float* hidden) {
  Vec x[D];
  load_tokens<D>(input, kLanes, x);
  for (int first = 0; first < units; first += kUnits) {
    Vec sum[kUnits];
#pragma GCC unroll 8
    for (int j = 0; j < kUnits; ++j) sum[j] = zero();
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k)
#pragma GCC unroll 8
      for (int j = 0; j < kUnits; ++j) sum[j] += broadcast(w1[(first + j) * D + k]) * x[k];
#pragma GCC unroll 8
    for (int j = 0; j < kUnits; ++j)
      store(hidden + (first + j) * kLanes, relu(sum[j] + broadcast(b1[first + j])));
  }
}

// y = W x for `depth` rows of x; W [D][LDW] out x in.
template <int D, int LDW>
MTLFAST_INLINE void output_tokens(const float* weight, int depth, const float* x, int64_t ldx,
                                  Vec* y) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i) y[i] = zero();
  for (int k = 0; k < depth; ++k) {
    const Vec v = load(x + k * ldx);
#pragma GCC unroll 16
    for (int i = 0; i < D; ++i) y[i] += broadcast(weight[i * LDW + k]) * v;
  }
}

template <int D>
MTLFAST_INLINE void add_tokens(const float* src, int64_t ld, Vec* x) {
#pragma GCC unroll 16
  for (int k = 0; k < D; ++k) x[k] += load(src + k * ld);
}

// In place: x + W2 relu(W1 x + b1) + b2, normalized. scratch: [kHidden + 2 D][kLanes].
template <int D>
MTLFAST_INLINE void feed_forward_tokens(const PackedFfn<D>& w, const Shape& s, float eps,
                                        float* scratch, Vec* x) {
  float* input = scratch + kHidden * kLanes;
  float* before = input + D * kLanes;
  store_tokens<D>(x, input, kLanes);
  for (int block = 0; block < s.blocks; ++block) {
    const int units = s.hidden_in(block);
    const float* b1 = w.b1 + block * kHidden;
    if (block > 0) store_tokens<D>(x, before, kLanes);
#ifdef MTLFAST_BF16_PRODUCTS
    if (s.bf16) {
      Bf16Pair* hidden = reinterpret_cast<Bf16Pair*>(scratch);
      hidden_tokens_bf16<D>(w.w1_pairs + int64_t{block} * kHidden * D / 2, b1, units, input,
                            hidden);
      output_tokens_bf16<D>(w.w2_pairs + int64_t{block} * D * kHidden / 2, units, hidden, x);
    } else
#endif
    {
      hidden_tokens<D>(w.w1 + int64_t{block} * kHidden * D, b1, units, input, scratch);
      output_tokens<D, kHidden>(w.w2 + int64_t{block} * D * kHidden, units, scratch, kLanes, x);
    }
    if (block == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < D; ++i) x[i] += broadcast(w.b2[i]);
    }
    add_tokens<D>(block == 0 ? input : before, kLanes, x);
  }
  normalize_registers<D>(x, eps);
}

// The three things that are done to a vector of tokens; other models do them in columns.h's steps.

template <int D>
void encode_narrow(const PackedFfn<D>& w, const Shape& s, float eps, const float* x, int64_t ld,
                   int n, const float* scale, const float* shift, float* scratch, float* columns,
                   float* rows) {
  for (int c = 0; c < n; c += kLanes) {
    Vec v[D];
#pragma GCC unroll 16
    for (int k = 0; k < D; ++k)
      v[k] = load(x + k * ld + c) * broadcast(scale[k]) + broadcast(shift[k]);
    feed_forward_tokens<D>(w, s, eps, scratch, v);
    store_tokens<D>(v, columns + c, ld);
    transpose_registers(v);
    store_tokens<D>(v, rows + static_cast<int64_t>(c) * D, D);
  }
}

template <int D>
void feed_forward_narrow(const PackedFfn<D>& w, const Shape& s, float eps, const float* x,
                         int64_t ld, int n, float* scratch, float* y) {
  for (int c = 0; c < n; c += kLanes) {
    Vec v[D];
    load_tokens<D>(x + c, ld, v);
    feed_forward_tokens<D>(w, s, eps, scratch, v);
    store_tokens<D>(v, y + c, ld);
  }
}

template <int D>
void project_narrow(const float* weight, float eps, const float* x, int64_t ld, int n,
                    const float* residual, float* y, float* rstd) {
  for (int c = 0; c < n; c += kLanes) {
    Vec v[D];
    output_tokens<D, D>(weight, D, x + c, ld, v);
    add_tokens<D>(residual + c, ld, v);
    const Vec r = normalize_registers<D>(v, eps);
    if (rstd != nullptr) store(rstd + c, r);
    store_tokens<D>(v, y + c, ld);
  }
}

// n columns y = norm(z + W2 relu(W1 z + b1) + b2) with z = scale * x + shift, and the same as rows
// of D. x and y have the stride ld; scratch is [kHidden + D][kBlock].
template <int D>
void encode(const PackedFfn<D>& w, const Shape& s, float eps, const float* x, int64_t ld, int n,
            const float* scale, const float* shift, float* scratch, float* y, float* rows) {
  if constexpr (kNarrow<D>)
    if (s.d == D) return encode_narrow<D>(w, s, eps, x, ld, n, scale, shift, scratch, y, rows);
  float* affine = scratch + kHidden * kBlock;
  for (int c = 0; c < n; c += kBlock) {
    const int count = n - c < kBlock ? n - c : kBlock;
    affine_columns(x + c, ld, count, s.d, scale, shift, affine, kBlock);
    feed_forward_columns<D>(w, s, affine, kBlock, count, y + c, ld, scratch);
    normalize_columns(y + c, ld, count, s.d, eps, nullptr);
    columns_to_rows<D>(y + c, ld, count, s.width, rows + static_cast<int64_t>(c) * D);
  }
}

// n columns y = norm(x + W2 relu(W1 x + b1) + b2); scratch is [kHidden][kBlock].
template <int D>
void feed_forward_normalize(const PackedFfn<D>& w, const Shape& s, float eps, const float* x,
                            int64_t ld, int n, float* scratch, float* y) {
  if constexpr (kNarrow<D>)
    if (s.d == D) return feed_forward_narrow<D>(w, s, eps, x, ld, n, scratch, y);
  for (int c = 0; c < n; c += kBlock) {
    const int count = n - c < kBlock ? n - c : kBlock;
    feed_forward_columns<D>(w, s, x + c, ld, count, y + c, ld, scratch);
  }
  normalize_columns(y, ld, n, s.d, eps, nullptr);
}

// n columns y = norm(W x + residual), and rstd where it is wanted; y may be the residual.
template <int D>
void project_normalize(const float* weight, const Shape& s, float eps, const float* x, int64_t ld,
                       int n, const float* residual, float* y, float* rstd) {
  if constexpr (kNarrow<D>)
    if (s.d == D) return project_narrow<D>(weight, eps, x, ld, n, residual, y, rstd);
  multiply<D>(weight, s.d, s.d, x, ld, n, y, ld, residual, ld);
  normalize_columns(y, ld, n, s.d, eps, rstd);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
