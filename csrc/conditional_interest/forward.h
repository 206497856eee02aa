// All tasks of one behavior for a range of users.
#pragma once

#include "decoder_tail.h"

namespace mtlfast {
namespace MTLFAST_ISA {

using conditional_interest::ForwardOutputs;

template <int D>
constexpr int kTokens = D <= 64 ? 96 : 48;  // tokens of one batch of whole sequences
constexpr int kUsers = conditional_interest::kBatchCandidates;  // and at most so many sequences
constexpr int kTailRows = 128;             // rows of the decoder's tail

inline int pairs_per_group(const Problem& p) {
  const int pairs = kTailRows / p.tasks;
  return pairs > 1 ? pairs : 1;
}

// A run of users whose sequences of one behavior are processed together.
struct UserBatch {
  int64_t first, last;  // users [first, last)
  int64_t first_row;    // of values
  int rows;
  int num_segments;    // non-empty sequences
  int64_t candidates;  // positions [candidate_begin[first], candidate_begin[last])
};

template <int D>
UserBatch next_batch(const Problem& p, int behavior, int64_t user, int64_t end, Segment* segments) {
  const int64_t* offsets = p.offsets + behavior * p.users;
  UserBatch b{user, user, offsets[user], 0, 0, 0};
  while (b.last < end && b.last - b.first < kUsers) {
    const int length = static_cast<int>(offsets[b.last + 1] - offsets[b.last]);
    const int64_t candidates = p.candidate_begin[b.last + 1] - p.candidate_begin[b.last];
    const bool first = b.last == b.first;
    if (!first && (b.rows + length > kTokens<D> || b.candidates + candidates > kUsers)) break;
    if (length > 0) {
      segments[b.num_segments++] = {b.rows, length};
      b.rows += length;
    }
    b.candidates += candidates;
    ++b.last;
  }
  return b;
}

inline int64_t most_rows(const Problem& p, int tokens) {
  const int64_t rows = p.longest > tokens ? p.longest : tokens;
  return (rows + kLanes - 1) / kLanes * kLanes;
}

// The next group of candidates of a batch, starting at position `from`: their sequences (empty ones
// have length 0 in `lengths`) and the pairs with tokens. Returns the number of candidates taken.
struct Group {
  int count;           // candidates
  int num_pairs;       // those with a non-empty sequence
  int64_t first;       // position of the first candidate
};

inline Group next_group(const Problem& p, int behavior, const UserBatch& batch, int64_t from, int64_t* user,
                        int most, int most_entries, int* lengths, Pair* pairs, int* slot_of_pair) {
  const int64_t* offsets = p.offsets + behavior * p.users;
  const int64_t end = p.candidate_begin[batch.last];
  Group g{0, 0, from};
  int entries = 0;
  for (int64_t position = from; position < end && g.count < most; ++position) {
    while (position >= p.candidate_begin[*user + 1]) ++*user;
    const int length = static_cast<int>(offsets[*user + 1] - offsets[*user]);
    if (g.count > 0 && entries + length > most_entries) break;
    lengths[g.count] = length;
    if (length > 0) {
      slot_of_pair[g.num_pairs] = g.count;
      pairs[g.num_pairs++] = {static_cast<int>(offsets[*user] - batch.first_row), length, 0,
                              static_cast<int>(position)};
      entries += length;
    }
    ++g.count;
  }
  return g;
}

constexpr int kEntries = 512;  // score entries of one group of pairs, unless one sequence is longer

struct GroupScratch {
  int *lengths, *slot_of_pair;
  Pair* pairs;
  ScoreMap map;
  float* scores;  // [heads][entries]
  int64_t score_stride;

