#include "common/isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mtlfast {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
constexpr int kCount = 4;

bool compiled(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
#ifdef MTLFAST_HAS_AVX2
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef MTLFAST_HAS_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx512_bf16:
#ifdef MTLFAST_HAS_AVX512_BF16
      return true;
#else
      return false;
#endif
  }
  return false;
}

// __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
bool supported(Isa isa) {
#if defined(__x86_64__) || defined(__i386__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

Isa detect() {
  for (int i = kCount - 1; i > 0; --i) {
    const Isa isa = static_cast<Isa>(i);
    if (compiled(isa) && supported(isa)) return isa;
  }
  return Isa::portable;
}

Isa detected() {
  static const Isa isa = detect();
  return isa;
}

bool is_auto(const char* name) {
  return name == nullptr || name[0] == '\0' || std::strcmp(name, "auto") == 0;
}

// The instruction set called `name`, or -1 where it is unknown or cannot run here.
int runnable(const char* name) {
  for (int i = 0; i < kCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::strcmp(name, kNames[i]) == 0) return compiled(isa) && supported(isa) ? i : -1;
  }
  return -1;
}

int from_environment() {
  const char* name = std::getenv("MTLFAST_CPU_CAPABILITY");
  if (is_auto(name)) return static_cast<int>(detected());
  const int isa = runnable(name);
  if (isa >= 0) return isa;
  std::fprintf(stderr,
               "mtlfast: MTLFAST_CPU_CAPABILITY=%s is unknown or cannot run here; using %s\n", name,
               isa_name(detected()));
  return static_cast<int>(detected());
}

std::atomic<int>& active() {
  static std::atomic<int> isa{from_environment()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

Isa active_isa() {
  return static_cast<Isa>(active().load(std::memory_order_relaxed));
}

bool set_isa_override(const char* name) {
  const int isa = is_auto(name) ? from_environment() : runnable(name);
  if (isa < 0) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace mtlfast

const char* mtlfast_cpu_capability() {
  return mtlfast::isa_name(mtlfast::active_isa());
}

const char* mtlfast_cpu_capability_detected() {
  return mtlfast::isa_name(mtlfast::detected());
}

const char* mtlfast_compiled_isas() {
  static char text[64];
  static const bool once = [] {
    for (int i = 0; i < mtlfast::kCount; ++i) {
      if (!mtlfast::compiled(static_cast<mtlfast::Isa>(i))) continue;
      if (text[0] != '\0') std::strcat(text, ",");
      std::strcat(text, mtlfast::kNames[i]);
    }
    return true;
  }();
  (void)once;
  return text;
}

int mtlfast_set_cpu_capability(const char* name) {
  return mtlfast::set_isa_override(name) ? 1 : 0;
}
