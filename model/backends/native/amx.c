/* Linear layers of float32 numbers on the matrix unit for bfloat16 that Intel CPUs have had since 2023 (AMX).
 *
 * A float32 is, to 16 bits, the sum of two bfloat16: hi = bf16(v), lo = bf16(v - hi). A product of sums is four products,
 * of which lo * lo is too small to matter: x w = lo(x) hi(w) + hi(x) lo(w) + hi(x) hi(w), added up in float32, which is off
 * by at most 3 * 2^-16 of the sum of |x w|. This is the algorithm that torch.set_float32_matmul_precision("high") names. The
 * unit does sixteen times as many multiplications a cycle in bfloat16 as the vector units do in float32, so three for one
 * pay.
 *
 * Weights lie packed: for every 32 columns of the product and every 32 of depth two tiles of 16 columns, each as
 * [hi, lo][16 pairs of depth][16 columns][2]. Rows are split as they are read, a panel at a time, so that a panel stays in
 * the second-level cache while all columns pass by. Every value of the product is summed in one and the same order, whatever
 * the other rows are and however many threads there are.
 *
 * Plain C behind ctypes: no Python.h. The OpenMP calls are left open at link time and find the runtime that torch has
 * loaded: a second one would fight it for the cores.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

enum {
    TILE = 16,              /* rows of a tile, and columns of a product of two */
    DEPTH = 32,             /* bfloat16 in a row of a tile */
    TILE_BF16 = TILE * DEPTH,
    BLOCK = 2 * TILE,       /* rows and columns that one block computes: four tiles */
    PANEL_ROWS = 256,
    PANEL_DEPTH = 512,
    ONE_THREAD_BELOW = 1 << 18, /* multiplications: waking a thread takes as long */
};

typedef uint16_t bf16;

/* The lanes of a vector of sixteen that are among the next `left` numbers. */
#define LANES(left) ((__mmask16)((left) >= TILE ? 0xffff : (left) <= 0 ? 0 : (1u << (left)) - 1))

/* What the tile unit is told: eight tiles of 16 rows of 64 bytes. The layout is Intel's (palette 1). */
struct __attribute__((packed)) tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};

/* 1: may be used. 0: this CPU has no such unit. -1: the operating system does not let us. */
int rs_ready(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d, a1, b1, c1, d1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) return 0;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, amx = 1u << 22 | 1u << 24;
    if ((b & avx512) != avx512 || (d & amx) != amx || !(a1 & 1u << 5)) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 1 : -1;
}

AMX static inline void split(__m512 v, __m256i *hi, __m256i *lo) {
    *hi = (__m256i)_mm512_cvtneps_pbh(v);
    __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(*hi), 16));
    *lo = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, back));
}

/* e^v to 2 units in the last place: 2^n times Cephes' polynomial for what is left (Moshier, expf). */
AMX static inline __m512 exponential(__m512 v) {
    v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-87.3f)), _mm512_set1_ps(88.3f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), v);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

AMX static inline __m512 silu(__m512 v) {
    __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), v));
    return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* w (n, k) into the order described above; `packed` holds ceil(n/32) * ceil(k/32) * 2048 zeros. */
AMX void rs_pack(const float *w, int64_t n, int64_t k, bf16 *packed, int threads) {
    const int64_t steps = (k + DEPTH - 1) / DEPTH;
#pragma omp parallel for num_threads(threads) schedule(static, BLOCK)
    for (int64_t row = 0; row < n; row++) {
        const int64_t block = row / BLOCK, tile = row % BLOCK / TILE, column = row % TILE;
        for (int64_t at = 0; at < k; at += TILE) {
            __m256i hi, lo;
            split(_mm512_maskz_loadu_ps(LANES(k - at), w + row * k + at), &hi, &lo);
            bf16 of_hi[TILE], of_lo[TILE];
            _mm256_storeu_si256((void *)of_hi, hi);
            _mm256_storeu_si256((void *)of_lo, lo);
            bf16 *to = packed + ((block * steps + at / DEPTH) * 4 + tile * 2) * TILE_BF16 + at % DEPTH / 2 * 2 * TILE + column * 2;
            for (int i = 0; i < TILE; i++) {
                const int64_t pair = i / 2 * 2 * TILE + i % 2;
                to[pair] = of_hi[i];
                to[TILE_BF16 + pair] = of_lo[i];
            }
        }
    }
}

/* 16 rows of x, or of silu(gate) * x, as tiles: [steps][hi, lo][16][32]. Beyond `rows` and `depth` there are zeros. */
AMX static void split_rows(const float *x, const float *gate, int64_t stride, int64_t rows, int64_t depth, bf16 *tiles) {
    for (int64_t r = 0; r < TILE; r++) {
        for (int64_t at = 0; at < depth; at += TILE) {
            const __mmask16 mask = r < rows ? LANES(depth - at) : 0;
            __m512 v = _mm512_maskz_loadu_ps(mask, x + r * stride + at);
            if (gate) v = _mm512_mul_ps(v, silu(_mm512_maskz_loadu_ps(mask, gate + r * stride + at)));
            __m256i hi, lo;
            split(v, &hi, &lo);
            bf16 *to = tiles + at / DEPTH * 2 * TILE_BF16 + r * DEPTH + at % DEPTH;
            _mm256_store_si256((void *)to, hi);
            _mm256_store_si256((void *)(to + TILE_BF16), lo);
        }
        if ((depth + TILE - 1) / TILE % 2) { /* the second half of the last step */
            bf16 *to = tiles + depth / DEPTH * 2 * TILE_BF16 + r * DEPTH + TILE;
            _mm256_store_si256((void *)to, _mm256_setzero_si256());
            _mm256_store_si256((void *)(to + TILE_BF16), _mm256_setzero_si256());
        }
    }
}

