// The delta and the sum rule in chunks of C tokens, on tensor cores; kernels/delta_rule/README.md
// has the equations. Layout: q, k (B, T, H, F), v, e, y (B, T, H, V), beta (B, T, H), states
// (B, H, F, V), all contiguous; per chunk, N to a sequence: states (B, H, N, F, V), squares
// (B, H, N, C, C). In the sum rule what is written, u, is v, and e means v.
#pragma once

#include "tile.cuh"

template <class T> constexpr int CHUNK = sizeof(T) == 2 ? 64 : 32;  // as many tokens as 128 bytes hold

struct Sizes {
    int64_t B, T, H, F, V;
    bool vector;  // every row of every tensor begins at a multiple of 16 bytes

    __host__ __device__ int64_t chunks(int C) const { return ceil_div(T, C); }
    __host__ __device__ int64_t heads() const { return B * H; }
    // where token t of head bh lies in (B, T, H, width)
    __host__ __device__ int64_t at(int64_t bh, int64_t t, int64_t width) const {
        return ((bh / H * T + t) * H + bh % H) * width;
    }
};

template <class T> struct Tensors {
    const T *q, *k, *v, *beta, *e, *gy;
    const float *state, *glast;
    T *y, *error, *dq, *dk, *dv, *dbeta;
    float *last, *dstate;
    // made by one kernel for another: (I + L diag(beta))^-1, tril(q k^T), the states before and the
    // gradients after each chunk, u gy^T and -u w^T (rows: u), e . du of each part of the columns
    T *inverse, *scores, *states, *gradients, *u_gy, *u_w;
    float* e_du;
};

// which blocks of a C x (16 NB) product a warp makes: rows 16 row.., column blocks first, + step, ..
template <int C> struct Share {
    static constexpr int step = WARPS * 16 / C;
    int row, first;
    __device__ Share() : row(threadIdx.x / 32 % (C / 16)), first(threadIdx.x / 32 / (C / 16)) {}
};
template <int C, int NB> constexpr int MINE = (NB + Share<C>::step - 1) / Share<C>::step;

template <class T> __device__ __forceinline__ void load_square(T* to, const T* from) {
    constexpr int C = CHUNK<T>;
    load_tile(to, C + PAD<T>, from, C, C, C, C, C, true);
}
template <class T>
__device__ __forceinline__ void load_beta(float* to, const T* beta, const Sizes& s, int64_t bh, int64_t t) {
    for (int i = threadIdx.x; i < CHUNK<T>; i += blockDim.x)
        to[i] = t + i < s.T ? to_float(beta[s.at(bh, t + i, 1)]) : 0.0f;
}

// bytes of shared memory; F16 is F rounded up to 16
template <class T> constexpr int64_t square_bytes() { return CHUNK<T> * (CHUNK<T> + PAD<T>) * sizeof(T); }
template <class T> constexpr int64_t tile_bytes(int64_t rows, int64_t columns) {
    return rows * (columns + PAD<T>) * sizeof(T);
}

