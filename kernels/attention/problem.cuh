// One call of attention as its kernels see it: where tensors lie, what a query sees, which weights are
// dropped, and a warp's scores. The distance of key j from query i is `shift + i - j`.
#pragma once

#include "tiles.cuh"

constexpr float RENORMALISED = 1e-8f, LOG2_E = 1.44269504088896f;

enum SpanKind : int { NO_SPAN = 0, OF_HEADS = 1, OF_QUERIES = 2 };

template <class T> struct Problem {
    const T *q, *k, *v, *p, *codes, *bias;
    const float* span;  // (H) or (B, H, T), tokens
    const T *persistent_k, *persistent_v, *persistent_bias;
    const int64_t* seed;
    int B, T_, S, H, K, V, R, code_heads, N;
    int nearest, farthest;  // farthest < S
    int span_kind, banded;
    float ramp, keep_scale;
    uint32_t threshold;  // weights whose number is below are dropped

    __device__ int shift() const { return S - T_; }
    __device__ bool has_positions() const { return p != nullptr; }
    __device__ float epsilon() const { return span_kind == NO_SPAN ? 0.0f : RENORMALISED; }
    __device__ Source<T> of_queries(const T* x, int b, int h, int width) const {
        return {x + (static_cast<int64_t>(b) * T_ * H + h) * width, static_cast<int64_t>(H) * width, T_, width};
    }
    __device__ Source<T> of_keys(const T* x, int b, int h, int width) const {
        return {x + (static_cast<int64_t>(b) * S * H + h) * width, static_cast<int64_t>(H) * width, S, width};
    }
    __device__ Source<T> of_persistent(const T* x, int h, int width) const {
        return {x + static_cast<int64_t>(h) * N * width, width, N, width};
    }
    __device__ Source<T> of_codes(int h) const {
        return {codes + (code_heads == 1 ? 0 : static_cast<int64_t>(h) * K), static_cast<int64_t>(code_heads) * K, R, K};
    }
    __device__ float code_bias(int distance, int h) const {
        return bias ? to_float(bias[static_cast<int64_t>(max(0, min(distance, R - 1))) * H + h]) : 0.0f;
    }
    __device__ int64_t row(int b, int h, int i) const { return (static_cast<int64_t>(b) * H + h) * T_ + i; }
    __device__ float span_of(int b, int h, int i) const {
        return span_kind == OF_HEADS ? span[h] : span_kind == OF_QUERIES ? span[row(b, h, i)] : 0.0f;
    }
    // the farthest distance that counts for a span: the first one whose mask is 0 has a gradient
    __device__ int reach(float span_tokens) const {
        // a span that is not a number takes part in everything, so that all results say so
        if (span_kind == NO_SPAN || !banded || span_tokens != span_tokens) return farthest;
        return static_cast<int>(fminf(fmaxf(floorf(ramp + 1 + span_tokens), -1.0f), static_cast<float>(farthest)));
    }
    // the farthest of `ROWS` queries from i0 on; every lane of the warp gets it
    template <int ROWS> __device__ int reach_of_tile(int b, int h, int i0) const {
        if (span_kind != OF_QUERIES) return reach(span_kind == NO_SPAN ? 0.0f : span[h]);
        float most = -1.0f;
        for (int i = i0 + static_cast<int>(threadIdx.x % 32); i < min(i0 + ROWS, T_); i += 32)
            most = fmaxf(most, static_cast<float>(reach(span_of(b, h, i))));
        return static_cast<int>(warp_max(most));
    }
};

