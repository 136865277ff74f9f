/* Kernels for float32 on CPUs with AVX-512: products of float32, added up in float32.
 *
 * MKL reaches two fifths of the peak of AMD's CPUs, this the whole of it (docs/decisions/engine.md).
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define PARTS 1
typedef float number;

#include "kernels.h"

/* 1: the CPU and the operating system have AVX-512. */
int rs_ready(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

static void configure(void) {}

static void release(void) {}

TARGET static inline void store_of_row(number *to, __m512 v) { _mm512_store_ps(to, v); }

/* 16 rows of 16 to 16 columns: by pairs, by fours, by lanes of four, by pairs of lanes. */
TARGET static inline void transpose(__m512 v[TILE]) {
    __m512 t[TILE];
    for (int i = 0; i < TILE; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4) {
        v[i] = (__m512)_mm512_unpacklo_pd((__m512d)t[i], (__m512d)t[i + 2]);
        v[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i], (__m512d)t[i + 2]);
        v[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
        v[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* lanes 0 and 2, lanes 1 and 3 */
        t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

/* [steps][32 of depth][32 columns]. */
TARGET static void pack_block(const float *w, int64_t stride, int64_t rows, int64_t k, number *to) {
    for (int64_t at = 0; at < k; at += DEPTH, to += WEIGHT_TILES) {
        for (int64_t row = 0; row < BLOCK; row += TILE) {
            for (int64_t half = 0; half < DEPTH; half += TILE) {
                __m512 v[TILE];
                for (int64_t i = 0; i < TILE; i++)
                    v[i] = _mm512_maskz_loadu_ps(row + i < rows ? LANES(k - at - half) : 0, w + (row + i) * stride + at + half);
                transpose(v);
                for (int64_t i = 0; i < TILE; i++) _mm512_store_ps(to + (half + i) * BLOCK + row, v[i]);
            }
        }
    }
}

/* [width/32][n/32][32 tokens][32 columns]. */
TARGET static void pack_values(const float *v, int64_t stride, int64_t n, int64_t width, number *to) {
    const int64_t steps = (n + DEPTH - 1) / DEPTH;
    for (int64_t token = 0; token < steps * DEPTH; token++) {
        for (int64_t at = 0; at < (width + BLOCK - 1) / BLOCK * BLOCK; at += TILE) {
            const __mmask16 mask = token < n ? LANES(width - at) : 0;
            number *here = to + (at / BLOCK * steps + token / DEPTH) * WEIGHT_TILES + token % DEPTH * BLOCK + at % BLOCK;
            _mm512_store_ps(here, _mm512_maskz_loadu_ps(mask, v + token * stride + at));
        }
    }
}

/* ROWS of a tile times 32 columns. The sums are in registers: with 8 rows there are enough to hide the latency of an addition. */
#define MULTIPLY(ROWS)                                                                                                       \
    TARGET static void multiply_##ROWS(const number *x, const number *w, int64_t steps, float *c, int64_t stride, int fresh) { \
        __m512 left[ROWS], right[ROWS];                                                                                      \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                                             \
            left[r] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * stride);                                         \
            right[r] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * stride + TILE);                                 \
        }                                                                                                                    \
        for (int64_t s = 0; s < steps; s++, x += ROW_TILE) {                                                                 \
            for (int64_t k = 0; k < DEPTH; k++, w += BLOCK) {                                                                \
                const __m512 of_left = _mm512_load_ps(w), of_right = _mm512_load_ps(w + TILE);                               \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                                     \
                    const __m512 v = _mm512_set1_ps(x[r * DEPTH + k]);                                                       \
                    left[r] = _mm512_fmadd_ps(v, of_left, left[r]);                                                          \
                    right[r] = _mm512_fmadd_ps(v, of_right, right[r]);                                                       \
                }                                                                                                            \
            }                                                                                                                \
        }                                                                                                                    \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                                             \
            _mm512_storeu_ps(c + r * stride, left[r]);                                                                       \
            _mm512_storeu_ps(c + r * stride + TILE, right[r]);                                                               \
        }                                                                                                                    \
    }

MULTIPLY(8)
MULTIPLY(4)

TARGET static void multiply(const number *upper, const number *lower, const number *w, int64_t steps, float *c, int64_t stride,
                            int64_t rows, int fresh) {
    for (int64_t r = 0; r < rows; r += 8) {
        const number *x = (r < TILE ? upper : lower) + r % TILE * DEPTH;
        if (rows - r > 4) multiply_8(x, w, steps, c + r * stride, stride, fresh);
        else multiply_4(x, w, steps, c + r * stride, stride, fresh);
    }
}

#else

int rs_ready(void) { return 0; }

#endif
