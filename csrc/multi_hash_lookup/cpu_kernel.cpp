// Multi-hash codebook lookups on one CPU thread. MemoNet (CIKM 2023): with c_p the codewords of
// cross p, side by side,
//   v_p = pair_weights[p] * codeword_weights[p] * c_p,  out[f] = sum of v_p over the crosses of f
#include "../common/columns.h"
#include "../common/hash.h"
#include "../common/isa.h"
#include "problem.h"

namespace mtlfast {
MTLFAST_DECLARE_MULTI_HASH_LOOKUP(MTLFAST_ISA)

namespace MTLFAST_ISA {
namespace {

using namespace multi_hash_lookup;

// ---- hashing, one sample per lane ----

constexpr int kWords = kLanes / 2;
constexpr int kVectors = static_cast<int>(kBlock) / kWords;  // vectors in a block

typedef uint64_t Words __attribute__((vector_size(kWords * 8)));
typedef uint64_t UnalignedWords __attribute__((vector_size(kWords * 8), aligned(8), may_alias));
typedef uint32_t Indices __attribute__((vector_size(kWords * 4)));
typedef uint32_t UnalignedIndices __attribute__((vector_size(kWords * 4), aligned(4), may_alias));

struct BlockOfWords {
  Words v[kVectors];

  MTLFAST_INLINE static BlockOfWords load(const uint64_t* p) {
    BlockOfWords b;
    for (int i = 0; i < kVectors; ++i)
      b.v[i] = *reinterpret_cast<const UnalignedWords*>(p + i * kWords);
    return b;
  }
  MTLFAST_INLINE void store(uint64_t* p) const {
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<UnalignedWords*>(p + i * kWords) = v[i];
  }
  MTLFAST_INLINE void store_indices(uint32_t* p) const {
    for (int i = 0; i < kVectors; ++i)
      *reinterpret_cast<UnalignedIndices*>(p + i * kWords) = __builtin_convertvector(v[i], Indices);
  }
  MTLFAST_INLINE BlockOfWords cross(const BlockOfWords& key) const {
    BlockOfWords b;
    for (int i = 0; i < kVectors; ++i) b.v[i] = hash::cross<Words>(v[i], key.v[i]);
    return b;
  }
  MTLFAST_INLINE BlockOfWords index(uint64_t num_codewords) const {
    BlockOfWords b;
    for (int i = 0; i < kVectors; ++i) b.v[i] = hash::index<Words>(v[i], num_codewords);
    return b;
  }
};

// Hashes one block of samples, a few crosses at a time, so that this work fits between other work.
class Hasher {
 public:
  Hasher(const Hashing& hashing, uint64_t* scratch)
      : h_(hashing), keys_(scratch), of_first_(scratch + hashing.num_fields * kBlock) {}

  void start(int64_t block) {
    const int64_t first = block * kBlock;
    const int64_t count = h_.batch - first < kBlock ? h_.batch - first : kBlock;
    for (int64_t f = 0; f < h_.num_fields; ++f) {
      alignas(64) uint64_t values[kBlock] = {};
      const int64_t* id = h_.ids + first * h_.stride_sample + f * h_.stride_field;
      for (int64_t i = 0; i < count; ++i)
        values[i] = static_cast<uint64_t>(id[i * h_.stride_sample]);
      BlockOfWords b = BlockOfWords::load(values);
      for (int i = 0; i < kVectors; ++i)
        b.v[i] = hash::key<Words>(static_cast<uint64_t>(f), b.v[i]);
      b.store(keys_ + f * kBlock);
    }
    function_ = 0;
    start_function();
  }

  // The next `count` crosses: put(indices) for each, in order.
  template <class Put>
  MTLFAST_INLINE void advance(int64_t count, Put put) {
    BlockOfWords hashed = BlockOfWords::load(prefix_);
    for (; count > 0; --count) {
      if (cross_ == group_end_) {
        if (group_ + 1 < h_.num_groups) {
          start_group(group_ + 1);
        } else {
          ++function_;
          start_function();
        }
        hashed = BlockOfWords::load(prefix_);
      }
      const BlockOfWords key = BlockOfWords::load(keys_ + h_.last[cross_++] * kBlock);
      put(hashed.cross(key).index(h_.num_codewords));
    }
  }

 private:
  void start_function() {
    BlockOfWords seed;
    for (int i = 0; i < kVectors; ++i)
      seed.v[i] = Words{} + hash::seed(static_cast<uint64_t>(h_.first_hash + function_));
    for (int64_t f = 0; f < h_.num_fields; ++f)
      seed.cross(BlockOfWords::load(keys_ + f * kBlock)).store(of_first_ + f * kBlock);
    start_group(0);
  }
  void start_group(int64_t group) {
    group_ = group;
    cross_ = h_.begin[group];
    group_end_ = h_.begin[group + 1];
    const int32_t* prefix = h_.prefix + group * (h_.order - 1);
    BlockOfWords hashed = BlockOfWords::load(of_first_ + prefix[0] * kBlock);
    if (h_.order == 3) hashed = hashed.cross(BlockOfWords::load(keys_ + prefix[1] * kBlock));
    hashed.store(prefix_);
  }

