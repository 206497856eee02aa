// Hashing and sorting of multi-hash lookups without torch: published check values, every
// instruction set against plain integers, and the order of sorted entries.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/hash.h"
#include "common/isa.h"
#include "multi_hash_lookup/crosses.h"
#include "multi_hash_lookup/numpy_indices.h"
#include "multi_hash_lookup/problem.h"
#include "multi_hash_lookup/sorted_entries.h"
#include "tests/check.h"

namespace mtlfast {
MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_MULTI_HASH_LOOKUP)
}

using namespace mtlfast;
using namespace mtlfast::multi_hash_lookup;
using mtlfast::test::Random;

namespace {

uint64_t pair_hash(int s, uint64_t f1, uint64_t id1, uint64_t f2, uint64_t id2) {
  const uint64_t first = hash::cross(hash::seed(static_cast<uint64_t>(s)), hash::key(f1, id1));
  return hash::cross(first, hash::key(f2, id2));
}

// A hashing problem that owns what it points to.
struct Example {
  Crosses crosses;
  std::vector<int64_t> ids;
  Lookup lookup;

  Example(int64_t batch, int64_t num_fields, int64_t order, int64_t vocabulary, uint64_t n,
          int64_t num_hashes, bool siphash)
      : crosses(make_crosses(num_fields, order, {})) {
    Random random(static_cast<unsigned long long>(batch * 7 + num_fields));
    for (int64_t i = 0; i < batch * num_fields; ++i) ids.push_back(random.integer(0, vocabulary));
    Hashing& h = lookup.hashing;
    h.order = order;
    h.num_fields = num_fields;
    h.num_crosses = crosses.size();
    h.num_groups = crosses.groups();
    h.prefix = crosses.prefix.data();
    h.begin = crosses.begin.data();
    h.last = crosses.last.data();
    h.ids = ids.data();
    h.batch = batch;
    h.stride_sample = num_fields;
    h.stride_field = 1;
    h.num_hashes = num_hashes;
    h.num_codewords = n;
    h.siphash = siphash;
  }
  Example(const Example&) = delete;

  int64_t blocks() const { return (lookup.hashing.batch + kBlock - 1) / kBlock; }
  std::vector<uint32_t> block(int64_t i) const {
    const Hashing& h = lookup.hashing;
    std::vector<uint32_t> indices(static_cast<size_t>(h.elements() * kBlock));
    std::vector<uint64_t> scratch(static_cast<size_t>(hash_scratch(h) / 8 + 1));
    MTLFAST_SELECT_ISA(multi_hash_block)(h, i, indices.data(), scratch.data());
    return indices;
  }
};

}  // namespace

TEST(hash_check_values) {
  CHECK(hash::seed(0) == 0xe220a8397b1dcdafull);
  CHECK(hash::seed(1) == 0x6e789e6aa1b965f4ull);
  CHECK(hash::seed(2) == 0x06c45d188009454full);
  CHECK(hash::seed(3) == 0xf88bb8a8724c81ecull);
  const uint64_t hashed[] = {0xd73afd142f1c7cd5ull, 0xc46b7ca5c30c4da9ull, 0x455f9751032f17b0ull};
  const uint64_t index[] = {840743, 767265, 270989};
  const uint64_t other[] = {257854, 593718, 41935};
  const uint64_t large[] = {291890, 535365, 107177};
  for (int s = 0; s < 3; ++s) {
    CHECK(pair_hash(s, 0, 5, 1, 7) == hashed[s]);
    CHECK(hash::index(hashed[s], 1000000) == index[s]);
    CHECK(hash::index(pair_hash(s, 3, 12345, 16, 987654), 1000000) == other[s]);
    CHECK(hash::index(pair_hash(s, 0, (1ull << 40) + 3, 5, ~0ull >> 1), 1000000) == large[s]);
  }
  CHECK(hash::index(hashed[0], 0x7fffffff) == 1805483657);
  CHECK(hash::index(hashed[1], 0x7fffffff) == 1647689297);
  CHECK(hash::index(~0ull, 0xffffffff) == 0xfffffffe);
  CHECK(hash::index(~0ull, 1) == 0);
}

TEST(siphash_check_values) {
  unsigned char message[15], key[16];
  for (int i = 0; i < 16; ++i) key[i] = static_cast<unsigned char>(i);
  for (int i = 0; i < 15; ++i) message[i] = static_cast<unsigned char>(i);
  hash::SipHashKey k;
  std::memcpy(&k, key, sizeof k);  // little endian, as every machine here
  CHECK(hash::siphash(message, 15, k) == 0xa129ca6149be45e5ull);
  const hash::SipHashKey short_key{98765, 132};
  CHECK(hash::siphash(reinterpret_cast<const unsigned char*>("a"), 1, short_key) ==
        7157389809176466784ull);
  CHECK(hash::siphash(reinterpret_cast<const unsigned char*>("b"), 1, short_key) ==
        15805638358933211562ull);
  unsigned char text[hash::kKeyTextLength];
  const int length = hash::write_key_text(16, 9223372036854775807ull, text);
  CHECK(std::string(text, text + length) == "16_9223372036854775807");
  CHECK(std::string(text, text + hash::write_key_text(0, 0, text)) == "0_0");
}

