// Attention for tensors on a GPU: memory, and calls of the launchers of attention.cu.
#include <optional>
#include <tuple>
#include <vector>

#include <ATen/ops/sum.h>

#include "gpu.hpp"

#define CALL_PARAMETERS                                                                          \
  const void *q, const void *k, const void *v, const void *p, const void *codes,                 \
      const void *bias, const void *span, const void *persistent_k, const void *persistent_v,    \
      const void *persistent_bias, const void *seed, int64_t type, int64_t B, int64_t T,         \
      int64_t S, int64_t H, int64_t K, int64_t V, int64_t R, int64_t code_heads, int64_t N,      \
      int64_t span_kind, int64_t nearest, int64_t farthest, int64_t ramp, double p_drop,         \
      int64_t banded

extern "C" {
const char* attention_cuda_forward(CALL_PARAMETERS, void* y, void* log_norm, cudaStream_t stream);
int64_t attention_cuda_scratch(int64_t type, int64_t B, int64_t T, int64_t S, int64_t H, int64_t K,
                               int64_t V, int64_t N, int64_t has_positions, int64_t nearest,
                               int64_t farthest);
const char* attention_cuda_backward(CALL_PARAMETERS, const void* gy, const void* y,
                                    const void* log_norm, void* dq, void* dk, void* dv, void* dp,
                                    void* dcodes, void* dbias, void* dspan, void* dpersistent_k,
                                    void* dpersistent_v, void* dpersistent_bias, void* scratch,
                                    cudaStream_t stream);
}

namespace workbench {
namespace {

using Maybe = std::optional<Tensor>;

Maybe contiguous(const Maybe& x) { return x ? Maybe(x->contiguous()) : x; }
const void* address(const Maybe& x) { return x ? x->const_data_ptr() : nullptr; }
void* fresh_address(const Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }

// One call's tensors as the launchers want them: contiguous, spans in float32.
struct Call {
  Tensor q, k, v;
  Maybe p, codes, bias, span, persistent_k, persistent_v, persistent_bias, seed;
  int64_t nearest, farthest, ramp;
  double p_drop;
  bool banded;

  int64_t B() const { return q.size(0); }
  int64_t T() const { return q.size(1); }
  int64_t S() const { return k.size(1); }
  int64_t H() const { return q.size(2); }
  int64_t K() const { return q.size(3); }
  int64_t V() const { return v.size(3); }
  int64_t N() const { return persistent_k ? persistent_k->size(1) : 0; }
  int64_t span_kind() const { return !span ? 0 : span->dim() == 1 ? 1 : 2; }

  template <class Launcher, class... More>
  const char* launch(Launcher launcher, More... more) const {
    return launcher(q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(), address(p),
                    address(codes), address(bias), address(span), address(persistent_k),
                    address(persistent_v), address(persistent_bias), address(seed), type_of(q), B(),
                    T(), S(), H(), K(), V(), codes ? codes->size(0) : 0,
                    codes ? codes->size(1) : 0, N(), span_kind(), nearest, farthest, ramp, p_drop,
                    static_cast<int64_t>(banded), more...);
  }
};

Call call_of(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& p, const Maybe& r,
             const Maybe& bias, const Maybe& span, const Maybe& persistent_k,
             const Maybe& persistent_v, const Maybe& persistent_bias, const Maybe& seed,
             int64_t nearest, int64_t farthest, int64_t ramp, double p_drop, bool banded) {
  const Maybe tokens = span ? Maybe(span->to(at::kFloat).contiguous()) : span;
  return {q.contiguous(), k.contiguous(), v.contiguous(), contiguous(p), contiguous(r),
          contiguous(bias), tokens, contiguous(persistent_k), contiguous(persistent_v),
          contiguous(persistent_bias), seed, nearest, farthest, ramp, p_drop, banded};
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Maybe& p, const Maybe& r, const Maybe& bias,
                                   const Maybe& span, const Maybe& persistent_k,
                                   const Maybe& persistent_v, const Maybe& persistent_bias,
                                   const Maybe& seed, int64_t nearest, int64_t farthest,
                                   int64_t ramp, double p_drop, bool banded) {
  const Gpu gpu(q);
  const Call call = call_of(q, k, v, p, r, bias, span, persistent_k, persistent_v, persistent_bias,
                            seed, nearest, farthest, ramp, p_drop, banded);
  Tensor y = fresh({call.B(), call.T(), call.H(), call.V()}, call.v);
  Tensor log_norm = at::empty({call.B(), call.H(), call.T()}, call.q.options().dtype(at::kFloat));
  if (y.numel() > 0)
    check("attention", call.launch(attention_cuda_forward, y.mutable_data_ptr(),
                                   log_norm.mutable_data_ptr(), gpu.stream));
  return {y, log_norm};
}

// Gradients in the order of the inputs, empty for those that the call has not.
std::vector<Tensor> backward(const Tensor& gy, const Tensor& y, const Tensor& log_norm,
                             const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& p,
                             const Maybe& r, const Maybe& bias, const Maybe& span,
                             const Maybe& persistent_k, const Maybe& persistent_v,
                             const Maybe& persistent_bias, const Maybe& seed, int64_t nearest,
                             int64_t farthest, int64_t ramp, double p_drop, bool banded) {
  const Gpu gpu(q);
  const Call call = call_of(q, k, v, p, r, bias, span, persistent_k, persistent_v, persistent_bias,
                            seed, nearest, farthest, ramp, p_drop, banded);
  const auto floats = call.q.options().dtype(at::kFloat);
  std::vector<Tensor> grads;
  for (const Maybe& x : {Maybe(call.q), Maybe(call.k), Maybe(call.v), call.p, call.codes, call.bias,
                         Maybe(), call.persistent_k, call.persistent_v, call.persistent_bias})
    grads.push_back(x ? fresh_like(*x) : Tensor());
  if (span) grads[6] = at::empty({call.B(), call.H(), call.T()}, floats);
  const int64_t needed = attention_cuda_scratch(
      type_of(call.q), call.B(), call.T(), call.S(), call.H(), call.K(), call.V(), call.N(),
      static_cast<int64_t>(call.p.has_value()), nearest, farthest);
  Tensor parts = at::empty({needed}, floats);
  const Tensor gy_ = gy.to(q.scalar_type()).contiguous(), y_ = y.contiguous();
  if (y.numel() > 0)
    check("attention",
          call.launch(attention_cuda_backward, gy_.const_data_ptr(), y_.const_data_ptr(),
                      log_norm.const_data_ptr(), fresh_address(grads[0]), fresh_address(grads[1]),
                      fresh_address(grads[2]), fresh_address(grads[3]), fresh_address(grads[4]),
                      fresh_address(grads[5]), fresh_address(grads[6]), fresh_address(grads[7]),
                      fresh_address(grads[8]), fresh_address(grads[9]), parts.mutable_data_ptr(),
                      gpu.stream));
  if (span) {
    const Tensor rows = grads[6];
    grads[6] = (span->dim() == 1 ? at::sum(rows, {0, 2}) : rows).to(span->scalar_type());
  }
  for (Tensor& grad : grads)
    if (!grad.defined()) grad = at::empty({0}, call.q.options());
  return grads;
}

TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("attention_forward", forward);
  m.impl("attention_backward", backward);
}

}  // namespace
}  // namespace workbench