/* c (32, 32) += rows * weights. Tiles 0-3: the product; 4 and 5: rows; 6 and 7: weights. */
AMX static void multiply(const bf16 *upper, const bf16 *lower, const bf16 *w, int64_t steps, float *c, int64_t stride, int fresh) {
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
    for (int64_t s = 0; s < steps; s++, upper += 2 * TILE_BF16, lower += 2 * TILE_BF16, w += 4 * TILE_BF16) {
        _tile_loadd(4, upper, 64); /* hi * lo */
        _tile_loadd(6, w + TILE_BF16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, lower, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + 3 * TILE_BF16, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, w, 64); /* hi * hi */
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + 2 * TILE_BF16, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, upper + TILE_BF16, 64); /* lo * hi */
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + TILE_BF16, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + TILE, bytes);
    _tile_stored(2, c + TILE * stride, bytes);
    _tile_stored(3, c + TILE * stride + TILE, bytes);
}

/* Where a block is not whole it is computed aside. */
AMX static void multiply_edge(const bf16 *upper, const bf16 *lower, const bf16 *w, int64_t steps, float *c, int64_t stride,
                              int64_t rows, int64_t columns, int fresh) {
    float aside[BLOCK * BLOCK] __attribute__((aligned(64)));
    if (!fresh) {
        memset(aside, 0, sizeof aside);
        for (int64_t r = 0; r < rows; r++) memcpy(aside + r * BLOCK, c + r * stride, (size_t)columns * sizeof(float));
    }
    multiply(upper, lower, w, steps, aside, BLOCK, fresh);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * stride, aside + r * BLOCK, (size_t)columns * sizeof(float));
}

AMX static void configure(void) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = TILE, config.bytes_per_row[t] = 64;
    _tile_loadconfig(&config);
}

/* How many numbers `rs_linear` wants as `scratch`, on a boundary of 64 bytes. */
int64_t rs_scratch(void) { return (int64_t)PANEL_ROWS * PANEL_DEPTH * 2; }

/* y (m, n) = x (m, k) w^T + bias, or silu(gate) * x in the place of x. Rows of x and gate are `stride` apart; y is dense. */
AMX void rs_linear(const float *x, const float *gate, int64_t stride, const bf16 *w, const float *bias, float *y,
                   int64_t m, int64_t n, int64_t k, bf16 *scratch, int threads) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK, all_steps = (k + DEPTH - 1) / DEPTH;
    if (m * n * k < ONE_THREAD_BELOW) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        configure();
        for (int64_t m0 = 0; m0 < m; m0 += PANEL_ROWS) {
            const int64_t rows = m - m0 < PANEL_ROWS ? m - m0 : PANEL_ROWS, pairs = (rows + BLOCK - 1) / BLOCK;
            for (int64_t k0 = 0; k0 < k; k0 += PANEL_DEPTH) {
                const int64_t depth = k - k0 < PANEL_DEPTH ? k - k0 : PANEL_DEPTH, steps = (depth + DEPTH - 1) / DEPTH;
                const int64_t of_tile = steps * 2 * TILE_BF16;
#pragma omp for schedule(static)
                for (int64_t t = 0; t < 2 * pairs; t++) {
                    const int64_t at = (m0 + t * TILE) * stride + k0;
                    split_rows(x + at, gate ? gate + at : 0, stride, rows - t * TILE, depth, scratch + t * of_tile);
                }
#pragma omp for collapse(2) schedule(static)
                for (int64_t b = 0; b < blocks; b++) {
                    for (int64_t p = 0; p < pairs; p++) {
                        const bf16 *upper = scratch + 2 * p * of_tile, *lower = upper + of_tile;
                        const bf16 *of_w = w + (b * all_steps + k0 / DEPTH) * 4 * TILE_BF16;
                        const int64_t r = rows - p * BLOCK < BLOCK ? rows - p * BLOCK : BLOCK;
                        const int64_t columns = n - b * BLOCK < BLOCK ? n - b * BLOCK : BLOCK;
                        float *c = y + (m0 + p * BLOCK) * n + b * BLOCK;
                        if (r == BLOCK && columns == BLOCK) multiply(upper, lower, of_w, steps, c, n, k0 == 0);
                        else multiply_edge(upper, lower, of_w, steps, c, n, r, columns, k0 == 0);
                        if (!bias || k0 + depth < k) continue;
                        for (int64_t i = 0; i < r; i++)
                            for (int64_t j = 0; j < columns; j++) c[i * n + j] += bias[b * BLOCK + j];
                    }
                }
            }
        }
        _tile_release();
    }
}

/* y (m, k) = weight * x / sqrt(mean(x^2) + eps), row by row: root mean square normalisation (Zhang and Sennrich 2019). */
AMX void rs_rms_norm(const float *x, int64_t stride, const float *weight, float eps, float *y, int64_t m, int64_t k, int threads) {
    if (m * k < ONE_THREAD_BELOW) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m; r++) {
        const float *from = x + r * stride;
        float *to = y + r * k;
        __m512 sums = _mm512_setzero_ps();
        for (int64_t at = 0; at < k; at += TILE) {
            const __m512 v = _mm512_maskz_loadu_ps(LANES(k - at), from + at);
            sums = _mm512_fmadd_ps(v, v, sums);
        }
        const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sums) / (float)k + eps));
        for (int64_t at = 0; at < k; at += TILE) {
            const __mmask16 mask = LANES(k - at);
            const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + at), scale);
            _mm512_mask_storeu_ps(to + at, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight + at), v));
        }
    }
}

#else

int rs_ready(void) { return 0; }

#endif
