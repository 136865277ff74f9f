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
#ifdef _OPENMP
#include <omp.h>
#endif
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

/* Mask of the lanes of a vector of sixteen that hold the next `left` numbers. */
#define LANES(left) ((__mmask16)((left) >= TILE ? 0xffff : (left) <= 0 ? 0 : (1u << (left)) - 1))

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

AMX static inline void split(__m512 v, __m256i *hi, __m256i *lo) {
    *hi = (__m256i)_mm512_cvtneps_pbh(v);
    __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(*hi), 16));
    *lo = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, back));
}

static inline int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* e^v to 2 units in the last place: 2^n times Cephes' polynomial for what is left (Moshier, expf). NaN stays NaN: of two
 * operands of which one is none, minimum and maximum give the second. */
AMX static inline __m512 exponential(__m512 v) {
    v = _mm512_min_ps(_mm512_set1_ps(88.3f), _mm512_max_ps(_mm512_set1_ps(-87.3f), v));
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

/* Up to 32 rows of w, `stride` apart, as one block of weights: [steps][2 tiles][hi, lo][16 pairs][16][2]. */
AMX static void pack_block(const float *w, int64_t stride, int64_t rows, int64_t k, bf16 *to) {
    const __m256i one_pair_further = _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112);
    for (int64_t at = 0; at < k; at += DEPTH, to += 4 * TILE_BF16) {
        for (int64_t row = 0; row < BLOCK; row++) {
            for (int64_t half = 0; half < DEPTH; half += TILE) {
                const __mmask16 mask = row < rows ? LANES(k - at - half) : 0;
                __m256i hi, lo;
                split(_mm512_maskz_loadu_ps(mask, w + row * stride + at + half), &hi, &lo);
                bf16 *here = to + row / TILE * 2 * TILE_BF16 + half * TILE + row % TILE * 2;
                _mm256_i32scatter_epi32((void *)here, one_pair_further, hi, 4);
                _mm256_i32scatter_epi32((void *)(here + TILE_BF16), one_pair_further, lo, 4);
            }
        }
    }
}

/* w (n, k) into the order described above; `packed` holds ceil(n/32) * ceil(k/32) * 2048 numbers. */
AMX void rs_pack(const float *w, int64_t n, int64_t k, bf16 *packed, int threads) {
    const int64_t of_block = (k + DEPTH - 1) / DEPTH * 4 * TILE_BF16;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row += BLOCK) pack_block(w + row * k, k, n - row, k, packed + row / BLOCK * of_block);
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

/* Attention of the segments of a packed row: each query to the whole chain of key ranges before it, in one softmax.
 *
 * A chain is a segment's way from the root of the tree of common beginnings; its last range is the segment's own, whose last
 * keys are those of its queries. Every range is packed once for all chains that it is part of: its keys as the weights of
 * the product that gives scores, its values as those of the product that adds them up. Then each block of 32 queries and each
 * head is a task of its own: all its scores, their exponentials as rows in two parts, the sum. */

typedef struct {
    int64_t key, value;             /* addresses of the first token of the first head */
    int64_t key_token, key_head;    /* strides, in numbers */
    int64_t value_token, value_head;
    int64_t n;                      /* tokens */
    int64_t steps_before;           /* of 32 tokens, in all ranges before this one */
} range_t;

typedef struct { int64_t first, last, chain, chain_end; } segment_t; /* queries, and where the chain is listed */
typedef struct { int64_t segment, first; } block_t;                  /* 32 queries of a segment, from `first` on */

