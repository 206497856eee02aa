// The entries of a codebook's gradient, by row: a stable partition into buckets of rows, and a sort
// within those buckets that are too large or too empty to be summed by a table of their rows. The
// order depends on the data alone, not on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "problem.h"

namespace mtlfast {
namespace multi_hash_lookup {

constexpr int64_t kMostBuckets = 1024;
constexpr int64_t kLeastBuckets = 64;    // so that an almost empty gradient is cleared in parallel
constexpr int64_t kBucketEntries = 256;  // worth a bucket
constexpr int64_t kMostChunks = 64;
constexpr int64_t kChunkBlocks = 16;
constexpr int64_t kFewEntries = 192;  // sorted by comparison
constexpr int kMostDigitBits = 11;

template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(std::max<int64_t>(count, 1))]);
}

inline int bits_of(uint64_t largest) {
  int bits = 0;
  while (bits < 64 && (largest >> bits) != 0) ++bits;
  return bits;
}

class SortedEntries {
 public:
  // `hash_block(block, indices)` gives the indices [elements][kBlock] of one block of samples;
  // `parallel(n, grain, body)` calls body(begin, end) on ranges of [0, n).
  template <class HashBlock, class Parallel>
  SortedEntries(const Lookup& lookup, bool keep_empty, const HashBlock& hash_block,
                const Parallel& parallel)
      : hashing_(lookup.hashing), is_private_(lookup.private_books) {
    const Hashing& h = hashing_;
    const int64_t elements = h.elements(), total = h.batch * elements;
    num_rows_ = static_cast<int64_t>(h.num_codewords) * (is_private_ ? h.num_hashes : 1);
    element_bits_ = bits_of(static_cast<uint64_t>(elements - 1));
    choose_buckets(total);

    blocks_ = (h.batch + kBlock - 1) / kBlock;
    chunks_ = std::clamp<int64_t>((blocks_ + kChunkBlocks - 1) / kChunkBlocks, 1, kMostChunks);
    indices_ = uninitialized<uint32_t>(blocks_ * elements * kBlock);
    places_.assign(static_cast<size_t>(chunks_ * buckets_), 0);
    each_chunk(parallel, [&](int64_t chunk) {
      for (int64_t block = first_block(chunk); block < first_block(chunk + 1); ++block)
        hash_block(block, indices_.get() + block * elements * kBlock);
      uint32_t* const counts = places_.data() + chunk * buckets_;
      each_entry(chunk, [&](int64_t row, int64_t, int64_t) { ++counts[row >> bits_]; });
    });
    // From counts to the first place of every chunk in every bucket.
    bucket_start_.assign(static_cast<size_t>(buckets_) + 1, 0);
    int64_t place = 0;
    for (int64_t bucket = 0; bucket < buckets_; ++bucket) {
      bucket_start_[static_cast<size_t>(bucket)] = place;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        uint32_t& count = places_[static_cast<size_t>(chunk * buckets_ + bucket)];
        const uint32_t here = count;
        count = static_cast<uint32_t>(place);
        place += here;
      }
    }
    bucket_start_.back() = place;

