/* Algorithms of the kernels, for any representation of packed numbers: linear layers, gated MLPs, attention, norms.
 *
 * Included by a file that defines `TARGET` (its instruction set), `number` (of packed matrices) and `PARTS` (numbers that are
 * one float32), and below the functions declared under "Representation". Such a file is one extension: `amx.c`, `avx512.c`.
 *
 * Packed matrices lie in blocks of 32 x 32. Rows are packed as they are read, a panel at a time, so that a panel stays in the
 * second-level cache while all columns pass by. Every value of a product is summed in one and the same order, whatever the
 * other rows are and however many threads there are.
 *
 * Plain C behind ctypes: no Python.h. The OpenMP calls are left open at link time and find the runtime that torch has
 * loaded: a second one would fight it for the cores.
 */
#include <immintrin.h>
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <string.h>

enum {
    TILE = 16,                          /* rows of a tile, and columns of a product of two */
    DEPTH = 32,                         /* numbers in a row of a tile */
    TILE_NUMBERS = TILE * DEPTH,
    ROW_TILE = PARTS * TILE_NUMBERS,    /* 16 rows of 32 float32 */
    WEIGHT_TILES = 2 * ROW_TILE,        /* 32 columns of 32 float32 */
    BLOCK = 2 * TILE,                   /* rows and columns that one block computes */
    PANEL_ROWS = 256,
    PANEL_DEPTH = 512,
    ONE_THREAD_BELOW = 1 << 18,         /* multiplications: waking a thread takes as long */
};

/* Mask of the lanes of a vector of sixteen that hold the next `left` numbers. */
#define LANES(left) ((__mmask16)((left) >= TILE ? 0xffff : (left) <= 0 ? 0 : (1u << (left)) - 1))

/* -- Representation ------------------------------------------------------------------------------------------------- */

/* Before the first `multiply` of a thread, and after its last. */
static void configure(void);
static void release(void);

/* 16 float32 of one row as a part of a row of a tile. A tile of rows is [PARTS][16 rows][32]. */
static inline void store_of_row(number *to, __m512 v);

/* Up to 32 rows of w, `stride` apart, as one block of weights: `steps` times WEIGHT_TILES numbers. Beyond w there are zeros. */
static void pack_block(const float *w, int64_t stride, int64_t rows, int64_t k, number *to);

/* Values (n, width) as the transposed weights of a product: [width/32][n/32] times WEIGHT_TILES numbers. */
static void pack_values(const float *v, int64_t stride, int64_t n, int64_t width, number *to);

/* c (32, 32) = rows * weights, or += where it is not fresh. `upper` and `lower` are the two tiles of rows; of c only the first
 * `rows` rows need be right, but all are there to be written. */
static void multiply(const number *upper, const number *lower, const number *w, int64_t steps, float *c, int64_t stride,
                     int64_t rows, int fresh);

/* -- Algorithms ----------------------------------------------------------------------------------------------------- */

static inline int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* e^v to 2 units in the last place: 2^n times Cephes' polynomial for what is left (Moshier, expf). NaN stays NaN: of two
 * operands of which one is none, minimum and maximum give the second. */
TARGET static inline __m512 exponential(__m512 v) {
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

TARGET static inline __m512 silu(__m512 v) {
    __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), v));
    return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* w (n, k) into the order described above; `packed` holds ceil(n/32) * ceil(k/32) blocks, as many bytes as floats. */
TARGET void rs_pack(const float *w, int64_t n, int64_t k, number *packed, int threads) {
    const int64_t of_block = (k + DEPTH - 1) / DEPTH * WEIGHT_TILES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row += BLOCK) pack_block(w + row * k, k, n - row, k, packed + row / BLOCK * of_block);
}

