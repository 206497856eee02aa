// The hash functions of multi-hash codebooks, for host and device; integers only, so that every
// backend names the same codewords.
//
//   key(f, id) = mix64(id + (f + 1) GOLD),  seed(s) = mix64((s + 1) GOLD)
//   H = seed(s), then H = mix64(H ^ key) for every field of the cross in order
//   index = (upper 32 bits of H) * num_codewords >> 32
//
// The functions take one uint64_t, or a vector of them. They are `static`: a copy that was compiled
// for a wider instruction set must not be shared with code for a narrower one.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define MTLFAST_HASH_FUNCTION static __host__ __device__ __forceinline__
#else
#define MTLFAST_HASH_FUNCTION static inline __attribute__((always_inline))
#endif

namespace mtlfast {
namespace hash {

constexpr uint64_t kGold = 0x9E3779B97F4A7C15ull;

template <class Word>
MTLFAST_HASH_FUNCTION Word mix64(Word z) {
  z ^= z >> 30;
  z *= uint64_t{0xBF58476D1CE4E5B9ull};
  z ^= z >> 27;
  z *= uint64_t{0x94D049BB133111EBull};
  z ^= z >> 31;
  return z;
}

MTLFAST_HASH_FUNCTION uint64_t seed(uint64_t hash_function) {
  return mix64((hash_function + 1) * kGold);
}

// `id` of field number `field`.
template <class Word>
MTLFAST_HASH_FUNCTION Word key(uint64_t field, Word id) {
  return mix64<Word>(id + (field + 1) * kGold);
}

// The hash of a cross with one more field.
template <class Word>
MTLFAST_HASH_FUNCTION Word cross(Word hashed, Word key) {
  return mix64<Word>(hashed ^ key);
}

// In [0, num_codewords), 1 <= num_codewords < 2^32.
template <class Word>
MTLFAST_HASH_FUNCTION Word index(Word hashed, uint64_t num_codewords) {
  return ((hashed >> 32) * num_codewords) >> 32;
}

// ---- SipHash-2-4 (Aumasson and Bernstein, 2012) of texts like "0_5_1_7" ----

constexpr int kSipHashFunctions = 11;

struct SipHashKey {
  uint64_t k0, k1;
};

// The keys of MemoNet's published code.
MTLFAST_HASH_FUNCTION SipHashKey siphash_key(int hash_function) {
  constexpr SipHashKey keys[kSipHashFunctions] = {
      {7744, 1822}, {423, 6649},  {3588, 8319}, {8220, 7283}, {1965, 9209}, {4472, 1935},
      {3987, 4403}, {2379, 2870}, {5638, 2954}, {2211, 2},    {6075, 9105}};
  return keys[hash_function];
}

MTLFAST_HASH_FUNCTION uint64_t rotate_left(uint64_t x, int bits) {
  return (x << bits) | (x >> (64 - bits));
}

MTLFAST_HASH_FUNCTION void siphash_round(uint64_t v[4]) {
  v[0] += v[1];
  v[1] = rotate_left(v[1], 13) ^ v[0];
  v[0] = rotate_left(v[0], 32);
  v[2] += v[3];
  v[3] = rotate_left(v[3], 16) ^ v[2];
  v[0] += v[3];
  v[3] = rotate_left(v[3], 21) ^ v[0];
  v[2] += v[1];
  v[1] = rotate_left(v[1], 17) ^ v[2];
  v[2] = rotate_left(v[2], 32);
}

MTLFAST_HASH_FUNCTION uint64_t siphash(const unsigned char* text, int64_t length, SipHashKey key) {
  uint64_t v[4] = {key.k0 ^ 0x736F6D6570736575ull, key.k1 ^ 0x646F72616E646F6Dull,
                   key.k0 ^ 0x6C7967656E657261ull, key.k1 ^ 0x7465646279746573ull};
  for (int64_t at = 0; at <= length; at += 8) {
    uint64_t word = 0;
    for (int i = 0; i < 8 && at + i < length; ++i) word |= uint64_t{text[at + i]} << (8 * i);
    if (at + 8 > length) word |= static_cast<uint64_t>(length) << 56;
    v[3] ^= word;
    siphash_round(v);
    siphash_round(v);
    v[0] ^= word;
  }
  v[2] ^= 0xFF;
  for (int i = 0; i < 4; ++i) siphash_round(v);
  return v[0] ^ v[1] ^ v[2] ^ v[3];
}

// Writes "<field>_<id>" and returns its length, at most kKeyTextLength.
constexpr int kKeyTextLength = 40;
MTLFAST_HASH_FUNCTION int write_key_text(uint64_t field, uint64_t id, unsigned char* text) {
  unsigned char reversed[kKeyTextLength];
  int length = 0;
  do {
    reversed[length++] = static_cast<unsigned char>('0' + id % 10);
    id /= 10;
  } while (id != 0);
  reversed[length++] = '_';
  do {
    reversed[length++] = static_cast<unsigned char>('0' + field % 10);
    field /= 10;
  } while (field != 0);
  for (int i = 0; i < length; ++i) text[i] = reversed[length - 1 - i];
  return length;
}

}  // namespace hash
}  // namespace mtlfast
