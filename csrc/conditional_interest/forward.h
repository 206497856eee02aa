// All tasks of one behavior for a range of users.
#pragma once

#include "attend.h"
#include "decoder_tail.h"

namespace mtlfast {
namespace MTLFAST_ISA {

using conditional_interest::ForwardOutputs;

// Tokens of one batch of whole sequences: enough to fill vectors, few enough for the second-level
// cache.
template <int D>
constexpr int kTokens = D <= 16   ? 384
                        : D <= 32 ? 192
                        : D <= 64 ? 128
                                  : 64;
constexpr int kUsers = conditional_interest::kBatchCandidates;  // and at most so many sequences

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

inline UserBatch next_batch(const Problem& p, int behavior, int64_t user, int64_t end,
                            int most_tokens, Segment* segments) {
  const int64_t* offsets = p.offsets + behavior * p.users;
  UserBatch b{user, user, offsets[user], 0, 0, 0};
  while (b.last < end && b.last - b.first < kUsers) {
    const int length = static_cast<int>(offsets[b.last + 1] - offsets[b.last]);
    const int64_t candidates = p.candidate_begin[b.last + 1] - p.candidate_begin[b.last];
    const bool first = b.last == b.first;
    if (!first && (b.rows + length > most_tokens || b.candidates + candidates > kUsers)) break;
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
  int count;      // candidates
  int num_pairs;  // those with a non-empty sequence
  int64_t next;   // position behind the last candidate
  bool shared;    // all of one user, who has enough of them for projected keys and values
};

inline Group next_group(const Problem& p, int behavior, const UserBatch& batch, int64_t from,
                        int64_t end, int64_t sharing, int64_t* user, int most, int most_entries,
                        int64_t* candidates, int* lengths, Pair* pairs, int* slot_of_pair) {
  const int64_t* offsets = p.offsets + behavior * p.users;
  const uint8_t* twin = p.twin == nullptr ? nullptr : p.twin + behavior * p.candidates;
  Group g{0, 0, from, false};
  int entries = 0;
  for (int64_t position = from; position < end && g.count < most; g.next = ++position) {
    while (position >= p.candidate_begin[*user + 1]) {
      ++*user;
      if (g.shared) return g;
    }
    if (p.candidate_begin[*user + 1] - p.candidate_begin[*user] >= sharing) {
      if (g.count > 0 && !g.shared) return g;
      g.shared = true;
    }
    const int length = static_cast<int>(offsets[*user + 1] - offsets[*user]);
    if (g.count > 0 && !g.shared && entries + length > most_entries) break;
    const int64_t candidate = p.candidate_list[position];
    if (twin != nullptr && twin[candidate] != 0) continue;  // copied from its twin afterwards
    candidates[g.count] = candidate;
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
  int64_t* candidates;
  int *lengths, *slot_of_pair;
  Pair* pairs;
  float* scores;  // [heads][score_stride]
  int64_t score_stride;

  void layout(Arena& a, const Problem& p) {
    const int most = pairs_per_group(p);
    const int64_t entries = p.longest > kEntries ? p.longest : kEntries;
    candidates = reinterpret_cast<int64_t*>(a.take(2 * static_cast<int64_t>(most)));
    lengths = reinterpret_cast<int*>(a.take(most));
    slot_of_pair = reinterpret_cast<int*>(a.take(most));
    pairs = reinterpret_cast<Pair*>(
        a.take(static_cast<int64_t>(most) * (sizeof(Pair) / sizeof(float))));
    score_stride = round_up_lanes(static_cast<int>(entries)) + int64_t{most} * kLanes;
    scores = a.take(p.heads * score_stride);
  }
};

template <int D>
struct ForwardScratch {
  Segment* segments;
  float* x_rows;           // [kLanes][D]
  float *x, *normalized0;  // [columns][ld]
  float* rstd0;
  float* hidden;         // [kHidden + columns][kBlock]
  float* encoded;        // [T][columns][ld] normalized encoder output
  float* encoded_rows;   // [T][tokens][D] the same
  float* vectors;        // [pairs][heads][D]
  float* inverse;        // [heads][pairs]
  float* saved_rows;     // [tokens][D]
  float *keys, *values;  // [T][tokens][D] of the user that shares them
  int projected;         // first row of the sequence that they are of, or -1
  float* item_queries;   // [columns][ld of the tail]
  AttentionColumns<D> attention;
  TailColumns<D> tail;
  GroupScratch group;
  int64_t rows, ld;

  int64_t layout(float* base, const Problem& p) {
    const Shape s(p);
    Arena a{base};
    rows = most_rows(p, kTokens<D>);
    ld = rows + kLanes;  // not a power of two: columns spread over the cache
    const int most = pairs_per_group(p);
    segments = reinterpret_cast<Segment*>(a.take(2 * kUsers));
    x_rows = a.take(kLanes * D);
    x = a.take(s.width.columns * ld + kQueries);
    normalized0 = a.take(s.width.columns * ld + kQueries);
    rstd0 = a.take(rows + kLanes);
    hidden = a.take((kHidden + s.width.columns) * kBlock);
    encoded = a.take(p.tasks * s.width.columns * ld + kQueries);
    encoded_rows = a.take(p.tasks * rows * D);
    vectors = a.take(static_cast<int64_t>(most) * s.heads * D);
    inverse = a.take(static_cast<int64_t>(most) * s.heads);
    saved_rows = a.take((rows > most * p.tasks ? rows : round_up(most * p.tasks, kLanes)) * D);
    const int64_t shared = shares_users(p) ? p.tasks * most_rows(p, 1) * D : 0;
    keys = a.take(shared);
    values = a.take(shared);
    projected = -1;
    item_queries = a.take(s.width.columns * (static_cast<int64_t>(most) + 2 * kLanes));
    attention.layout(a, s, rows, ld, p.longest > most ? p.longest : most);
    tail.layout(a, s, most * p.tasks);
    group.layout(a, p);
    return a.used;
  }
};

// The batch's tokens as columns, with zeros behind the last one.
template <int D>
void load_columns(const Problem& p, const Shape& s, int64_t first, int count, float* rows,
                  float* dst, int64_t ld) {
  for (int r = 0; r < count; r += kLanes) {
    const int valid = count - r < kLanes ? count - r : kLanes;
    load_rows<D>(p.values, p.bf16, first + r, valid, s.width, rows);
    if (valid < kLanes) fill_zero(rows + valid * D, static_cast<int64_t>(kLanes - valid) * D);
    rows_to_columns<D>(rows, s.width, dst + r, ld);
  }
}

// Step 3 for one task: affine, FFN, residual, normalization of every token; as columns and rows.
template <int D>
void encode_task(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior, int task,
                 int count, const ForwardScratch<D>& a) {
  encode<D>(packed.encoder, s, p.eps, a.normalized0, a.ld, count,
            packed.scale_row(p, task, behavior, 0), packed.shift_row(p, task, behavior, 0),
            a.hidden, a.encoded + static_cast<int64_t>(task) * s.width.columns * a.ld,
            a.encoded_rows + static_cast<int64_t>(task) * a.rows * D);
}

// Candidate queries absorbed into the key projection: queries[position][head] = W_K^T (e W_Q)_head.
template <int D>
void absorbed_queries(const Packed<D>& packed, const Shape& s, const float* item, int rows,
                      float* q, float* queries) {
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

// Step 4 for one group of candidates: scores, softmax and pooling of every task, through the norm
// of position 1 into the tail's rows. Zeros where there are no tokens: an empty key set attends to
// nothing, and not to the shift either (spec 4.5).
template <int D>
void attend(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior, const Group& g,
            const float* queries, const ForwardScratch<D>& a) {
  const GroupScratch& gs = a.group;
  const int64_t rows = static_cast<int64_t>(p.tasks) * g.count;
  const PairScores scores{gs.scores, gs.score_stride, a.inverse};
  assign_slots(gs.pairs, g.num_pairs);
  for (int t = 0; t < p.tasks; ++t) {
    const float* scale = packed.scale_row(p, t, behavior, 1);
    float* pooled = a.tail.pooled + int64_t{t} * g.count * D;
    scaled_vectors<D>(gs.pairs, g.num_pairs, s, scale, queries, a.vectors);
    attend_pairs<D>(gs.pairs, g.num_pairs, gs.slot_of_pair, s,
                    a.encoded + static_cast<int64_t>(t) * s.width.columns * a.ld, a.ld,
                    a.encoded_rows + static_cast<int64_t>(t) * a.rows * D, a.vectors, scores, scale,
                    packed.shift_row(p, t, behavior, 1), pooled, rows * D);
    if (g.num_pairs == g.count) continue;
    for (int i = 0; i < g.count; ++i)
      for (int h = 0; gs.lengths[i] == 0 && h < s.heads; ++h)
        fill_zero(pooled + (h * rows + i) * D, s.width.columns);
  }
}

// Step 4 where many candidates share one sequence: its keys and values are projected once per task,
// and every lane is one candidate.
template <int D>
void attend_shared(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                   const Group& g, ForwardScratch<D>& a) {
  const Pair& first = a.group.pairs[0];
  const int length = first.length;
  const int64_t stride = static_cast<int64_t>(length) * D;
  if (a.projected != first.begin) {
    a.projected = first.begin;
    for (int t = 0; t < p.tasks; ++t) {
      const float* encoded = a.encoded_rows + (int64_t{t} * a.rows + first.begin) * D;
      float* affine = a.attention.v_rows;  // free once the self-attention is done
      affine_rows<D>(encoded, length, s.width, packed.scale_row(p, t, behavior, 1),
                     packed.shift_row(p, t, behavior, 1), affine);
      project<D>(affine, packed.dk_t, length, s, a.keys + t * stride);
      project<D>(affine, packed.dv_t, length, s, a.values + t * stride);
    }
  }
  const int64_t ld_items = round_up_lanes(g.count) + kLanes;
  for (int r = 0; r < g.count; r += kLanes)
    rows_to_columns<D>(a.tail.item + static_cast<int64_t>(r) * D, s.width, a.tail.items + r,
                       a.tail.ld);
  multiply<D>(packed.dq, s.d, s.d, a.tail.items, a.tail.ld, g.count, a.item_queries, ld_items);
  for (int t = 0; t < p.tasks; ++t)
    for (int block = 0; block < g.count; block += kQueries) {
      const int count = g.count - block < kQueries ? g.count - block : kQueries;
      for (int h = 0; h < s.heads; ++h) {
        multiply<D>(a.keys + t * stride + h * s.head_dim, length, s.head_dim,
                    a.item_queries + h * s.head_dim * ld_items + block, ld_items, count,
                    a.attention.scores, kQueries);
        Vec inverse[kQueries / kLanes];
        const int vectors = (count + kLanes - 1) / kLanes;
        exponential_columns(a.attention.scores, length, vectors, inverse);
        GemmTile v{};  // the spill behind the last candidate is overwritten by the next task
        v.a = a.values + t * stride + h * s.head_dim;
        v.lda = D;
        v.b = a.attention.scores;
        v.ldb = kQueries;
        v.c = a.tail.head + h * s.head_dim * a.tail.ld + t * g.count + block;
        v.ldc = a.tail.ld;
        v.k = length;
        gemm<kTransposed>(s.head_dim, count, v);
        scale_columns(v.c, v.ldc, s.head_dim, vectors, inverse);
      }
    }
}

template <int D>
void forward_range(const Problem& p, const Packed<D>& packed, const float* queries, int behavior,
                   int64_t user_begin, int64_t user_end, int64_t first_position,
                   int64_t last_position, const ForwardOutputs& out, ForwardScratch<D>& a) {
  const Shape s(p);
  const int64_t sharing = sharing_threshold(p);
  const int most = pairs_per_group(p);
  const int most_entries = p.longest > kEntries ? p.longest : kEntries;
  for (int t = 0; t < p.tasks; ++t)  // padding features stay zero
    fill_zero(a.encoded + (int64_t{t} * s.width.columns + s.d) * a.ld,
              (s.width.columns - s.d) * a.ld);
  for (int64_t user = user_begin; user < user_end;) {
    const UserBatch batch = next_batch(p, behavior, user, user_end, kTokens<D>, a.segments);
    user = batch.last;
    const int64_t begin = p.candidate_begin[batch.first], end = p.candidate_begin[batch.last];
    const int64_t from = begin > first_position ? begin : first_position;
    const int64_t to = end < last_position ? end : last_position;
    if (batch.rows > 0 && (from < to || out.normalized != nullptr)) {
      load_columns<D>(p, s, batch.first_row, batch.rows, a.x_rows, a.x, a.ld);
      self_attention<D>(packed, s, a.attention, a.x, a.ld, batch.rows, a.segments,
                        batch.num_segments, p.eps, a.normalized0, a.rstd0);
      if (out.normalized != nullptr) {
        columns_to_rows<D>(a.normalized0, a.ld, batch.rows, s.width, a.saved_rows);
        for (int r = 0; r < batch.rows; ++r)
          store_row(a.saved_rows + static_cast<int64_t>(r) * D, s.width, false, out.normalized,
                    (batch.first_row + r) * s.d);
        copy_floats(out.rstd + batch.first_row, a.rstd0, batch.rows);
      }
      for (int t = 0; t < p.tasks; ++t) encode_task<D>(p, packed, s, behavior, t, batch.rows, a);
    }
    int64_t at_user = batch.first;
    a.projected = -1;
    for (int64_t position = from; position < to;) {
      GroupScratch& gs = a.group;
      const Group g =
          next_group(p, behavior, batch, position, to, sharing, &at_user, most, most_entries,
                     gs.candidates, gs.lengths, gs.pairs, gs.slot_of_pair);
      position = g.next;
      if (g.count == 0) continue;
      for (int i = 0; i < g.count; ++i)
        load_row(p.target.data, gs.candidates[i] * p.target.row_stride, p.target.column_stride,
                 p.bf16, s.width, a.tail.item + static_cast<int64_t>(i) * D);
      if (g.num_pairs > 0 && g.shared) {
        attend_shared<D>(p, packed, s, behavior, g, a);
      } else if (g.num_pairs > 0) {
        attend<D>(p, packed, s, behavior, g, queries, a);
      } else if (out.head != nullptr) {
        fill_zero(a.tail.head, s.width.columns * a.tail.ld);
      }
      decoder_tail<D>(p, packed, s, behavior, g.count, g.num_pairs > 0, !g.shared, a.tail);
      if (out.head != nullptr)
        columns_to_rows<D>(a.tail.head, a.tail.ld, p.tasks * g.count, s.width, a.saved_rows);
      for (int t = 0; t < p.tasks; ++t)
        for (int i = 0; i < g.count; ++i) {
          const int64_t from = (static_cast<int64_t>(t) * g.count + i) * D;
          const int64_t to = ((gs.candidates[i] * p.tasks + t) * p.behaviors + behavior) * s.d;
          store_row(a.tail.out + from, s.width, p.bf16, out.out, to);
          if (out.head != nullptr) store_row(a.saved_rows + from, s.width, false, out.head, to);
        }
    }
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
