// Attention by content and distance with learned spans and persistent vectors on a GPU; equations,
// who owns what and limits in README.md. Here: the forward pass and the launchers.
#include "backward.cuh"

#include <cmath>

namespace {

// Turns scores into weights relative to the largest score so far, and brings what was summed up to it.
template <class C, class T>
__device__ __forceinline__ void fold(const Problem<T>& z, const Keys& keys, const Query (&query)[2], int h, int i0,
                                     typename C::Scores& s, typename C::Result& out, float (&top)[2],
                                     float (&left)[2], float (&total)[2]) {
    const int lane = threadIdx.x % 32;
    float most[2] = {top[0], top[1]};
    #pragma unroll
    for (int n = 0; n < C::TILE / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = column_of(lane, n, i);
            const bool seen = keys.seen(z, query[i / 2], i0 + row_of(lane, i), c) >= 0;
            s.at[n][i] = seen ? s.at[n][i] + keys.bias(z, h, c) : -INFINITY;
            most[i / 2] = fmaxf(most[i / 2], s.at[n][i]);
        }
    float base[2];
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        most[r] = row_max(most[r]);
        base[r] = most[r] == -INFINITY ? 0 : most[r];  // a row that has seen nothing yet
        const float shrink = exp2f((top[r] - base[r]) * LOG2_E);
        left[r] *= shrink, total[r] *= shrink, top[r] = most[r];
        #pragma unroll
        for (int n = 0; n < C::OUT / 8; n++) out.at[n][2 * r] *= shrink, out.at[n][2 * r + 1] *= shrink;
    }
    #pragma unroll
    for (int n = 0; n < C::TILE / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = column_of(lane, n, i), r = i / 2;
            const float e = exp2f((s.at[n][i] - base[r]) * LOG2_E);
            const int distance = z.shift() + i0 + row_of(lane, i) - keys.first - c;
            const float weight = e * soft_mask(keys.room(z, query[r], distance), z.ramp);
            total[r] += e, left[r] += weight;
            s.at[n][i] = weight * query[r].dropout(z, keys.column + keys.first + c);
        }
}

// One block: TILE queries of one head, 16 to a warp; it goes over the keys that they see.
template <class C, class T = typename C::T>
__global__ void __launch_bounds__(C::THREADS, 1) forward(const Problem<T> z, T* y, float* log_norm) {
    const Where at = Where::of<C>(blockIdx.x, ceil_div(z.T_, C::TILE), z.H);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i0 = at.tile * C::TILE;
    Carver shared;
    float* skew = shared.take<float>(C::skew_bytes) + warp * 16 * C::LD_SKEW;
    const typename C::Tile q{shared.take<T>(C::tile_bytes)}, k{shared.take<T>(C::tile_bytes)};
    const typename C::Tile v{shared.take<T>(C::tile_bytes)}, p{shared.take<T>(C::tile_bytes)};
    const typename C::Tile codes{shared.take<T>(2 * C::tile_bytes)};
    float* biases = shared.take<float>(0);
    const typename C::Strip weights{reinterpret_cast<T*>(skew)};

    load<C::TILE, C::WIDTH>(q, z.of_queries(z.q, at.b, at.h, z.K), i0);
    if (z.has_positions()) load<C::TILE, C::WIDTH>(p, z.of_queries(z.p, at.b, at.h, z.K), i0);
    Query query[2];
    for (int r = 0; r < 2; r++) query[r] = Query::of(z, at.b, at.h, i0 + 16 * warp + row_of(lane, 2 * r));

    typename C::Result out;
    out.clear();
    float top[2] = {-INFINITY, -INFINITY}, left[2] = {0, 0}, total[2] = {0, 0};
    const Visits visits = Visits::of_queries<C>(z, at, i0);
    for (int visit = 0; visit < visits.count(); visit++) {
        const Keys keys = visits.keys<C>(z, visit);
        const bool by_distance = keys.of_text && z.has_positions();
        if (keys.of_text) {
            load<C::TILE, C::WIDTH>(k, z.of_keys(z.k, at.b, at.h, z.K), keys.first);
            load<C::TILE, C::WIDTH>(v, z.of_keys(z.v, at.b, at.h, z.V), keys.first);
        } else {
            load<C::TILE, C::WIDTH>(k, z.of_persistent(z.persistent_k, at.h, z.K), keys.first);
            load<C::TILE, C::WIDTH>(v, z.of_persistent(z.persistent_v, at.h, z.V), keys.first);
        }
        if (by_distance) load_codes<C>(z, codes, biases, at.h, z.shift() + i0 - keys.first - C::TILE + 1);
        loaded();
        typename C::Scores s;
        scores<C>(s, rows_from(q, 16 * warp), k, by_distance, rows_from(p, 16 * warp), rows_from(codes, 16 * warp),
                  biases + 16 * warp, skew);
        fold<C>(z, keys, query, at.h, i0 + 16 * warp, s, out, top, left, total);
        put(weights, s);
        __syncwarp();
        Product<T>::template by_columns<C::TILE>(out, weights, rows_from(v, 0, at.slice * C::OUT));
        __syncthreads();
    }
    cp_async_wait<0>();

    for (int r = 0; r < 2; r++) {
        const int i = i0 + 16 * warp + row_of(lane, 2 * r);
        const float norm = row_sum(left[r]) + z.epsilon() * row_sum(total[r]);
        if (i >= z.T_) continue;
        // a query that sees nothing: zeros, and no weight for anything in the backward pass
        const bool blind = norm <= 0;
        const float scale = blind ? 0 : 1 / norm;
        write(out, r, scale, y + ((static_cast<int64_t>(at.b) * z.T_ + i) * z.H + at.h) * z.V, at.slice * C::OUT, z.V);
        if (at.slice == 0 && lane % 4 == 0)
            log_norm[z.row(at.b, at.h, i)] = blind ? INFINITY : top[r] + logf(norm);
    }
}