  const Hashing& h_;
  uint64_t *keys_, *of_first_;  // of every field; of_first: as the first of a cross
  alignas(64) uint64_t prefix_[kBlock] = {};
  int64_t function_ = 0, group_ = 0;
  int32_t cross_ = 0, group_end_ = 0;
};

void hash_block(const Hashing& h, int64_t block, uint32_t* indices, uint64_t* scratch) {
  Hasher hasher(h, scratch);
  hasher.start(block);
  hasher.advance(h.elements(), [&](const BlockOfWords& index) {
    index.store_indices(indices);
    indices += kBlock;
  });
}

void siphash_block(const Hashing& h, int64_t block, uint32_t* indices, unsigned char* scratch) {
  constexpr int64_t kText = 48;  // a length and the text of one field
  for (int64_t lane = 0; lane < kBlock; ++lane) {
    const int64_t sample = block * kBlock + lane;
    if (sample >= h.batch) {
      for (int64_t e = 0; e < h.elements(); ++e) indices[e * kBlock + lane] = 0;
      continue;
    }
    for (int64_t f = 0; f < h.num_fields; ++f) {
      unsigned char* text = scratch + f * kText;
      const int64_t id = h.ids[sample * h.stride_sample + f * h.stride_field];
      text[0] = static_cast<unsigned char>(
          hash::write_key_text(static_cast<uint64_t>(f), static_cast<uint64_t>(id), text + 1));
    }
    for (int64_t g = 0; g < h.num_groups; ++g) {
      unsigned char message[3 * kText];
      int64_t before = 0;
      const auto append = [&](int64_t at, int32_t field) {
        const unsigned char* text = scratch + field * kText;
        for (int i = 0; i < text[0]; ++i) message[at + i] = text[1 + i];
        return at + text[0];
      };
      for (int64_t k = 0; k < h.order - 1; ++k) {
        before = append(before, h.prefix[g * (h.order - 1) + k]);
        message[before++] = '_';
      }
      for (int32_t p = h.begin[g]; p < h.begin[g + 1]; ++p) {
        const int64_t length = append(before, h.last[p]);
        for (int64_t s = 0; s < h.num_hashes; ++s) {
          const hash::SipHashKey key = hash::siphash_key(static_cast<int>(h.first_hash + s));
          const uint64_t hashed = hash::siphash(message, length, key);
          indices[(s * h.num_crosses + p) * kBlock + lane] =
              static_cast<uint32_t>(hashed % h.num_codewords);
        }
      }
    }
  }
}

// ---- rows ----

MTLFAST_INLINE Vec load_narrow(const float* p, Whole) {
  return load(p);
}
MTLFAST_INLINE Vec load_narrow(const float* p, First f) {
  return load_first_narrow(p, f.count);
}
template <class Part>
MTLFAST_INLINE Vec load_kind(const void* data, int64_t at, Kind kind, Part part) {
  if (kind == Kind::float32) return load_narrow(static_cast<const float*>(data) + at, part);
  if (kind == Kind::bfloat16) return load_bf16_part(static_cast<const uint16_t*>(data) + at, part);
  return load_f16_part(static_cast<const uint16_t*>(data) + at, part);
}
template <class Part>
MTLFAST_INLINE void store_kind(void* data, int64_t at, Kind kind, Vec v, Part part) {
  if (kind == Kind::float32)
    store_part(static_cast<float*>(data) + at, v, part);
  else if (kind == Kind::bfloat16)
    store_bf16_part(static_cast<uint16_t*>(data) + at, v, part);
  else
    store_f16_part(static_cast<uint16_t*>(data) + at, v, part);
}

MTLFAST_INLINE int64_t bytes_of(Kind kind) {
  return kind == Kind::float32 ? 4 : 2;
}

constexpr int64_t kLine = 64;

// Fetches a row: of NV whole vectors, or of any number of bytes.
template <int NV, bool kFar = false>
MTLFAST_INLINE void prefetch_row(const void* row, int64_t bytes) {
  constexpr int kLevel = kFar ? 2 : 3;
  const char* const p = static_cast<const char*>(row);
  if constexpr (NV > 0) {
    for (int64_t i = 0; i < NV * kLanes * 4; i += kLine)
      if (i < bytes) __builtin_prefetch(p + i, 0, kLevel);
  } else {
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i, 0, kLevel);
    __builtin_prefetch(p + bytes - 1, 0, kLevel);  // rows need not start with a line
  }
}

template <int NV>
MTLFAST_INLINE void prefetch_floats(const float* row, int64_t width) {
  prefetch_row<NV, true>(row, NV > 0 ? NV * kLanes * 4 : width * 4);
}

// The indices of samples, one sample behind the other; the next block's are made bit by bit while
// the present block's codewords are on their way, so that neither waits for the other.
class Walk {
 public:
  Walk(const Lookup& l, int64_t begin, int64_t end, char* scratch)
      : h_(l.hashing),
        end_(end),
        elements_(h_.elements()),
        current_(reinterpret_cast<uint32_t*>(scratch)),
        next_(current_ + index_bytes(h_) / 4),
        siphash_(next_ + index_bytes(h_) / 4),
        scratch_(siphash_ + (h_.siphash ? elements_ * kBlock : 0)),
        hasher_(h_, static_cast<uint64_t*>(scratch_)) {
    // What is only read to fetch ahead, after the last sample of all.
    for (int64_t i = 0; i < kLinesAhead; ++i)
      current_[elements_ * kBlock + i] = next_[elements_ * kBlock + i] = 0;
    start(begin);
    finish();
    swap();
  }

  // Starts to make the indices of `block`, which come next.
  void start(int64_t block) {
    made_ = block < end_ ? 0 : elements_;
    credit_ = 0;
    if (block >= end_) return;
    if (h_.siphash) {
      siphash_block(h_, block, siphash_, static_cast<unsigned char*>(scratch_));
      for (; made_ < elements_; ++made_) put(siphash_ + made_ * kBlock);
    } else {
      hasher_.start(block);
    }
  }
  // To be called when `count` codewords of the present block have been used.
  MTLFAST_INLINE void used(int64_t count) {
    credit_ += count;
    if (credit_ >= kBlock * kCrosses) advance();
  }
  void finish() { make(elements_ - made_); }
  // The first indices of the next block behind the present ones.
  void join() {
    const int64_t ready = made_ < kLinesAhead ? made_ : kLinesAhead;
    for (int64_t i = 0; i < ready; ++i) current_[elements_ * kBlock + i] = next_[i];
  }
  void swap() {
    uint32_t* const other = current_;
    current_ = next_;
    next_ = other;
  }
  const uint32_t* of_sample(int64_t lane) const { return current_ + lane * elements_; }

 private:
  static constexpr int64_t kCrosses = 4;

  __attribute__((noinline)) void advance() {
    const int64_t count = credit_ / kBlock;
    credit_ -= count * kBlock;
    make(count < elements_ - made_ ? count : elements_ - made_);
  }
  MTLFAST_INLINE void make(int64_t count) {
    hasher_.advance(count, [&](const BlockOfWords& index) {
      alignas(64) uint32_t lanes[kBlock];
      index.store_indices(lanes);
      put(lanes);
      ++made_;
    });
  }
  MTLFAST_INLINE void put(const uint32_t* lanes) {
    uint32_t* const to = next_ + made_;
    for (int64_t lane = 0; lane < kBlock; ++lane) to[lane * elements_] = lanes[lane];
  }

