// Gradients by recomputation from the saved encoder state: all behaviors of a range of users, or of
// a part of their candidates, so that every candidate's gradients are summed by one thread in one
// order.
#pragma once

#include "attend_backward.h"
#include "attend_shared_backward.h"
#include "decoder_tail_rows.h"
#include "forward.h"

namespace mtlfast {
namespace MTLFAST_ISA {

using conditional_interest::BackwardIO;
using conditional_interest::GradLayout;

struct Gradients {
  SquareGradients encoder, decoder;
  FfnGradients encoder_ffn, decoder_ffn;
  float *scale, *shift;

  Gradients(const GradLayout& l, float* base) {
    auto square = [&](const int64_t* at) {
      return SquareGradients{base + at[0], base + at[1], base + at[2], base + at[3]};
    };
    auto ffn = [&](const int64_t* at) {
      return FfnGradients{base + at[4], base + at[5], base + at[6], base + at[7], l.ffn_stride};
    };
    encoder = square(l.encoder);
    decoder = square(l.decoder);
    encoder_ffn = ffn(l.encoder);
    decoder_ffn = ffn(l.decoder);
    scale = base + l.scale;
    shift = base + l.shift;
  }

  template <int D>
  int64_t table_row(const Problem& p, int task, int behavior, int position) const {
    return ((static_cast<int64_t>(task) * p.behaviors + behavior) * 4 + position) * D;
  }
};

// Smaller than the forward's where the hidden activations of a whole batch, which are kept, fill
// the cache; larger where the weights do, all of which a batch reads, and reads and writes the sums
// of.
template <int D>
constexpr int kBackwardTokens = D <= 16 || D > 128 ? 192 : 96;

// Tasks whose encoder FFNs run as one, so that a batch of few tokens has as many rows.
template <int D>
int tasks_at_once(const Problem& p, int rows) {
  const int fit = D <= 64 ? 1 : kBackwardTokens<D> / rows;
  return fit < 1 ? 1 : fit < p.tasks ? fit : p.tasks;
}

template <int D>
GradLayout gradient_layout(const Problem& p) {
  const Shape s(p);
  Arena a{nullptr};
  GradLayout l{};
  l.d_stride = D;
  l.ffn_stride = s.blocks * kHidden;
  auto take = [&](int64_t n) {
    const int64_t at = a.used;
    a.take(n);
    return at;
  };
  for (int64_t* at : {l.encoder, l.decoder}) {
    for (int i = 0; i < 4; ++i) at[i] = take(static_cast<int64_t>(s.d) * D);
    at[4] = take(static_cast<int64_t>(l.ffn_stride) * D);
    at[5] = take(l.ffn_stride);
    at[6] = take(static_cast<int64_t>(s.d) * l.ffn_stride);
    at[7] = take(D);
  }
  l.scale = take(static_cast<int64_t>(p.tasks) * p.behaviors * 4 * D);
  l.shift = take(static_cast<int64_t>(p.tasks) * p.behaviors * 4 * D);
  l.total = a.used;
  return l;
}

template <int D>
struct BackwardScratch {
  Segment* segments;
  float *x, *normalized0, *rstd0, *d_normalized0;  // [rows][D]
  float *encoder_in, *encoded, *rstd1, *hidden;    // tasks at once; hidden [blocks][rows][kHidden]
  float* encoded_t;                                // [columns][ld] of one task as columns
  float *d_encoded, *d_encoder_in, *dh, *dx;
  AttentionScratch<D> attention;
  TailScratch<D> tail;
  GroupScratch group;
  float *vectors, *d_pooled;             // [pairs][heads][D]
  float *pooled, *d_values, *d_vectors;  // [heads][pairs][D]
  float* pair_d_head;                    // [pairs][D]
  float* d_scores;
  float* inverse;    // [heads][pairs]
  float* d_head;     // [candidates of a batch * T][D], group by group
  float* d_item;     // [candidates of the range][D]
  float* d_queries;  // [heads][candidates of the range][D]
  float *q, *d_q;    // [kTailRows][D]
  SharedQueries<D> shared;
  int64_t rows, ld;