template <class C> size_t forward_bytes(bool positions) {
    return C::skew_bytes + 4 * C::tile_bytes + (positions ? C::code_bytes : 0);
}

template <class C, class T = typename C::T>
const char* start_forward(const Problem<T>& z, void* y, void* log_norm, cudaStream_t stream) {
    const int64_t blocks = ceil_div(z.T_, C::TILE) * z.B * z.H * C::SLICES;
    return launch(forward<C>, dim3(static_cast<unsigned>(blocks)), dim3(C::THREADS),
                  forward_bytes<C>(z.p != nullptr), stream, z, static_cast<T*>(y), static_cast<float*>(log_norm));
}


template <class C, class T = typename C::T>
const char* start_backward(const Problem<T>& z, const Gradients<T>& g, cudaStream_t stream) {
    const Plan plan = Plan::of<C>(z.B, z.T_, z.H, z.K, z.V, z.N, z.p != nullptr, z.nearest, z.farthest);
    auto blocks = [](int64_t n) { return dim3(static_cast<unsigned>(n)); };
    auto sum = [&](int64_t part, T* to, int64_t n) {
        return launch(sum_parts<T>, blocks(ceil_div(n, 256)), dim3(256), 0, stream, g.scratch + part, to, n,
                      plan.persistent_splits);
    };
    const dim3 threads(C::THREADS);
    const char* failed = launch(rows<C>, blocks(ceil_div(z.T_, C::TILE) * z.B * z.H * C::SLICES), threads,
                                backward_bytes<C>(z.p != nullptr), stream, z, g);
    if (!failed)
        failed = launch(columns<C>, blocks(ceil_div(z.S, C::TILE) * z.B * z.H * C::SLICES), threads,
                        backward_bytes<C>(z.p != nullptr), stream, z, g, plan, true);
    if (!failed && z.N > 0) {
        failed = launch(columns<C>, blocks(ceil_div(z.N, C::TILE) * plan.persistent_splits * z.H * C::SLICES),
                        threads, backward_bytes<C>(false), stream, z, g, plan, false);
        if (!failed) failed = sum(plan.keys, g.persistent_k, static_cast<int64_t>(z.H) * z.N * z.K);
        if (!failed) failed = sum(plan.values, g.persistent_v, static_cast<int64_t>(z.H) * z.N * z.V);
        if (!failed && z.persistent_bias) failed = sum(plan.bias, g.persistent_bias, static_cast<int64_t>(z.H) * z.N);
    }
    if (!failed && z.p && plan.diagonals > 0)
        failed = launch(codes<C>, blocks(static_cast<int64_t>(plan.diagonals) * plan.code_splits * z.H * C::SLICES),
                        threads, codes_bytes<C>(), stream, z, g, plan);
    if (!failed && z.p)
        failed = launch(sum_codes<T>, dim3(z.R, z.code_heads), dim3(128), 0, stream, z, g, plan, C::TILE);
    if (!failed && z.bias)
        failed = launch(sum_code_biases<T>, blocks(ceil_div(static_cast<int64_t>(z.R) * z.H, 128)), dim3(128), 0,
                        stream, z, g, plan, C::TILE);
    return failed;
}

// Calls `run` with the shape for numbers of type T and heads of up to `width`; false: there is none.
template <class T, class Run> bool for_width(int64_t width, Run run) {
    if (width <= 32) return run(Shape<T, 32>{}), true;
    if (width <= 64) return run(Shape<T, 64>{}), true;
    if (width <= 128) return run(Shape<T, 128>{}), true;
    if constexpr (sizeof(T) == 2)
        if (width <= 256) return run(Shape<T, 256>{}), true;
    return false;
}

template <class Run> const char* for_shape(int64_t type, int64_t width, Run run) {
    const bool found = type == FLOAT32 ? for_width<float>(width, run)
                                       : type == BFLOAT16 && for_width<bf16>(width, run);
    return found ? nullptr : "attention: expected float32 and heads of at most 128, or bfloat16 and at most 256";
}

// What the launchers are told, in this order; pointers to what a call does not have are null.
struct Call {
    const void *q, *k, *v, *p, *codes, *bias, *span, *persistent_k, *persistent_v, *persistent_bias, *seed;
    int64_t B, T, S, H, K, V, R, code_heads, N, span_kind, nearest, farthest, ramp;
    double p_drop;
    int64_t banded;