    first_ = uninitialized<uint64_t>(total + kEntriesAhead);
    second_ = uninitialized<uint64_t>(bits_ > 0 ? total + kEntriesAhead : 0);
    std::fill(first_.get() + total, first_.get() + total + kEntriesAhead, uint64_t{0});
    const uint64_t mask = (uint64_t{1} << bits_) - 1;
    each_chunk(parallel, [&](int64_t chunk) {
      uint32_t* const to = places_.data() + chunk * buckets_;
      each_entry(chunk, [&](int64_t row, int64_t sample, int64_t element) {
        const uint64_t entry =
            static_cast<uint64_t>(sample) << element_bits_ | static_cast<uint64_t>(element);
        first_[to[row >> bits_]++] = (static_cast<uint64_t>(row) & mask) << 32 | entry;
      });
    });
    std::vector<const uint64_t*> sorted(static_cast<size_t>(buckets_));
    parallel(buckets_, 16, [&](int64_t begin, int64_t end) {
      for (int64_t bucket = begin; bucket < end; ++bucket)
        sorted[static_cast<size_t>(bucket)] = sort_bucket(bucket);
    });
    make_parts(sorted, keep_empty);
  }

  int element_bits() const { return element_bits_; }
  std::vector<Part>& parts() { return parts_; }
  int64_t size() const { return hashing_.batch * hashing_.elements(); }
  int64_t in_tables() const {
    int64_t count = 0;
    for (const Part& part : parts_) count += part.table_rows != 0 ? part.count : 0;
    return count;
  }
  // Where a part with a table starts among all entries.
  int64_t place(const Part& part) const { return part.entries - first_.get(); }

  // body(place, sample, element) for all entries; those of a sample by one thread, the elements in
  // ascending order. The place is -1 where the bucket has no table.
  template <class Parallel, class Body>
  void each_place(const Parallel& parallel, const Body& body) const {
    std::vector<char> has_table(static_cast<size_t>(buckets_));
    for (int64_t bucket = 0; bucket < buckets_; ++bucket)
      has_table[static_cast<size_t>(bucket)] = takes_table(entries_in(bucket)) ? 1 : 0;
    each_chunk(parallel, [&](int64_t chunk) {
      // The places of a chunk are by now those of the next one.
      std::vector<uint32_t> at(static_cast<size_t>(buckets_));
      for (int64_t bucket = 0; bucket < buckets_; ++bucket)
        at[static_cast<size_t>(bucket)] =
            chunk == 0 ? static_cast<uint32_t>(bucket_start_[static_cast<size_t>(bucket)])
                       : places_[static_cast<size_t>((chunk - 1) * buckets_ + bucket)];
      each_entry(chunk, [&](int64_t row, int64_t sample, int64_t element) {
        const int64_t bucket = row >> bits_;
        body(has_table[bucket] != 0 ? int64_t{at[bucket]++} : -1, sample, element);
      });
    });
  }

  // Whether all entries of a part belong to one row that began in an earlier part.
  static bool only_continues(const Part& part) {
    return part.open_head && low(part.entries[0]) == low(part.entries[part.count - 1]);
  }
  // Rows that begin in a part.
  static int64_t count_rows(const Part& part) {
    if (part.table_rows != 0) {
      unsigned char used[kMostTableRows];
      std::fill(used, used + part.table_rows, 0);
      for (int64_t i = 0; i < part.count; ++i) used[low(part.entries[i])] = 1;
      return std::accumulate(used, used + part.table_rows, int64_t{0});
    }
    int64_t rows = part.count > 0 && !part.open_head ? 1 : 0;
    for (int64_t i = 1; i < part.count; ++i)
      rows += low(part.entries[i]) != low(part.entries[i - 1]) ? 1 : 0;
    return rows;
  }
  static uint64_t low(uint64_t entry) { return entry >> 32; }

 private:
  int64_t first_block(int64_t chunk) const { return chunk * blocks_ / chunks_; }
  template <class Parallel, class Body>
  void each_chunk(const Parallel& parallel, const Body& body) const {
    parallel(chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk);
    });
  }
  // body(row, sample, element) for every entry of a chunk.
  template <class Body>
  void each_entry(int64_t chunk, const Body& body) const {
    const Hashing& h = hashing_;
    const int64_t elements = h.elements(), n = static_cast<int64_t>(h.num_codewords);
    for (int64_t block = first_block(chunk); block < first_block(chunk + 1); ++block) {
      const uint32_t* index = indices_.get() + block * elements * kBlock;
      const int64_t first = block * kBlock, count = std::min(kBlock, h.batch - first);
      for (int64_t e = 0; e < elements; ++e, index += kBlock) {
        const int64_t book = is_private_ ? e / h.num_crosses * n : 0;
        for (int64_t lane = 0; lane < count; ++lane) body(book + index[lane], first + lane, e);
      }
    }
  }
  int64_t entries_in(int64_t bucket) const {
    return bucket_start_[static_cast<size_t>(bucket) + 1] -
           bucket_start_[static_cast<size_t>(bucket)];
  }

  void choose_buckets(int64_t total) {
    const int64_t wanted = std::clamp(total / kBucketEntries, kLeastBuckets, kMostBuckets);
    bits_ = 0;
    while (((num_rows_ - 1) >> bits_) >= wanted) ++bits_;
    buckets_ = ((num_rows_ - 1) >> bits_) + 1;
  }

  // Whether a bucket is summed in the order of the samples. What its entries need of the output's
  // gradient is then read in the order of the memory, and nothing has to be sorted.
  bool takes_table(int64_t count) const {
    const int64_t rows = int64_t{1} << bits_;
    return bits_ > 0 && rows <= kMostTableRows && count > kFewEntries && count * 8 >= rows &&
           count <= kMostPartEntries;
  }

  const uint64_t* sort_bucket(int64_t bucket) {
    const int64_t start = bucket_start_[static_cast<size_t>(bucket)], count = entries_in(bucket);
    uint64_t* from = first_.get() + start;
    if (bits_ == 0 || count < 2 || takes_table(count)) return from;
    // Entries ascend within every chunk's lanes only; all differ, so that any sort of the whole
    // numbers gives one order.
    if (count <= kFewEntries) {
      std::sort(from, from + count);
      return from;
    }
    uint64_t* to = second_.get() + start;
    const int passes = (bits_ + kMostDigitBits - 1) / kMostDigitBits;
    const int digit_bits = (bits_ + passes - 1) / passes;
    for (int shift = 0; shift < bits_; shift += digit_bits) {
      uint32_t counts[1 << kMostDigitBits];
      std::fill(counts, counts + (1 << digit_bits), 0);
      const auto digit = [&](uint64_t entry) {
        return (low(entry) >> shift) & ((1u << digit_bits) - 1);
      };
      for (int64_t i = 0; i < count; ++i) ++counts[digit(from[i])];
      uint32_t place = 0;
      for (int64_t d = 0; d < int64_t{1} << digit_bits; ++d) {
        const uint32_t here = counts[d];
        counts[d] = place;
        place += here;
      }
      for (int64_t i = 0; i < count; ++i) to[counts[digit(from[i])]++] = from[i];
      std::swap(from, to);
    }
    return from;
  }

  void make_parts(const std::vector<const uint64_t*>& sorted, bool keep_empty) {
    for (int64_t bucket = 0; bucket < buckets_; ++bucket) {
      const uint64_t* const entries = sorted[static_cast<size_t>(bucket)];
      const int64_t count = entries_in(bucket);
      if (count == 0 && !keep_empty) continue;
      const int64_t pieces =
          std::max<int64_t>(1, (count + kMostPartEntries - 1) / kMostPartEntries);
      const int64_t first_row = bucket << bits_;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = piece * count / pieces, end = (piece + 1) * count / pieces;
        Part part;
        part.entries = entries + begin;
        part.count = end - begin;
        if (takes_table(count)) part.table_rows = int64_t{1} << bits_;
        part.first_row = first_row;
        const auto row_after = [&](int64_t i) {
          return first_row + static_cast<int64_t>(low(entries[i])) + 1;
        };
        part.fill_from = piece == 0 ? first_row : row_after(begin - 1);
        part.fill_to = piece + 1 == pieces ? std::min(num_rows_, first_row + (int64_t{1} << bits_))
                                           : row_after(end - 1);
        part.open_head = piece > 0 && low(entries[begin]) == low(entries[begin - 1]);
        part.open_tail = piece + 1 < pieces && low(entries[end]) == low(entries[end - 1]);
        parts_.push_back(part);
      }
    }
  }

  const Hashing hashing_;
  const bool is_private_;
  int64_t num_rows_ = 0, buckets_ = 1, blocks_ = 0, chunks_ = 1;
  int bits_ = 0;  // rows of a bucket: 2^bits
  int element_bits_ = 0;
  std::unique_ptr<uint32_t[]> indices_;  // [blocks][elements][kBlock]
  std::vector<uint32_t> places_;         // [chunks][buckets]: where the next entry goes
  std::vector<int64_t> bucket_start_;
  std::unique_ptr<uint64_t[]> first_, second_;
  std::vector<Part> parts_;
};

}  // namespace multi_hash_lookup
}  // namespace mtlfast
