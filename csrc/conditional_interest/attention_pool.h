// Step 4: the candidate's attention over one task's encoded tokens, with the key projection
// absorbed into the query and the value projection applied after pooling (exact: see DTRN Eq. 7).
#pragma once

#include "packing.h"

namespace mtlfast {
namespace MTLFAST_ISA {

struct Pair {  // one candidate attending to one non-empty sequence
  int begin;   // first row of the sequence
  int length;
  int slot;      // first entry of its scores
  int position;  // of the candidate, in the order of candidate_list
};

// The target items of `count` candidates from a position of candidate_list on.
template <int D>
void load_items(const Problem& p, int64_t position, int count, Width w, float* items) {
  for (int i = 0; i < count; ++i)
    load_row(p.target.data, p.candidate_list[position + i] * p.target.row_stride,
             p.target.column_stride, p.bf16, w, items + static_cast<int64_t>(i) * D);
}

// vectors[p][h] = scale * source[position(p)][h]
template <int D>
void scaled_vectors(const Pair* pairs, int count, const Shape& s, const float* scale,
                    const float* source, float* vectors) {
  for (int p = 0; p < count; ++p) {
    const float* from = source + static_cast<int64_t>(pairs[p].position) * s.heads * D;
    float* to = vectors + static_cast<int64_t>(p) * s.heads * D;
    for (int h = 0; h < s.heads; ++h)
      for (int c = 0; c < s.width.columns; c += kLanes)
        store(to + h * D + c, load(from + h * D + c) * load(scale + c));
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
