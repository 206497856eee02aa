// Runs every TEST that was linked in; an argument runs only those whose name contains it.
#include <cstring>

#include "common/isa.h"
#include "tests/check.h"

namespace {
constexpr int kNothingMatched = 5;
}

int main(int argc, char** argv) {
  int run = 0;
  int failed = 0;
  for (const auto& test : mtlfast::test::cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = mtlfast::test::failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      mtlfast::test::fail(test.name, 0, std::string("uncaught: ") + error.what());
    }
    ++run;
    if (mtlfast::test::failures() != before) {
      ++failed;
      std::printf("FAILED %s\n", test.name);
    }
  }
  std::printf("%s: %d passed, %d failed\n", mtlfast_cpu_capability(), run - failed, failed);
  if (run == 0) return kNothingMatched;
  return failed == 0 ? 0 : 1;
}
