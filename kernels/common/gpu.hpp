// What the GPU bindings share: where a call runs, and tensors as the launchers want them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <initializer_list>

namespace workbench {

using at::Tensor;

// The device of a call, until the end of the scope, and its current stream. Nothing here waits for
// the GPU, so that a call can be captured in a CUDA graph.
struct Gpu {
  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;
  int multiprocessors = 0, shared_bytes = 0;

  explicit Gpu(const Tensor& x) : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream()) {
    const int device = x.get_device();
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
};

// `Type` of device.cuh
inline int64_t type_of(const Tensor& x) {
  if (x.scalar_type() == at::kFloat) return 0;
  if (x.scalar_type() == at::kBFloat16) return 1;
  TORCH_CHECK(x.scalar_type() == at::kHalf, "got tensors of type ", x.scalar_type(),
              ", expected float32, bfloat16 or float16");
  return 2;
}

inline Tensor fresh(at::IntArrayRef shape, const Tensor& like) {
  return at::empty(shape, like.options());
}
inline Tensor fresh_like(const Tensor& x) { return fresh(x.sizes(), x); }
inline Tensor scratch(int64_t bytes, const Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// whether rows of these widths begin at multiples of 16 bytes in all of these tensors
inline bool vectors(std::initializer_list<int64_t> widths, std::initializer_list<Tensor> tensors) {
  for (const auto& x : tensors) {
    if (reinterpret_cast<uintptr_t>(x.data_ptr()) % 16) return false;
    for (int64_t width : widths)
      if (width * x.element_size() % 16) return false;
  }
  return true;
}

inline void check(const char* op, const char* wrong) {
  TORCH_CHECK(wrong == nullptr, op, " on a GPU: ", wrong);
}

}  // namespace workbench
