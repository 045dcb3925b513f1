/* Lanczos resizing with the arithmetic of Pillow's resize for 8-bit RGB: weights of 22 bits, int32
 * sums, rounded to a byte after the horizontal and after the vertical pass. The result is the same
 * bit for bit.
 *
 * Both passes compute 8 neighbours at once. The horizontal pass turns 16 rows into columns first,
 * so that its neighbours are pixels of 16 rows at the same x.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22
#define HALF (1 << (BITS - 1))
#define ROWS 16 /* rows that the horizontal pass takes at once */
#define BYTES 64 /* bytes of a row that the vertical pass takes at once */

#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) AVX2

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

int is_supported(void) { return __builtin_cpu_supports("avx2"); }

/* Maximum number of weights of an output pixel. */
int taps(int in_size, int out_size) {
    double scale = (double)in_size / out_size;
    return 2 * (int)ceil(3.0 * (scale < 1.0 ? 1.0 : scale)) + 1;
}

/* Fill the first input pixel, the number of weights, and the weights of each output pixel. */
int weigh(int in_size, int out_size, int32_t *first, int32_t *count, int32_t *weights) {
    int width = taps(in_size, out_size);
    double scale = (double)in_size / out_size, filter_scale = scale < 1.0 ? 1.0 : scale;
    double support = 3.0 * filter_scale, step = 1.0 / filter_scale;
    double *exact = malloc(width * sizeof(double));
    if (!exact) return -1;
    memset(weights, 0, (size_t)out_size * width * sizeof(int32_t));
    for (int place = 0; place < out_size; place++, weights += width) {
        double center = (place + 0.5) * scale, sum = 0.0;
        int begin = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        if (begin < 0) begin = 0;
        if (end > in_size) end = in_size;
        first[place] = begin;
        count[place] = end - begin;
        for (int k = 0; k < end - begin; k++) {
            exact[k] = lanczos((k + begin - center + 0.5) * step);
            sum += exact[k];
        }
        for (int k = 0; k < end - begin; k++) {
            double weight = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << BITS);
            weights[k] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
    }
    free(exact);
    return 0;
}

/* Eight sums, each begun with what rounds it. */
INLINE __m256i half(void) { return _mm256_set1_epi32(HALF); }

/* Add eight bytes times a weight. */
INLINE __m256i add(__m256i sums, const uint8_t *bytes, __m256i weight) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
    return _mm256_add_epi32(sums, _mm256_mullo_epi32(wide, weight));
}

