/* Kernels for float32 on the matrix unit for bfloat16 that Intel CPUs have had since 2023 (AMX).
 *
 * A float32 is, to 16 bits, the sum of two bfloat16: hi = bf16(v), lo = bf16(v - hi). A product of sums is four products,
 * of which lo * lo is too small to matter: x w = lo(x) hi(w) + hi(x) lo(w) + hi(x) hi(w), added up in float32, which is off
 * by at most 3 * 2^-16 of the sum of |x w|. This is the algorithm that torch.set_float32_matmul_precision("high") names. The
 * unit does sixteen times as many multiplications a cycle in bfloat16 as the vector units do in float32, so three for one
 * pay.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))
#define PARTS 2 /* hi, lo */
typedef uint16_t number; /* bfloat16 */

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.h"

/* Configuration of the tile unit: eight tiles of 16 rows of 64 bytes. The layout is Intel's (palette 1). */
struct __attribute__((packed)) tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};

/* 1: AMX can be used. 0: this CPU lacks AVX-512. -1: the operating system does not allow AMX. */
int rs_ready(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d, a1, b1, c1, d1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) return 0;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, amx = 1u << 22 | 1u << 24;
    if ((b & avx512) != avx512 || (d & amx) != amx || !(a1 & 1u << 5)) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 1 : -1;
}

TARGET static inline void split(__m512 v, __m256i *hi, __m256i *lo) {
    *hi = (__m256i)_mm512_cvtneps_pbh(v);
    __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(*hi), 16));
    *lo = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, back));
}

TARGET static inline void store_of_row(number *to, __m512 v) {
    __m256i hi, lo;
    split(v, &hi, &lo);
    _mm256_store_si256((void *)to, hi);
    _mm256_store_si256((void *)(to + TILE_NUMBERS), lo);
}

/* [steps][2 tiles][hi, lo][16 pairs of depth][16 columns][2]. */
TARGET static void pack_block(const float *w, int64_t stride, int64_t rows, int64_t k, number *to) {
    const __m256i one_pair_further = _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112);
    for (int64_t at = 0; at < k; at += DEPTH, to += 4 * TILE_NUMBERS) {
        for (int64_t row = 0; row < BLOCK; row++) {
            for (int64_t half = 0; half < DEPTH; half += TILE) {
                const __mmask16 mask = row < rows ? LANES(k - at - half) : 0;
                __m256i hi, lo;
                split(_mm512_maskz_loadu_ps(mask, w + row * stride + at + half), &hi, &lo);
                number *here = to + row / TILE * 2 * TILE_NUMBERS + half * TILE + row % TILE * 2;
                _mm256_i32scatter_epi32((void *)here, one_pair_further, hi, 4);
                _mm256_i32scatter_epi32((void *)(here + TILE_NUMBERS), one_pair_further, lo, 4);
            }
        }
    }
}

/* [width/32][n/32][2 tiles][hi, lo][16 pairs of tokens][16][2]. */
TARGET static void pack_values(const float *v, int64_t stride, int64_t n, int64_t width, number *to) {
    const int64_t steps = (n + DEPTH - 1) / DEPTH;
    for (int64_t token = 0; token < steps * DEPTH; token += 2) {
        for (int64_t at = 0; at < (width + BLOCK - 1) / BLOCK * BLOCK; at += TILE) {
            const __mmask16 mask = LANES(width - at);
            __m256i hi, lo, next_hi, next_lo;
            split(_mm512_maskz_loadu_ps(token < n ? mask : 0, v + token * stride + at), &hi, &lo);
            split(_mm512_maskz_loadu_ps(token + 1 < n ? mask : 0, v + (token + 1) * stride + at), &next_hi, &next_lo);
            number *here = to + ((at / BLOCK * steps + token / DEPTH) * 4 + at % BLOCK / TILE * 2) * TILE_NUMBERS + token % DEPTH * TILE;
            _mm512_storeu_si512(here, _mm512_or_si512(_mm512_cvtepu16_epi32(hi), _mm512_slli_epi32(_mm512_cvtepu16_epi32(next_hi), 16)));
            _mm512_storeu_si512(here + TILE_NUMBERS, _mm512_or_si512(_mm512_cvtepu16_epi32(lo), _mm512_slli_epi32(_mm512_cvtepu16_epi32(next_lo), 16)));
        }
    }
}

/* c (32, 32) += rows * weights. Tiles 0-3: the product; 4 and 5: rows; 6 and 7: weights. */
TARGET static void multiply(const number *upper, const number *lower, const number *w, int64_t steps, float *c, int64_t stride,
                            int64_t rows, int fresh) {
    (void)rows; /* the unit takes all */
    const int64_t bytes = stride * (int64_t)sizeof(float);
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + TILE, bytes);
        _tile_loadd(2, c + TILE * stride, bytes);
        _tile_loadd(3, c + TILE * stride + TILE, bytes);
    }
    for (int64_t s = 0; s < steps; s++, upper += 2 * TILE_NUMBERS, lower += 2 * TILE_NUMBERS, w += 4 * TILE_NUMBERS) {
        _tile_loadd(4, upper, 64); /* hi * lo */
        _tile_loadd(6, w + TILE_NUMBERS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, lower, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + 3 * TILE_NUMBERS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, w, 64); /* hi * hi */
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + 2 * TILE_NUMBERS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, upper + TILE_NUMBERS, 64); /* lo * hi */
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + TILE_NUMBERS, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + TILE, bytes);
    _tile_stored(2, c + TILE * stride, bytes);
    _tile_stored(3, c + TILE * stride + TILE, bytes);
}

TARGET static void configure(void) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = TILE, config.bytes_per_row[t] = 64;
    _tile_loadconfig(&config);
}

TARGET static void release(void) { _tile_release(); }

#else

int rs_ready(void) { return 0; }

#endif
