// Forget-mult for tensors on a GPU: memory, and calls of the launchers of forget_mult.cu.
#include <tuple>

#include "gpu.hpp"

extern "C" {
const char* forget_mult_cuda_forward(const void* f, const void* z, const void* state, void* y,
                                     void* last, int64_t type, int64_t state_type, int64_t batch,
                                     int64_t length, int64_t units, cudaStream_t stream);
const char* forget_mult_cuda_backward(const void* gy, const void* glast, const void* f,
                                      const void* z, const void* y, const void* state, void* df,
                                      void* dz, void* dstate, int64_t type, int64_t state_type,
                                      int64_t batch, int64_t length, int64_t units,
                                      cudaStream_t stream);
}

namespace workbench {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& f_, const Tensor& z_, const Tensor& state_) {
  const Gpu gpu(f_);
  const Tensor f = f_.contiguous(), z = z_.contiguous(), state = state_.contiguous();
  Tensor y = fresh_like(z), last = fresh_like(state);
  if (y.numel() > 0)
    check("forget_mult",
          forget_mult_cuda_forward(f.const_data_ptr(), z.const_data_ptr(), state.const_data_ptr(),
                                   y.mutable_data_ptr(), last.mutable_data_ptr(), type_of(f),
                                   type_of(state), f.size(0), f.size(1), f.size(2), gpu.stream));
  return {y, last};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gy_, const Tensor& glast_,
                                            const Tensor& f_, const Tensor& z_, const Tensor& y_,
                                            const Tensor& state_) {
  const Gpu gpu(f_);
  const Tensor f = f_.contiguous(), z = z_.contiguous(), state = state_.contiguous();
  const Tensor gy = gy_.to(f.scalar_type()).contiguous(), y = y_.contiguous();
  const Tensor glast = glast_.to(state.scalar_type()).contiguous();
  Tensor df = fresh_like(f), dz = fresh_like(z), dstate = fresh_like(state);
  if (y.numel() > 0)
    check("forget_mult",
          forget_mult_cuda_backward(
              gy.const_data_ptr(), glast.const_data_ptr(), f.const_data_ptr(), z.const_data_ptr(),
              y.const_data_ptr(), state.const_data_ptr(), df.mutable_data_ptr(),
              dz.mutable_data_ptr(), dstate.mutable_data_ptr(), type_of(f), type_of(state),
              f.size(0), f.size(1), f.size(2), gpu.stream));
  return {df, dz, dstate};
}

TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("forget_mult_forward", forward);
  m.impl("forget_mult_backward", backward);
}

}  // namespace
}  // namespace workbench