// Tile sizes for heads of up to WIDTH (keys and values alike).
template <class Number, int WIDTH_> struct Shape {
    using T = Number;
    static constexpr int WIDTH = WIDTH_;
    static constexpr int TILE = sizeof(T) == 4 || WIDTH > 64 ? 32 : 64;
    static constexpr int WARPS = TILE / 16, THREADS = 32 * WARPS;
    static constexpr int OUT = WIDTH > 128 ? 128 : WIDTH;  // columns of results that a block keeps
    static constexpr int SLICES = WIDTH / OUT;
    static constexpr int LD = WIDTH + PAD<T>, LD_ALL = 2 * TILE + PAD<T>;
    static constexpr int DISTANCES = TILE + 16;  // that 16 queries and TILE keys can have, rounded up
    // a warp's 16 rows of working memory: scores by distance, or two matrices of TILE columns
    static constexpr int LD_SKEW = sizeof(T) == 4 ? 2 * TILE + 8 : TILE + 20;
    static constexpr int LD_STRIP = LD_SKEW * static_cast<int>(sizeof(float) / sizeof(T)), SECOND = TILE + PAD<T>;
    using Tile = Rows<T, LD>;
    using Strip = Rows<T, LD_STRIP>;
    using Scores = Block<TILE / 8>;
    using Result = Block<OUT / 8>;
    static_assert(DISTANCES <= LD_SKEW && SECOND + TILE <= LD_STRIP);

    static constexpr size_t skew_bytes = sizeof(float) * WARPS * 16 * LD_SKEW;
    static constexpr size_t tile_bytes = sizeof(T) * TILE * LD;
    static constexpr size_t code_bytes = 2 * tile_bytes + sizeof(float) * 2 * TILE;  // and biases
};

// Hands out shared memory from its beginning.
struct Carver {
    unsigned char* next = dynamic_shared<unsigned char>();
    template <class T> __device__ T* take(size_t bytes) {
        T* taken = reinterpret_cast<T*>(next);
        next += bytes;
        return taken;
    }
};

// What one query's row needs to know.
struct Query {
    bool there;
    int reach;
    float span;
    uint32_t first, second;  // of the numbers that decide on dropout

    template <class T> static __device__ Query of(const Problem<T>& z, int b, int h, int i) {
        Query q{i < z.T_, -1, 0, 0, 0};
        if (!q.there) return q;
        q.span = z.span_of(b, h, i);
        q.reach = z.reach(q.span);
        if (z.seed) {
            const uint64_t seed = static_cast<uint64_t>(*z.seed);
            const uint32_t row = static_cast<uint32_t>(z.row(b, h, i));
            q.first = mix(row ^ static_cast<uint32_t>(seed));
            q.second = mix(row + static_cast<uint32_t>(seed >> 32) + 0x9E3779B9u);
        }
        return q;
    }
    static __device__ uint32_t mix(uint32_t x) {
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = (x ^ x >> 15) * 0x846CA68Bu;
        return x ^ x >> 16;
    }
    // what dropout multiplies the weight of a column with: key j, or S + n
    template <class T> __device__ float dropout(const Problem<T>& z, int column) const {
        if (!z.seed) return 1.0f;
        uint32_t x = static_cast<uint32_t>(column) * 0x9E3779B1u + first;
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = ((x ^ x >> 15) + second) * 0x846CA68Bu;
        x ^= x >> 16;
        return x >= z.threshold ? z.keep_scale : 0.0f;
    }
};

// The keys that a tile of scores is about: those of the text, or persistent ones.
struct Keys {
    bool of_text;
    int first, count;  // column 0, and the end of what exists
    int column;        // what dropout calls number 0

    // distance of column c from query i, if that query sees it; -1 if not
    template <class T>
    __device__ int seen(const Problem<T>& z, const Query& query, int i, int c) const {
        const int j = first + c, distance = of_text ? z.shift() + i - j : 0;
        bool sees = query.there && j >= 0 && j < count;
        if (of_text) sees = sees && distance >= z.nearest && distance <= query.reach;
        return sees ? distance : -1;
    }
    template <class T> __device__ float bias(const Problem<T>& z, int h, int c) const {
        return of_text || !z.persistent_bias ? 0.0f : to_float(z.persistent_bias[static_cast<int64_t>(h) * z.N + first + c]);
    }
    // the soft mask is `room` / ramp where that is in [0, 1]
    template <class T> __device__ float room(const Problem<T>& z, const Query& query, int distance) const {
        return of_text && z.span_kind != NO_SPAN ? z.ramp + 1 + query.span - static_cast<float>(distance) : z.ramp;
    }
};

