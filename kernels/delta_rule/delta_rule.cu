// The delta rule on a GPU: launchers. kernels/common/rule.cuh and chunk.cuh hold the kernels; the
// README beside this, the equations, who owns what, and limits.
//
// Tensors are contiguous: q, k (B, T, H, F), v, error, y (B, T, H, V), beta (B, T, H), all of one
// type (`Type`), states (B, H, F, V) in float32. `scratch` has as many bytes as `.._scratch` says.
#include "rule.cuh"

extern "C" int64_t delta_rule_cuda_scratch(int64_t type, int64_t B, int64_t T, int64_t H, int64_t F, int64_t V,
                                           int64_t multiprocessors, int64_t backward) {
    return typed<true>(type, [&](auto rule) {
        rule.s = {B, T, H, F, V, false};
        rule.gpu = {multiprocessors, 0, nullptr};
        Scratch scratch{nullptr};
        backward ? rule.backward_scratch(scratch) : rule.forward_scratch(scratch);
        return scratch.used;
    });
}

// bytes of shared memory that a block needs; more than the GPU has: it cannot run
extern "C" int64_t delta_rule_cuda_shared(int64_t type, int64_t F, int64_t V) {
    return typed<true>(type, [&](auto rule) {
        rule.s = {1 << 20, 1, 1, F, V, false};
        rule.gpu = {1, 0, nullptr};
        return rule.needs();
    });
}

// error: may be null
extern "C" const char* delta_rule_cuda_forward(const void* q, const void* k, const void* v, const void* beta,
                                               const float* state, void* y, float* last, void* error,
                                               void* scratch, int64_t type, int64_t B, int64_t T, int64_t H,
                                               int64_t F, int64_t V, int64_t vector, int64_t multiprocessors,
                                               int64_t shared_bytes, cudaStream_t stream) {
    return typed<true>(type, [&]<class X>(Rule<X, true> rule) {
        rule.s = {B, T, H, F, V, vector != 0};
        rule.gpu = {multiprocessors, shared_bytes, stream};
        rule.x.q = as<X>(q), rule.x.k = as<X>(k), rule.x.v = as<X>(v), rule.x.beta = as<X>(beta);
        rule.x.state = state, rule.x.last = last;
        rule.x.y = static_cast<X*>(y), rule.x.error = static_cast<X*>(error);
        Scratch pieces{static_cast<char*>(scratch)};
        rule.forward_scratch(pieces);
        return rule.forward();
    });
}

extern "C" const char* delta_rule_cuda_backward(const void* gy, const float* glast, const void* q, const void* k,
                                                const void* beta, const float* state, const void* error, void* dq,
                                                void* dk, void* dv, void* dbeta, float* dstate, void* scratch,
                                                int64_t type, int64_t B, int64_t T, int64_t H, int64_t F, int64_t V,
                                                int64_t vector, int64_t multiprocessors, int64_t shared_bytes,
                                                cudaStream_t stream) {
    return typed<true>(type, [&]<class X>(Rule<X, true> rule) {
        rule.s = {B, T, H, F, V, vector != 0};
        rule.gpu = {multiprocessors, shared_bytes, stream};
        rule.x.gy = as<X>(gy), rule.x.q = as<X>(q), rule.x.k = as<X>(k), rule.x.beta = as<X>(beta);
        rule.x.e = as<X>(error), rule.x.glast = glast, rule.x.state = state, rule.x.dstate = dstate;
        rule.x.dq = static_cast<X*>(dq), rule.x.dk = static_cast<X*>(dk), rule.x.dv = static_cast<X*>(dv);
        rule.x.dbeta = static_cast<X*>(dbeta);
        Scratch pieces{static_cast<char*>(scratch)};
        rule.backward_scratch(pieces);
        return rule.backward();
    });
}