  const Hashing& h_;
  const int64_t end_, elements_;
  uint32_t *current_, *next_, *siphash_;
  void* scratch_;
  Hasher hasher_;
  int64_t made_ = 0, credit_ = 0;
};

// body(sample, indices of its elements, all indices) for the samples of blocks [begin, end).
template <class Body>
MTLFAST_INLINE void each_sample(const Lookup& l, int64_t begin, int64_t end, char* scratch,
                                Body body) {
  const Hashing& h = l.hashing;
  if (begin >= end) return;
  Walk indices(l, begin, end, scratch);
  for (int64_t block = begin; block < end; ++block) {
    indices.start(block + 1);
    const int64_t first = block * kBlock;
    const int64_t count = h.batch - first < kBlock ? h.batch - first : kBlock;
    for (int64_t lane = 0; lane < count; ++lane) {
      if (lane + 1 == count) indices.join();
      body(first + lane, indices.of_sample(lane), indices);
    }
    indices.finish();
    indices.swap();
  }
}

// The row of every element of hash function s, fetching ahead: rows far ahead into the second-level
// cache, which keeps more of them on their way, and those that come next from there into the first.
// With NV > 0, rows have that many vectors and lie one behind the other.
template <int NV, Kind kKind>
struct Rows {
  static constexpr int64_t kSize = kKind == Kind::float32 ? 4 : 2;
  const uint32_t* indices;
  const char *book, *book_after;  // that of the next hash function, or of the next sample's first
  int64_t crosses, stride, bytes, far, near;

  MTLFAST_INLINE Rows(const Lookup& l, const uint32_t* indices_, int64_t s) {
    crosses = l.hashing.num_crosses;
    indices = indices_ + s * crosses;
    const char* const books = static_cast<const char*>(l.codebook);
    book = books + s * l.book_stride * kSize;
    book_after = s + 1 < l.hashing.num_hashes ? book + l.book_stride * kSize : books;
    bytes = NV > 0 ? NV * kLanes * kSize : l.width * kSize;
    stride = NV > 0 ? bytes : l.row_stride * kSize;
    far = l.fetch_ahead ? rows_in(kLinesAhead, kFewestFar) : 0;
    near = rows_in(kLinesNear, kFewestNear);
  }
  MTLFAST_INLINE const char* operator()(int64_t p) const {
    if (far > 0) {
      fetch<true>(p, far);
      fetch<false>(p, near);
    }
    return book + indices[p] * stride;
  }

 private:
  static constexpr int64_t kLinesNear = 12, kFewestFar = 8, kFewestNear = 2;