/* 16 numbers of x, or of silu(gate) * x; those beyond the mask are zeros. */
TARGET static inline __m512 gated(const float *x, const float *gate, __mmask16 mask) {
    const __m512 v = _mm512_maskz_loadu_ps(mask, x);
    return gate ? _mm512_mul_ps(v, silu(_mm512_maskz_loadu_ps(mask, gate))) : v;
}

/* 16 rows of x, or of silu(gate) * x, as tiles, one a step. Beyond `rows` and `depth` there are zeros. */
TARGET static void pack_rows(const float *x, const float *gate, int64_t stride, int64_t rows, int64_t depth, number *tiles) {
    const int64_t whole = depth / DEPTH * DEPTH;
    for (int64_t r = 0; r < TILE; r++, x += stride, gate += gate ? stride : 0) {
        number *to = tiles + r * DEPTH;
        const __mmask16 all = r < rows ? 0xffff : 0;
        for (int64_t at = 0; at < whole; at += DEPTH, to += ROW_TILE) {
            store_of_row(to, gated(x + at, gate ? gate + at : 0, all));
            store_of_row(to + TILE, gated(x + at + TILE, gate ? gate + at + TILE : 0, all));
        }
        for (int64_t at = whole; at < whole + (depth > whole ? DEPTH : 0); at += TILE) /* the last step is not whole */
            store_of_row(to + at - whole, gated(x + at, gate ? gate + at : 0, all & LANES(depth - at)));
    }
}

/* Where a block is not whole it is computed aside. */
TARGET static void multiply_edge(const number *upper, const number *lower, const number *w, int64_t steps, float *c, int64_t stride,
                                 int64_t rows, int64_t columns, int fresh) {
    float aside[BLOCK * BLOCK] __attribute__((aligned(64)));
    if (!fresh) {
        memset(aside, 0, sizeof aside);
        for (int64_t r = 0; r < rows; r++) memcpy(aside + r * BLOCK, c + r * stride, (size_t)columns * sizeof(float));
    }
    multiply(upper, lower, w, steps, aside, BLOCK, rows, fresh);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * stride, aside + r * BLOCK, (size_t)columns * sizeof(float));
}

/* How many floats `rs_linear` wants as `scratch`, on a boundary of 64 bytes. */
int64_t rs_scratch(void) { return (int64_t)PANEL_ROWS * PANEL_DEPTH; }

/* y (m, n) = x (m, k) w^T + bias, or silu(gate) * x in the place of x. Rows of x and gate are `stride` apart; y is dense. */
TARGET void rs_linear(const float *x, const float *gate, int64_t stride, const number *w, const float *bias, float *y,
                      int64_t m, int64_t n, int64_t k, number *scratch, int threads) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK, all_steps = (k + DEPTH - 1) / DEPTH;
    if (m * n * k < ONE_THREAD_BELOW) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        configure();
        for (int64_t m0 = 0; m0 < m; m0 += PANEL_ROWS) {
            const int64_t rows = m - m0 < PANEL_ROWS ? m - m0 : PANEL_ROWS, pairs = (rows + BLOCK - 1) / BLOCK;
            for (int64_t k0 = 0; k0 < k; k0 += PANEL_DEPTH) {
                const int64_t depth = k - k0 < PANEL_DEPTH ? k - k0 : PANEL_DEPTH, steps = (depth + DEPTH - 1) / DEPTH;
                const int64_t of_tile = steps * ROW_TILE;
#pragma omp for schedule(static)
                for (int64_t t = 0; t < 2 * pairs; t++) {
                    const int64_t at = (m0 + t * TILE) * stride + k0;
                    pack_rows(x + at, gate ? gate + at : 0, stride, rows - t * TILE, depth, scratch + t * of_tile);
                }
#pragma omp for collapse(2) schedule(static)
                for (int64_t b = 0; b < blocks; b++) {
                    for (int64_t p = 0; p < pairs; p++) {
                        const number *upper = scratch + 2 * p * of_tile, *lower = upper + of_tile;
                        const number *of_w = w + (b * all_steps + k0 / DEPTH) * WEIGHT_TILES;
                        const int64_t r = rows - p * BLOCK < BLOCK ? rows - p * BLOCK : BLOCK;
                        const int64_t columns = n - b * BLOCK < BLOCK ? n - b * BLOCK : BLOCK;
                        float *c = y + (m0 + p * BLOCK) * n + b * BLOCK;
                        if (r == BLOCK && columns == BLOCK) multiply(upper, lower, of_w, steps, c, n, r, k0 == 0);
                        else multiply_edge(upper, lower, of_w, steps, c, n, r, columns, k0 == 0);
                        if (!bias || k0 + depth < k) continue;
                        for (int64_t i = 0; i < r; i++)
                            for (int64_t j = 0; j < columns; j++) c[i * n + j] += bias[b * BLOCK + j];
                    }
                }
            }
        }
        release();
    }
}

