// DPFP for tensors on a GPU: checks, memory, and calls of the launchers of dpfp.cu.
#include <vector>

#include "gpu.hpp"

extern "C" {
const char* dpfp_cuda_forward(const void* x, void* features, int64_t type, int64_t rows, int64_t K,
                              int64_t nu, int64_t normalise, cudaStream_t stream);
const char* dpfp_cuda_backward(const void* g, const void* x, void* dx, int64_t type, int64_t rows,
                               int64_t K, int64_t nu, int64_t normalise, cudaStream_t stream);
}

namespace workbench {
namespace {

void check_shifts(const Tensor& x, int64_t nu) {
  TORCH_CHECK(x.dim() > 0 && 0 < nu && nu < 2 * x.size(-1), "dpfp on a GPU: got ", nu,
              " shifts of heads of shape ", x.sizes(), ", expected 1 to twice their width less one");
}

// Contiguous, and where 4 bytes at a time can be read: part of a bfloat16 tensor may begin between.
Tensor in_pieces(const Tensor& x_) {
  const Tensor x = x_.contiguous();
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 4 ? x.clone() : x;
}

Tensor forward(const Tensor& x_, int64_t nu, bool normalise) {
  check_shifts(x_, nu);
  const Gpu gpu(x_);
  const Tensor x = x_.contiguous();
  const int64_t K = x.size(-1);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = 2 * K * nu;
  Tensor features = fresh(shape, x);
  if (x.numel() > 0)
    check("dpfp", dpfp_cuda_forward(x.const_data_ptr(), features.mutable_data_ptr(), type_of(x),
                                    x.numel() / K, K, nu, normalise, gpu.stream));
  return features;
}

Tensor backward(const Tensor& g_, const Tensor& x_, int64_t nu, bool normalise) {
  check_shifts(x_, nu);
  TORCH_CHECK(g_.device() == x_.device() && g_.numel() == 2 * x_.numel() * nu,
              "dpfp on a GPU: got a gradient of shape ", g_.sizes(), " on ", g_.device(), " beside ",
              nu, " shifts of heads of shape ", x_.sizes(), " on ", x_.device());
  const Gpu gpu(x_);
  const Tensor x = x_.contiguous(), g = in_pieces(g_.to(x.scalar_type()));
  const int64_t K = x.size(-1);
  Tensor dx = fresh(x.sizes(), x);
  if (x.numel() > 0)
    check("dpfp", dpfp_cuda_backward(g.const_data_ptr(), x.const_data_ptr(), dx.mutable_data_ptr(),
                                     type_of(x), x.numel() / K, K, nu, normalise, gpu.stream));
  return dx;
}

TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("dpfp_forward", forward);
  m.impl("dpfp_backward", backward);
}

}  // namespace
}  // namespace workbench
