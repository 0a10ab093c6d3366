// How the kernels of chunk.cuh make a forward and a backward pass, and the recurrent form for few
// tokens. Included by delta_rule.cu and sum_rule.cu.
#pragma once

#include "chunk.cuh"

// Token by token, all in float32: thread (warp r, lane) holds W[r + 4 i][lane of the 32 columns of
// its block] in registers. One pass over W reads with the key and the query both, before the write:
// y = W'^T q = W^T q + (k . q) u.
template <class T, bool DELTA, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) recurrent(Sizes s, Tensors<T> x) {
    SHARED_ARRAY(float, keys, 2 * WARPS * ROWS);
    SHARED_ARRAY(float, queries, 2 * WARPS * ROWS);
    SHARED_ARRAY(float, parts, 2 * 3 * THREADS);
    const int64_t splits = ceil_div(s.V, 32), bh = blockIdx.x / splits;
    const int lane = lane_of(threadIdx.x), r = threadIdx.x / 32;
    const int64_t v = blockIdx.x % splits * 32 + lane;
    float W[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int f = r + WARPS * i;
        W[i] = f < s.F && v < s.V ? x.state[(bh * s.F + f) * s.V + v] : 0.0f;
    }
    for (int64_t t = 0; t < s.T; t++) {
        float* k = keys + t % 2 * WARPS * ROWS;
        float* q = queries + t % 2 * WARPS * ROWS;
        float* part = parts + t % 2 * 3 * THREADS;
        for (int f = threadIdx.x; f < WARPS * ROWS; f += THREADS) {
            k[f] = f < s.F ? to_float(x.k[s.at(bh, t, s.F) + f]) : 0.0f;
            q[f] = f < s.F ? to_float(x.q[s.at(bh, t, s.F) + f]) : 0.0f;
        }
        const float value = v < s.V ? to_float(x.v[s.at(bh, t, s.V) + v]) : 0.0f;
        const float beta = DELTA ? to_float(x.beta[s.at(bh, t, 1)]) : 1.0f;
        __syncthreads();
        float by_k = 0.0f, by_q = 0.0f, kq = 0.0f;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const float key = k[r + WARPS * i], query = q[r + WARPS * i];
            if (DELTA) by_k += W[i] * key;
            by_q += W[i] * query;
            kq += key * query;
        }
        part[threadIdx.x] = by_k;
        part[THREADS + threadIdx.x] = by_q;
        part[2 * THREADS + threadIdx.x] = kq;
        __syncthreads();
        by_k = by_q = kq = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            by_k += part[32 * i + lane];
            by_q += part[THREADS + 32 * i + lane];
            kq += part[2 * THREADS + 32 * i + lane];
        }
        const float e = value - by_k, u = beta * e;
#pragma unroll
        for (int i = 0; i < ROWS; i++) W[i] += k[r + WARPS * i] * u;
        if (r == 0 && v < s.V) {
            x.y[s.at(bh, t, s.V) + v] = from_float<T>(by_q + kq * u);
            if (DELTA && x.error) x.error[s.at(bh, t, s.V) + v] = from_float<T>(e);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int f = r + WARPS * i;
        if (f < s.F && v < s.V) x.last[(bh * s.F + f) * s.V + v] = W[i];
    }
}

// what the launchers know of the GPU
struct Gpu {
    int64_t multiprocessors, shared_bytes;  // the most shared memory that a block can have
    cudaStream_t stream;
};

constexpr int64_t MOST_FEATURES = 256, RECURRENT_TOKENS = 16;

// Two chunks in shared memory at a time, the next one under way, unless that costs resident blocks
// which one chunk at a time would allow; 0: not even one fits.
inline int stages(int64_t bytes_of_one, int64_t bytes_of_two, int64_t blocks, const Gpu& gpu) {
    const int64_t of_one = gpu.shared_bytes / bytes_of_one, of_two = gpu.shared_bytes / bytes_of_two;
    const int64_t needed = ceil_div(blocks, gpu.multiprocessors);
    if (of_one == 0) return 0;
    return of_two > 0 && of_two >= (needed < of_one ? needed : of_one) ? 2 : 1;
}

// the scratch of a pass, one piece after the other; with no memory it only counts
struct Scratch {
    char* base;
    int64_t used = 0;
    template <class X> void take(X*& to, int64_t count) {
        to = reinterpret_cast<X*>(base + used);
        used += round_up(count * int64_t(sizeof(X)), 256);
    }
};