  MTLFAST_INLINE int64_t rows_in(int64_t lines, int64_t fewest) const {
    const int64_t rows = lines * kLine / (bytes > kLine ? bytes : kLine);
    return rows > fewest ? rows : fewest;
  }
  template <bool kFar>
  MTLFAST_INLINE void fetch(int64_t p, int64_t ahead) const {
    const char* const from = p < crosses - ahead ? book : book_after;
    prefetch_row<NV, kFar>(from + indices[p + ahead] * stride, bytes);
  }
};

template <int NV>
MTLFAST_INLINE void clear(const Columns<NV>& columns, Buffer<NV>& to) {
  columns.each([&](int64_t v, auto) { to.put(v, zero()); });
}

template <int NV>
MTLFAST_INLINE void add_to(const Columns<NV>& columns, float* p, const Buffer<NV>& from) {
  columns.each([&](int64_t v, auto part) {
    float* at = p + v * kLanes;
    store_part(at, load_part(at, part) + from.get(v), part);
  });
}

// Stores a whole, aligned vector past the caches where the instruction set can.
MTLFAST_INLINE void store_past_caches(float* to, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, v);
#else
  store(to, v);
#endif
}

// Streamed stores become visible to other threads.
void finish_streams() {
#if defined(__AVX2__) || defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Whether a row for every codeword used, `to` [B, P, m * width], is to be written past the caches.
template <int NV>
bool streams(const Lookup& l, const float* to) {
  const int64_t floats = l.hashing.batch * l.hashing.num_crosses * l.columns();
  return NV > 0 && floats * 4 >= kStreamedBytes && reinterpret_cast<uintptr_t>(to) % 64 == 0;
}

// ---- forward ----

template <int NV, Kind kKind, bool kPerMember, bool kWeighted>
void forward_sample(const Lookup& l, int64_t sample, const uint32_t* indices, Walk& all, float* out,
                    float* scratch) {
  const Hashing& h = l.hashing;
  const Columns<NV> columns(l.width);
  const int64_t total = l.columns(), buffer = round_up_floats(l.width), order = h.order;
  out += sample * h.num_fields * total;
  std::memset(out, 0, sizeof(float) * static_cast<size_t>(h.num_fields * total));
  const float* weights = l.pair_weights + sample * l.pair_stride;
  const float* factors = kWeighted ? l.codeword_weights + sample * h.num_crosses * total : nullptr;
  const int32_t *const begin = h.begin, *const last_place = l.last_place;
  for (int64_t s = 0; s < h.num_hashes; ++s) {
    const Rows<NV, kKind> rows(l, indices, s);
    float* const base = out + s * l.width;
    for (int64_t g = 0; g < h.num_groups; ++g) {
      Buffer<NV> sum(scratch), second(scratch + buffer);
      clear(columns, sum);
      if (kPerMember) clear(columns, second);
      const int32_t end = begin[g + 1];
      for (int32_t p = begin[g]; p < end; ++p) {
        const char* const row = rows(p);
        float* const of_last = base + last_place[p];
        const float* const factor = kWeighted ? factors + p * total + s * l.width : nullptr;
        const float* const weight = weights + (kPerMember ? p * order : p);
        const Vec first_weight = broadcast(weight[0]);
        const Vec last_weight = kPerMember ? broadcast(weight[order - 1]) : first_weight;
        const Vec middle_weight = kPerMember ? broadcast(weight[order - 2]) : first_weight;
        columns.each([&](int64_t v, auto part) {
          Vec x = load_kind(row, v * kLanes, kKind, part);
          if constexpr (kWeighted) x *= load_part(factor + v * kLanes, part);
          float* const at = of_last + v * kLanes;
          const Vec weighted = x * last_weight;
          store_part(at, load_part(at, part) + weighted, part);
          if constexpr (kPerMember) {
            sum.put(v, sum.get(v) + x * first_weight);
            second.put(v, second.get(v) + x * middle_weight);
          } else {
            sum.put(v, sum.get(v) + weighted);
          }
        });
      }
      const int32_t* const prefix = h.prefix + g * (order - 1);
      add_to(columns, base + prefix[0] * total, sum);
      if (order == 3) add_to(columns, base + prefix[1] * total, kPerMember ? second : sum);
      all.used(end - begin[g]);
    }
  }
}

// Without pooling.
template <int NV, Kind kKind>
void forward_sample_unpooled(const Lookup& l, int64_t sample, const uint32_t* indices, Walk& all,
                             float* out, bool stream) {
  const Hashing& h = l.hashing;
  const Columns<NV> columns(l.width);
  const int64_t total = l.columns();
  out += sample * h.num_crosses * total;
  const float* weights = l.pair_weights + sample * l.pair_stride;
  const float* factors = l.codeword_weights;
  if (factors != nullptr) factors += sample * h.num_crosses * total;
  for (int64_t s = 0; s < h.num_hashes; ++s) {
    const Rows<NV, kKind> rows(l, indices, s);
    for (int64_t p = 0; p < h.num_crosses; ++p) {
      const char* const row = rows(p);
      const int64_t start = p * total + s * l.width;
      const Vec weight = broadcast(weights[p]);
      columns.each([&](int64_t v, auto part) {
        Vec x = load_kind(row, v * kLanes, kKind, part);
        if (factors != nullptr) x *= load_part(factors + start + v * kLanes, part);
        float* const to = out + start + v * kLanes;
        if (NV > 0 && stream)
          store_past_caches(to, x * weight);
        else
          store_part(to, x * weight, part);
      });
      all.used(1);
    }
  }
}

template <int NV, Kind kKind>
void forward_blocks(const Lookup& l, int64_t begin, int64_t end, float* out, char* scratch) {
  float* const sums = reinterpret_cast<float*>(scratch);
  char* const rest = scratch + 3 * 4 * round_up_floats(l.width);
  const bool stream = !l.pool && streams<NV>(l, out);
  each_sample(l, begin, end, rest, [&](int64_t sample, const uint32_t* indices, Walk& all) {
    if (!l.pool)
      forward_sample_unpooled<NV, kKind>(l, sample, indices, all, out, stream);
    else if (l.codeword_weights != nullptr && l.per_member)
      forward_sample<NV, kKind, true, true>(l, sample, indices, all, out, sums);
    else if (l.codeword_weights != nullptr)
      forward_sample<NV, kKind, false, true>(l, sample, indices, all, out, sums);
    else if (l.per_member)
      forward_sample<NV, kKind, true, false>(l, sample, indices, all, out, sums);
    else
      forward_sample<NV, kKind, false, false>(l, sample, indices, all, out, sums);
  });
  if (stream) finish_streams();
}

// NV of the kernel for such rows. Whole vectors lie one behind the other.
int fixed_vectors(int64_t width, bool contiguous = true) {
  const int64_t vectors = width / kLanes;
  if (width % kLanes != 0) return vectors < 2 ? -static_cast<int>(vectors) - 1 : 0;
  const bool known = vectors == 1 || vectors == 2 || vectors == 4;
  return contiguous && known ? static_cast<int>(vectors) : 0;
}

#if defined(__SANITIZE_ADDRESS__)  // these builds take minutes: one of each kind is enough
#define MTLFAST_BY_VECTORS(width, contiguous, CALL) \
  switch (fixed_vectors(width, contiguous)) {       \
    case -2:                                        \
      CALL(-2);                                     \
      break;                                        \
    case 2:                                         \
      CALL(2);                                      \
      break;                                        \
    default:                                        \
      CALL(0);                                      \
  }
#else
#define MTLFAST_BY_VECTORS(width, contiguous, CALL) \
  switch (fixed_vectors(width, contiguous)) {       \
    case -2:                                        \
      CALL(-2);                                     \
      break;                                        \
    case -1:                                        \
      CALL(-1);                                     \
      break;                                        \
    case 1:                                         \
      CALL(1);                                      \
      break;                                        \
    case 2:                                         \
      CALL(2);                                      \
      break;                                        \
    case 4:                                         \
      CALL(4);                                      \
      break;                                        \
    default:                                        \
      CALL(0);                                      \
  }
#endif

// ---- gradients of the weights ----

// With x the codeword times its factor and t the gradient of what the cross was added to:
//   d pair_weights = x . t,  d codeword_weights = weight * codeword * t
// `sums` holds a vector for every weight of the sample, all zero between calls. kPlain: two fields
// to a cross, pooled, no weights of codewords.
template <int NV, Kind kKind, bool kPerMember, bool kPlain>
void weight_gradients_sample(const Lookup& l, int64_t sample, const uint32_t* indices, Walk& all,
                             const float* grad, float* d_pair, float* d_codeword, bool stream,
                             float* sums) {
  const Hashing& h = l.hashing;
  const Columns<NV> columns(l.width);
  const int64_t total = l.columns(), order = kPlain ? 2 : h.order;
  const int64_t members = kPlain ? 2 : l.members();
  const bool pool = kPlain || l.pool;
  const int32_t *const begin = h.begin, *const last_place = l.last_place;
  const int64_t count = kPerMember ? order : 1;  // weights per cross
  grad += sample * l.slots() * total;
  const float* weights = l.pair_weights + sample * l.pair_stride;
  const float* factors = kPlain ? nullptr : l.codeword_weights;
  if (kPlain) d_codeword = nullptr;
  if (factors != nullptr) factors += sample * h.num_crosses * total;
  if (d_codeword != nullptr) d_codeword += sample * h.num_crosses * total;

  for (int64_t s = 0; s < h.num_hashes; ++s) {
    const Rows<NV, kKind> rows(l, indices, s);
    const float* const base = grad + s * l.width;
    for (int64_t g = 0; g < h.num_groups; ++g) {
      const int32_t* const prefix = h.prefix + g * (order - 1);
      const float* t[3] = {base + prefix[0] * total, base + prefix[order - 2] * total, base};
      const int32_t end = begin[g + 1];
      for (int32_t p = begin[g]; p < end; ++p) {
        const char* const row = rows(p);
        t[members - 1] = pool ? base + last_place[p] : base + p * total;
        const int64_t start = p * total + s * l.width;
        const float* const weight = weights + p * count;
        float* const sum = sums + p * count * kLanes;
        Vec dot[3] = {zero(), zero(), zero()};
        columns.each([&](int64_t v, auto part) {
          const int64_t at = v * kLanes;
          const Vec codeword = load_kind(row, at, kKind, part);
          Vec x = codeword;
          if (factors != nullptr) x *= load_part(factors + start + at, part);
          Vec joint = zero();  // with the weights where every member has its own
          for (int64_t k = 0; k < members; ++k) {
            const Vec of_member = load_part(t[k] + at, part);
            if constexpr (kPerMember) dot[k] += zero_outside(x * of_member, part);
            joint += kPerMember ? broadcast(weight[k]) * of_member : of_member;
          }
          if constexpr (!kPerMember) dot[0] += zero_outside(x * joint, part);
          if (d_codeword != nullptr) {
            const Vec scaled = kPerMember ? joint : joint * broadcast(weight[0]);
            float* const to = d_codeword + start + at;
            if (NV > 0 && stream)
              store_past_caches(to, codeword * scaled);
            else
              store_part(to, codeword * scaled, part);
          }
        });
        for (int64_t k = 0; k < count; ++k) {
          float* const own = sum + k * kLanes;
          store(own, load(own) + dot[k]);
        }
      }
      all.used(end - begin[g]);
    }
  }
  const int64_t num_sums = h.num_crosses * count;
  if (d_pair != nullptr) d_pair += sample * num_sums;
  for (int64_t first = 0; first < num_sums; first += kLanes) {
    Vec v[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      v[i] = load(sums + (first + i) * kLanes);
      store(sums + (first + i) * kLanes, zero());
    }
    if (d_pair == nullptr) continue;
    const int64_t left = num_sums - first;
    if (left >= kLanes)
      store(d_pair + first, sum_each(v));
    else
      store_first(d_pair + first, sum_each(v), static_cast<int>(left));
  }
}

template <int NV, Kind kKind>
void weight_gradients(const Lookup& l, const float* grad, int64_t begin, int64_t end, float* d_pair,
                      float* d_codeword, char* scratch) {
  const int64_t num_sums = l.hashing.num_crosses * l.hashing.order + kLanes;
  float* const sums = reinterpret_cast<float*>(scratch);
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(num_sums * kLanes));
  char* const rest = scratch + num_sums * kLanes * 4;
  const bool stream = d_codeword != nullptr && streams<NV>(l, d_codeword);
  each_sample(l, begin, end, rest, [&](int64_t sample, const uint32_t* indices, Walk& all) {
    const bool plain = l.members() == 2 && l.codeword_weights == nullptr && d_codeword == nullptr;
    const auto kernel = l.per_member ? weight_gradients_sample<NV, kKind, true, false>
                        : plain      ? weight_gradients_sample<NV, kKind, false, true>
                                     : weight_gradients_sample<NV, kKind, false, false>;
    kernel(l, sample, indices, all, grad, d_pair, d_codeword, stream, sums);
  });
  if (stream) finish_streams();
}

// ---- the codebook's gradient ----

// Where the sums of a part are kept, before they are finished.
struct Sums {
  float* rows;        // [kMostSums, stride]; with a table the first one is zero
  float* block;       // one row more
  uint32_t* numbers;  // rows' numbers within the part's bucket
  uint32_t* places;   // of their sums
  // Of every row of a bucket: place of its sum << kFirstLevelBits | entries in it, or 0.
  uint32_t* table;
  int64_t stride;

