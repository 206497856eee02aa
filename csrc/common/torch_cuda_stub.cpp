// Stands in for libtorch_cuda.so while libmtlfast_cuda.so is linked; never installed, never run.
extern "C" __attribute__((visibility("default"))) int aoti_torch_get_current_cuda_stream(int,
                                                                                         void**) {
  return 1;
}