__device__ __forceinline__ float soft_mask(float room, float ramp) {
    return room != room ? room : fminf(fmaxf(room / ramp, 0.0f), 1.0f);
}

// A warp's scores: its 16 queries (rows of q, p) against TILE keys. For distances it multiplies p with
// the codes of all distances that this can have, 16 x (TILE + 16), and reads the result back askew:
// row i, key c is column i - c + TILE - 1. `codes` and `biases` begin at the first of these.
template <class C, class T>
__device__ __forceinline__ void scores(typename C::Scores& s, Rows<T, C::LD> q, Rows<T, C::LD> k, bool by_distance,
                                       Rows<T, C::LD> p, Rows<T, C::LD> codes, const float* biases, float* skew) {
    s.clear();
    Product<T>::template by_rows<C::WIDTH>(s, q, k);
    if (!by_distance) return;
    const int lane = threadIdx.x % 32;
    {
        Block<C::DISTANCES / 8> d;
        d.clear();
        Product<T>::template by_rows<C::WIDTH>(d, p, codes);
        #pragma unroll
        for (int n = 0; n < C::DISTANCES / 8; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = column_of(lane, n, i);
                skew[row_of(lane, i) * C::LD_SKEW + column] = d.at[n][i] + biases[column];
            }
    }
    __syncwarp();
    #pragma unroll
    for (int n = 0; n < C::TILE / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row_of(lane, i);
            s.at[n][i] += skew[row * C::LD_SKEW + row - column_of(lane, n, i) + C::TILE - 1];
        }
    __syncwarp();
}

// Codes and biases of the distances from `first` on, for a tile of queries and a tile of keys.
template <class C, class T>
__device__ __forceinline__ void load_codes(const Problem<T>& z, Rows<T, C::LD> to, float* biases, int h, int first) {
    load<2 * C::TILE, C::WIDTH>(to, z.of_codes(h), first, Beyond::NEAREST);
    for (int i = threadIdx.x; i < 2 * C::TILE; i += blockDim.x) biases[i] = z.code_bias(first + i, h);
}

// What a block works on.
struct Where {
    int slice, tile, h, b;
    template <class C> static __device__ Where of(unsigned block, int64_t tiles, int heads) {
        Where at;
        at.slice = static_cast<int>(block % C::SLICES), block /= C::SLICES;
        at.tile = static_cast<int>(block % tiles), block /= static_cast<unsigned>(tiles);
        at.h = static_cast<int>(block % heads), at.b = static_cast<int>(block / heads);
        return at;
    }
};

// The tiles of keys that a tile of queries goes over: those of the text within its reach, then the
// persistent ones.
struct Visits {
    int first, of_text, persistent;

    template <class C, class T> static __device__ Visits of_queries(const Problem<T>& z, const Where& at, int i0) {
        const int reach = z.template reach_of_tile<C::TILE>(at.b, at.h, i0);
        const int first = max(0, z.shift() + i0 - reach);
        const int last = min(z.S - 1, z.shift() + min(i0 + C::TILE, z.T_) - 1 - z.nearest);
        const bool any = reach >= z.nearest && last >= first;
        return {first, any ? (last - first) / C::TILE + 1 : 0, (z.N + C::TILE - 1) / C::TILE};
    }
    __device__ int count() const { return of_text + persistent; }
    template <class C, class T> __device__ Keys keys(const Problem<T>& z, int visit) const {
        if (visit < of_text) return {true, first + visit * C::TILE, z.S, 0};
        return {false, (visit - of_text) * C::TILE, z.N, z.S};
    }
};

template <class T, int LD> __device__ __forceinline__ Rows<T, LD> rows_from(Rows<T, LD> of, int row, int column = 0) {
    return {of(row, column)};
}

// Row r (0: g, 1: g + 8) of a warp's results, scaled, to where that row lies in global memory.
template <class T, int N>
__device__ __forceinline__ void write(const Block<N>& d, int r, float scale, T* row, int first, int width) {
    const int lane = threadIdx.x % 32;
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = first + column_of(lane, n, i);
            if (column < width) row[column] = from_float<T>(d.at[n][2 * r + i] * scale);
        }
}
