/* y = x Wᵀ + bias with 4-bit weights W, for x86 CPUs with AVX2, FMA and F16C.
 *
 *     W[n, k] = (code[n, k] - zero[g, n]) * scale[g, n],   g = k / group_size
 *
 * Weights are unpacked in registers. Sums are float32; only the result is rounded.
 * The layout is vLLM's (vllm/model_executor/kernels/linear/mixed_precision/cpu.py). A block is 16 outputs, with 8 bytes
 * per input k. Byte i holds output 2i in its low nibble and output 2i + 1 in its high nibble.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

enum { BLOCK = 16, BYTES = BLOCK / 2, MAX_ROWS = 4, MAX_UNROLL = 4 };

typedef struct {
    const uint16_t *x;      /* (tokens, inputs) */
    const uint8_t *codes;   /* (outputs / 16, inputs, 8) */
    const uint16_t *scales; /* (groups, outputs) */
    const uint8_t *zeros;   /* (groups, outputs / 2), two nibbles per byte; NULL: every zero is 8 */
    const uint16_t *bias;   /* (outputs), or NULL */
    uint16_t *y;            /* (tokens, outputs) */
    long tokens, inputs, outputs, group_size;
    int bfloat16;           /* 1: x, scales, bias and y are bfloat16; 0: float16 */
} gemm_arguments;

typedef struct { __m256 even, odd; } pair; /* float32 values of outputs 0, 2 .. 14 and 1, 3 .. 15 of a block */

static inline __m256 load8(const uint16_t *from, int bfloat16) {
    __m128i half = _mm_loadu_si128((const __m128i *)from);
    return bfloat16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)) : _mm256_cvtph_ps(half);
}

/* Rounds to nearest, ties to even. A NaN stays a NaN: its low 16 bits are 0 here, so rounding does not carry. */
static inline void store8(uint16_t *to, __m256 value, int bfloat16) {
    __m128i half;
    if (bfloat16) {
        __m256i bits = _mm256_castps_si256(value);
        __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff)));
        rounded = _mm256_srli_epi32(rounded, 16);
        half = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    } else {
        half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    }
    _mm_storeu_si128((__m128i *)to, half);
}

static inline pair zero_pair(void) { return (pair){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

static inline pair load_codes(const uint8_t *bytes) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
    __m256i low = _mm256_and_si256(wide, _mm256_set1_epi32(15));
    return (pair){_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32(wide, 4))};
}

static inline pair load_pair(const uint16_t *from, int bfloat16) {
    __m256 first = load8(from, bfloat16), second = load8(from + 8, bfloat16);
    __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0x88));
    __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0xdd));
    return (pair){_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8)),
                  _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8))};
}

static inline void store_pair(uint16_t *to, pair value, int bfloat16) {
    __m256 low = _mm256_unpacklo_ps(value.even, value.odd), high = _mm256_unpackhi_ps(value.even, value.odd);
    store8(to, _mm256_permute2f128_ps(low, high, 0x20), bfloat16);
    store8(to + 8, _mm256_permute2f128_ps(low, high, 0x31), bfloat16);
}

/* Computes outputs n .. n + 15 of tokens t .. t + rows - 1. `rows` and `unroll` are constants after inlining: enough
 * independent sums to hide the latency of an FMA, but few enough for the registers. `unroll` divides group_size. */
