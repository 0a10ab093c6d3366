// The tensor core, ldmatrix and cp.async of `kernels/common/mma.cuh` on a CPU.
//
// Products are exact and a sum is rounded once, to float32; a GPU rounds a little more often.
#pragma once

#include "emulator.h"

namespace emulator {

struct Brought { const uint32_t *a, *b; float* d; };

template <class T> double number(uint16_t bits);
template <> inline double number<__nv_bfloat16>(uint16_t bits) {
    return __bfloat162float(__nv_bfloat16{bits});
}
template <> inline double number<__half>(uint16_t bits) { return __half2float(__half{bits}); }

// D += A B for all lanes, once A and B are spread out
template <int K> void multiply(const std::vector<Fiber*>& lanes, const double (&A)[16][K], const double (&B)[K][8]) {
    for (int lane = 0; lane < 32; lane++) {
        float* d = in<Brought>(lanes, lane).d;
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = d[i];
            for (int k = 0; k < K; k++) sum += A[row][k] * B[k][column];
            d[i] = float(sum);
        }
    }
}

struct Row { const char* address; uint32_t* out; };

inline void load_tiles(uint32_t (&r)[4], const void* row, bool transposed, const char* what, Where where) {
    if (uintptr_t(row) % 16) fault("ldmatrix of a row that begins at no multiple of 16 bytes", where);
    if (!shared_region(row, 16)) fault("ldmatrix outside shared memory", where);
    together<Row, char>(~0u, what, {static_cast<const char*>(row), r}, [&](auto& lanes) {
        for (int tile = 0; tile < 4; tile++) {
            const char* rows[8];
            for (int i = 0; i < 8; i++) rows[i] = in<Row>(lanes, tile * 8 + i).address;
            // eight rows of 16 bytes fill the 32 banks once, if no two different ones share any
            int most = 1;
            for (int i = 0; i < 8; i++) {
                int same = 0;
                for (int j = 0; j < 8; j++)
                    same += (uintptr_t(rows[i]) / 16 - uintptr_t(rows[j]) / 16) % 8 == 0 &&
                            (i == j || rows[i] != rows[j]);
                most = std::max(most, same);
            }
            machine.conflicts += most - 1;
            for (int lane = 0; lane < 32; lane++) {
                uint16_t pair[2];
                for (int i = 0; i < 2; i++) {
                    int y = transposed ? lane % 4 * 2 + i : lane / 4;
                    int x = transposed ? lane / 4 : lane % 4 * 2 + i;
                    memcpy(&pair[i], rows[y] + 2 * x, 2);
                }
                memcpy(&in<Row>(lanes, lane).out[tile], pair, 4);
            }
        }
    }, where);
}

inline void finish(Fiber::Copy& copy) {
    memcpy(copy.to, copy.from, copy.given);
    memset(static_cast<char*>(copy.to) + copy.given, 0, copy.bytes - copy.given);
}

inline void start_copy(void* to, const void* from, int bytes, int given, Where where) {
    auto& m = machine;
    if (uintptr_t(to) % bytes || (given && uintptr_t(from) % bytes))
        fault("cp.async with an address that is no multiple of its size", where);
    if (given < 0 || given > bytes) fault("cp.async of more bytes than its size", where);
    if (!shared_region(to, bytes)) fault("cp.async to outside shared memory", where);
    Fiber::Copy copy{to, from, bytes, given};
    // a copy may be done at once or only when it is waited for: be each, by order
    bool at_once = m.order == FORWARD || (m.order == SHUFFLED && m.random() % 2);
    if (at_once) return finish(copy);
    memset(to, 0xFF, bytes);
    m.now->groups.back().push_back(copy);
}

}  // namespace emulator

template <class T>
void mma_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATED_WHERE) {
    using namespace emulator;
    together<Brought, char>(~0u, "mma_k16", {a, b, d}, [](auto& lanes) {
        double A[16][16], B[16][8];
        for (int lane = 0; lane < 32; lane++) {
            auto& of = in<Brought>(lanes, lane);
            int g = lane / 4, t = lane % 4;
            for (int half = 0; half < 2; half++) {
                for (int i = 0; i < 4; i++)
                    A[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = number<T>(of.a[i] >> 16 * half);
                for (int i = 0; i < 2; i++)
                    B[2 * t + i * 8 + half][g] = number<T>(of.b[i] >> 16 * half);
            }
        }
        multiply(lanes, A, B);
    }, where);
}

inline void mma_k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATED_WHERE) {
    using namespace emulator;
    together<Brought, char>(~0u, "mma_k8", {a, b, d}, [](auto& lanes) {
        double A[16][8], B[8][8];
        // the tensor core does not look at the low 13 bits
        auto tf32 = [](uint32_t bits) { return double(__uint_as_float(bits & 0xFFFFE000u)); };
        for (int lane = 0; lane < 32; lane++) {
            auto& of = in<Brought>(lanes, lane);
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) A[g + i % 2 * 8][t + i / 2 * 4] = tf32(of.a[i]);
            for (int i = 0; i < 2; i++) B[t + i * 4][g] = tf32(of.b[i]);
        }
        multiply(lanes, A, B);
    }, where);
}

inline uint32_t to_tf32(float x) {
    uint32_t bits = __float_as_uint(x);
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & 0xFFFFE000u;
}

inline void ldmatrix(uint32_t (&r)[4], const void* row, EMULATED_WHERE) {
    emulator::load_tiles(r, row, false, "ldmatrix", where);
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row, EMULATED_WHERE) {
    emulator::load_tiles(r, row, true, "ldmatrix_transposed", where);
}

template <int BYTES> void cp_async(void* to, const void* from, int given = BYTES, EMULATED_WHERE) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    emulator::start_copy(to, from, BYTES, given, where);
}
inline void cp_async_commit() { emulator::machine.now->groups.emplace_back(); }
template <int GROUPS> void cp_async_wait() {
    auto& groups = emulator::machine.now->groups;
    while (groups.size() > GROUPS + 1) {
        for (auto& copy : groups.front()) emulator::finish(copy);
        groups.erase(groups.begin());
    }
}
