// Backward of step 4 where many candidates share one sequence, for one task: keys and values are
// projected once, as in the forward (attend_shared), and a block of candidates attends to them as
// a block of queries does in the self-attention. What depends on the tokens alone is summed over
// all candidates before it goes through the projections.
#pragma once

#include "self_attention_backward.h"

namespace mtlfast {
namespace MTLFAST_ISA {

constexpr int64_t kLeastSharing = 16;  // candidates of one user, measured

// The candidates of one range of users, in their order; nothing where no user has many.
template <int D>
struct SharedQueries {
  float* q;    // [candidates][D] projected, times 1 / sqrt(head_dim)
  float* d_q;  // [candidates][D]

  void layout(Arena& a, int64_t candidates) {
    q = a.take((candidates + kLanes) * D);  // columns of a block are read in whole vectors
    d_q = a.take(candidates * D);
  }
};

// One task's attention of such candidates over a batch of tokens, one sequence after the other.
// Keys and values live in the self-attention's scratch, from its first row and column on.
template <int D>
struct SharedAttention {
  const Packed<D>& packed;
  const Shape& s;
  const AttentionScratch<D>& a;
  const float *encoded, *scale, *shift;  // [tokens][D]; the norm of position 1
  float *d_encoded, *d_scale, *d_shift;
  const SquareGradients& grad;
  Segment sequence{0, 0};  // the one whose keys and values are projected

  float* affine() const { return a.o; }  // [length][D] the sequence through the norm

  // `count` candidates of one sequence, from the gradients d_head of their attention output: adds
  // to d_q and to the gradients of keys and values.
  void attend(const Segment& of, const float* q, const float* d_head, int count, float* d_q) {
    if (sequence.length == 0 || sequence.begin != of.begin) {
      finish();
      begin(of);
    }
    const Segment keys{0, sequence.length};
    for (int first = 0; first < count; first += kQueries) {
      const int queries = count - first < kQueries ? count - first : kQueries;
      const int64_t at = static_cast<int64_t>(first) * D;
      for (int64_t r = 0; r < queries; r += kLanes) {
        rows_to_columns<D>(q + at + r * D, s.width, a.q_t + r, a.ld);
        rows_to_columns<D>(d_head + at + r * D, s.width, a.d_o_t + r, a.ld);
      }
      for (int h = 0; h < s.heads; ++h) {
        const HeadWindow w = head_window(h, s.head_dim);
        head_block_backward<D, false>(a, s, keys, h, 0, queries,
                                      only_head<D>(q + at, queries, w, a.head_q),
                                      only_head<D>(d_head + at, queries, w, a.head_d_o));
      }
      columns_to_rows<D>(a.dq_t, a.ld, queries, s.width, a.dq);
      for (int64_t i = 0; i < queries * D; i += kLanes)
        store(d_q + at + i, load(d_q + at + i) + load(a.dq + i));
    }
  }

  // After the last candidate: adds to the gradients of W_K, W_V, of the norm's table and of the
  // encoded tokens.
  void finish() {
    const int length = sequence.length;
    if (length == 0) return;
    const int64_t at = static_cast<int64_t>(sequence.begin) * D;
    accumulate_weight<D>(a.dk, affine(), length, s.d, s, grad.k);
    accumulate_weight<D>(a.dv, affine(), length, s.d, s, grad.v);
    float *d_affine = a.d_o, *d_rows = d_encoded + at;
    project<D>(a.dk, packed.dk, length, s, d_affine);
    project<D>(a.dv, packed.dv, length, s, d_affine, d_affine);
    affine_rows_backward<D>(d_affine, encoded + at, length, s.width, scale, d_scale, d_shift,
                            [&](int64_t i, Vec dx) { store(d_rows + i, load(d_rows + i) + dx); });
    sequence.length = 0;
  }

 private:
  void begin(const Segment& of) {
    sequence = of;
    const int length = sequence.length;
    affine_rows<D>(encoded + static_cast<int64_t>(sequence.begin) * D, length, s.width, scale,
                   shift, affine());
    project<D>(affine(), packed.dk_t, length, s, a.k);
    project<D>(affine(), packed.dv_t, length, s, a.v);
    for (int r = 0; fits_registers(s.head_dim) && r < length; r += kLanes)
      rows_to_columns<D>(a.k + static_cast<int64_t>(r) * D, s.width, a.k_t + r, a.ld);
    fill_zero(a.dk, static_cast<int64_t>(length) * D);
    fill_zero(a.dv, static_cast<int64_t>(length) * D);
    fill_zero(a.dq_t + s.d * a.ld, (s.width.columns - s.d) * a.ld);
  }
};

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
