// What the CUDA sources share: numbers in memory, launches, streams.
//
// With MTLFAST_EMULATE_CUDA the same sources compile as plain C++ and run on CPU tensors, one
// thread of a block at a time, so that they can be tested without a GPU.
#pragma once

#ifdef MTLFAST_EMULATE_CUDA
#include "cuda_emulation.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mtlfast {
namespace cuda {

// ---- numbers ----

__device__ inline float bits_to_float(uint32_t bits) {
#ifdef MTLFAST_EMULATE_CUDA
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#else
  return __uint_as_float(bits);
#endif
}

__device__ inline uint32_t float_to_bits(float value) {
#ifdef MTLFAST_EMULATE_CUDA
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

__device__ inline float bf16_to_float(uint32_t x) {
  return bits_to_float(x << 16);
}

// To nearest even; NaN stays NaN.
__device__ inline uint32_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

__device__ inline float f16_to_float(uint32_t x) {
#ifdef MTLFAST_EMULATE_CUDA
  return portable::f16_to_float(static_cast<uint16_t>(x));
#else
  return __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
#endif
}

__device__ inline uint32_t float_to_f16(float x) {
#ifdef MTLFAST_EMULATE_CUDA
  return portable::float_to_f16(x);
#else
  return __half_as_ushort(__float2half_rn(x));
#endif
}

// ---- launches ----

#ifdef MTLFAST_EMULATE_CUDA
constexpr bool kEmulated = true;
#define MTLFAST_CUDA_LIBRARY mtlfast_emulated
#define MTLFAST_CUDA_KEY CPU
#else
constexpr bool kEmulated = false;
#define MTLFAST_CUDA_LIBRARY mtlfast
#define MTLFAST_CUDA_KEY CUDA
#endif

// The device of a tensor made current, and its current stream.
class Stream {
 public:
#ifdef MTLFAST_EMULATE_CUDA
  explicit Stream(const torch::stable::Tensor&) {}
#else
  explicit Stream(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
#endif

  // `blocks` blocks of `threads` threads run kernel(params) on the stream; waits for nothing.
  template <class Params>
  void launch(void (*kernel)(Params), int64_t blocks, int threads, const Params& params) const {
    if (blocks == 0) return;
    if (blocks > INT32_MAX) throw std::runtime_error("mtlfast: expected fewer rows for one launch");
#ifdef MTLFAST_EMULATE_CUDA
    emulation::run(blocks, threads, [&] { kernel(params); });
#else
    void* arguments[] = {const_cast<Params*>(&params)};
    const cudaError_t error = cudaLaunchKernel(
        reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
        dim3(static_cast<unsigned>(threads)), arguments, 0, static_cast<cudaStream_t>(stream_));
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("CUDA launch: ") + cudaGetErrorString(error));
#endif
  }

 private:
#ifndef MTLFAST_EMULATE_CUDA
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
#endif
};

}  // namespace cuda
}  // namespace mtlfast
