#include <cstring>

#include "common/isa.h"
#include "tests/check.h"

using mtlfast::active_isa;
using mtlfast::Isa;
using mtlfast::set_isa_override;

namespace {

// Puts back what was active, so that the order of the tests does not matter.
struct KeepIsa {
  Isa before = active_isa();
  ~KeepIsa() { set_isa_override(mtlfast::isa_name(before)); }
};

}  // namespace

TEST(isa_portable_always_runs) {
  KeepIsa keep;
  CHECK(set_isa_override("portable"));
  CHECK(active_isa() == Isa::portable);
  CHECK(std::strncmp(mtlfast_compiled_isas(), "portable", 8) == 0);
}

TEST(isa_unknown_name_changes_nothing) {
  KeepIsa keep;
  const Isa before = active_isa();
  CHECK(!set_isa_override("sse9"));
  CHECK(!set_isa_override("avx"));
  CHECK(active_isa() == before);
  CHECK(mtlfast_set_cpu_capability("sse9") == 0);
}

TEST(isa_detected_is_compiled_and_runs) {
  KeepIsa keep;
  CHECK(std::strstr(mtlfast_compiled_isas(), mtlfast_cpu_capability_detected()) != nullptr);
  CHECK(mtlfast_set_cpu_capability(mtlfast_cpu_capability_detected()) == 1);
  CHECK(std::strcmp(mtlfast_cpu_capability(), mtlfast_cpu_capability_detected()) == 0);
}

TEST(isa_active_never_exceeds_detected) {
  KeepIsa keep;
  for (const char* name : {"portable", "avx2", "avx512", "avx512_bf16"}) {
    if (!set_isa_override(name)) continue;
    CHECK(std::strcmp(mtlfast_cpu_capability(), name) == 0);
  }
  CHECK(set_isa_override("auto"));
  CHECK(set_isa_override(""));
  CHECK(set_isa_override(nullptr));
}
