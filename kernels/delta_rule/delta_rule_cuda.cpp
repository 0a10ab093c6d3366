// The delta rule for tensors on a GPU: checks, memory, and a call of the launchers of delta_rule.cu.
#include <tuple>

#include "gpu.hpp"

extern "C" {
int64_t delta_rule_cuda_scratch(int64_t type, int64_t B, int64_t T, int64_t H, int64_t F, int64_t V,
                                int64_t multiprocessors, int64_t backward);
const char* delta_rule_cuda_forward(const void* q, const void* k, const void* v, const void* beta,
                                    const float* state, void* y, float* last, void* error,
                                    void* scratch, int64_t type, int64_t B, int64_t T, int64_t H,
                                    int64_t F, int64_t V, int64_t vector, int64_t multiprocessors,
                                    int64_t shared_bytes, cudaStream_t stream);
const char* delta_rule_cuda_backward(const void* gy, const float* glast, const void* q,
                                     const void* k, const void* beta, const float* state,
                                     const void* error, void* dq, void* dk, void* dv, void* dbeta,
                                     float* dstate, void* scratch, int64_t type, int64_t B,
                                     int64_t T, int64_t H, int64_t F, int64_t V, int64_t vector,
                                     int64_t multiprocessors, int64_t shared_bytes,
                                     cudaStream_t stream);
}

namespace workbench {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                           const Tensor& beta_, const Tensor& state,
                                           bool normalise, bool keep_error) {
  TORCH_CHECK(!normalise, "delta_rule on a GPU: normalise before the call");
  const Gpu gpu(q_);
  const Tensor q = q_.contiguous(), k = k_.contiguous(), v = v_.contiguous();
  const Tensor beta = beta_.contiguous(), start = state.to(at::kFloat).contiguous();
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), F = q.size(3), V = v.size(3);
  Tensor y = fresh_like(v), last = fresh_like(start);
  Tensor error = keep_error ? fresh_like(v) : fresh({0}, v);
  if (B * H == 0) return {y, last.to(state.scalar_type()), error};
  const int64_t type = type_of(q), n = gpu.multiprocessors;
  TORCH_CHECK(type < 2, "delta_rule on a GPU: got float16, expected float32 or bfloat16");
  Tensor pieces = scratch(delta_rule_cuda_scratch(type, B, T, H, F, V, n, 0), q);
  check("delta_rule",
        delta_rule_cuda_forward(q.data_ptr(), k.data_ptr(), v.data_ptr(), beta.data_ptr(),
                                start.data_ptr<float>(), y.data_ptr(), last.data_ptr<float>(),
                                keep_error ? error.data_ptr() : nullptr, pieces.data_ptr(), type,
                                B, T, H, F, V, vectors({F, V}, {q, k, v}), n, gpu.shared_bytes,
                                gpu.stream));
  return {y, last.to(state.scalar_type()), error};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy_, const Tensor& glast, const Tensor& q_, const Tensor& k_,
    const Tensor& beta_, const Tensor& state, const Tensor& error_, bool normalise) {
  TORCH_CHECK(!normalise, "delta_rule on a GPU: normalise before the call");
  const Gpu gpu(q_);
  const Tensor q = q_.contiguous(), k = k_.contiguous(), beta = beta_.contiguous();
  const Tensor gy = gy_.to(q.scalar_type()).contiguous(), error = error_.contiguous();
  const Tensor start = state.to(at::kFloat).contiguous();
  const Tensor end = glast.to(at::kFloat).contiguous();
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), F = q.size(3), V = gy.size(3);
  Tensor dq = fresh_like(q), dk = fresh_like(k), dv = fresh_like(gy), dbeta = fresh_like(beta);
  Tensor dstate = fresh_like(start);
  if (B * H == 0) return {dq, dk, dv, dbeta, dstate.to(state.scalar_type())};
  const int64_t type = type_of(q), n = gpu.multiprocessors;
  TORCH_CHECK(type < 2, "delta_rule on a GPU: got float16, expected float32 or bfloat16");
  Tensor pieces = scratch(delta_rule_cuda_scratch(type, B, T, H, F, V, n, 1), q);
  check("delta_rule",
        delta_rule_cuda_backward(
            gy.data_ptr(), end.data_ptr<float>(), q.data_ptr(), k.data_ptr(), beta.data_ptr(),
            start.data_ptr<float>(), error.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(),
            dbeta.data_ptr(), dstate.data_ptr<float>(), pieces.data_ptr(), type, B, T, H, F, V,
            vectors({F, V}, {q, k, gy, error, dv}), n, gpu.shared_bytes, gpu.stream));
  return {dq, dk, dv, dbeta, dstate.to(state.scalar_type())};
}

TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("delta_rule_forward", forward);
  m.impl("delta_rule_backward", backward);
}

}  // namespace
}  // namespace workbench
