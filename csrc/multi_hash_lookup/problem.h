// What cpu.cpp (torch side) and the per-ISA kernels say to each other. Plain pointers and sizes
// only.
//
// B samples, F fields, P crosses of `order` fields, m hash functions, codewords of `width` columns.
// An *element* of a sample is one codeword of one cross, number s * P + p. Samples are hashed in
// blocks of kBlock, one per lane.
#pragma once

#include <cstdint>

namespace mtlfast {
namespace multi_hash_lookup {

enum class Kind : int32_t { float32, bfloat16, float16 };

constexpr int64_t kBlock = 8;    // samples that are hashed together
constexpr int64_t kFloats = 16;  // the widest vector of any instruction set, in floats

struct Hashing {
  int64_t order = 2, num_fields = 0, num_crosses = 0, num_groups = 0;
  const int32_t* prefix = nullptr;  // of struct Crosses
  const int32_t* begin = nullptr;
  const int32_t* last = nullptr;
  const int64_t* ids = nullptr;
  int64_t batch = 0, stride_sample = 0, stride_field = 0;
  int64_t num_hashes = 1, first_hash = 0;
  uint64_t num_codewords = 1;
  bool siphash = false;

  int64_t elements() const { return num_hashes * num_crosses; }
};

struct Lookup {
  Hashing hashing;
  const void* codebook = nullptr;
  Kind kind = Kind::float32;
  int64_t width = 0;
  int64_t row_stride = 0;      // in elements, as book_stride
  int64_t book_stride = 0;     // between the books of two hash functions; 0 where they share one
  bool private_books = false;  // a book, and a gradient, for each hash function
  bool fetch_ahead = false;    // the codebook does not stay in a near cache
  // [P]: where in a sample's output, pooled, the last field of a cross starts.
  const int32_t* last_place = nullptr;
  bool pool = true;  // out [B, F, m * width], else [B, P, m * width]
  // [B, P] or, `per_member`, [B, P, order]; never null: without weights one row of ones, stride 0.
  const float* pair_weights = nullptr;
  int64_t pair_stride = 0;  // between samples
  bool per_member = false;
  const float* codeword_weights = nullptr;  // [B, P, m * width] or null

