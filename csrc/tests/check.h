// A test runner small enough to need no dependency, so that the sanitizers see nothing but our
// code.
//
//   #include "tests/check.h"
//   TEST(offsets_start_at_zero) {
//     CHECK(offsets[0] == 0);
//     CHECK_CLOSE(rstd, 1.0 / std::sqrt(var + eps), 1e-6);
//   }
//
// Every csrc/tests/*.cpp is linked with the torch-free kernels of all instruction sets into one
// program; every csrc/tests/torch/*.cpp with the whole library and libtorch into another. Both run
// once per instruction set that this CPU has, which active_isa() tells.
#pragma once

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace mtlfast::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::printf("  %s:%d: %s\n", file, line, what.c_str());
}

inline void check_close(const char* file, int line, const char* text, double found, double expected,
                        double tolerance) {
  // Written so that a NaN on either side alone fails.
  const bool both_nan = std::isnan(found) && std::isnan(expected);
  if (both_nan || found == expected || std::fabs(found - expected) <= tolerance) return;
  fail(file, line,
       std::string(text) + ": expected " + std::to_string(expected) + ", found " +
           std::to_string(found));
}

// Deterministic and the same on every platform, unlike the distributions of <random>.
class Random {
 public:
  explicit Random(unsigned long long seed) : state_(seed) {}

  unsigned long long bits() {
    unsigned long long z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Uniform in [-1, 1).
  float value() { return static_cast<float>(bits() >> 40) * (2.0f / 16777216.0f) - 1.0f; }
  // Uniform in [low, high].
  long long integer(long long low, long long high) {
    const auto span = static_cast<unsigned long long>(high - low) + 1;
    return low + static_cast<long long>(bits() % span);
  }

 private:
  unsigned long long state_;
};

}  // namespace mtlfast::test

#define TEST(name)                                                                     \
  static void test_##name();                                                           \
  static const ::mtlfast::test::Registration registration_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) ::mtlfast::test::fail(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

#define CHECK_CLOSE(found, expected, tolerance)                                        \
  ::mtlfast::test::check_close(__FILE__, __LINE__, #found, static_cast<double>(found), \
                               static_cast<double>(expected), static_cast<double>(tolerance))

// The statement throws a std::exception.
#define CHECK_THROWS(statement)                                                              \
  do {                                                                                       \
    bool mtlfast_thrown = false;                                                             \
    try {                                                                                    \
      statement;                                                                             \
    } catch (const std::exception&) {                                                        \
      mtlfast_thrown = true;                                                                 \
    }                                                                                        \
    if (!mtlfast_thrown) ::mtlfast::test::fail(__FILE__, __LINE__, "no error: " #statement); \
  } while (false)