  void layout(Arena& a, const Problem& p) {
    const int most = pairs_per_group(p);
    const int64_t entries = p.longest > kEntries ? p.longest : kEntries;
    lengths = reinterpret_cast<int*>(a.take(most));
    slot_of_pair = reinterpret_cast<int*>(a.take(most));
    pairs = reinterpret_cast<Pair*>(a.take(static_cast<int64_t>(most) * (sizeof(Pair) / sizeof(float))));
    map.layout(a, entries);
    score_stride = (entries + kLanes + 15) / 16 * 16;
    scores = a.take(p.heads * score_stride);
  }
};

template <int D>
struct ForwardScratch {
  Segment* segments;
  float *x, *normalized0, *rstd0;
  float* encoder_in;  // [rows][D] G0 * normalized0 + Bt0 of one task
  float* encoded;     // [T][rows][D] normalized encoder output
  float* rstd1;
  float* hidden;  // [tokens][kHidden]
  float* vectors;  // [pairs][heads][D]
  float* pooled_pairs;  // [heads][pairs][D]
  AttentionScratch<D> attention;
  TailScratch<D> tail;
  GroupScratch group;
  int64_t rows;

  int64_t layout(float* base, const Problem& p) {
    const Shape s(p);
    Arena a{base};
    rows = most_rows(p, kTokens<D>);
    const int most = pairs_per_group(p);
    segments = reinterpret_cast<Segment*>(a.take(2 * kUsers));
    x = a.take(rows * D);
    normalized0 = a.take(rows * D);
    rstd0 = a.take(rows + kLanes);
    encoder_in = a.take(rows * D);
    encoded = a.take(p.tasks * rows * D);
    rstd1 = a.take(rows + kLanes);
    hidden = a.take(rows * kHidden);
    vectors = a.take(static_cast<int64_t>(most) * s.heads * D);
    pooled_pairs = a.take(static_cast<int64_t>(most) * s.heads * D);
    attention.layout(a, s, rows, p.longest, false);
    tail.layout(a, s, round_up(most * p.tasks, kLanes), false);
    group.layout(a, p);
    return a.used;
  }
};

// Candidate queries absorbed into the key projection: queries[position][head] = W_K^T (e W_Q)_head.
template <int D>
void absorbed_queries(const Packed<D>& packed, const Shape& s, const float* item, int rows, float* q,
                      float* queries) {
  project<D>(item, packed.dq_t, rows, s, q);
  for (int h = 0; h < s.heads; ++h) {
    GemmTile g{};
    g.a = q + h * s.head_dim;
    g.b = packed.dk + static_cast<int64_t>(h) * s.head_dim * D;
    g.ldb = D;
    g.c = queries + h * D;
    g.ldc = static_cast<int64_t>(s.heads) * D;
    g.k = s.head_dim;
    gemm<D>(rows, s.d, g);
  }
}

template <int D>
void forward_range(const Problem& p, const Packed<D>& packed, const float* queries, int behavior,
                   int64_t user_begin, int64_t user_end, const ForwardOutputs& out, ForwardScratch<D>& a) {
  const Shape s(p);
  const int most = pairs_per_group(p);
  const int most_entries = p.longest > kEntries ? p.longest : kEntries;
  for (int64_t user = user_begin; user < user_end;) {
    const UserBatch batch = next_batch<D>(p, behavior, user, user_end, a.segments);
    user = batch.last;
    if (batch.rows > 0) {
      load_rows<D>(p.values, p.bf16, batch.first_row, batch.rows, s.width, a.x);
      self_attention<D>(packed, s, a.attention, a.x, batch.rows, a.segments, batch.num_segments, p.eps,
                        a.normalized0, a.rstd0);
      if (out.normalized != nullptr) {
        for (int r = 0; r < batch.rows; ++r)
          store_row(a.normalized0 + static_cast<int64_t>(r) * D, s.width, false, out.normalized,
                    (batch.first_row + r) * s.d);
        std::memcpy(out.rstd + batch.first_row, a.rstd0, sizeof(float) * static_cast<size_t>(batch.rows));
      }
      for (int t = 0; t < p.tasks; ++t) {
        float* encoded = a.encoded + static_cast<int64_t>(t) * a.rows * D;
        affine_rows<D>(a.normalized0, batch.rows, s.width, packed.scale_row(p, t, behavior, 0),
                       packed.shift_row(p, t, behavior, 0), a.encoder_in);
        for (int r = 0; r < batch.rows; r += kTokens<D>) {
          const int count = batch.rows - r < kTokens<D> ? batch.rows - r : kTokens<D>;
          feed_forward<D>(packed.encoder, s, a.encoder_in + static_cast<int64_t>(r) * D, count,
                          encoded + static_cast<int64_t>(r) * D, a.hidden, 0);
        }
        normalize_rows<D>(encoded, batch.rows, s.width, p.eps, a.rstd1);
      }
    }
    int64_t at_user = batch.first;
    for (int64_t position = p.candidate_begin[batch.first]; position < p.candidate_begin[batch.last];) {
      GroupScratch& gs = a.group;
      const Group g = next_group(p, behavior, batch, position, &at_user, most, most_entries, gs.lengths,
                                 gs.pairs, gs.slot_of_pair);
      position += g.count;
      const int rows = p.tasks * g.count;
      for (int i = 0; i < g.count; ++i)
        load_row(p.target.data, p.candidate_list[g.first + i] * p.target.row_stride, p.target.column_stride,
                 p.bf16, s.width, a.tail.item + static_cast<int64_t>(i) * D);
      if (g.num_pairs > 0) {
        gs.map.build(gs.pairs, g.num_pairs);
        for (int t = 0; t < p.tasks; ++t) {
          const float* encoded = a.encoded + static_cast<int64_t>(t) * a.rows * D;
          scaled_vectors<D>(gs.pairs, g.num_pairs, s, packed.scale_row(p, t, behavior, 1), queries, a.vectors);
          score_dots<D>(gs.map, encoded, a.vectors, s, gs.scores, gs.score_stride);
          softmax_pairs(gs.pairs, g.num_pairs, s.heads, gs.scores, gs.score_stride);
          pool_pairs<D>(gs.pairs, g.num_pairs, s, encoded, gs.scores, gs.score_stride, a.pooled_pairs,
                        static_cast<int64_t>(most) * D);
          for (int h = 0; h < s.heads; ++h)
            for (int i = 0; i < g.num_pairs; ++i)
              std::memcpy(a.tail.pooled + (static_cast<int64_t>(h) * rows + t * g.count + gs.slot_of_pair[i]) * D,
                          a.pooled_pairs + (static_cast<int64_t>(h) * most + i) * D,
                          sizeof(float) * static_cast<size_t>(s.width.columns));
        }
        affine_pooled<D>(p, packed, s, behavior, g.count, gs.lengths, a.tail.pooled);
        project_values<D>(packed, s, rows, a.tail.pooled, a.tail.head);
      } else {
        fill_zero(a.tail.head, static_cast<int64_t>(rows) * D);
      }
      decoder_tail<D>(p, packed, s, behavior, g.count, a.tail, 0);
      for (int t = 0; t < p.tasks; ++t) {
        float* rows_t = a.tail.normalized3 + static_cast<int64_t>(t) * g.count * D;
        affine_rows<D>(rows_t, g.count, s.width, packed.scale_row(p, t, behavior, 3),
                       packed.shift_row(p, t, behavior, 3), rows_t);
        for (int i = 0; i < g.count; ++i) {
          const int64_t row = (p.candidate_list[g.first + i] * p.tasks + t) * p.behaviors + behavior;
          store_row(rows_t + static_cast<int64_t>(i) * D, s.width, p.bf16, out.out, row * s.d);
          if (out.head != nullptr)
            store_row(a.tail.head + (static_cast<int64_t>(t) * g.count + i) * D, s.width, false, out.head,
                      row * s.d);
        }
      }
    }
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
