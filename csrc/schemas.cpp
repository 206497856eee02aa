// Every op schema of mtlfast, in one place. Kernels register themselves in csrc/<stem>/cpu.cpp;
// fakes, autograd and autocast are in mtlfast/ops/<stem>.py.
//
// Names follow the shapes in the docstrings of mtlfast/ops. Arity is fixed and no output is
// optional: what a call does not need comes back with size 0.
#include <torch/csrc/stable/library.h>

// The 16 weights of the encoder and decoder layer, in nn.Linear layout, float32.
#define MTLFAST_WEIGHTS                                          \
  "Tensor enc_q, Tensor enc_k, Tensor enc_v, Tensor enc_o, "     \
  "Tensor enc_w1, Tensor enc_b1, Tensor enc_w2, Tensor enc_b2, " \
  "Tensor dec_q, Tensor dec_k, Tensor dec_v, Tensor dec_o, "     \
  "Tensor dec_w1, Tensor dec_b1, Tensor dec_w2, Tensor dec_b2"
#define MTLFAST_TENSORS_4 "Tensor, Tensor, Tensor, Tensor"
#define MTLFAST_TENSORS_16 \
  MTLFAST_TENSORS_4 ", " MTLFAST_TENSORS_4 ", " MTLFAST_TENSORS_4 ", " MTLFAST_TENSORS_4

// What the multi-hash lookups share.
#define MTLFAST_HASHING "int num_hashes, int order, int[]? key_fields, bool siphash, int first_hash"
#define MTLFAST_LOOKUP \
  "Tensor? pair_weights, Tensor? codeword_weights, " MTLFAST_HASHING ", bool pool"

// Another name where the CUDA sources are emulated for tests (csrc/common/cuda.h).
#ifndef MTLFAST_LIBRARY
#define MTLFAST_LIBRARY mtlfast
#endif

STABLE_TORCH_LIBRARY(MTLFAST_LIBRARY, m) {
  // -> out [B, T, M, d], normalized [N, d], rstd [N], head [B, T, M, d]
  m.def(
      "conditional_interest_forward("
      "Tensor values, Tensor offsets, int num_behaviors, SymInt max_len, "
      "Tensor target, Tensor? user_index, " MTLFAST_WEIGHTS
      ", "
      "Tensor scale, Tensor shift, int num_heads, float eps, bool save_for_backward) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // -> gradients of values, target, the 16 weights, scale, shift
  m.def(
      "conditional_interest_backward("
      "Tensor grad_out, "
      "Tensor values, Tensor offsets, int num_behaviors, SymInt max_len, "
      "Tensor target, Tensor? user_index, " MTLFAST_WEIGHTS
      ", "
      "Tensor scale, Tensor shift, int num_heads, float eps, "
      "Tensor normalized, Tensor rstd, Tensor head) "
      "-> (Tensor, Tensor, " MTLFAST_TENSORS_16 ", Tensor, Tensor)");

  // out_kind: the dtype of out, 0 float32, 1 bfloat16, 2 float16. No ScalarType, because the
  // ahead-of-time runtime of torch 2.11 hands over the number that the exported file has for it.
  // -> out [..., d], mean [...], rstd [...] of every row of x + residual
  m.def(
      "conditional_layer_norm_forward("
      "Tensor x, Tensor scale, Tensor shift, Tensor? residual, float eps, int out_kind, "
      "bool save_for_backward) -> (Tensor, Tensor, Tensor)");
  // -> gradients of x, scale, shift, residual
  m.def(
      "conditional_layer_norm_backward("
      "Tensor grad_out, Tensor x, Tensor scale, Tensor shift, Tensor? residual, "
      "Tensor mean, Tensor rstd, "
      "bool need_x, bool need_scale, bool need_shift, bool need_residual) "
      "-> (" MTLFAST_TENSORS_4 ")");

  // -> out [S, R, G / S, out] of rows x [S, R, in] and weights [G, out, in]
  m.def("stacked_linear_forward(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor");
  // -> gradients of x, weight, bias
  m.def(
      "stacked_linear_backward("
      "Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, Tensor out, bool relu, "
      "bool need_x) -> (Tensor, Tensor, Tensor)");

  // -> out [G, R, D] of rows x and x0 [G, R, D], weight [G, 2 * D, D] (values, then gates), bias
  // [G, D]; what the backward reads: value and gate [G, R, D]
  m.def(
      "gated_cross_forward(Tensor x, Tensor x0, Tensor weight, Tensor bias, "
      "bool save_for_backward) -> (Tensor, Tensor, Tensor)");
  // -> gradients of x, x0, weight, bias
  m.def(
      "gated_cross_backward("
      "Tensor grad_out, Tensor x, Tensor x0, Tensor weight, Tensor value, Tensor gate, "
      "bool need_x, bool need_x0) -> (" MTLFAST_TENSORS_4 ")");

  // -> int64 [B, P, num_hashes]
  m.def("multi_hash_indices(Tensor ids, SymInt num_codewords, " MTLFAST_HASHING ") -> Tensor");
  // -> float32 [B, F, num_hashes * c], or [B, P, num_hashes * c] where not pooled
  m.def("multi_hash_lookup_forward(Tensor ids, Tensor codebook, " MTLFAST_LOOKUP ") -> Tensor");
  // -> gradients of codebook, pair_weights, codeword_weights
  m.def("multi_hash_lookup_backward(Tensor grad_out, Tensor ids, Tensor codebook, " MTLFAST_LOOKUP
        ", bool need_codebook, bool need_pair_weights, bool need_codeword_weights) "
        "-> (Tensor, Tensor, Tensor)");
  // -> (book, row) [2, nnz] and values [nnz, c] of the codebook's gradient, rows unique and
  // ascending; gradients of pair_weights, codeword_weights
  m.def(
      "multi_hash_lookup_backward_sparse("
      "Tensor grad_out, Tensor ids, Tensor codebook, " MTLFAST_LOOKUP
      ", bool need_pair_weights, bool need_codeword_weights) "
      "-> (" MTLFAST_TENSORS_4 ")");
  // Updates the rows in use, in place. `first`: the sum of squares (Adagrad) or the average of
  // gradients (Adam); `second`: the average of squares (Adam), else size 0. Squares are [K, n] with
  // per_row, all else [K, n, c].
  // -> gradients of pair_weights, codeword_weights
  m.def(
      "multi_hash_lookup_backward_step("
      "Tensor grad_out, Tensor ids, Tensor(a!) codebook, " MTLFAST_LOOKUP
      ", bool need_pair_weights, bool need_codeword_weights, "
      "Tensor(b!) first, Tensor(c!) second, bool adam, bool per_row, "
      "float lr, float eps, float beta1, float beta2, int step) -> (Tensor, Tensor)");
}