/* Attention of the segments of a packed row: each query to the whole chain of key ranges before it, in one softmax.
 *
 * A chain is a segment's way from the root of the tree of common beginnings; its last range is the segment's own, whose last
 * keys are those of its queries. Every range is packed once for all chains that it is part of: its keys as the weights of
 * the product that gives scores, its values as those of the product that adds them up. Then each block of 32 queries and each
 * head is a task of its own: all its scores, their exponentials as rows, the sum. */

typedef struct {
    int64_t key, value;             /* addresses of the first token of the first head */
    int64_t key_token, key_head;    /* strides, in numbers */
    int64_t value_token, value_head;
    int64_t n;                      /* tokens */
    int64_t steps_before;           /* of 32 tokens, in all ranges before this one */
} range_t;

typedef struct { int64_t first, last, chain, chain_end; } segment_t; /* queries, and where the chain is listed */
typedef struct { int64_t segment, first; } block_t;                  /* 32 queries of a segment, from `first` on */

/* How many keys of its own range query i of a segment sees, and in how many steps those lie. */
static inline int64_t own_keys(const range_t *own, const segment_t *s, int64_t query) { return own->n - (s->last - query) + 1; }
static inline int64_t in_steps(int64_t n) { return (n + DEPTH - 1) / DEPTH; }

/* One row of scores, times scale > 0, to exponentials, in tiles from `to` on, one a step. Returns 1 / their sum. Range r has the
 * columns from begins[r] on, and the first seen[r] of those count. */
TARGET static float soften(const float *scores, float scale, const int64_t *begins, const int64_t *seen, int64_t n_ranges, number *to) {
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
            store_of_row(to + at / DEPTH * ROW_TILE + at % DEPTH, e);
        }
    }
    return 1.0f / _mm512_reduce_add_ps(sums);
}

/* How many floats of `work` a thread wants for chains of `columns` keys, each range filled up to 32. */
int64_t rs_attend_work(int64_t columns, int64_t width) {
    const int64_t steps = in_steps(width);
    return 2 * BLOCK * columns + steps * 2 * TILE_NUMBERS + BLOCK * steps * DEPTH;
}

enum { LONGEST_CHAIN = 256 }; /* ranges */

/* out (queries, heads, width). `packed`: a block for each step of 32 tokens, group of heads and step of width, twice (keys,
 * values). `columns`: of the longest chain, filled up. */