// inverse = (I + L diag(beta))^-1 with L the part of k k^T below the diagonal; scores = tril(q k^T)
template <class T, bool DELTA>
__global__ void __launch_bounds__(THREADS, 1) prepare(Sizes s, Tensors<T> x) {
    constexpr int C = CHUNK<T>, NB = MINE<C, C / 16>, W = C + 1;
    const int F16 = int(round_up(s.F, 16)), stride = F16 + PAD<T>;
    const int64_t N = s.chunks(C), bh = blockIdx.x / N, n = blockIdx.x % N, t = n * C;
    T* k = dynamic_shared<T>();
    T* q = k + C * stride;
    float* lower = reinterpret_cast<float*>(q + C * stride);
    float* inverse = lower + C * W;
    float* beta = inverse + C * W;
    load_tile(k, stride, x.k + s.at(bh, t, s.F), s.H * s.F, C, F16, s.T - t, s.F, s.vector);
    load_tile(q, stride, x.q + s.at(bh, t, s.F), s.H * s.F, C, F16, s.T - t, s.F, s.vector);
    if (DELTA) load_beta(beta, x.beta, s, bh, t);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    const Share<C> my;
    const int64_t square = (bh * N + n) * C * C;
    Block d[NB];
    clear(d);
    product<false, true>(d, q + 16 * my.row * stride, stride, k, stride, 0, F16, my.first, my.step, my.row + 1);
#pragma unroll
    for (int b = 0; b < NB; b++)
        each(d[b], [&](int r, int c, float& value) {
            const int i = 16 * my.row + r, j = 16 * (my.first + b * my.step) + c;
            if (j < C) x.scores[square + i * C + j] = from_float<T>(j <= i ? value : 0.0f);
        });
    if (!DELTA) return;

    clear(d);
    product<false, true>(d, k + 16 * my.row * stride, stride, k, stride, 0, F16, my.first, my.step, my.row + 1);
#pragma unroll
    for (int b = 0; b < NB; b++)
        each(d[b], [&](int r, int c, float& value) {
            const int i = 16 * my.row + r, j = 16 * (my.first + b * my.step) + c;
            if (j < C) {
                lower[i * W + j] = j < i ? value * beta[j] : 0.0f;
                inverse[i * W + j] = 0.0f;
            }
        });
    __syncthreads();
    // blocks of 16 on the diagonal: a thread solves for one column
    if (threadIdx.x < C) {
        const int first = threadIdx.x / 16 * 16, column = threadIdx.x % 16;
        float solved[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            solved[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
            for (int j = 0; j < i; j++) solved[i] -= lower[(first + i) * W + first + j] * solved[j];
            inverse[(first + i) * W + first + column] = solved[i];
        }
    }
    __syncthreads();
    // two neighbours of size n to one of 2 n: [A 0; L D]^-1 = [A' 0; -D' L A' D']; L A' goes above
    // the diagonal of `lower`, where nothing else is
    for (int size = 16; size < C; size *= 2) {
        const int entries = C / (2 * size) * size * size;
        for (int part = 0; part < 2; part++) {
            for (int m = threadIdx.x; m < entries; m += THREADS) {
                const int pair = m / (size * size) * 2 * size, i = m / size % size, j = m % size;
                float sum = 0.0f;
                for (int h = 0; h < size; h++)
                    sum += part == 0 ? lower[(pair + size + i) * W + pair + h] * inverse[(pair + h) * W + pair + j]
                                     : inverse[(pair + size + i) * W + pair + size + h] *
                                           lower[(pair + h) * W + pair + size + j];
                if (part == 0) lower[(pair + i) * W + pair + size + j] = sum;
                else inverse[(pair + size + i) * W + pair + j] = -sum;
            }
            __syncthreads();
        }
    }
    for (int m = threadIdx.x; m < C * C; m += THREADS)
        x.inverse[square + m] = from_float<T>(inverse[m / C * W + m % C]);
}

template <class T> constexpr int64_t prepare_bytes(int64_t F16) {
    return 2 * tile_bytes<T>(CHUNK<T>, F16) + (2 * CHUNK<T> * (CHUNK<T> + 1) + CHUNK<T>) * sizeof(float);
}

// What a sweep over chunks keeps of one chunk, and the matrix that it carries: rows of blocks
// warp, warp + 4, ... below FT * 64, all 16 NB columns, float32 in registers, and a copy in T.
template <class T, int FT, int NB> struct Sweep {
    static constexpr int C = CHUNK<T>, VT = 16 * NB, narrow = VT + PAD<T>, square = C + PAD<T>;
    static constexpr int mine = MINE<C, NB>;
    int F16, wide, V0;
    int64_t bh, split;
    Block carried[FT][NB];

    __device__ Sweep(const Sizes& s) : F16(int(round_up(s.F, 16))), wide(F16 + PAD<T>) {
        const int64_t splits = ceil_div(s.V, VT);
        bh = blockIdx.x / splits, split = blockIdx.x % splits, V0 = int(split) * VT;
    }
    template <class F> __device__ void each_carried(const Sizes& s, F f) {
#pragma unroll
        for (int i = 0; i < FT; i++)
#pragma unroll
            for (int n = 0; n < NB; n++)
                each(carried[i][n], [&](int r, int c, float& value) {
                    const int row = 16 * (threadIdx.x / 32 + i * WARPS) + r, column = 16 * n + c;
                    if (row < F16) f(row, column, row < s.F && V0 + column < s.V, value);
                });
    }
    __device__ void begin(const Sizes& s, const float* matrix) {
        each_carried(s, [&](int f, int v, bool is, float& value) {
            value = is && matrix ? matrix[(bh * s.F + f) * s.V + V0 + v] : 0.0f;
        });
    }
    __device__ void end(const Sizes& s, float* matrix) {
        each_carried(s, [&](int f, int v, bool is, float& value) {
            if (is) matrix[(bh * s.F + f) * s.V + V0 + v] = value;
        });
    }
    __device__ void keep(const Sizes& s, T* matrices, int64_t n) {
        T* to = matrices + (bh * s.chunks(C) + n) * s.F * s.V;
        each_carried(s, [&](int f, int v, bool is, float& value) {
            if (is) to[f * s.V + V0 + v] = from_float<T>(value);
        });
    }
    __device__ void copy(const Sizes& s, T* tile) {
        each_carried(s, [&](int f, int v, bool, float& value) { tile[f * narrow + v] = from_float<T>(value); });
    }
    // carried += k^T u
    __device__ void write(const T* k, const T* u) {
#pragma unroll
        for (int i = 0; i < FT; i++) {
            const int row = 16 * (threadIdx.x / 32 + i * WARPS);
            if (row < F16) product<true, false>(carried[i], k + row, wide, u, narrow, 0, C, 0, 1, NB);
        }
    }
    __device__ void load_wide(T* to, const T* from, const Sizes& s, int64_t t) {
        load_tile(to, wide, from + s.at(bh, t, s.F), s.H * s.F, C, F16, s.T - t, s.F, s.vector);
    }
    __device__ void load_narrow(T* to, const T* from, const Sizes& s, int64_t t) {
        load_tile(to, narrow, from + s.at(bh, t, s.V) + V0, s.H * s.V, C, VT, s.T - t, s.V - V0, s.vector);
    }
};

// e = inverse (v - k W), u = beta e, y = q W + scores u, W += k^T u
template <class T, bool DELTA, int FT, int NB>
__global__ void __launch_bounds__(THREADS, 1) forward_sweep(Sizes s, Tensors<T> x, int stages) {
    using S = Sweep<T, FT, NB>;
    constexpr int C = S::C;
    S w(s);
    const int64_t N = s.chunks(C);
    const int wide = C * w.wide, narrow = C * S::narrow, square = C * S::square;
    const int stage = 2 * wide + narrow + (DELTA ? 2 : 1) * square + int(C * sizeof(float) / sizeof(T));
    T* matrix = dynamic_shared<T>();
    T* rest = matrix + w.F16 * S::narrow;
    T* first = rest + (DELTA ? narrow : 0);
    const Share<C> my;

    auto fetch = [&](int64_t n) {
        T* to = first + n % stages * stage;
        w.load_wide(to, x.k, s, n * C);
        w.load_wide(to + wide, x.q, s, n * C);
        w.load_narrow(to + 2 * wide, x.v, s, n * C);
        load_square(to + 2 * wide + narrow, x.scores + (w.bh * N + n) * C * C);
        if constexpr (DELTA) {
            load_square(to + 2 * wide + narrow + square, x.inverse + (w.bh * N + n) * C * C);
            load_beta(reinterpret_cast<float*>(to + 2 * wide + narrow + 2 * square), x.beta, s, w.bh, n * C);
        }
        cp_async_commit();
    };
    w.begin(s, x.state);
    w.copy(s, matrix);
    fetch(0);
    for (int64_t n = 0; n < N; n++) {
        if (stages == 2 && n + 1 < N) {
            fetch(n + 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        const T* k = first + n % stages * stage;
        const T* q = k + wide;
        T* u = first + n % stages * stage + 2 * wide;  // v, until each thread has used its own
        const T* scores = u + narrow;
        Block d[S::mine];
        if constexpr (DELTA) {
            const T* inverse = scores + square;
            const float* beta = reinterpret_cast<const float*>(inverse + square);
            clear(d);
            product<false, false>(d, k + 16 * my.row * w.wide, w.wide, matrix, S::narrow, 0, w.F16,
                                  my.first, my.step, NB);
#pragma unroll
            for (int b = 0; b < S::mine; b++)
                each(d[b], [&](int r, int c, float& value) {
                    const int i = (16 * my.row + r) * S::narrow, j = 16 * (my.first + b * my.step) + c;
                    if (j < S::VT) rest[i + j] = from_float<T>(to_float(u[i + j]) - value);
                });
            __syncthreads();
            clear(d);
            product<false, false>(d, inverse + 16 * my.row * S::square, S::square, rest, S::narrow, 0,
                                  16 * (my.row + 1), my.first, my.step, NB);
#pragma unroll
            for (int b = 0; b < S::mine; b++)
                each(d[b], [&](int r, int c, float& value) {
                    const int i = 16 * my.row + r, j = 16 * (my.first + b * my.step) + c;
                    if (j >= S::VT) return;
                    // what is kept for the backward pass is what is written here, rounded alike
                    const T e = from_float<T>(value);
                    u[i * S::narrow + j] = from_float<T>(beta[i] * to_float(e));
                    if (x.error && n * C + i < s.T && w.V0 + j < s.V)
                        x.error[s.at(w.bh, n * C + i, s.V) + w.V0 + j] = e;
                });
            __syncthreads();
        }
        clear(d);
        product<false, false>(d, q + 16 * my.row * w.wide, w.wide, matrix, S::narrow, 0, w.F16, my.first,
                              my.step, NB);
        product<false, false>(d, scores + 16 * my.row * S::square, S::square, u, S::narrow, 0,
                              16 * (my.row + 1), my.first, my.step, NB);
#pragma unroll
        for (int b = 0; b < S::mine; b++)
            each(d[b], [&](int r, int c, float& value) {
                const int64_t i = n * C + 16 * my.row + r;
                const int j = 16 * (my.first + b * my.step) + c;
                if (j < S::VT && i < s.T && w.V0 + j < s.V)
                    x.y[s.at(w.bh, i, s.V) + w.V0 + j] = from_float<T>(value);
            });
        w.write(k, u);
        __syncthreads();  // everyone has read the copy of W, and the chunk
        w.copy(s, matrix);
        if (stages == 1 && n + 1 < N) fetch(n + 1);
    }
    w.end(s, x.last);
}

template <class T, bool DELTA> constexpr int64_t forward_bytes(int64_t F16, int64_t VT, int stages) {
    constexpr int C = CHUNK<T>;
    return tile_bytes<T>(F16 + (DELTA ? C : 0), VT) +
           stages * (2 * tile_bytes<T>(C, F16) + tile_bytes<T>(C, VT) + (DELTA ? 2 : 1) * square_bytes<T>() +
                     C * sizeof(float));
}

// the state before each chunk, from what was written: W += k^T u
template <class T, bool DELTA, int FT, int NB>
__global__ void __launch_bounds__(THREADS, 1) state_sweep(Sizes s, Tensors<T> x, int stages) {
    using S = Sweep<T, FT, NB>;
    constexpr int C = S::C;
    S w(s);
    const int64_t N = s.chunks(C);
    const int wide = C * w.wide, stage = wide + C * S::narrow + int(C * sizeof(float) / sizeof(T));
    T* first = dynamic_shared<T>();
    auto fetch = [&](int64_t n) {
        T* to = first + n % stages * stage;
        w.load_wide(to, x.k, s, n * C);
        w.load_narrow(to + wide, x.e, s, n * C);
        if (DELTA) load_beta(reinterpret_cast<float*>(to + wide + C * S::narrow), x.beta, s, w.bh, n * C);
        cp_async_commit();
    };
    w.begin(s, x.state);
    fetch(0);
    for (int64_t n = 0; n < N; n++) {
        if (stages == 2 && n + 1 < N) {
            fetch(n + 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        w.keep(s, x.states, n);
        if (n + 1 == N) break;
        T* k = first + n % stages * stage;
        T* u = k + wide;
        if constexpr (DELTA) {
            const float* beta = reinterpret_cast<const float*>(u + C * S::narrow);
            for (int i = threadIdx.x; i < C * S::VT; i += THREADS) {
                T& at = u[i / S::VT * S::narrow + i % S::VT];
                at = from_float<T>(beta[i / S::VT] * to_float(at));
            }
            __syncthreads();
        }
        w.write(k, u);
        __syncthreads();
        if (stages == 1) fetch(n + 1);
    }
}

template <class T> constexpr int64_t state_bytes(int64_t F16, int64_t VT, int stages) {
    constexpr int C = CHUNK<T>;
    return stages * (tile_bytes<T>(C, F16) + tile_bytes<T>(C, VT) + C * sizeof(float));
}

// du = scores^T gy + k G, w = dv = inverse^T (beta du), G += q^T gy - k^T w; from the last chunk on
template <class T, bool DELTA, int FT, int NB>
__global__ void __launch_bounds__(THREADS, 1) backward_sweep(Sizes s, Tensors<T> x, int stages) {
    using S = Sweep<T, FT, NB>;
    constexpr int C = S::C;
    S w(s);
    const int64_t N = s.chunks(C);
    const int wide = C * w.wide, narrow = C * S::narrow, square = C * S::square;
    const int stage = 2 * wide + (DELTA ? 2 : 1) * (narrow + square) + int(C * sizeof(float) / sizeof(T));
    T* matrix = dynamic_shared<T>();
    T* scaled = matrix + w.F16 * S::narrow;
    T* first = scaled + (DELTA ? narrow : 0);
    const Share<C> my;

    auto fetch = [&](int64_t n) {
        T* to = first + n % stages * stage;
        w.load_wide(to, x.k, s, n * C);
        w.load_wide(to + wide, x.q, s, n * C);
        to += 2 * wide;
        w.load_narrow(to, x.gy, s, n * C);
        load_square(to + narrow, x.scores + (w.bh * N + n) * C * C);
        if constexpr (DELTA) {
            to += narrow + square;
            load_square(to, x.inverse + (w.bh * N + n) * C * C);
            w.load_narrow(to + square, x.e, s, n * C);
            load_beta(reinterpret_cast<float*>(to + square + narrow), x.beta, s, w.bh, n * C);
        }
        cp_async_commit();
    };
    w.begin(s, x.glast);
    w.copy(s, matrix);
    fetch(N - 1);
    for (int64_t n = N - 1; n >= 0; n--) {
        if (stages == 2 && n > 0) {
            fetch(n - 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        w.keep(s, x.gradients, n);
        const T* k = first + n % stages * stage;
        const T* q = k + wide;
        const T* gy = q + wide;
        const T* scores = gy + narrow;
        Block d[S::mine];
        clear(d);
        product<true, false>(d, scores + 16 * my.row, S::square, gy, S::narrow, 16 * my.row, C, my.first,
                             my.step, NB);
        product<false, false>(d, k + 16 * my.row * w.wide, w.wide, matrix, S::narrow, 0, w.F16, my.first,
                              my.step, NB);
        T* e = nullptr;  // then -w, each thread in its own places
        if constexpr (DELTA) {
            const T* inverse = scores + square;
            e = first + n % stages * stage + 2 * (wide + square) + narrow;
            const float* beta = reinterpret_cast<const float*>(e + narrow);
            float sums[2] = {0.0f, 0.0f};
#pragma unroll
            for (int b = 0; b < S::mine; b++)
                each(d[b], [&](int r, int c, float& value) {
                    const int i = 16 * my.row + r, j = 16 * (my.first + b * my.step) + c;
                    if (j >= S::VT) return;
                    sums[r / 8] += value * to_float(e[i * S::narrow + j]);
                    scaled[i * S::narrow + j] = from_float<T>(beta[i] * value);
                });
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float sum = row_sum(sums[h]);
                const int64_t t = n * C + 16 * my.row + 8 * h + lane_of(threadIdx.x) / 4;
                if (threadIdx.x % 4 == 0 && t < s.T)
                    x.e_du[((w.split * my.step + my.first) * s.heads() + w.bh) * s.T + t] = sum;
            }
            __syncthreads();
            clear(d);
            product<true, false>(d, inverse + 16 * my.row, S::square, scaled, S::narrow, 16 * my.row, C,
                                 my.first, my.step, NB);
        }
#pragma unroll
        for (int b = 0; b < S::mine; b++)
            each(d[b], [&](int r, int c, float& value) {
                const int i = 16 * my.row + r, j = 16 * (my.first + b * my.step) + c;
                if (j >= S::VT) return;
                const T rounded = from_float<T>(value);
                if constexpr (DELTA) e[i * S::narrow + j] = from_float<T>(-to_float(rounded));
                if (n * C + i < s.T && w.V0 + j < s.V)
                    x.dv[s.at(w.bh, n * C + i, s.V) + w.V0 + j] = rounded;
            });
        if constexpr (DELTA) __syncthreads();
        w.write(q, gy);
        if constexpr (DELTA) w.write(k, e);
        __syncthreads();
        w.copy(s, matrix);
        if (stages == 1 && n > 0) fetch(n - 1);
    }
    w.end(s, x.dstate);
}

template <class T, bool DELTA> constexpr int64_t backward_bytes(int64_t F16, int64_t VT, int stages) {
    constexpr int C = CHUNK<T>;
    return tile_bytes<T>(F16 + (DELTA ? C : 0), VT) +
           stages * (2 * tile_bytes<T>(C, F16) + (DELTA ? 2 : 1) * (tile_bytes<T>(C, VT) + square_bytes<T>()) +
                     C * sizeof(float));
}

constexpr int SLICE = 64;  // columns that the two kernels below take at a time

// u_gy = u gy^T and u_w = -u w^T on and above the diagonal; dbeta
template <class T, bool DELTA>
__global__ void __launch_bounds__(THREADS, 1) chunk_scores(Sizes s, Tensors<T> x, int64_t parts) {
    constexpr int C = CHUNK<T>, NB = MINE<C, C / 16>, stride = SLICE + PAD<T>;
    const int64_t N = s.chunks(C), bh = blockIdx.x / N, n = blockIdx.x % N, t = n * C;
    T* e = dynamic_shared<T>();
    T* gy = e + C * stride;
    T* w = gy + C * stride;
    float* beta = reinterpret_cast<float*>(w + C * stride);
    float* dbeta = beta + C;
    const Share<C> my;
    Block by_gy[NB], by_w[NB];
    clear(by_gy);
    clear(by_w);
    if constexpr (DELTA) {
        load_beta(beta, x.beta, s, bh, t);
        for (int i = threadIdx.x; i < C; i += THREADS) dbeta[i] = 0.0f;
    }
    for (int64_t v = 0; v < s.V; v += SLICE) {
        auto fetch = [&](T* to, const T* from) {
            load_tile(to, stride, from + s.at(bh, t, s.V) + v, s.H * s.V, C, SLICE, s.T - t, s.V - v, s.vector);
        };
        fetch(e, x.e);
        fetch(gy, x.gy);
        if (DELTA) fetch(w, x.dv);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        const T* rows = e + 16 * my.row * stride;
        product<false, true>(by_gy, rows, stride, gy, stride, 0, SLICE, my.first, my.step, C / 16);
        if (DELTA) product<false, true>(by_w, rows, stride, w, stride, 0, SLICE, my.first, my.step, C / 16);
        __syncthreads();
    }
    Block by_k[NB];
    if constexpr (DELTA) {
        clear(by_k);
        for (int64_t f = 0; f < s.F; f += SLICE) {
            load_tile(e, stride, x.k + s.at(bh, t, s.F) + f, s.H * s.F, C, SLICE, s.T - t, s.F - f, s.vector);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            product<false, true>(by_k, e + 16 * my.row * stride, stride, e, stride, 0, SLICE, my.first, my.step,
                                 C / 16);
            __syncthreads();
        }
    }
    const int64_t square = (bh * N + n) * C * C;
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const int lane = lane_of(threadIdx.x);
                const int j = 16 * my.row + lane / 4 + m / 2 * 8;
                const int i = 16 * (my.first + b * my.step) + 8 * h + lane % 4 * 2 + m % 2;
                if (i >= C) continue;
                const float scale = DELTA ? beta[j] : 1.0f;
                x.u_gy[square + j * C + i] = from_float<T>(i >= j ? scale * by_gy[b][h][m] : 0.0f);
                if constexpr (DELTA) {
                    x.u_w[square + j * C + i] = from_float<T>(i > j ? -scale * by_w[b][h][m] : 0.0f);
                    if (i > j) sums[m / 2] += by_k[b][h][m] * by_w[b][h][m];
                }
            }
    if constexpr (DELTA) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float sum = row_sum(sums[h]);
            // at most two warps add to one number: in either order the same
            if (threadIdx.x % 4 == 0)
                atomicAdd(dbeta + 16 * my.row + 8 * h + lane_of(threadIdx.x) / 4, sum);
        }
        __syncthreads();
        for (int64_t i = threadIdx.x; i < C && t + i < s.T; i += THREADS) {
            float sum = -dbeta[i];
            for (int64_t part = 0; part < parts; part++) sum += x.e_du[(part * s.heads() + bh) * s.T + t + i];
            x.dbeta[s.at(bh, t + i, 1)] = from_float<T>(sum);
        }
    }
}

template <class T> constexpr int64_t scores_bytes() {
    return 3 * tile_bytes<T>(CHUNK<T>, SLICE) + 2 * CHUNK<T> * sizeof(float);
}

// dq = gy W^T + u_gy^T k, dk = u G^T - w W^T + u_gy q + (u_w + u_w^T) k, for SLICE features
template <class T, bool DELTA>
__global__ void __launch_bounds__(THREADS, 1) chunk_gradients(Sizes s, Tensors<T> x) {
    constexpr int C = CHUNK<T>, NB = MINE<C, SLICE / 16>, VT = 32, narrow = VT + PAD<T>, wide = SLICE + PAD<T>;
    const int64_t N = s.chunks(C), bh = blockIdx.x / N, n = blockIdx.x % N, t = n * C, f = blockIdx.y * SLICE;
    T* state = dynamic_shared<T>();
    T* gradient = state + SLICE * narrow;
    T* gy = gradient + SLICE * narrow;
    T* u = gy + C * narrow;
    T* w = u + C * narrow;
    float* beta = reinterpret_cast<float*>(w + (DELTA ? C * narrow : 0));
    if (DELTA) load_beta(beta, x.beta, s, bh, t);
    const Share<C> my;
    Block dq[NB], dk[NB];
    clear(dq);
    clear(dk);
    for (int64_t v = 0; v < s.V; v += VT) {
        const int64_t matrix = ((bh * N + n) * s.F + f) * s.V + v;
        load_tile(state, narrow, x.states + matrix, s.V, SLICE, VT, s.F - f, s.V - v, s.vector);
        load_tile(gradient, narrow, x.gradients + matrix, s.V, SLICE, VT, s.F - f, s.V - v, s.vector);
        auto fetch = [&](T* to, const T* from) {
            load_tile(to, narrow, from + s.at(bh, t, s.V) + v, s.H * s.V, C, VT, s.T - t, s.V - v, s.vector);
        };
        fetch(gy, x.gy);
        fetch(u, x.e);
        if (DELTA) fetch(w, x.dv);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        if constexpr (DELTA) {
            for (int i = threadIdx.x; i < C * VT; i += THREADS) {
                const int at = i / VT * narrow + i % VT;
                u[at] = from_float<T>(beta[i / VT] * to_float(u[at]));
                w[at] = from_float<T>(-to_float(w[at]));
            }
            __syncthreads();
        }
        const int row = 16 * my.row * narrow;
        product<false, true>(dq, gy + row, narrow, state, narrow, 0, VT, my.first, my.step, SLICE / 16);
        product<false, true>(dk, u + row, narrow, gradient, narrow, 0, VT, my.first, my.step, SLICE / 16);
        if (DELTA) product<false, true>(dk, w + row, narrow, state, narrow, 0, VT, my.first, my.step, SLICE / 16);
        __syncthreads();
    }
    T* k = dynamic_shared<T>();
    T* q = k + C * wide;
    T* u_gy = q + C * wide;
    T* u_w = u_gy + C * (C + PAD<T>);
    const int64_t square = (bh * N + n) * C * C;
    load_tile(k, wide, x.k + s.at(bh, t, s.F) + f, s.H * s.F, C, SLICE, s.T - t, s.F - f, s.vector);
    load_tile(q, wide, x.q + s.at(bh, t, s.F) + f, s.H * s.F, C, SLICE, s.T - t, s.F - f, s.vector);
    load_square(u_gy, x.u_gy + square);
    if (DELTA) load_square(u_w, x.u_w + square);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const int begin = 16 * my.row, end = begin + 16, row = begin * (C + PAD<T>);
    product<true, false>(dq, u_gy + begin, C + PAD<T>, k, wide, 0, end, my.first, my.step, SLICE / 16);
    product<false, false>(dk, u_gy + row, C + PAD<T>, q, wide, begin, C, my.first, my.step, SLICE / 16);
    if constexpr (DELTA) {
        product<false, false>(dk, u_w + row, C + PAD<T>, k, wide, begin, C, my.first, my.step, SLICE / 16);
        product<true, false>(dk, u_w + begin, C + PAD<T>, k, wide, 0, end, my.first, my.step, SLICE / 16);
    }
#pragma unroll
    for (int b = 0; b < NB; b++) {
        auto store = [&](Block& d, T* to) {
            each(d, [&](int r, int c, float& value) {
                const int64_t i = t + begin + r, j = f + 16 * (my.first + b * my.step) + c;
                if (i < s.T && j < s.F) to[s.at(bh, i, s.F) + j] = from_float<T>(value);
            });
        };
        store(dq[b], x.dq);
        store(dk[b], x.dk);
    }
}

template <class T, bool DELTA> constexpr int64_t gradients_bytes() {
    constexpr int64_t C = CHUNK<T>;
    const int64_t over_v = tile_bytes<T>(2 * SLICE + (DELTA ? 3 : 2) * C, 32) + C * sizeof(float);
    const int64_t over_c = 2 * tile_bytes<T>(C, SLICE) + (DELTA ? 2 : 1) * square_bytes<T>();
    return over_v > over_c ? over_v : over_c;
}