  Sums(const Lookup& l, float* scratch) : stride((l.width + kLanes - 1) / kLanes * kLanes) {
    rows = scratch;
    block = rows + kMostSums * round_up_floats(l.width);
    numbers = reinterpret_cast<uint32_t*>(block + 2 * round_up_floats(l.width));
    places = numbers + kMostPartEntries + kFloats;
    table = places + kMostPartEntries + kFloats;
  }
  MTLFAST_INLINE const float* row(int64_t i) const {
    return rows + static_cast<int64_t>(places[i]) * stride;
  }
};

// The dots of a part, made for as many entries at a time as a vector has lanes.
class Dots {
 public:
  MTLFAST_INLINE Dots(const Reduction& r, const Part& part)
      : entries_(part.entries),
        to_(part.dots),
        in_order_(part.table_rows != 0),
        elements_(r.lookup.hashing.elements()),
        element_bits_(r.element_bits) {}

  // Of entry i, after all before it: the sum of the lanes of v.
  MTLFAST_INLINE void put(int64_t i, Vec v) {
    waiting_[i % kLanes] = v;
    if (i % kLanes == kLanes - 1) write(i - kLanes + 1, kLanes);
  }
  // After the last of `count` entries.
  MTLFAST_INLINE void finish(int64_t count) {
    const int64_t left = count % kLanes;
    if (left == 0) return;
    for (int64_t i = left; i < kLanes; ++i) waiting_[i] = zero();
    write(count - left, static_cast<int>(left));
  }

 private:
  MTLFAST_INLINE void write(int64_t first, int count) {
    const Vec dots = sum_each(waiting_);
    if (in_order_) return store_first(to_ + first, dots, count);
    alignas(64) float each[kLanes];
    store(each, dots);
    for (int k = 0; k < count; ++k) {
      const auto entry = static_cast<uint32_t>(entries_[first + k]);
      const int64_t sample = entry >> element_bits_;
      to_[sample * elements_ + (entry - (sample << element_bits_))] = each[k];
    }
  }

  Vec waiting_[kLanes];
  const uint64_t* const entries_;
  float* const to_;
  const bool in_order_;
  const int64_t elements_;
  const int element_bits_;
};

// What every entry adds to its row, one entry after the other. Entries are read kEntriesAhead
// before their turn: what they need is spread over the whole gradient of the output. All is copied:
// stores to rows might change what is behind a pointer, as far as the compiler knows.
template <int NV, int kMembers, bool kPerMember, bool kWeighted, bool kDots>
class Terms {
 public:
  MTLFAST_INLINE Terms(const Reduction& r, const Part& part)
      : columns_(r.lookup.width),
        entries_(part.entries),
        codewords_(static_cast<const char*>(r.lookup.codebook) +
                   part.first_row * r.lookup.row_stride * bytes_of(r.lookup.kind)),
        kind_(r.lookup.kind),
        row_bytes_(r.lookup.row_stride * bytes_of(r.lookup.kind)),
        grad_(r.grad),
        pair_weights_(r.lookup.pair_weights),
        codeword_weights_(r.lookup.codeword_weights),
        elements_(r.elements),
        factor_places_(r.factor_places),
        sample_stride_(r.lookup.slots() * r.lookup.columns()),
        factor_stride_(r.lookup.hashing.num_crosses * r.lookup.columns()),
        pair_stride_(r.lookup.pair_stride),
        width_(r.lookup.width),
        element_bits_(r.element_bits),
        mask_(static_cast<uint32_t>((uint64_t{1} << r.element_bits) - 1)) {
    for (int64_t i = 0; i < kEntriesAhead; ++i) read(i);
  }

  // add(v, vector v of the term of entry i), for i = 0, 1, ...
  template <class Add>
  MTLFAST_INLINE void operator()(int64_t i, Dots& dots, Add add) {
    const Place place = places_[i % kEntriesAhead];
    Vec dot = zero();
    columns_.each([&](int64_t v, auto part_of_row) {
      const int64_t at = v * kLanes;
      Vec t = zero();
      for (int k = 0; k < kMembers; ++k) {
        const Vec of_member = load_part(place.grad[k] + at, part_of_row);
        const Vec share = kPerMember ? of_member * broadcast(place.weight[k]) : of_member;
        t = k == 0 ? share : t + share;
      }
      if constexpr (kDots)
        dot += zero_outside(load_kind(place.codeword, at, kind_, part_of_row) * t, part_of_row);
      if constexpr (!kPerMember) t *= broadcast(place.weight[0]);
      if constexpr (kWeighted) t *= load_part(place.factor + at, part_of_row);
      add(v, t);
    });
    if constexpr (kDots) dots.put(i, dot);
    read(i + kEntriesAhead);
  }