/* Values (n, width) as the transposed weights of a product: [width/32][n/32][2 tiles][hi, lo][16 pairs of tokens][16][2]. */
AMX static void pack_values(const float *v, int64_t stride, int64_t n, int64_t width, bf16 *to) {
    const int64_t steps = (n + DEPTH - 1) / DEPTH;
    for (int64_t token = 0; token < steps * DEPTH; token += 2) {
        for (int64_t at = 0; at < (width + BLOCK - 1) / BLOCK * BLOCK; at += TILE) {
            const __mmask16 mask = LANES(width - at);
            __m256i hi, lo, next_hi, next_lo;
            split(_mm512_maskz_loadu_ps(token < n ? mask : 0, v + token * stride + at), &hi, &lo);
            split(_mm512_maskz_loadu_ps(token + 1 < n ? mask : 0, v + (token + 1) * stride + at), &next_hi, &next_lo);
            bf16 *here = to + ((at / BLOCK * steps + token / DEPTH) * 4 + at % BLOCK / TILE * 2) * TILE_BF16 + token % DEPTH * TILE;
            _mm512_storeu_si512(here, _mm512_or_si512(_mm512_cvtepu16_epi32(hi), _mm512_slli_epi32(_mm512_cvtepu16_epi32(next_hi), 16)));
            _mm512_storeu_si512(here + TILE_BF16, _mm512_or_si512(_mm512_cvtepu16_epi32(lo), _mm512_slli_epi32(_mm512_cvtepu16_epi32(next_lo), 16)));
        }
    }
}

/* How many keys of its own range query i of a segment sees, and in how many steps those lie. */
static inline int64_t own_keys(const range_t *own, const segment_t *s, int64_t query) { return own->n - (s->last - query) + 1; }
static inline int64_t in_steps(int64_t n) { return (n + DEPTH - 1) / DEPTH; }

/* One row of scores, times scale > 0, to exponentials in two parts, in tiles from `to` on: [steps][hi, lo][16][32]. Returns
 * 1 / their sum. Range r has the columns from begins[r] on, and the first seen[r] of those count. */
AMX static float soften(const float *scores, float scale, const int64_t *begins, const int64_t *seen, int64_t n_ranges, bf16 *to) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (int64_t r = 0; r < n_ranges; r++)
        for (int64_t at = 0; at < seen[r]; at += TILE)
            most = _mm512_max_ps(most, _mm512_mask_loadu_ps(most, LANES(seen[r] - at), scores + begins[r] + at));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sums = _mm512_setzero_ps();
    for (int64_t r = 0; r < n_ranges; r++) {
        for (int64_t at = begins[r]; at < begins[r + 1]; at += TILE) {
            const __mmask16 mask = LANES(seen[r] - (at - begins[r]));
            const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + at), top);
            const __m512 e = _mm512_maskz_mov_ps(mask, exponential(_mm512_mul_ps(below, _mm512_set1_ps(scale))));
            sums = _mm512_add_ps(sums, e);
            __m256i hi, lo;
            split(e, &hi, &lo);
            bf16 *here = to + at / DEPTH * 2 * TILE_BF16 + at % DEPTH;
            _mm256_store_si256((void *)here, hi);
            _mm256_store_si256((void *)(here + TILE_BF16), lo);
        }
    }
    return 1.0f / _mm512_reduce_add_ps(sums);
}

/* How many floats of `work` a thread wants for chains of `columns` keys, each range filled up to 32. */
int64_t rs_attend_work(int64_t columns, int64_t width) {
    const int64_t steps = in_steps(width);
    return 2 * BLOCK * columns + steps * 2 * TILE_BF16 + BLOCK * steps * DEPTH;
}

enum { LONGEST_CHAIN = 256 }; /* ranges */

/* out (queries, heads, width). `packed`: 4 * 32 * 32 numbers for each step of 32 tokens, group of heads and step of width, twice
 * (keys, values). `columns`: of the longest chain, filled up. */