  // `batch_candidates`: the most that one batch of users serves; `range_candidates`: one range.
  int64_t layout(float* base, const Problem& p, int64_t batch_candidates,
                 int64_t range_candidates) {
    const Shape s(p);
    Arena a{base};
    rows = most_rows(p, kBackwardTokens<D>);
    const int most = pairs_per_group(p);
    const int64_t block = (rows + kLanes) * D;  // columns of a later task are read in whole vectors
    const int64_t pair_block = static_cast<int64_t>(most) * s.heads * D;
    segments = reinterpret_cast<Segment*>(a.take(2 * kUsers));
    for (float** m :
         {&x, &normalized0, &d_normalized0, &encoder_in, &encoded, &d_encoded, &d_encoder_in, &dx})
      *m = a.take(block);
    ld = rows + kLanes;  // not a power of two: columns spread over the cache
    encoded_t = a.take(s.width.columns * ld + kQueries);
    rstd0 = a.take(rows + kLanes);
    rstd1 = a.take(rows + kLanes);
    hidden = a.take(s.blocks * rows * kHidden);
    dh = a.take(rows * kHidden);
    attention.layout(a, s, rows, p.longest);
    const int64_t tail_rows = round_up(most * p.tasks, kLanes);
    tail.layout(a, s, tail_rows);
    tail.operands = a.take(s.bf16 ? (rows > tail_rows ? rows : tail_rows) * D * 3 / 2 : 0);
    group.layout(a, p);
    for (float** m : {&vectors, &d_pooled, &pooled, &d_values, &d_vectors}) *m = a.take(pair_block);
    pair_d_head = a.take(static_cast<int64_t>(most) * D);
    d_scores = a.take(p.heads * group.score_stride);
    inverse = a.take(static_cast<int64_t>(most) * s.heads);
    d_head = a.take((batch_candidates * p.tasks + kLanes) * D);
    d_item = a.take(range_candidates * D);
    d_queries = a.take(s.heads * range_candidates * D);
    q = a.take(static_cast<int64_t>(kTailRows) * D);
    d_q = a.take(static_cast<int64_t>(kTailRows) * D);
    shared.layout(a, shares_users(p, kLeastSharing) ? range_candidates : 0);
    return a.used;
  }
};

inline void add_row(float* to, const float* from, Width w) {
  for (int c = 0; c < w.columns; c += kLanes) store(to + c, load(to + c) + load(from + c));
}

inline void load_grad_row(const conditional_interest::GradOut& g, const Problem& p,
                          int64_t candidate, int task, int behavior, Width w, float* dst) {
  load_row(g.data, candidate * g.stride[0] + task * g.stride[1] + behavior * g.stride[2],
           g.stride[3], p.bf16, w, dst);
}

// The tail's backward for one group; d_head rows are task-major like the tail's.
template <int D>
void tail_backward(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                   const Group& g, const BackwardIO& io, const Gradients& grad,
                   BackwardScratch<D>& a, float* d_item, float* d_head) {
  TailScratch<D>& tail = a.tail;
  const int rows = p.tasks * g.count;
  for (int i = 0; i < g.count; ++i) {
    const int64_t candidate = a.group.candidates[i];
    load_row(p.target.data, candidate * p.target.row_stride, p.target.column_stride, p.bf16,
             s.width, tail.item + static_cast<int64_t>(i) * D);
    for (int t = 0; t < p.tasks; ++t) {
      const int64_t row = (static_cast<int64_t>(t) * g.count + i) * D;
      load_row(io.head, ((candidate * p.tasks + t) * p.behaviors + behavior) * s.d, 1, false,
               s.width, tail.head + row);
      load_grad_row(io.grad_out, p, candidate, t, behavior, s.width, tail.g3 + row);
    }
  }
  const int64_t hidden_block = static_cast<int64_t>(rows + rows % 2) * kHidden;
  decoder_tail_rows<D>(p, packed, s, behavior, g.count, tail, hidden_block);

  auto through_norm = [&](int position, float* gradient, const float* normalized,
                          const float* rstd) {
    for (int t = 0; t < p.tasks; ++t) {
      const int64_t at = static_cast<int64_t>(t) * g.count * D;
      const int64_t table = grad.table_row<D>(p, t, behavior, position);
      float* rows_of_task = gradient + at;
      affine_rows_backward<D>(rows_of_task, normalized + at, g.count, s.width,
                              packed.scale_row(p, t, behavior, position), grad.scale + table,
                              grad.shift + table,
                              [&](int64_t i, Vec dx) { store(rows_of_task + i, dx); });
    }
    normalize_rows_backward<D>(gradient, normalized, rows, s.width, rstd);
  };
  through_norm(3, tail.g3, tail.normalized3, tail.rstd3);
  feed_forward_backward<D>(packed.decoder, s, tail.x3, tail.g3, rows, tail.hidden, hidden_block,
                           tail.dh, tail.g2, grad.decoder_ffn, tail.operands);
  through_norm(2, tail.g2, tail.normalized2, tail.rstd2);
  for (int t = 0; t < p.tasks; ++t)
    for (int i = 0; i < g.count; ++i)
      add_row(d_item + static_cast<int64_t>(i) * D,
              tail.g2 + (static_cast<int64_t>(t) * g.count + i) * D, s.width);
  accumulate_weight<D>(tail.g2, tail.head, rows, s.d, s, grad.decoder.o);
  project<D>(tail.g2, packed.dout, rows, s, d_head);
}

// Attention of one task and one group of pairs, over the rows of `encoded` and its columns in
// a.encoded_t: d_encoded, and the gradients of W_V, of the norm at position 1 and of the absorbed
// queries.
template <int D>
void attention_backward(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                        int task, const Group& g, const float* d_head, const float* queries,
                        int64_t first_position, int64_t range_candidates, const Gradients& grad,
                        const float* encoded, float* d_encoded, BackwardScratch<D>& a) {
  const GroupScratch& gs = a.group;
  const int pairs = g.num_pairs;
  const float* scale = packed.scale_row(p, task, behavior, 1);
  const float* shift = packed.shift_row(p, task, behavior, 1);
  const int64_t head_stride = static_cast<int64_t>(pairs) * D;
  const PairScores scores{gs.scores, gs.score_stride, a.inverse};
  assign_slots(gs.pairs, pairs);
  scaled_vectors<D>(gs.pairs, pairs, s, scale, queries, a.vectors);
  score_pairs<D>(gs.pairs, pairs, 2, s, a.encoded_t, a.ld, a.vectors, gs.scores, gs.score_stride);
  softmax_pairs(gs.pairs, pairs, s.heads, scores);
  pool_pairs<D>(gs.pairs, pairs, s, encoded, scores, [&](int i, int h, int c, Vec x) {
    store(a.pooled + h * head_stride + int64_t{i} * D + c, x);
  });
  for (int i = 0; i < pairs; ++i)
    std::memcpy(a.pair_d_head + static_cast<int64_t>(i) * D,
                d_head + (static_cast<int64_t>(task) * g.count + gs.slot_of_pair[i]) * D,
                sizeof(float) * D);

  const int64_t table = grad.table_row<D>(p, task, behavior, 1);
  for (int h = 0; h < s.heads; ++h) {
    const int first = h * s.head_dim;
    float* d_values = a.d_values + h * head_stride;
    float* pooled = a.pooled + h * head_stride;
    GemmTile to_values{};  // gradient of G1 * pooled + Bt1
    to_values.a = a.pair_d_head + first;
    to_values.b = packed.dv + static_cast<int64_t>(first) * D;
    to_values.ldb = D;
    to_values.c = d_values;
    to_values.ldc = D;
    to_values.k = s.head_dim;
    gemm<D>(pairs, s.d, to_values);
    affine_rows_backward<D>(d_values, pooled, pairs, s.width, scale, grad.scale + table,
                            grad.shift + table, [&](int64_t i, Vec dx) {
                              const int64_t pair = i / D, c = i % D;
                              store(a.d_pooled + (pair * s.heads + h) * D + c, dx);
                            });
    affine_rows<D>(pooled, pairs, s.width, scale, shift, pooled);
    accumulate_weight<D>(a.pair_d_head + first, pooled, pairs, s.head_dim, s,
                         grad.decoder.v + static_cast<int64_t>(first) * D);
  }
  attend_pairs_backward<D>(gs.pairs, pairs, s, a.encoded_t, a.ld, encoded, a.vectors, a.d_pooled,
                           scores, a.d_scores, d_encoded, a.d_vectors);
  for (int h = 0; h < s.heads; ++h)
    for (int c = 0; c < s.width.columns; c += kLanes) {
      const Vec factor = load(scale + c);
      Vec d_scale = zero();
      for (int i = 0; i < pairs; ++i) {
        const Vec dv = load(a.d_vectors + h * head_stride + int64_t{i} * D + c);
        const int64_t position = gs.pairs[i].position;
        float* dq = a.d_queries + (h * range_candidates + position - first_position) * D + c;
        d_scale += dv * load(queries + (position * s.heads + h) * D + c);
        store(dq, load(dq) + dv * factor);
      }
      float* sum = grad.scale + table + c;
      store(sum, load(sum) + d_scale);
    }
}

// The queries of candidates [first_position, first_position + candidates), and no gradients yet.
template <int D>
void shared_queries(const Problem& p, const Packed<D>& packed, const Shape& s,
                    int64_t first_position, int64_t candidates, BackwardScratch<D>& a) {
  fill_zero(a.shared.d_q, candidates * D);
  for (int64_t at = 0; at < candidates; at += kTailRows) {
    const int rows = candidates - at < kTailRows ? static_cast<int>(candidates - at) : kTailRows;
    load_items<D>(p, first_position + at, rows, s.width, a.q);
    project<D>(a.q, packed.dq_t, rows, s, a.shared.q + at * D);
  }
}

// From the gradients of the absorbed queries, and of those that were not, to W_Q, W_K and the
// target items.
template <int D>
void queries_backward(const Problem& p, const Packed<D>& packed, const Shape& s,
                      int64_t first_position, int64_t candidates, const BackwardIO& io,
                      const Gradients& grad, BackwardScratch<D>& a) {
  for (int64_t at = 0; at < candidates; at += kTailRows) {
    const int rows = candidates - at < kTailRows ? static_cast<int>(candidates - at) : kTailRows;
    float* item = a.tail.item;
    load_items<D>(p, first_position + at, rows, s.width, item);
    project<D>(item, packed.dq_t, rows, s, a.q);
    if (s.head_dim % kLanes != 0) fill_zero(a.d_q, static_cast<int64_t>(rows) * D);
    for (int h = 0; h < s.heads; ++h) {
      const HeadWindow w = head_window(h, s.head_dim);
      const float* dk = a.d_queries + (h * candidates + at) * D;
      accumulate_weight<D>(a.q + w.first, dk, rows, s.head_dim, s,
                           grad.decoder.k + static_cast<int64_t>(w.first) * D);
      GemmTile g{};
      g.a = dk;
      g.b = packed.dk_heads + static_cast<int64_t>(h) * s.d * s.window;
      g.ldb = s.window;
      g.c = a.d_q + w.start;
      g.ldc = D;
      g.residual = w.exact() ? nullptr : g.c;
      g.ldr = D;
      g.k = s.d;
      gemm<D>(rows, w.columns, g);
    }
    for (int64_t i = 0; shares_users(p, kLeastSharing) && i < int64_t{rows} * D; i += kLanes)
      store(a.d_q + i, load(a.d_q + i) + load(a.shared.d_q + at * D + i));
    accumulate_weight<D>(a.d_q, item, rows, s.d, s, grad.decoder.q);
    float* d_item = a.d_item + at * D;
    project<D>(a.d_q, packed.dq, rows, s, d_item, d_item);
    for (int i = 0; i < rows; ++i)
      store_row(d_item + static_cast<int64_t>(i) * D, s.width, p.bf16, io.grad_target,
                p.candidate_list[first_position + at + i] * s.d);
  }
}

// Asks for the rows that the next batch will read and write, while this one is computed.
template <int D>
void prefetch_rows(const Problem& p, const BackwardIO& io, int64_t first, int64_t last) {
  const int64_t tokens = p.offsets[p.behaviors * p.users];
  const int64_t bytes = p.bf16 ? 2 : 4;
  for (int64_t r = first; r < last && r < tokens; ++r)
    for (int64_t c = 0; c < p.d; c += 16) {
      __builtin_prefetch(io.normalized + r * p.d + c);
      __builtin_prefetch(static_cast<const char*>(p.values.data) +
                         (r * p.values.row_stride + c * p.values.column_stride) * bytes);
      __builtin_prefetch(
          static_cast<const char*>(io.grad_values) + (r * p.d + c) * (io.bf16_values ? 2 : 4), 1);
    }
}

template <int D>
void backward_range(const Problem& p, const Packed<D>& packed, const float* queries,
                    int64_t user_begin, int64_t user_end, int64_t first_position,
                    int64_t last_position, const BackwardIO& io, const Gradients& grad,
                    BackwardScratch<D>& a) {
  const Shape s(p);
  const int most = pairs_per_group(p);
  const int most_entries = p.longest > kEntries ? p.longest : kEntries;
  const int64_t candidates = last_position - first_position;
  fill_zero(a.d_item, candidates * D);
  fill_zero(a.d_queries, s.heads * candidates * D);
  const int64_t sharing = sharing_threshold(p, kLeastSharing);
  if (shares_users(p, kLeastSharing))
    shared_queries<D>(p, packed, s, first_position, candidates, a);
  GroupScratch& gs = a.group;

  for (int behavior = 0; behavior < p.behaviors; ++behavior)
    for (int64_t user = user_begin; user < user_end;) {
      const UserBatch batch =
          next_batch(p, behavior, user, user_end, kBackwardTokens<D>, a.segments);
      user = batch.last;
      const int64_t begin = p.candidate_begin[batch.first], end = p.candidate_begin[batch.last];
      const int64_t batch_position = begin > first_position ? begin : first_position;
      const int64_t batch_end = end < last_position ? end : last_position;
      if (batch_position >= batch_end) {
        const int64_t bytes = p.d * (io.bf16_values ? 2 : 4);
        std::memset(static_cast<char*>(io.grad_values) + batch.first_row * bytes, 0,
                    static_cast<size_t>(batch.rows * bytes));
        continue;
      }
      int64_t at_user = batch.first;
      for (int64_t position = batch_position; position < batch_end;) {
        const Group g =
            next_group(p, behavior, batch, position, batch_end, sharing, &at_user, most,
                       most_entries, gs.candidates, gs.lengths, gs.pairs, gs.slot_of_pair);
        tail_backward<D>(p, packed, s, behavior, g, io, grad, a,
                         a.d_item + (position - first_position) * D,
                         a.d_head + (position - batch_position) * p.tasks * D);
        position = g.next;
      }
      if (batch.rows == 0) continue;

      const int rows = batch.rows;
      load_rows<D>(p.values, p.bf16, batch.first_row, rows, s.width, a.x);
      for (int r = 0; r < rows; ++r)
        load_row(io.normalized, (batch.first_row + r) * s.d, 1, false, s.width,
                 a.normalized0 + static_cast<int64_t>(r) * D);
      prefetch_rows<D>(p, io, batch.first_row + rows, batch.first_row + rows + kBackwardTokens<D>);
      std::memcpy(a.rstd0, io.rstd + batch.first_row, sizeof(float) * static_cast<size_t>(rows));
      // Users whom no candidate refers to get zero gradients whatever their data are: 0 * NaN is
      // NaN.
      for (int64_t u = batch.first; u < batch.last; ++u) {
        if (p.candidate_begin[u + 1] > p.candidate_begin[u]) continue;
        const int64_t* at = p.offsets + behavior * p.users + u;
        const int64_t first = at[0] - batch.first_row, count = at[1] - at[0];
        fill_zero(a.x + first * D, count * D);
        fill_zero(a.normalized0 + first * D, count * D);
        fill_zero(a.rstd0 + first, count);
      }
      fill_zero(a.d_normalized0, static_cast<int64_t>(rows) * D);
      const int64_t hidden_block = a.rows * kHidden;
      const int at_once = tasks_at_once<D>(p, rows);
      for (int first = 0; first < p.tasks; first += at_once) {
        const int last = first + at_once < p.tasks ? first + at_once : p.tasks;
        const int stacked = (last - first) * rows;
        auto rows_of = [&](float* tasks, int t) { return tasks + int64_t{t - first} * rows * D; };
        for (int t = first; t < last; ++t)
          affine_rows<D>(a.normalized0, rows, s.width, packed.scale_row(p, t, behavior, 0),
                         packed.shift_row(p, t, behavior, 0), rows_of(a.encoder_in, t));
        feed_forward<D>(packed.encoder, s, a.encoder_in, stacked, a.encoded, a.hidden, hidden_block,
                        a.tail.operands);
        normalize_rows<D>(a.encoded, stacked, s.width, p.eps, a.rstd1);
        fill_zero(a.d_encoded, static_cast<int64_t>(stacked) * D);
        for (int t = first; t < last; ++t) {
          const float* encoded = rows_of(a.encoded, t);
          for (int r = 0; r < rows; r += kLanes)
            rows_to_columns<D>(encoded + static_cast<int64_t>(r) * D, s.width, a.encoded_t + r,
                               a.ld);
          float* d_encoded = rows_of(a.d_encoded, t);
          const int64_t table = grad.table_row<D>(p, t, behavior, 1);
          SharedAttention<D> shared{packed,
                                    s,
                                    a.attention,
                                    encoded,
                                    packed.scale_row(p, t, behavior, 1),
                                    packed.shift_row(p, t, behavior, 1),
                                    d_encoded,
                                    grad.scale + table,
                                    grad.shift + table,
                                    grad.decoder};
          at_user = batch.first;
          for (int64_t position = batch_position; position < batch_end;) {
            const Group g =
                next_group(p, behavior, batch, position, batch_end, sharing, &at_user, most,
                           most_entries, gs.candidates, gs.lengths, gs.pairs, gs.slot_of_pair);
            const float* d_head = a.d_head + (position - batch_position) * p.tasks * D;
            const int64_t at = (position - first_position) * D;
            position = g.next;
            if (g.num_pairs == 0) continue;
            if (g.shared) {
              shared.attend({gs.pairs[0].begin, gs.pairs[0].length}, a.shared.q + at,
                            d_head + static_cast<int64_t>(t) * g.count * D, g.count,
                            a.shared.d_q + at);
            } else {
              attention_backward<D>(p, packed, s, behavior, t, g, d_head, queries, first_position,
                                    candidates, grad, encoded, d_encoded, a);
            }
          }
          shared.finish();
        }
        normalize_rows_backward<D>(a.d_encoded, a.encoded, stacked, s.width, a.rstd1);
        feed_forward_backward<D>(packed.encoder, s, a.encoder_in, a.d_encoded, stacked, a.hidden,
                                 hidden_block, a.dh, a.d_encoder_in, grad.encoder_ffn,
                                 a.tail.operands);
        for (int t = first; t < last; ++t) {
          const int64_t table = grad.table_row<D>(p, t, behavior, 0);
          affine_rows_backward<D>(rows_of(a.d_encoder_in, t), a.normalized0, rows, s.width,
                                  packed.scale_row(p, t, behavior, 0), grad.scale + table,
                                  grad.shift + table, [&](int64_t i, Vec dx) {
                                    store(a.d_normalized0 + i, load(a.d_normalized0 + i) + dx);
                                  });
        }
      }
      normalize_rows_backward<D>(a.d_normalized0, a.normalized0, rows, s.width, a.rstd0);
      self_attention_backward<D>(packed, s, a.attention, a.x, a.d_normalized0, rows, a.segments,
                                 batch.num_segments, a.dx, grad.encoder);
      for (int r = 0; r < rows; ++r)
        store_row(a.dx + static_cast<int64_t>(r) * D, s.width, io.bf16_values, io.grad_values,
                  (batch.first_row + r) * s.d);
    }
  queries_backward<D>(p, packed, s, first_position, candidates, io, grad, a);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