 private:
  static constexpr int kWeightsEach = kPerMember ? kMembers : 1;
  struct Place {
    const float* grad[kMembers];
    const float *weight, *factor;
    const char* codeword;
  };

  // What is behind the last entry of a part belongs to the next, or is any number.
  MTLFAST_INLINE void read(int64_t i) {
    Place& place = places_[i % kEntriesAhead];
    const auto entry = static_cast<uint32_t>(entries_[i]);
    const Element& element = elements_[entry & mask_];
    const int64_t sample = entry >> element_bits_;
    const float* const of_sample = grad_ + sample * sample_stride_;
    for (int k = 0; k < kMembers; ++k) {
      place.grad[k] = of_sample + element.place[k];
      prefetch_floats<NV>(place.grad[k], width_);
    }
    place.weight = pair_weights_ + sample * pair_stride_ + int64_t{element.cross} * kWeightsEach;
    __builtin_prefetch(place.weight);
    if constexpr (kDots) {
      place.codeword = codewords_ + static_cast<int64_t>(entries_[i] >> 32) * row_bytes_;
      prefetch_row<NV, true>(place.codeword, width_ * bytes_of(kind_));
    }
    if constexpr (kWeighted) {
      place.factor = codeword_weights_ + sample * factor_stride_ + factor_places_[entry & mask_];
      prefetch_floats<NV>(place.factor, width_);
    }
  }

  const Columns<NV> columns_;
  const uint64_t* const entries_;
  const char* const codewords_;  // of the bucket
  const Kind kind_;
  const int64_t row_bytes_;
  const float *const grad_, *const pair_weights_, *const codeword_weights_;
  const Element* const elements_;
  const int64_t* const factor_places_;
  const int64_t sample_stride_, factor_stride_, pair_stride_, width_;
  const int element_bits_;
  const uint32_t mask_;
  Place places_[kEntriesAhead];
};

// What an update of a row of a part reads and writes.
template <int NV>
class Updated {
 public:
  MTLFAST_INLINE Updated(const Reduction& r, const Part& part, bool with_codewords) {
    const bool adam = r.finish == Finish::adam, per_row = r.step.per_row;
    if (!adam && r.finish != Finish::adagrad) return;
    const int64_t width = r.lookup.width;
    const auto add = [&](const void* data, int64_t bytes) {
      rows_[count_] = static_cast<const char*>(data) + part.first_row * bytes;
      bytes_[count_++] = bytes;
    };
    if (with_codewords) add(r.out, r.out_stride * bytes_of(r.out_kind));
    if (adam || !per_row) add(r.step.first, width * 4);
    if (adam || per_row) add(adam ? r.step.second : r.step.first, per_row ? 4 : width * 4);
  }
  // Fetches that of a row, by its number within the bucket.
  template <bool kFar>
  MTLFAST_INLINE void fetch(int64_t row) const {
    for (int k = 0; k < count_; ++k) prefetch_row<NV, kFar>(rows_[k] + row * bytes_[k], bytes_[k]);
  }

 private:
  int count_ = 0;
  const char* rows_[3];
  int64_t bytes_[3];
};

// Sums the entries of every row of a part with a table; leaves the places of the sums there.
template <int NV, int kMembers, bool kPerMember, bool kWeighted, bool kDots>
void sum_by_table(const Reduction& r, const Part& part, const Sums& sums) {
  const Columns<NV> columns(r.lookup.width);
  Terms<NV, kMembers, kPerMember, kWeighted, kDots> term(r, part);
  Dots dots(r, part);
  const uint64_t* const entries = part.entries;
  uint32_t* const table = sums.table;
  float* const rows = sums.rows;
  const int64_t stride = NV > 0 ? NV * kLanes : sums.stride, count = part.count;
  const auto sum = [&](uint32_t found) {
    return rows + static_cast<int64_t>(found >> kFirstLevelBits) * stride;
  };
  uint32_t full[kMostPartEntries / kFirstLevel][2];  // a sum with all its entries, and what follows
  int64_t num_full = 0;
  uint32_t next = kFirstLevel;
  std::memset(table, 0, sizeof(uint32_t) * static_cast<size_t>(part.table_rows));
  columns.each([&](int64_t v, auto) { store(rows + v * kLanes, zero()); });
  const Updated<NV> updated(r, part, !kDots);  // the dots need the codewords as well
  // Whether a row is new is no branch, since nobody could predict it.
  for (int64_t i = 0; i < count; ++i) {
    const auto row = static_cast<int64_t>(entries[i] >> 32);
    updated.template fetch<true>(row);  // the memory has nothing else to do
    uint32_t& of_row = table[row];
    const uint32_t before = of_row;
    const uint32_t is_new = -static_cast<uint32_t>(before == 0);
    uint32_t found = before | (next & is_new);
    next += kFirstLevel & is_new;
    const float* const from = sum(before);
    float* const to = sum(found);
    term(i, dots, [&](int64_t v, Vec t) { store(to + v * kLanes, load(from + v * kLanes) + t); });
    ++found;
    if (__builtin_expect((found & (kFirstLevel - 1)) == 0, 0)) {
      full[num_full][0] = before;
      full[num_full++][1] = next;
      columns.each([&](int64_t v, auto) { store(sum(next) + v * kLanes, zero()); });
      found = next;
      next += kFirstLevel;
    }
    of_row = found;
  }
  if constexpr (kDots) dots.finish(count);
  for (int64_t k = 0; k < num_full; ++k) {
    const float* const from = sum(full[k][0]);
    float* const to = sum(full[k][1]);
    columns.each([&](int64_t v, auto) {
      store(to + v * kLanes, load(from + v * kLanes) + load(to + v * kLanes));
    });
  }
}

// The rows of the table in ascending order; returns their number.
int64_t list_table(const Part& part, const Sums& sums) {
  int64_t count = 0;
  for (int64_t row = 0; row < part.table_rows; ++row) {
    const uint32_t found = sums.table[row];
    sums.numbers[count] = static_cast<uint32_t>(row);
    sums.places[count] = found >> kFirstLevelBits;
    count += found == 0 ? 0 : 1;
  }
  return count;
}

// Sums the entries of every row of a sorted part; returns the number of rows.
template <int NV, int kMembers, bool kPerMember, bool kWeighted, bool kDots>
int64_t sum_rows(const Reduction& r, const Part& part, const Sums& sums) {
  const Columns<NV> columns(r.lookup.width);
  const uint64_t* const entries = part.entries;
  Terms<NV, kMembers, kPerMember, kWeighted, kDots> term(r, part);
  Dots dots(r, part);
  Buffer<NV> sum(sums.block);
  clear(columns, sum);
  int64_t at = -1, run = 0;
  uint64_t before = ~uint64_t{0};
  // Where a row ends is no branch, since nobody could predict it: the sum so far is written after
  // every entry.
  for (int64_t i = 0; i < part.count; ++i) {
    const uint64_t low = entries[i] >> 32;
    const int32_t same = -static_cast<int32_t>(low == before);
    const IntVec keep = IntVec{} + same;
    at += 1 + same;
    run = (run + 1) & same;
    float* const row = sums.rows + at * sums.stride;
    sums.numbers[at] = static_cast<uint32_t>(low);
    sums.places[at] = static_cast<uint32_t>(at);
    before = low;
    term(i, dots, [&](int64_t v, Vec t) {
      const Vec total = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(sum.get(v)) & keep) + t;
      sum.put(v, total);
      store(row + v * kLanes, total);
    });
    if (run + 1 < kFirstLevel) continue;
    // A hot row: the rest of it in blocks.
    while (i + 1 < part.count && entries[i + 1] >> 32 == low) {
      clear(columns, sum);
      for (int64_t k = 0; k < kFirstLevel && i + 1 < part.count && entries[i + 1] >> 32 == low; ++k)
        term(++i, dots, [&](int64_t v, Vec t) { sum.put(v, sum.get(v) + t); });
      columns.each([&](int64_t v, auto) {
        float* const to = row + v * kLanes;
        store(to, load(to) + sum.get(v));
      });
    }
  }
  if constexpr (kDots) dots.finish(part.count);
  return at + 1;
}

