// The sum rule for tensors on a GPU: checks, memory, and a call of the launchers of sum_rule.cu.
#include <tuple>

#include "gpu.hpp"

extern "C" {
int64_t sum_rule_cuda_scratch(int64_t type, int64_t B, int64_t T, int64_t H, int64_t F, int64_t V,
                              int64_t multiprocessors, int64_t backward);
const char* sum_rule_cuda_forward(const void* q, const void* k, const void* v, const float* state,
                                  void* y, float* last, void* scratch, int64_t type, int64_t B,
                                  int64_t T, int64_t H, int64_t F, int64_t V, int64_t vector,
                                  int64_t multiprocessors, int64_t shared_bytes,
                                  cudaStream_t stream);
const char* sum_rule_cuda_backward(const void* gy, const float* glast, const void* q,
                                   const void* k, const void* v, const float* state, void* dq,
                                   void* dk, void* dv, float* dstate, void* scratch, int64_t type,
                                   int64_t B, int64_t T, int64_t H, int64_t F, int64_t V,
                                   int64_t vector, int64_t multiprocessors, int64_t shared_bytes,
                                   cudaStream_t stream);
}

namespace workbench {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                   const Tensor& state, bool normalise) {
  TORCH_CHECK(!normalise, "sum_rule on a GPU: normalise before the call");
  const Gpu gpu(q_);
  const Tensor q = q_.contiguous(), k = k_.contiguous(), v = v_.contiguous();
  const Tensor start = state.to(at::kFloat).contiguous();
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), F = q.size(3), V = v.size(3);
  Tensor y = fresh_like(v), last = fresh_like(start);
  if (B * H == 0) return {y, last.to(state.scalar_type())};
  const int64_t type = type_of(q), n = gpu.multiprocessors;
  TORCH_CHECK(type < 2, "sum_rule on a GPU: got float16, expected float32 or bfloat16");
  Tensor pieces = scratch(sum_rule_cuda_scratch(type, B, T, H, F, V, n, 0), q);
  check("sum_rule",
        sum_rule_cuda_forward(q.data_ptr(), k.data_ptr(), v.data_ptr(), start.data_ptr<float>(),
                              y.data_ptr(), last.data_ptr<float>(), pieces.data_ptr(), type, B, T,
                              H, F, V, vectors({F, V}, {q, k, v}), n, gpu.shared_bytes,
                              gpu.stream));
  return {y, last.to(state.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gy_, const Tensor& glast,
                                                    const Tensor& q_, const Tensor& k_,
                                                    const Tensor& v_, const Tensor& state,
                                                    bool normalise) {
  TORCH_CHECK(!normalise, "sum_rule on a GPU: normalise before the call");
  const Gpu gpu(q_);
  const Tensor q = q_.contiguous(), k = k_.contiguous(), v = v_.contiguous();
  const Tensor gy = gy_.to(q.scalar_type()).contiguous();
  const Tensor start = state.to(at::kFloat).contiguous();
  const Tensor end = glast.to(at::kFloat).contiguous();
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), F = q.size(3), V = v.size(3);
  Tensor dq = fresh_like(q), dk = fresh_like(k), dv = fresh_like(v), dstate = fresh_like(start);
  if (B * H == 0) return {dq, dk, dv, dstate.to(state.scalar_type())};
  const int64_t type = type_of(q), n = gpu.multiprocessors;
  TORCH_CHECK(type < 2, "sum_rule on a GPU: got float16, expected float32 or bfloat16");
  Tensor pieces = scratch(sum_rule_cuda_scratch(type, B, T, H, F, V, n, 1), q);
  check("sum_rule",
        sum_rule_cuda_backward(gy.data_ptr(), end.data_ptr<float>(), q.data_ptr(), k.data_ptr(),
                               v.data_ptr(), start.data_ptr<float>(), dq.data_ptr(), dk.data_ptr(),
                               dv.data_ptr(), dstate.data_ptr<float>(), pieces.data_ptr(), type, B,
                               T, H, F, V, vectors({F, V}, {q, k, v, gy, dv}), n,
                               gpu.shared_bytes, gpu.stream));
  return {dq, dk, dv, dstate.to(state.scalar_type())};
}

TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("sum_rule_forward", forward);
  m.impl("sum_rule_backward", backward);
}

}  // namespace
}  // namespace workbench