    template <class Number> Problem<Number> problem() const {
        auto of = [](const void* x) { return static_cast<const Number*>(x); };
        auto whole = [](int64_t x) { return static_cast<int>(x); };
        Problem<Number> z{};
        z.q = of(q), z.k = of(k), z.v = of(v), z.p = of(p), z.codes = of(codes), z.bias = of(bias);
        z.span = static_cast<const float*>(span);
        z.persistent_k = of(persistent_k), z.persistent_v = of(persistent_v), z.persistent_bias = of(persistent_bias);
        z.seed = p_drop > 0 ? static_cast<const int64_t*>(seed) : nullptr;
        z.B = whole(B), z.T_ = whole(T), z.S = whole(S), z.H = whole(H), z.K = whole(K), z.V = whole(V);
        z.R = whole(R), z.code_heads = whole(code_heads), z.N = whole(N);
        z.nearest = whole(nearest < S ? nearest : S), z.farthest = whole(farthest < S ? farthest : S - 1);
        z.span_kind = whole(span_kind), z.banded = banded != 0;
        z.ramp = span_kind == NO_SPAN ? 1.0f : static_cast<float>(ramp);
        z.keep_scale = static_cast<float>(1 / (1 - p_drop));
        const double threshold = std::nearbyint(p_drop * 4294967296.0);
        z.threshold = threshold < 4294967295.0 ? static_cast<uint32_t>(threshold) : 0xFFFFFFFFu;
        return z;
    }
};

}  // namespace

#define CALL_PARAMETERS                                                                                         \
    const void *q, const void *k, const void *v, const void *p, const void *codes, const void *bias,            \
        const void *span, const void *persistent_k, const void *persistent_v, const void *persistent_bias,      \
        const void *seed, int64_t type, int64_t B, int64_t T, int64_t S, int64_t H, int64_t K, int64_t V,       \
        int64_t R, int64_t code_heads, int64_t N, int64_t span_kind, int64_t nearest, int64_t farthest,         \
        int64_t ramp, double p_drop, int64_t banded
#define CALL                                                                                                    \
    Call {                                                                                                      \
        q, k, v, p, codes, bias, span, persistent_k, persistent_v, persistent_bias, seed, B, T, S, H, K, V, R,  \
            code_heads, N, span_kind, nearest, farthest, ramp, p_drop, banded                                   \
    }

// All tensors contiguous and of one type, but spans (float32; span_kind 1: (H), 2: (B, H, T)) and the
// seed (int64). Codes (R, code_heads, K), code_heads 1 or H. log_norm (B, H, T) float32.
extern "C" const char* attention_cuda_forward(CALL_PARAMETERS, void* y, void* log_norm, cudaStream_t stream) {
    const Call call = CALL;
    const char* failed = nullptr;
    const char* unfit = for_shape(type, K > V ? K : V, [&](auto shape) {
        using C = decltype(shape);
        failed = start_forward<C>(call.template problem<typename C::T>(), y, log_norm, stream);
    });
    return unfit ? unfit : failed;
}

// How many float32 numbers `attention_cuda_backward` needs as scratch.
extern "C" int64_t attention_cuda_scratch(int64_t type, int64_t B, int64_t T, int64_t S, int64_t H, int64_t K,
                                          int64_t V, int64_t N, int64_t has_positions, int64_t nearest,
                                          int64_t farthest) {
    int64_t total = 0;
    for_shape(type, K > V ? K : V, [&](auto shape) {
        total = Plan::of<decltype(shape)>(B, T, H, K, V, N, has_positions != 0, nearest < S ? nearest : S,
                                          farthest < S ? farthest : S - 1).total;
    });
    return total;
}

// Gradients of the types and shapes of what they belong to, but dspan: (B, H, T) float32 always.
extern "C" const char* attention_cuda_backward(CALL_PARAMETERS, const void* gy, const void* y, const void* log_norm,
                                               void* dq, void* dk, void* dv, void* dp, void* dcodes, void* dbias,
                                               void* dspan, void* dpersistent_k, void* dpersistent_v,
                                               void* dpersistent_bias, void* scratch, cudaStream_t stream) {
    const Call call = CALL;
    const char* failed = nullptr;
    const char* unfit = for_shape(type, K > V ? K : V, [&](auto shape) {
        using C = decltype(shape);
        using Number = typename C::T;
        auto in = [](const void* x) { return static_cast<const Number*>(x); };
        auto out = [](void* x) { return static_cast<Number*>(x); };
        const Gradients<Number> g{in(gy), in(y), static_cast<const float*>(log_norm), out(dq), out(dk), out(dv),
                                  out(dp), out(dcodes), out(dbias), static_cast<float*>(dspan), out(dpersistent_k),
                                  out(dpersistent_v), out(dpersistent_bias), static_cast<float*>(scratch)};
        failed = start_backward<C>(call.template problem<Number>(), g, stream);
    });
    return unfit ? unfit : failed;
}