AMX void rs_attend(const float *q, int64_t q_token, int64_t q_head, int64_t heads, int64_t groups, int64_t width, float scale,
                   const range_t *ranges, int64_t n_ranges, const segment_t *segments, const int64_t *chains,
                   const block_t *blocks, int64_t n_blocks, float *out, bf16 *packed, float *work, int64_t columns, int threads) {
    const int64_t wide = in_steps(width), of_step = wide * 4 * TILE_BF16, of_work = rs_attend_work(columns, width);
#pragma omp parallel num_threads(threads)
    {
        configure();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t r = 0; r < n_ranges; r++) {
            for (int64_t g = 0; g < groups; g++) {
                const range_t *range = ranges + r;
                const float *key = (const float *)range->key + g * range->key_head;
                const float *value = (const float *)range->value + g * range->value_head;
                const int64_t steps = in_steps(range->n);
                bf16 *to = packed + 2 * (range->steps_before * groups + steps * g) * of_step;
                for (int64_t s = 0; s < steps; s++)
                    pack_block(key + s * BLOCK * range->key_token, range->key_token, range->n - s * BLOCK, width, to + s * of_step);
                pack_values(value, range->value_token, range->n, width, to + steps * of_step);
            }
        }
        float *scores = work + thread_number() * of_work, *sum = scores + BLOCK * columns;
        bf16 *rows = (bf16 *)(sum + BLOCK * wide * DEPTH), *weights = rows + wide * 4 * TILE_BF16;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < n_blocks; b++) {
            for (int64_t h = 0; h < heads; h++) {
                const segment_t *s = segments + blocks[b].segment;
                const int64_t first = blocks[b].first, n = s->last - first < BLOCK ? s->last - first : BLOCK;
                const int64_t n_chain = s->chain_end - s->chain, g = h / (heads / groups);
                const range_t *own = ranges + chains[s->chain_end - 1];
                const float *query = q + first * q_token + h * q_head;
                split_rows(query, 0, q_token, n, width, rows);
                split_rows(query + TILE * q_token, 0, q_token, n - TILE, width, rows + wide * 2 * TILE_BF16);
                int64_t begins[LONGEST_CHAIN + 1] = {0}, seen[LONGEST_CHAIN];
                for (int64_t c = 0; c < n_chain; c++) {
                    const range_t *range = ranges + chains[s->chain + c];
                    const bf16 *keys = packed + 2 * (range->steps_before * groups + in_steps(range->n) * g) * of_step;
                    seen[c] = range == own ? own_keys(own, s, first + n - 1) : range->n;
                    begins[c + 1] = begins[c] + in_steps(seen[c]) * DEPTH;
                    for (int64_t k = 0; k < in_steps(seen[c]); k++)
                        multiply(rows, rows + wide * 2 * TILE_BF16, keys + k * of_step, wide, scores + begins[c] + k * BLOCK, columns, 1);
                }
                const int64_t of_tile = begins[n_chain] / DEPTH * 2 * TILE_BF16;
                float of_sum[BLOCK];
                for (int64_t i = 0; i < BLOCK; i++) {
                    bf16 *to = weights + i / TILE * of_tile + i % TILE * DEPTH;
                    if (i >= n) { /* no query: anything that is a number */
                        for (int64_t t = 0; t < of_tile; t += TILE_BF16) memset(to + t, 0, DEPTH * sizeof(bf16));
                        continue;
                    }
                    seen[n_chain - 1] = own_keys(own, s, first + i);
                    of_sum[i] = soften(scores + i * columns, scale, begins, seen, n_chain, to);
                }
                for (int64_t e = 0; e < wide; e++) {
                    for (int64_t c = 0; c < n_chain; c++) {
                        const range_t *range = ranges + chains[s->chain + c];
                        const int64_t steps = in_steps(range->n), at = begins[c] / DEPTH * 2 * TILE_BF16;
                        const bf16 *values = packed + (2 * (range->steps_before * groups + steps * g) + steps) * of_step + e * steps * 4 * TILE_BF16;
                        multiply(weights + at, weights + of_tile + at, values, (begins[c + 1] - begins[c]) / DEPTH, sum, BLOCK, c == 0);
                    }
                    for (int64_t i = 0; i < n; i++) {
                        float *to = out + ((first + i) * heads + h) * width + e * BLOCK;
                        for (int64_t j = 0; j < BLOCK; j += TILE)
                            _mm512_mask_storeu_ps(to + j, LANES(width - e * BLOCK - j), _mm512_mul_ps(_mm512_set1_ps(of_sum[i]), _mm512_load_ps(sum + i * BLOCK + j)));
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