// Writes a row of the gradient; `value(v)` is vector v of it.
template <int NV, class Value>
MTLFAST_INLINE void write_gradient(const Columns<NV>& columns, const Reduction& r, int64_t row,
                                   Value value) {
  char* const to = static_cast<char*>(r.out) + row * r.out_stride * bytes_of(r.out_kind);
  if (NV > 0 && r.stream) {
    float* const at = reinterpret_cast<float*>(to);
    columns.each([&](int64_t v, auto) { store_past_caches(at + v * kLanes, value(v)); });
    return;
  }
  columns.each(
      [&](int64_t v, auto part) { store_kind(to, v * kLanes, r.out_kind, value(v), part); });
}

template <int NV>
MTLFAST_INLINE void fill_zero(const Columns<NV>& columns, const Reduction& r, int64_t from,
                              int64_t to) {
  for (int64_t row = from; row < to; ++row)
    write_gradient(columns, r, row, [](int64_t) { return zero(); });
}

// ---- updates in place ----

constexpr int64_t kRowsAhead = 16;

// Updates up to kLanes rows; `row(i)` is the number of the i-th one, `sum_of(i)` its gradient.
// Roots and quotients that belong to whole rows are computed for all at once.
template <int NV, class Row, class Sum>
MTLFAST_INLINE void update_rows(const Columns<NV>& columns, const Reduction& r, int count, Row row,
                                Sum sum_of) {
  const Step& step = r.step;
  const int64_t width = r.lookup.width;
  const Kind kind = r.out_kind;
  const bool adam = r.finish == Finish::adam;
  const Vec eps = broadcast(step.eps);
  const Vec size = broadcast(adam ? step.step_size : step.lr);
  const Vec beta1 = broadcast(step.beta1), beta2 = broadcast(step.beta2);
  const Vec rest1 = broadcast(1.0f - step.beta1), rest2 = broadcast(1.0f - step.beta2);
  alignas(64) float scales[kLanes] = {};
  if (step.per_row) {
    Vec squares[kLanes];
    alignas(64) float states[kLanes] = {};
    float* const of_rows = adam ? step.second : step.first;
    for (int i = 0; i < kLanes; ++i) {
      squares[i] = zero();
      if (i >= count) continue;
      columns.each([&](int64_t v, auto part) {
        const Vec g = load(sum_of(i) + v * kLanes);
        squares[i] += zero_outside(g * g, part);
      });
      states[i] = of_rows[row(i)];
    }
    const Vec mean = sum_each(squares) / broadcast(static_cast<float>(width));
    const Vec state = adam ? beta2 * load(states) + rest2 * mean : load(states) + mean;
    store(states, state);
    store(scales, size / (square_root(state) + eps));
    for (int i = 0; i < count; ++i) of_rows[row(i)] = states[i];
  }
  for (int i = 0; i < count; ++i) {
    const int64_t at = row(i) * width;
    char* const codeword = static_cast<char*>(r.out) + row(i) * r.out_stride * bytes_of(kind);
    const float* const sum = sum_of(i);
    columns.each([&](int64_t v, auto part) {
      const Vec g = load(sum + v * kLanes);
      Vec direction = g, by = broadcast(scales[i]);
      if (adam) {
        float* const average = step.first + at + v * kLanes;
        direction = beta1 * load_part(average, part) + rest1 * g;
        store_part(average, direction, part);
      }
      if (!step.per_row) {
        float* const p = (adam ? step.second : step.first) + at + v * kLanes;
        const Vec state =
            adam ? beta2 * load_part(p, part) + rest2 * (g * g) : load_part(p, part) + g * g;
        store_part(p, state, part);
        by = size / (square_root(state) + eps);
      }
      const Vec w = load_kind(codeword, v * kLanes, kind, part);
      store_kind(codeword, v * kLanes, kind, w - by * direction, part);
    });
  }
}