/* Clip 16 sums to bytes. */
INLINE void store(__m256i low, __m256i high, uint8_t *to) {
    __m256i words = _mm256_packs_epi32(
        _mm256_srai_epi32(low, BITS), _mm256_srai_epi32(high, BITS));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi16(
        _mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

/* Turn 16 rows of 16 bytes into columns. */
INLINE void turn(const uint8_t *from, long from_step, uint8_t *to, long to_step) {
    __m128i a[16], b[16];
    for (int n = 0; n < 16; n++) a[n] = _mm_loadu_si128((const __m128i *)(from + n * from_step));
    for (int round = 0; round < 4; round++) {
        for (int n = 0; n < 8; n++) {
            b[2 * n] = _mm_unpacklo_epi8(a[n], a[n + 8]);
            b[2 * n + 1] = _mm_unpackhi_epi8(a[n], a[n + 8]);
        }
        memcpy(a, b, sizeof a);
    }
    for (int n = 0; n < 16; n++) _mm_storeu_si128((__m128i *)(to + n * to_step), a[n]);
}

/* Turn `rows` (at most 16) rows of `size` bytes into columns of 16 bytes. */
INLINE void to_columns(const uint8_t *from, long step, int rows, long size, uint8_t *columns) {
    long x = 0;
    if (rows == ROWS)
        for (; x + 16 <= size; x += 16) turn(from + x, step, columns + x * ROWS, ROWS);
    for (; x < size; x++)
        for (int y = 0; y < rows; y++) columns[x * ROWS + y] = from[y * step + x];
}

/* Turn columns of 16 bytes back. */
INLINE void to_rows(const uint8_t *columns, long size, int rows, uint8_t *to, long step) {
    long x = 0;
    if (rows == ROWS)
        for (; x + 16 <= size; x += 16) turn(columns + x * ROWS, ROWS, to + x, step);
    for (; x < size; x++)
        for (int y = 0; y < rows; y++) to[y * step + x] = columns[x * ROWS + y];
}

/* Resize rows to another width.
 *
 * Input: rows of pixels of `pixel` bytes; with `pixel` 1, three planes `plane` bytes apart, each
 * row in pieces of `edge` pixels that are `piece` bytes apart. Output: three planes of rows of
 * `out_size` bytes, `out_plane` bytes apart. */
AVX2 int horizontal(
    const uint8_t *in, long row, int pixel, long plane, int edge, long piece, int in_size,
    int rows, uint8_t *out, long out_plane, int out_size, const int32_t *first,
    const int32_t *count, const int32_t *weights, int width
) {
    long in_bytes = (long)in_size * (pixel == 1 ? 3 : pixel);
    long next = pixel == 1 ? in_size : 1; /* columns from a channel to the next */
    uint8_t *columns = calloc(in_bytes + 3L * out_size, ROWS);
    if (!columns) return -1;
    uint8_t *resized = columns + in_bytes * ROWS;
    for (int y = 0; y < rows; y += ROWS) {
        int some = rows - y < ROWS ? rows - y : ROWS;
        const uint8_t *from = in + y * row;
        if (pixel > 1)
            to_columns(from, row, some, in_bytes, columns);
        else
            for (int channel = 0; channel < 3; channel++)
                for (int x = 0, n = 0; x < in_size; x += edge, n++)
                    to_columns(from + channel * plane + n * piece, row, some,
                        in_size - x < edge ? in_size - x : edge,
                        columns + ((long)channel * in_size + x) * ROWS);
        const int32_t *weight = weights;
        for (int x = 0; x < out_size; x++, weight += width) {
            const uint8_t *at = columns + (long)first[x] * pixel * ROWS;
            __m256i a = half(), b = a, c = a, d = a, e = a, f = a;
            for (int k = 0; k < count[x]; k++, at += pixel * ROWS) {
                __m256i w = _mm256_set1_epi32(weight[k]);
                a = add(a, at, w);
                b = add(b, at + 8, w);
                c = add(c, at + next * ROWS, w);
                d = add(d, at + next * ROWS + 8, w);
                e = add(e, at + 2 * next * ROWS, w);
                f = add(f, at + 2 * next * ROWS + 8, w);
            }
            store(a, b, resized + (long)x * ROWS);
            store(c, d, resized + ((long)out_size + x) * ROWS);
            store(e, f, resized + (2L * out_size + x) * ROWS);
        }
        for (int channel = 0; channel < 3; channel++)
            to_rows(resized + (long)channel * out_size * ROWS, out_size, some,
                out + channel * out_plane + (long)y * out_size, out_size);
    }
    free(columns);
    return 0;
}

/* Add up 64 columns. */
INLINE void blend(
    const uint8_t *in, long step, int count, const int32_t *weights, uint8_t *out
) {
    __m256i a = half(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int k = 0; k < count; k++, in += step) {
        __m256i w = _mm256_set1_epi32(weights[k]);
        a = add(a, in, w);
        b = add(b, in + 8, w);
        c = add(c, in + 16, w);
        d = add(d, in + 24, w);
        e = add(e, in + 32, w);
        f = add(f, in + 40, w);
        g = add(g, in + 48, w);
        h = add(h, in + 56, w);
    }
    store(a, b, out);
    store(c, d, out + 16);
    store(e, f, out + 32);
    store(g, h, out + 48);
}

/* Make `rows` rows of another height from three planes of rows of `size` bytes, `plane` bytes
 * apart.
 *
 * Output: three planes, `out_plane` bytes apart; rows of `edge` bytes; what is beyond them follows
 * `piece` bytes later. */
AVX2 int vertical(
    const uint8_t *in, long plane, int size, uint8_t *out, long out_plane, int edge, long piece,
    int rows, const int32_t *first, const int32_t *count, const int32_t *weights, int width
) {
    for (int y = 0; y < rows; y++, weights += width)
        for (int channel = 0; channel < 3; channel++)
            for (int left = 0, n = 0; left < size; left += edge, n++) {
                const uint8_t *from = in + channel * plane + (long)first[y] * size + left;
                uint8_t *to = out + channel * out_plane + n * piece + (long)y * edge;
                int wide = size - left < edge ? size - left : edge, x = 0;
                for (; x + BYTES <= wide; x += BYTES)
                    blend(from + x, size, count[y], weights, to + x);
                if (x < wide && wide >= BYTES) { /* once more, with some that are done */
                    x = wide - BYTES;
                    blend(from + x, size, count[y], weights, to + x);
                    x = wide;
                }
                for (; x < wide; x++) {
                    int32_t sum = HALF;
                    for (int k = 0; k < count[y]; k++)
                        sum += from[(long)k * size + x] * weights[k];
                    sum >>= BITS;
                    to[x] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
                }
            }
    return 0;
}