static inline __attribute__((always_inline)) void compute_block(const gemm_arguments *p, const float *wide,
                                                                const float *sums, long n, long t, const int rows,
                                                                const int unroll) {
    const long inputs = p->inputs, group_size = p->group_size, groups = inputs / group_size;
    const float *x = wide + t * inputs;
    const uint8_t *codes = p->codes + n / BLOCK * inputs * BYTES;
    pair total[MAX_ROWS];
    for (int r = 0; r < rows; r++) total[r] = p->bias ? load_pair(p->bias + n, p->bfloat16) : zero_pair();

    for (long g = 0; g < groups; g++) {
        pair sum[MAX_UNROLL][MAX_ROWS];
        for (int u = 0; u < unroll; u++) {
            for (int r = 0; r < rows; r++) sum[u][r] = zero_pair();
        }
        for (long k = g * group_size; k < (g + 1) * group_size; k += unroll) {
            for (int u = 0; u < unroll; u++) {
                pair code = load_codes(codes + (k + u) * BYTES);
                for (int r = 0; r < rows; r++) {
                    __m256 value = _mm256_broadcast_ss(x + r * inputs + k + u);
                    sum[u][r].even = _mm256_fmadd_ps(code.even, value, sum[u][r].even);
                    sum[u][r].odd = _mm256_fmadd_ps(code.odd, value, sum[u][r].odd);
                }
            }
        }
        pair scale = load_pair(p->scales + g * p->outputs + n, p->bfloat16);
        pair zero = {_mm256_set1_ps(8), _mm256_set1_ps(8)};
        if (p->zeros) zero = load_codes(p->zeros + (g * p->outputs + n) / 2);
        for (int r = 0; r < rows; r++) { /* Σ (code - zero) x = Σ code x - zero Σ x */
            __m256 x_sum = _mm256_broadcast_ss(sums + (t + r) * groups + g);
            pair part = sum[0][r];
            for (int u = 1; u < unroll; u++) {
                part.even = _mm256_add_ps(part.even, sum[u][r].even);
                part.odd = _mm256_add_ps(part.odd, sum[u][r].odd);
            }
            total[r].even = _mm256_fmadd_ps(scale.even, _mm256_fnmadd_ps(zero.even, x_sum, part.even), total[r].even);
            total[r].odd = _mm256_fmadd_ps(scale.odd, _mm256_fnmadd_ps(zero.odd, x_sum, part.odd), total[r].odd);
        }
    }
    for (int r = 0; r < rows; r++) store_pair(p->y + (t + r) * p->outputs + n, total[r], p->bfloat16);
}

static void compute_outputs(const gemm_arguments *p, const float *wide, const float *sums, long n) {
    long t = 0;
    for (; t + 4 <= p->tokens; t += 4) compute_block(p, wide, sums, n, t, 4, 1);
    for (; t + 2 <= p->tokens; t += 2) compute_block(p, wide, sums, n, t, 2, 2);
    if (t == p->tokens) return;
    if (p->group_size % 4 == 0) compute_block(p, wide, sums, n, t, 1, 4);
    else compute_block(p, wide, sums, n, t, 1, 2);
}

/* Converts one token to float32: `wide` has its inputs, `sums` the sum over each group. */
static void widen(const uint16_t *x, float *wide, float *sums, const gemm_arguments *p) {
    for (long k = 0; k < p->inputs; k += 8) _mm256_storeu_ps(wide + k, load8(x + k, p->bfloat16));
    for (long g = 0; g < p->inputs / p->group_size; g++) {
        const float *group = wide + g * p->group_size;
        float lanes[8] = {0}, sum = 0;
        for (long k = 0; k < p->group_size; k++) lanes[k % 8] += group[k];
        for (int i = 0; i < 8; i++) sum += lanes[i];
        sums[g] = sum;
    }
}

/* Requires: group_size is even and divides inputs; inputs is a multiple of 8, outputs of 16; arrays are contiguous.
 * Returns 0, or 1 if memory for the tokens in float32 cannot be allocated. */
int wna16_gemm(const gemm_arguments *p) {
    long groups = p->inputs / p->group_size;
    float *wide = malloc(sizeof(float) * p->tokens * (p->inputs + groups));
    if (!wide) return 1;
    float *sums = wide + p->tokens * p->inputs;
#pragma omp parallel for schedule(static) if (p->tokens > 16)
    for (long t = 0; t < p->tokens; t++) {
        widen(p->x + t * p->inputs, wide + t * p->inputs, sums + t * groups, p);
    }
#pragma omp parallel for schedule(static)
    for (long n = 0; n < p->outputs; n += BLOCK) compute_outputs(p, wide, sums, n);
    free(wide);
    return 0;
}