  int64_t columns() const { return hashing.num_hashes * width; }
  int64_t slots() const { return pool ? hashing.num_fields : hashing.num_crosses; }
  // How many rows of `out` a cross is added to.
  int64_t members() const { return pool ? hashing.order : 1; }
};

inline int64_t round_up_floats(int64_t n) {
  return (n + kFloats - 1) / kFloats * kFloats;
}

// Larger results would sweep the caches.
constexpr int64_t kStreamedBytes = 16ll << 20;

// Bytes of scratch, 64-byte aligned.
inline int64_t hash_scratch(const Hashing& h) {
  const int64_t texts = h.siphash ? 48 * h.num_fields : 0;
  return 2 * h.num_fields * kBlock * 8 + texts;
}
// The indices of one block, and some more that are only read to fetch ahead.
constexpr int64_t kLinesAhead = 128;
inline int64_t index_bytes(const Hashing& h) {
  return round_up_floats(h.elements() * kBlock + kLinesAhead) * 4;
}
// Those of two blocks, and what is needed to make them.
inline int64_t walk_scratch(const Hashing& h) {
  return 2 * index_bytes(h) + (h.siphash ? index_bytes(h) : 0) + hash_scratch(h);
}
inline int64_t forward_scratch(const Lookup& l) {
  return walk_scratch(l.hashing) + 3 * 4 * round_up_floats(l.width);
}
inline int64_t weight_gradients_scratch(const Lookup& l) {
  const int64_t sums = (l.hashing.num_crosses * l.hashing.order + kFloats) * kFloats * 4;
  return walk_scratch(l.hashing) + sums;
}

// ---- the codebook's gradient: one entry per codeword used, sorted by row ----

// What becomes of the gradient of a row.
enum class Finish : int32_t {
  dense,    // written to `out`; rows without entries become zero
  compact,  // written one after another, with the row's number
  adagrad,  // the codebook is updated; `out` is the codebook
  adam
};

struct Step {
  float* first = nullptr;   // adagrad: sum of squares; adam: average. [rows, width] or [rows]
  float* second = nullptr;  // adam: average of squares
  bool per_row = true;      // the squares have one number for each row (their mean)
  float lr = 0.0f, eps = 0.0f, beta1 = 0.0f, beta2 = 0.0f;
  float step_size = 0.0f;  // adam: lr sqrt(1 - beta2^t) / (1 - beta1^t)
};

// Where an element of a sample belongs.
struct Element {
  int32_t place[3];  // in the gradient of the output of a sample, for every member
  int32_t cross;
};

struct Reduction {
  Lookup lookup;
  const float* grad = nullptr;        // [B, slots, m * width], contiguous
  const Element* elements = nullptr;  // [2^element_bits]
  // Of every element, in the codeword weights of a sample; null without such weights.
  const int64_t* factor_places = nullptr;  // [2^element_bits]
  int element_bits = 0;                    // an entry is sample << element_bits | element
  Finish finish = Finish::dense;
  void* out = nullptr;
  Kind out_kind = Kind::float32;
  int64_t out_stride = 0;   // elements between rows
  bool stream = false;      // `out` is larger than the caches: write past them
  int64_t* rows = nullptr;  // compact
  Step step;
  // Whether parts also give `dots`: of every entry, its codeword times the gradient of what its
  // cross was added to. Summed over the hash functions they are the gradient of the pair's weight.
  // For two fields, pooled, without other weights.
  bool wants_dots = false;
};

constexpr int64_t kMostPartEntries = 4096;
constexpr int64_t kEntriesAhead = 32;  // fetched, also behind the last one

// The sum of a row is kept in two levels, so that rounding errors of hot rows stay close to those
// of a pairwise sum: this many entries in the first.
constexpr int kFirstLevelBits = 5;
constexpr int64_t kFirstLevel = int64_t{1} << kFirstLevelBits;

constexpr int64_t kMostTableRows = 1 << 12;

// A part of the entries, within one bucket of rows [first_row, first_row + 2^bits).
struct Part {
  const uint64_t* entries = nullptr;  // (row - first_row) << 32 | entry
  int64_t count = 0;
  // Not 0: the part is a whole bucket of so many rows, its entries in the order of the samples.
  // Else they are sorted by row.
  int64_t table_rows = 0;
  int64_t first_row = 0;
  int64_t fill_from = 0, fill_to = 0;  // dense: rows of this part's own, zero where not in entries
  int64_t position = 0;                // compact: where its first row goes
  // A row whose entries go on in the next part is left open: its sum so far goes to `tail`, and
  // that of the part before is continued in `head`. Each has round_up_floats(width) floats.
  bool open_head = false, open_tail = false;
  float* head = nullptr;
  float* tail = nullptr;
  // With a table [count], else [B, m * P], whose rest belongs to other parts.
  float* dots = nullptr;
};

// Sums of the rows of a part: each has at most one that is not full. And zero.
constexpr int64_t kMostSums = kMostPartEntries + kMostPartEntries / kFirstLevel + 1;
inline int64_t reduce_scratch(const Lookup& l) {
  // Those sums, two more rows, the rows' numbers and where their sums are, and the table.
  return 4 * ((kMostSums + 2) * round_up_floats(l.width) + 2 * (kMostPartEntries + kFloats) +
              kMostTableRows);
}

}  // namespace multi_hash_lookup
}  // namespace mtlfast

#define MTLFAST_DECLARE_MULTI_HASH_LOOKUP(isa)                                                   \
  namespace isa {                                                                                \
  /* The indices [elements][kBlock] of samples [block * kBlock, ...); of samples that do not */  \
  /* exist, some index. */                                                                       \
  void multi_hash_block(const multi_hash_lookup::Hashing&, int64_t block, uint32_t* indices,     \
                        void* scratch);                                                          \
  /* Blocks [begin, end). */                                                                     \
  void multi_hash_forward(const multi_hash_lookup::Lookup&, int64_t begin, int64_t end,          \
                          float* out, void* scratch);                                            \
  /* Gradients of the weights; either may be null. */                                            \
  void multi_hash_weight_gradients(const multi_hash_lookup::Lookup&, const float* grad,          \
                                   int64_t begin, int64_t end, float* pair_weights,              \
                                   float* codeword_weights, void* scratch);                      \
  void multi_hash_reduce(const multi_hash_lookup::Reduction&, const multi_hash_lookup::Part&,    \
                         void* scratch);                                                         \
  /* `row` with the whole sum of its entries. */                                                 \
  void multi_hash_finish_row(const multi_hash_lookup::Reduction&, int64_t row, int64_t position, \
                             const float* sum);                                                  \
  }