// What becomes of the sums of a part.
template <int NV>
void finish_part(const Reduction& r, const Part& part, const Sums& sums, int64_t count) {
  const Columns<NV> columns(r.lookup.width);
  const auto row = [&](int64_t i) {
    return part.first_row + static_cast<int64_t>(sums.numbers[i]);
  };
  const auto copy = [&](int64_t i, float* to) {
    columns.each([&](int64_t v, auto) { store(to + v * kLanes, load(sums.row(i) + v * kLanes)); });
  };
  int64_t begin = 0, end = count;
  if (part.open_head) copy(begin++, part.head);
  if (part.open_tail && begin < end) copy(--end, part.tail);

  if (r.finish == Finish::dense) {
    int64_t fill_from = part.fill_from;
    for (int64_t i = begin; i < end; ++i) {
      fill_zero(columns, r, fill_from, row(i));
      const float* const sum = sums.row(i);
      write_gradient(columns, r, row(i), [&](int64_t v) { return load(sum + v * kLanes); });
      fill_from = row(i) + 1;
    }
    // The last row is left out where it is open.
    if (end < count) {
      fill_zero(columns, r, fill_from, row(end));
      fill_from = row(end) + 1;
    }
    fill_zero(columns, r, fill_from, part.fill_to);
  } else if (r.finish == Finish::compact) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t to = part.position + i - begin;
      const float* const sum = sums.row(i);
      r.rows[to] = row(i);
      write_gradient(columns, r, to, [&](int64_t v) { return load(sum + v * kLanes); });
    }
  } else {
    const Updated<NV> updated(r, part, true);
    const auto fetch = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to && i < end; ++i) updated.template fetch<false>(sums.numbers[i]);
    };
    fetch(begin, begin + kRowsAhead);
    for (int64_t i = begin; i < end; i += kLanes) {
      const int rows = static_cast<int>(end - i < kLanes ? end - i : kLanes);
      fetch(i + kRowsAhead, i + kRowsAhead + kLanes);
      update_rows(
          columns, r, rows, [&](int k) { return row(i + k); },
          [&](int k) { return sums.row(i + k); });
    }
  }
}

// A whole bucket of a dense gradient, from its table.
template <int NV>
void write_table(const Reduction& r, const Part& part, const Sums& sums) {
  const Columns<NV> columns(r.lookup.width);
  for (int64_t row = part.fill_from; row < part.fill_to; ++row) {
    const uint32_t found = sums.table[row - part.first_row];
    const float* const sum =
        sums.rows + static_cast<int64_t>(found >> kFirstLevelBits) * sums.stride;
    write_gradient(columns, r, row, [&](int64_t v) { return load(sum + v * kLanes); });
  }
}

template <int NV, int kMembers, bool kPerMember, bool kWeighted, bool kDots = false>
void reduce_part(const Reduction& r, const Part& part, const Sums& sums) {
  if (part.table_rows == 0) {
    finish_part<NV>(r, part, sums,
                    sum_rows<NV, kMembers, kPerMember, kWeighted, kDots>(r, part, sums));
    return;
  }
  sum_by_table<NV, kMembers, kPerMember, kWeighted, kDots>(r, part, sums);
  if (r.finish == Finish::dense)
    write_table<NV>(r, part, sums);
  else
    finish_part<NV>(r, part, sums, list_table(part, sums));
}

template <int NV, int kMembers, bool kPerMember>
void reduce_with(const Reduction& r, const Part& part, const Sums& sums) {
  if (r.lookup.codeword_weights != nullptr)
    reduce_part<NV, kMembers, kPerMember, true>(r, part, sums);
  else
    reduce_part<NV, kMembers, kPerMember, false>(r, part, sums);
}

template <int NV>
void reduce(const Reduction& r, const Part& part, float* scratch) {
  const Sums sums(r.lookup, scratch);
  const int64_t members = r.lookup.members();
  if (r.wants_dots)
    reduce_part<NV, 2, false, false, true>(r, part, sums);
  else if (members == 1)
    reduce_with<NV, 1, false>(r, part, sums);
  else if (members == 2 && r.lookup.per_member)
    reduce_with<NV, 2, true>(r, part, sums);
  else if (members == 2)
    reduce_with<NV, 2, false>(r, part, sums);
  else if (r.lookup.per_member)
    reduce_with<NV, 3, true>(r, part, sums);
  else
    reduce_with<NV, 3, false>(r, part, sums);
}

}  // namespace

void multi_hash_block(const Hashing& hashing, int64_t block, uint32_t* indices, void* scratch) {
  if (hashing.siphash)
    siphash_block(hashing, block, indices, static_cast<unsigned char*>(scratch));
  else
    hash_block(hashing, block, indices, static_cast<uint64_t*>(scratch));
}

void multi_hash_forward(const Lookup& lookup, int64_t begin, int64_t end, float* out,
                        void* scratch) {
  char* const memory = static_cast<char*>(scratch);
#define MTLFAST_FORWARD(nv)                                                \
  lookup.kind == Kind::float32                                             \
      ? forward_blocks<nv, Kind::float32>(lookup, begin, end, out, memory) \
      : forward_blocks<nv, Kind::bfloat16>(lookup, begin, end, out, memory)
  if (lookup.kind == Kind::float16)
    return forward_blocks<0, Kind::float16>(lookup, begin, end, out, memory);
  MTLFAST_BY_VECTORS(lookup.width, lookup.row_stride == lookup.width, MTLFAST_FORWARD)
#undef MTLFAST_FORWARD
}

void multi_hash_weight_gradients(const Lookup& lookup, const float* grad, int64_t begin,
                                 int64_t end, float* pair_weights, float* codeword_weights,
                                 void* scratch) {
  char* const memory = static_cast<char*>(scratch);
#define MTLFAST_WEIGHTS(nv)                                                                       \
  (lookup.kind == Kind::float32 ? weight_gradients<nv, Kind::float32>                             \
                                : weight_gradients<nv, Kind::bfloat16>)(lookup, grad, begin, end, \
                                                                        pair_weights,             \
                                                                        codeword_weights, memory)
  if (lookup.kind == Kind::float16)
    return weight_gradients<0, Kind::float16>(lookup, grad, begin, end, pair_weights,
                                              codeword_weights, memory);
  MTLFAST_BY_VECTORS(lookup.width, lookup.row_stride == lookup.width, MTLFAST_WEIGHTS)
#undef MTLFAST_WEIGHTS
}

void multi_hash_reduce(const Reduction& reduction, const Part& part, void* scratch) {
  float* const memory = static_cast<float*>(scratch);
#define MTLFAST_REDUCE(nv) reduce<nv>(reduction, part, memory)
  MTLFAST_BY_VECTORS(reduction.lookup.width, true, MTLFAST_REDUCE)
#undef MTLFAST_REDUCE
  if (reduction.stream) finish_streams();
}

void multi_hash_finish_row(const Reduction& r, int64_t row, int64_t position, const float* sum) {
  const Columns<0> columns(r.lookup.width);
  if (r.finish == Finish::adagrad || r.finish == Finish::adam) {
    update_rows(columns, r, 1, [&](int) { return row; }, [&](int) { return sum; });
    return;
  }
  if (r.finish == Finish::compact) r.rows[position] = row;
  const int64_t to = r.finish == Finish::compact ? position : row;
  write_gradient(columns, r, to, [&](int64_t v) { return load(sum + v * kLanes); });
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
