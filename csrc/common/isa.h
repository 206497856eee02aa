// Which instruction set the kernels run on: found once at run time, and overridable.
#pragma once

namespace mtlfast {

// In the order of preference: a later one is a superset of the earlier ones.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// The instruction set in use: the best one that was compiled and that this CPU and its operating
// system support, unless the override below or the environment variable MTLFAST_CPU_CAPABILITY
// names a lower one.
Isa active_isa();

// `name` as in the enum; nullptr, "" and "auto" return to the choice described above. False, and no
// change, where the name is unknown, was not compiled, or cannot run on this CPU.
bool set_isa_override(const char* name);

const char* isa_name(Isa isa);

}  // namespace mtlfast

// MTLFAST_SELECT_ISA(kernel) is a pointer to mtlfast::<active isa>::kernel; the kernel must be
// declared in the namespace of every compiled instruction set, which MTLFAST_FOR_EACH_ISA helps
// with:
//
//   #define DECLARE(isa) namespace isa { void kernel(const Args&); }
//   namespace mtlfast { MTLFAST_FOR_EACH_ISA(DECLARE) }
//   ...
//   MTLFAST_SELECT_ISA(kernel)(args);
//
// The build defines MTLFAST_HAS_<ISA> for each instruction set it compiles besides portable.
#ifdef MTLFAST_HAS_AVX2
#define MTLFAST_IF_AVX2(X) X(avx2)
#define MTLFAST_CASE_AVX2(f) \
  : ::mtlfast::active_isa() == ::mtlfast::Isa::avx2 ? &::mtlfast::avx2::f
#else
#define MTLFAST_IF_AVX2(X)
#define MTLFAST_CASE_AVX2(f)
#endif
#ifdef MTLFAST_HAS_AVX512
#define MTLFAST_IF_AVX512(X) X(avx512)
#define MTLFAST_CASE_AVX512(f) \
  : ::mtlfast::active_isa() == ::mtlfast::Isa::avx512 ? &::mtlfast::avx512::f
#else
#define MTLFAST_IF_AVX512(X)
#define MTLFAST_CASE_AVX512(f)
#endif
#ifdef MTLFAST_HAS_AVX512_BF16
#define MTLFAST_IF_AVX512_BF16(X) X(avx512_bf16)
#define MTLFAST_CASE_AVX512_BF16(f) \
  : ::mtlfast::active_isa() == ::mtlfast::Isa::avx512_bf16 ? &::mtlfast::avx512_bf16::f
#else
#define MTLFAST_IF_AVX512_BF16(X)
#define MTLFAST_CASE_AVX512_BF16(f)
#endif

#define MTLFAST_FOR_EACH_ISA(X) \
  X(portable) MTLFAST_IF_AVX2(X) MTLFAST_IF_AVX512(X) MTLFAST_IF_AVX512_BF16(X)

#define MTLFAST_SELECT_ISA(f)                                                \
  (::mtlfast::active_isa() == ::mtlfast::Isa::portable                       \
       ? &::mtlfast::portable::f MTLFAST_CASE_AVX2(f) MTLFAST_CASE_AVX512(f) \
             MTLFAST_CASE_AVX512_BF16(f)                                     \
       : &::mtlfast::portable::f)

// What mtlfast._C and C++ servers call; C linkage, so that no name mangling is part of the
// contract.
#define MTLFAST_EXPORT extern "C" __attribute__((visibility("default")))

MTLFAST_EXPORT const char* mtlfast_cpu_capability();              // the one in use
MTLFAST_EXPORT const char* mtlfast_cpu_capability_detected();     // the best this CPU can run
MTLFAST_EXPORT const char* mtlfast_compiled_isas();               // comma-separated, lowest first
MTLFAST_EXPORT int mtlfast_set_cpu_capability(const char* name);  // 1 where it took effect, else 0
