// The number of a cross among all, and back, for host and device: crosses are in lexicographic
// order of their fields (struct Crosses lists them).
#pragma once

#include <cstdint>

#include "../common/hash.h"

namespace mtlfast {
namespace multi_hash_lookup {

constexpr int kMostFields = 1024;

// Which crosses there are: all of `order` fields, or the pairs with at least one key field.
struct Fields {
  int order = 2, count = 0, num_keys = 0;
  bool all = true;
  uint32_t keys[kMostFields / 32] = {};  // a bit for every key field
  int16_t below[kMostFields / 32] = {};  // key fields before those of a word
};

MTLFAST_HASH_FUNCTION bool is_key(const Fields& f, int field) {
  return f.all || ((f.keys[field / 32] >> (field % 32)) & 1u) != 0;
}

// How many key fields are below x, 0 <= x < count.
MTLFAST_HASH_FUNCTION int keys_below(const Fields& f, int x) {
  const uint32_t lower = f.keys[x / 32] & ((1u << (x % 32)) - 1u);
#if defined(__CUDA_ARCH__)
  return f.below[x / 32] + __popc(lower);
#else
  return f.below[x / 32] + __builtin_popcount(lower);
#endif
}

// Pairs of n things whose first one is below i.
MTLFAST_HASH_FUNCTION int pairs_before(int i, int n) {
  return i * (2 * n - i - 1) / 2;
}

MTLFAST_HASH_FUNCTION int triples_of(int n) {
  return n * (n - 1) * (n - 2) / 6;
}

// The number of the first cross whose first field is i.
MTLFAST_HASH_FUNCTION int first_cross_of(const Fields& f, int i) {
  if (f.order == 3) return triples_of(f.count) - triples_of(f.count - i);
  const int pairs = pairs_before(i, f.count);
  // Less the pairs of two fields that are no keys.
  return f.all ? pairs : pairs - pairs_before(i - keys_below(f, i), f.count - f.num_keys);
}

MTLFAST_HASH_FUNCTION int number_of_pair(const Fields& f, int i, int j) {
  const int between = is_key(f, i) ? j - i - 1 : keys_below(f, j) - keys_below(f, i);
  return first_cross_of(f, i) + between;
}

MTLFAST_HASH_FUNCTION int number_of_triple(const Fields& f, int i, int j, int k) {
  return first_cross_of(f, i) + pairs_before(j - i - 1, f.count - i - 1) + k - j - 1;
}

// The last x in [0, n) with start(x) <= value; start ascends, start(0) <= value.
template <class Start>
MTLFAST_HASH_FUNCTION int last_not_above(int value, int n, const Start& start) {
  int low = 0, high = n - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (start(middle) <= value)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The fields of pair `number` of n things, in order.
MTLFAST_HASH_FUNCTION void pair_of(int number, int n, int& i, int& j) {
  i = last_not_above(number, n, [n](int x) { return pairs_before(x, n); });
  j = i + 1 + number - pairs_before(i, n);
}

// The fields of cross `number`; of pairs, the third repeats the second.
MTLFAST_HASH_FUNCTION void fields_of(const Fields& f, int number, int& i, int& j, int& k) {
  i = last_not_above(number, f.count, [&f](int x) { return first_cross_of(f, x); });
  const int rest = number - first_cross_of(f, i);
  if (f.order == 3) {
    pair_of(rest, f.count - i - 1, j, k);
    j += i + 1;
    k += i + 1;
    return;
  }
  j = i + 1 + rest;
  if (!is_key(f, i)) {
    const int wanted = keys_below(f, i) + rest;
    j = last_not_above(wanted, f.count, [&f](int x) { return keys_below(f, x); });
  }
  k = j;
}

}  // namespace multi_hash_lookup
}  // namespace mtlfast