TEST(hashed_blocks_equal_single_samples) {
  for (const bool siphash : {false, true})
    for (const int64_t order : {2, 3})
      for (const int64_t batch : {1, 7, 8, 9, 20}) {
        const Example e(batch, 6, order, 1ll << 62, 0xfffffffb, 3, siphash);
        const Hashing& h = e.lookup.hashing;
        std::vector<int64_t> expected(static_cast<size_t>(h.elements()));
        for (int64_t b = 0; b < batch; ++b) {
          sample_indices(
              e.crosses, [&](int64_t f) { return e.ids[static_cast<size_t>(b * 6 + f)]; },
              h.num_codewords, h.num_hashes, 0, siphash, expected.data());
          const std::vector<uint32_t> found = e.block(b / kBlock);
          for (int64_t s = 0; s < h.num_hashes; ++s)
            for (int64_t p = 0; p < h.num_crosses; ++p)
              CHECK(found[static_cast<size_t>((s * h.num_crosses + p) * kBlock + b % kBlock)] ==
                    expected[static_cast<size_t>(p * h.num_hashes + s)]);
        }
      }
}

TEST(entries_are_in_order_and_complete) {
  struct Shape {
    int64_t batch, vocabulary, book;
    uint64_t n;
  };
  // One row; fewer rows than buckets; tables; sorted by one digit, by two; private books; hot rows.
  int64_t with_table = 0, with_rows_sorted = 0;
  for (const Shape& shape :
       {Shape{900, 3, 0, 1}, Shape{900, 50, 0, 70}, Shape{700, 1000, 0, 100000},
        Shape{300, 1000, 0, 0xfffffff0}, Shape{300, 1000, 1, 50000}, Shape{2000, 0, 0, 100000},
        Shape{1, 1000, 0, 1000}}) {
    Example e(shape.batch, 7, 2, shape.vocabulary, shape.n, 3, false);
    e.lookup.book_stride = shape.book;
    e.lookup.private_books = shape.book != 0;
    const Hashing& h = e.lookup.hashing;
    const auto hash_block = [&](int64_t block, uint32_t* to) {
      const std::vector<uint32_t> indices = e.block(block);
      std::copy(indices.begin(), indices.end(), to);
    };
    const auto serial = [](int64_t n, int64_t, const auto& body) { body(int64_t{0}, n); };
    SortedEntries sorted(e.lookup, true, hash_block, serial);
    const uint64_t element_mask = (uint64_t{1} << sorted.element_bits()) - 1;
    const int64_t total_rows = static_cast<int64_t>(shape.n) * (shape.book != 0 ? h.num_hashes : 1);

    std::vector<int> seen(static_cast<size_t>(h.batch * h.elements()), 0);
    int64_t before = -1, filled = 0;
    bool was_open = false;
    for (const Part& part : sorted.parts()) {
      CHECK(part.count <= kMostPartEntries);
      CHECK(part.fill_from == filled);
      CHECK(part.open_head == was_open);
      CHECK(part.table_rows == 0 || (!part.open_head && !part.open_tail));
      ++(part.table_rows != 0 ? with_table : with_rows_sorted);
      int64_t block_before = 0;
      for (int64_t i = 0; i < part.count; ++i) {
        const int64_t row = part.first_row + static_cast<int64_t>(part.entries[i] >> 32);
        CHECK(row < part.fill_to);
        CHECK(part.table_rows == 0 || row < part.first_row + part.table_rows);
        if (part.table_rows == 0) {
          CHECK(row >= before);
          CHECK(i > 0 || (row == before) == part.open_head);
          before = row;
        }
        const uint64_t entry = part.entries[i] & 0xffffffff;
        const int64_t element = static_cast<int64_t>(entry & element_mask);
        const int64_t sample = static_cast<int64_t>(entry >> sorted.element_bits());
        CHECK(part.table_rows == 0 || sample / kBlock >= block_before);
        block_before = sample / kBlock;
        ++seen[static_cast<size_t>(sample * h.elements() + element)];
        const uint32_t index =
            e.block(sample / kBlock)[static_cast<size_t>(element * kBlock + sample % kBlock)];
        const int64_t book = shape.book != 0 ? element / h.num_crosses : 0;
        CHECK(row == book * static_cast<int64_t>(shape.n) + index);
        if (shape.batch > 300) i += 90;  // hashing a block for every entry takes its time
      }
      if (part.table_rows != 0)
        before = part.fill_to - 1;
      else if (part.count > 0)
        before = part.first_row + static_cast<int64_t>(part.entries[part.count - 1] >> 32);
      was_open = part.open_tail;
      filled = part.fill_to;
    }
    CHECK(filled == total_rows);
    CHECK(!was_open);
    std::vector<const Part*> tables;
    for (const Part& part : sorted.parts())
      if (part.table_rows != 0) tables.push_back(&part);
    int64_t found = 0, entries = 0;
    sorted.each_place(serial, [&](int64_t place, int64_t sample, int64_t element) {
      ++entries;
      if (place < 0) return;
      ++found;
      const auto after =
          std::upper_bound(tables.begin(), tables.end(), place,
                           [&](int64_t p, const Part* part) { return p < sorted.place(*part); });
      const Part& part = **(after - 1);
      const uint64_t entry = part.entries[place - sorted.place(part)] & 0xffffffff;
      CHECK(entry == (static_cast<uint64_t>(sample) << sorted.element_bits() |
                      static_cast<uint64_t>(element)));
    });
    CHECK(found == sorted.in_tables());
    CHECK(entries == sorted.size());
    if (shape.batch <= 300)
      CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
  }
  CHECK(with_table > 0 && with_rows_sorted > 0);
}

TEST(wrong_crosses_are_refused) {
  CHECK_THROWS(make_crosses(5, 4, {}));
  CHECK_THROWS(make_crosses(1, 2, {}));
  CHECK_THROWS(make_crosses(5, 3, std::vector<int64_t>{1}));
  CHECK_THROWS(make_crosses(5, 2, std::vector<int64_t>{}));
  CHECK_THROWS(make_crosses(5, 2, std::vector<int64_t>{5}));
  CHECK(make_crosses(5, 2, std::vector<int64_t>{1}).size() == 4);
  CHECK(make_crosses(5, 3, {}).size() == 10);
}