TARGET void rs_attend(const float *q, int64_t q_token, int64_t q_head, int64_t heads, int64_t groups, int64_t width, float scale,
                      const range_t *ranges, int64_t n_ranges, const segment_t *segments, const int64_t *chains,
                      const block_t *blocks, int64_t n_blocks, float *out, number *packed, float *work, int64_t columns, int threads) {
    const int64_t wide = in_steps(width), of_step = wide * WEIGHT_TILES, of_work = rs_attend_work(columns, width);
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
                number *to = packed + 2 * (range->steps_before * groups + steps * g) * of_step;
                for (int64_t s = 0; s < steps; s++)
                    pack_block(key + s * BLOCK * range->key_token, range->key_token, range->n - s * BLOCK, width, to + s * of_step);
                pack_values(value, range->value_token, range->n, width, to + steps * of_step);
            }
        }
        float *scores = work + thread_number() * of_work, *sum = scores + BLOCK * columns;
        number *rows = (number *)(sum + BLOCK * wide * DEPTH), *weights = rows + wide * WEIGHT_TILES;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < n_blocks; b++) {
            for (int64_t h = 0; h < heads; h++) {
                const segment_t *s = segments + blocks[b].segment;
                const int64_t first = blocks[b].first, n = s->last - first < BLOCK ? s->last - first : BLOCK;
                const int64_t n_chain = s->chain_end - s->chain, g = h / (heads / groups);
                const range_t *own = ranges + chains[s->chain_end - 1];
                const float *query = q + first * q_token + h * q_head;
                pack_rows(query, 0, q_token, n, width, rows);
                pack_rows(query + TILE * q_token, 0, q_token, n - TILE, width, rows + wide * ROW_TILE);
                int64_t begins[LONGEST_CHAIN + 1] = {0}, seen[LONGEST_CHAIN];
                for (int64_t c = 0; c < n_chain; c++) {
                    const range_t *range = ranges + chains[s->chain + c];
                    const number *keys = packed + 2 * (range->steps_before * groups + in_steps(range->n) * g) * of_step;
                    seen[c] = range == own ? own_keys(own, s, first + n - 1) : range->n;
                    begins[c + 1] = begins[c] + in_steps(seen[c]) * DEPTH;
                    for (int64_t k = 0; k < in_steps(seen[c]); k++)
                        multiply(rows, rows + wide * ROW_TILE, keys + k * of_step, wide, scores + begins[c] + k * BLOCK, columns, n, 1);
                }
                const int64_t of_tile = begins[n_chain] / DEPTH * ROW_TILE;
                float of_sum[BLOCK];
                for (int64_t i = 0; i < BLOCK; i++) {
                    number *to = weights + i / TILE * of_tile + i % TILE * DEPTH;
                    if (i >= n) { /* no query: anything that is a number */
                        for (int64_t t = 0; t < of_tile; t += TILE_NUMBERS) memset(to + t, 0, DEPTH * sizeof(number));
                        continue;
                    }
                    seen[n_chain - 1] = own_keys(own, s, first + i);
                    of_sum[i] = soften(scores + i * columns, scale, begins, seen, n_chain, to);
                }
                for (int64_t e = 0; e < wide; e++) {
                    for (int64_t c = 0; c < n_chain; c++) {
                        const range_t *range = ranges + chains[s->chain + c];
                        const int64_t steps = in_steps(range->n), at = begins[c] / DEPTH * ROW_TILE;
                        const number *values = packed + (2 * (range->steps_before * groups + steps * g) + steps) * of_step + e * steps * WEIGHT_TILES;
                        multiply(weights + at, weights + of_tile + at, values, (begins[c + 1] - begins[c]) / DEPTH, sum, BLOCK, n, c == 0);
                    }
                    for (int64_t i = 0; i < n; i++) {
                        float *to = out + ((first + i) * heads + h) * width + e * BLOCK;
                        for (int64_t j = 0; j < BLOCK; j += TILE)
                            _mm512_mask_storeu_ps(to + j, LANES(width - e * BLOCK - j), _mm512_mul_ps(_mm512_set1_ps(of_sum[i]), _mm512_load_ps(sum + i * BLOCK + j)));
                    }
                }
            }
        }
        release();
    }
}

/* y (m, k) = weight * x / sqrt(mean(x^2) + eps), row by row: root mean square normalisation (Zhang and Sennrich 2019). */
TARGET void rs_rms_norm(const float *x, int64_t stride, const float *weight, float eps, float *y, int64_t m, int64_t k, int threads) {
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