template <class T, bool DELTA> struct Rule {
    static constexpr int C = CHUNK<T>;
    Sizes s;
    Tensors<T> x;
    Gpu gpu;

    int64_t F16() const { return round_up(s.F, 16); }
    // column blocks of a sweep: narrower where the heads alone do not fill the GPU
    int column_blocks() const {
        return s.V <= 16 || s.heads() * ceil_div(s.V, 32) < gpu.multiprocessors ? 1 : 2;
    }
    int64_t splits() const { return ceil_div(s.V, 16 * column_blocks()); }
    int64_t parts() const { return splits() * Share<C>::step; }

    void forward_scratch(Scratch& scratch) {
        const int64_t squares = s.heads() * s.chunks(C) * C * C;
        scratch.take(x.scores, squares);
        if (DELTA) scratch.take(x.inverse, squares);
    }
    void backward_scratch(Scratch& scratch) {
        const int64_t squares = s.heads() * s.chunks(C) * C * C, matrices = s.heads() * s.chunks(C) * s.F * s.V;
        forward_scratch(scratch);
        scratch.take(x.states, matrices);
        scratch.take(x.gradients, matrices);
        scratch.take(x.u_gy, squares);
        if (!DELTA) return;
        scratch.take(x.u_w, squares);
        scratch.take(x.e_du, parts() * s.heads() * s.T);
    }

    // picks the compiled size: run(features in units of 64, column blocks)
    template <class Run> const char* sized(Run run) const {
        auto by_columns = [&](auto ft) {
            return column_blocks() == 1 ? run(ft, std::integral_constant<int, 1>())
                                        : run(ft, std::integral_constant<int, 2>());
        };
        if (s.F <= 64) return by_columns(std::integral_constant<int, 1>());
        if (s.F <= 128) return by_columns(std::integral_constant<int, 2>());
        return by_columns(std::integral_constant<int, 4>());
    }
    using Kernel = void (*)(Sizes, Tensors<T>, int);
    const char* sweep(Kernel kernel, int64_t one, int64_t two) const {
        const int64_t blocks = s.heads() * splits();
        const int n = stages(one, two, blocks, gpu);
        if (n == 0) return "a block of this GPU has too little shared memory for this many features";
        return launch(kernel, unsigned(blocks), THREADS, size_t(n == 1 ? one : two), gpu.stream, s, x, n);
    }
    const char* prepare_chunks() const {
        return launch(prepare<T, DELTA>, unsigned(s.heads() * s.chunks(C)), THREADS,
                      size_t(prepare_bytes<T>(F16())), gpu.stream, s, x);
    }

    const char* forward() const {
        if (s.F > MOST_FEATURES) return "at most 256 features";
        if (s.T <= RECURRENT_TOKENS) {
            const unsigned blocks = unsigned(s.heads() * ceil_div(s.V, 32));
            auto kernel = s.F <= 64 ? recurrent<T, DELTA, 16> : recurrent<T, DELTA, 64>;
            return launch(kernel, blocks, THREADS, 0, gpu.stream, s, x);
        }
        if (auto wrong = prepare_chunks()) return wrong;
        return sized([&](auto ft, auto nb) {
            constexpr int FT = decltype(ft)::value, NB = decltype(nb)::value;
            return sweep(forward_sweep<T, DELTA, FT, NB>, forward_bytes<T, DELTA>(F16(), 16 * NB, 1),
                         forward_bytes<T, DELTA>(F16(), 16 * NB, 2));
        });
    }

    const char* backward() const {
        if (s.F > MOST_FEATURES) return "at most 256 features";
        if (auto wrong = prepare_chunks()) return wrong;
        auto wrong = sized([&](auto ft, auto nb) {
            constexpr int FT = decltype(ft)::value, NB = decltype(nb)::value;
            auto failed = sweep(state_sweep<T, DELTA, FT, NB>, state_bytes<T>(F16(), 16 * NB, 1),
                                state_bytes<T>(F16(), 16 * NB, 2));
            if (failed) return failed;
            return sweep(backward_sweep<T, DELTA, FT, NB>, backward_bytes<T, DELTA>(F16(), 16 * NB, 1),
                         backward_bytes<T, DELTA>(F16(), 16 * NB, 2));
        });
        if (wrong) return wrong;
        const unsigned chunks = unsigned(s.heads() * s.chunks(C));
        wrong = launch(chunk_scores<T, DELTA>, chunks, THREADS, size_t(scores_bytes<T>()), gpu.stream, s, x, parts());
        if (wrong) return wrong;
        return launch(chunk_gradients<T, DELTA>, dim3(chunks, unsigned(ceil_div(s.F, SLICE))), THREADS,
                      size_t(gradients_bytes<T, DELTA>()), gpu.stream, s, x);
    }

    // the most shared memory that any kernel of the op asks for
    int64_t needs() const {
        const int64_t VT = 16 * column_blocks();
        int64_t most = prepare_bytes<T>(F16());
        for (int64_t bytes : {forward_bytes<T, DELTA>(F16(), VT, 1), state_bytes<T>(F16(), VT, 1),
                              backward_bytes<T, DELTA>(F16(), VT, 1), scores_bytes<T>(),
                              gradients_bytes<T, DELTA>()})
            most = bytes > most ? bytes : most;
        return most;
    }
};

// calls f with a rule for tensors of this type
template <bool DELTA, class F> auto typed(int64_t type, F f) {
    return type == BFLOAT16 ? f(Rule<bf16, DELTA>{}) : f(Rule<float, DELTA>{});
}

template <class T> const T* as(const void* p) { return static_cast<const T*>(p); }
