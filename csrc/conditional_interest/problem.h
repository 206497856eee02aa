// What cpu.cpp (torch side) and the per-ISA kernels say to each other. Plain pointers and sizes
// only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mtlfast {
namespace conditional_interest {

// nn.Linear layout ([out, in], y = x W^T + b), contiguous float32.
struct Transformer {
  const float *q, *k, *v, *o, *w1, *b1, *w2, *b2;
};

// A [rows, columns] tensor of float32 or bfloat16 with any strides (in elements).
struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct Problem {
  int64_t users;       // U
  int64_t candidates;  // B
  int tasks;           // T
  int behaviors;       // M
  int d;
  int ffn;
  int heads;
  int longest;      // the longest sequence of this batch
  int64_t busiest;  // the most candidates that one user serves
  float eps;
  bool bf16;  // dtype of values, target, out and their gradients

  Matrix values;                   // [N, d]
  Matrix target;                   // [B, d]
  const int64_t* offsets;          // [M * U + 1], behavior-major
  const int64_t* candidate_begin;  // [U + 1]: user u serves candidate_list[begin[u] : begin[u + 1]]
  const int64_t* candidate_list;   // [B]
  const uint8_t*
      twin;  // [M, B], or null: 1 where an equal item with an empty sequence comes earlier
  Transformer encoder, decoder;
  const float* scale;  // [T, M, 4, d] contiguous
  const float* shift;
};

struct ForwardOutputs {
  void* out;          // [B, T, M, d], contiguous, dtype of the problem
  float* normalized;  // [N, d] the task-independent encoder state, or null when nothing is saved
  float* rstd;        // [N]
  float* head;        // [B, T, M, d] attention output before W^O
};

struct GradOut {  // [B, T, M, d] with any strides
  const void* data;
  int64_t stride[4];
};

// Offsets, in floats, of one partition's gradient sums. Matrices are [out, stride(in)] padded.
struct GradLayout {
  int64_t encoder[8], decoder[8];  // q k v o w1 b1 w2 b2
  int64_t scale, shift;            // [T, M, 4, padded d]
  int64_t total;
  int d_stride, ffn_stride;
};

struct BackwardIO {
  GradOut grad_out;
  const float* normalized;
  const float* rstd;
  const float* head;
  void* grad_values;  // [N, d] contiguous
  bool bf16_values;  // dtype of grad_values: that of the problem, or float32 where parts are summed
  void* grad_target;  // [B, d] contiguous, dtype of the problem
};

constexpr int kBatchCandidates = 256;  // candidates of one batch of users, unless one user has more

// One kernel per instruction set.
struct Kernel {
  // The weights, padded and laid out for the micro-kernels.
  int64_t (*packed_size)(const Problem&);
  void (*pack)(const Problem&, bool for_backward, float* packed);

  // The decoder queries absorbed into the key projection, [B, heads, padded d].
  int64_t (*query_size)(const Problem&);
  void (*queries)(const Problem&, const float* packed, int64_t begin, int64_t end, float* queries,
                  float* scratch);

  int64_t (*forward_scratch)(const Problem&);
  // One behavior of users [user_begin, user_end), for the candidates at positions [first, last) of
  // candidate_list among theirs.
  void (*forward)(const Problem&, const float* packed, const float* queries, int behavior,
                  int64_t user_begin, int64_t user_end, int64_t first, int64_t last,
                  const ForwardOutputs&, float* scratch);

  GradLayout (*grad_layout)(const Problem&);
  // `batch_candidates`: at least kBatchCandidates and the most that one user serves;
  // `range_candidates`: the most that one range of users serves.
  int64_t (*backward_scratch)(const Problem&, int64_t batch_candidates, int64_t range_candidates);
  // All behaviors of users [user_begin, user_end), for the candidates at positions [first, last) of
  // candidate_list, all theirs; sums into one partition's gradients.
  void (*backward)(const Problem&, const float* packed, const float* queries, int64_t user_begin,
                   int64_t user_end, int64_t first, int64_t last, int64_t batch_candidates,
                   int64_t range_candidates, const BackwardIO&, float* gradients, float* scratch);
};

// True when the padded kernels cover these widths.
inline bool supported(int64_t d, int64_t ffn, int64_t heads) {
  return d >= 8 && d <= 256 && d % 8 == 0 && ffn >= 8 && ffn <= 1024 && ffn % 8 == 0 &&
         heads >= 1 && d % heads == 0;
}

}  // namespace conditional_interest
}  // namespace mtlfast
