// One decode step: every layer of the language model and the head in one call.
//
// A step of few sequences reads each weight once and computes little with it, so it takes as long as
// reading memory; one of sixteen or more, as long as its products.
// In torch a layer is some twenty operations, each with threads to wake and a result to write and
// read back. Here the threads stay together from the embeddings to the logits and wait for each
// other only where a product needs all of the one before.
//
// Compiled on first use for one shape (native.py), with these constants:
//   HEAD_DIM, GROUPS: numbers of a head; query heads for each key head
//   ROWS: most sequences of a step
//   BFLOAT16, INT8: 0 or 1; the dtype of the model is bfloat16, else float32; its matrices are int8
//
// Results are rounded to the model's dtype where torch's operations round them; sums are float32.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <sched.h>
#include <omp.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int WIDTH = 16;
constexpr int PIECES = HEAD_DIM / WIDTH;
constexpr int SPAN = 256;  // tokens of a sequence that one task attends to
constexpr int64_t CHUNK_BYTES = 64 << 10;  // of a matrix that one task multiplies
constexpr int SPINS = 4096;
constexpr int PIECE = 64;  // most outputs of a task
#if defined(__AVX512F__)
constexpr int NEAR = 6;  // rows whose sums stay in registers, four outputs of each
#else
constexpr int NEAR = 1;
#endif
constexpr int NEAR_BYTES = 2560;  // of each of them, at a time: what the nearest cache can keep

typedef float Floats __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef Floats FloatsAnywhere __attribute__((aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1)));

inline Floats load(const float* p) { return *reinterpret_cast<const FloatsAnywhere*>(p); }
inline void store(float* p, Floats v) { *reinterpret_cast<FloatsAnywhere*>(p) = v; }
#if defined(__AVX512F__)
inline Floats load(const uint16_t* p) {
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
inline Floats load(const int8_t* p) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
#else
inline Floats load(const uint16_t* p) {
    return (Floats)(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16);
}
inline Floats load(const int8_t* p) {
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Ints), Floats);
}
#endif
inline float sum(Floats v) {
    Eight e = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
            + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    Four f = __builtin_shufflevector(e, e, 0, 1, 2, 3) + __builtin_shufflevector(e, e, 4, 5, 6, 7);
    return (f[0] + f[1]) + (f[2] + f[3]);
}

#if BFLOAT16
typedef uint16_t Element;
inline float widen(Element e) { uint32_t w = uint32_t(e) << 16; float f; memcpy(&f, &w, 4); return f; }
inline Element narrow(float f) {
    uint32_t w; memcpy(&w, &f, 4);
    if (f != f) return 0x7fc0;
    return Element((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}
inline float rounded(float f) { return widen(narrow(f)); }
#else
typedef float Element;
inline float widen(Element e) { return e; }
inline Element narrow(float f) { return f; }
inline float rounded(float f) { return f; }
#endif

#if INT8
typedef int8_t Weight;
#else
typedef Element Weight;
#endif

// Inputs of products: numbers of the model's dtype, widened where the processor has no product of
// pairs of bfloat16.
#if BFLOAT16 && defined(__AVX512BF16__)
#define DOT_BFLOAT16 1
typedef Element Input;
inline Input as_input(float f) { return narrow(f); }
constexpr int STRIDE = 2 * WIDTH;
#else
#define DOT_BFLOAT16 0
typedef float Input;
inline Input as_input(float f) { return rounded(f); }
constexpr int STRIDE = WIDTH;
#endif

// e^x: 2^n times a polynomial (Cephes, expf), within 2 units in the last place.
inline Floats exponential(Floats x) {
    const Floats zero = {}, given = x;
    Floats low = zero - 87.3f, high = zero + 88.3f;
    Ints under = x < low;
    x = x < low ? low : x;
    x = x > high ? high : x;
    Floats n = x * 1.44269504088896341f + 12582912.f;
    Ints bits = (Ints)n << 23;
    n = n - 12582912.f;
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    Floats y = zero + 1.9875691500e-4f;
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.f;
    y = (Floats)((Ints)y + bits);
    y = under ? zero : y;
    return given == given ? y : given;  // not a number stays that
}

struct Matrix { const Weight* weight; const float* scale; };

struct Layer {
    const Element *input_norm, *mlp_norm;
    Matrix qkv, out, gate_up, down;
};

// Tokens of a sequence that lie side by side in a chunk of the pool: the first one's number in the
// sequence, their count, and where their keys and values begin. Offsets and strides in elements.
struct Span {
    int64_t row, first, tokens, chunk;
    int64_t keys, key_head, key_token, key_dim;
    int64_t values, value_head, value_token;
};

}  // namespace

extern "C" {

struct Model {
    int64_t layers, hidden, kv_heads, mlp, vocabulary;
    float norm_eps, query_scale, embedding_multiplier, residual_multiplier;
    const Layer* layer;
    const Element *embedding, *norm, *cos, *sin;
    Matrix head;
};

}

namespace {

// Threads take pieces of a product: first their own share, then what others have not begun, so
// that one that is kept waiting by another process holds up the others little.
struct alignas(64) Counter { std::atomic<int64_t> next; };

struct Team {
    explicit Team(Counter* counters) : counters(counters) {}

    // Do all tasks of a phase between the threads.
    template <class Task> void share(int me, int64_t phase, int64_t tasks, Task task) {
        for (int other = 0; other < threads; other++) {
            const int owner = (me + other) % threads;
            const int64_t begin = tasks * owner / threads, end = tasks * (owner + 1) / threads;
            std::atomic<int64_t>& next = counters[phase * threads + owner].next;
            for (int64_t i; (i = begin + next.fetch_add(1, std::memory_order_relaxed)) < end;) task(i);
        }
    }

    // Wait until every thread is here. Threads spin for some microseconds, then let others run.
    void wait() {
        if (threads == 1) return;
        const int64_t now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++) {
            if (spins >= SPINS) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }

    int threads = 1;
    Counter* counters;
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> round{0};
};

// Sums of four vectors.
inline Four sums(Floats a, Floats b, Floats c, Floats d) {
    auto folded = [](Floats v) -> Eight {
        return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
             + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    };
    auto joined = [](Eight v, Eight w) -> Eight {
        return __builtin_shufflevector(v, w, 0, 8, 2, 10, 4, 12, 6, 14)
             + __builtin_shufflevector(v, w, 1, 9, 3, 11, 5, 13, 7, 15);
    };
    Eight ab = joined(folded(a), folded(b)), cd = joined(folded(c), folded(d));
    Eight all = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13)
              + __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
}

// A vector of weights or inputs of a product, and their products added to sums.
#if DOT_BFLOAT16
typedef __m512bh Vector;
inline Vector vector(const Element* p) { return (Vector)_mm512_loadu_si512(p); }
inline Vector half(const Element* p) { return (Vector)_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)p)); }
inline Vector half(const int8_t* p) { return _mm512_cvtne2ps_pbh(__m512(), (__m512)load(p)); }
inline Vector vector(const int8_t* p) { return _mm512_cvtne2ps_pbh((__m512)load(p + WIDTH), (__m512)load(p)); }
inline Floats multiply_add(Floats total, Vector weights, Vector x) {
    return (Floats)_mm512_dpbf16_ps((__m512)total, weights, x);
}
#else
typedef Floats Vector;
template <class Number> inline Vector vector(const Number* p) { return load(p); }
template <class Number> inline Vector half(const Number* p) { return vector(p); }
inline Floats multiply_add(Floats total, Vector weights, Vector x) { return total + weights * x; }
#endif

// Keep a vector in a register: compilers would load it anew for each output.
inline Vector kept(Vector v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#endif
    return v;
}

// Dot products of the inputs [from, to) of OUTPUTS outputs of a matrix with N rows of inputs, added
// to y: output o of row n at n * PIECE + o. A vector of inputs, once loaded, serves all outputs.
// Meanwhile some cache lines from `ahead` on are fetched, so many for each vector.
template <int N, int OUTPUTS>
void block(const Weight* w, int64_t inputs, int64_t from, int64_t to, const Input* x, const char* ahead,
           int64_t lines, float* y) {
    constexpr int TOGETHER = N * OUTPUTS == 1 ? 4 : 1;  // sums of one output, which need not wait for each other
    Floats total[TOGETHER][OUTPUTS][N] = {};
    auto take = [&](int64_t k, int t) {
        Vector given[N];
        for (int n = 0; n < N; n++) given[n] = kept(vector(x + n * inputs + k));
        for (int o = 0; o < OUTPUTS; o++) {
            const Vector weights = vector(w + o * inputs + k);
            for (int n = 0; n < N; n++) total[t][o][n] = multiply_add(total[t][o][n], weights, given[n]);
        }
    };
    int64_t k = from;
    for (; k + TOGETHER * STRIDE <= to; k += TOGETHER * STRIDE) {
        if constexpr (OUTPUTS > 1)
            for (int64_t line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        for (int t = 0; t < TOGETHER; t++) take(k + t * STRIDE, t);
    }
    if constexpr (TOGETHER > 1)
        for (; k + STRIDE <= to; k += STRIDE) take(k, 0);
    if (STRIDE > WIDTH && k < to)  // WIDTH are left
        for (int o = 0; o < OUTPUTS; o++)
            for (int n = 0; n < N; n++)
                total[0][o][n] = multiply_add(total[0][o][n], half(w + o * inputs + k), half(x + n * inputs + k));
    for (int n = 0; n < N; n++, y += PIECE) {
        if constexpr (OUTPUTS == 4) {
            typedef Four Anywhere __attribute__((aligned(4)));
            *reinterpret_cast<Anywhere*>(y) += sums(total[0][0][n], total[0][1][n], total[0][2][n], total[0][3][n]);
        } else {
            for (int t = 1; t < TOGETHER; t++) total[0][0][n] += total[t][0][n];
            *y += sum(total[0][0][n]);
        }
    }
}

template <int OUTPUTS, int N = 1>
inline void block_of(int64_t rows, const Weight* w, int64_t inputs, int64_t from, int64_t to, const Input* x,
                     const char* ahead, int64_t lines, float* y) {
    if constexpr (N < NEAR) {
        if (rows != N) return block_of<OUTPUTS, N + 1>(rows, w, inputs, from, to, x, ahead, lines, y);
    }
    block<N, OUTPUTS>(w, inputs, from, to, x, ahead, lines, y);
}

// Dot products of the outputs [begin, end), at most PIECE, with all rows. The nearest cache keeps
// some inputs of some rows, which meet all outputs before the next ones are taken. The processor
// fetches memory ahead as it sees one row of weights read, not four at once, so the same number of
// outputs behind these is fetched here, evenly over the whole work.
template <class Done>
inline void dots(int64_t rows, const Matrix& matrix, int64_t inputs, int64_t begin, int64_t end,
                 const Input* x, Done done) {
    const int64_t groups = (rows + NEAR - 1) / NEAR, count = end - begin;
    int64_t parts = groups == 1 ? 1 : (inputs * int64_t(sizeof(Input)) + NEAR_BYTES - 1) / NEAR_BYTES;
    const int64_t length = ((inputs + STRIDE - 1) / STRIDE + parts - 1) / parts * STRIDE;
    const int64_t row_bytes = inputs * sizeof(Weight), part_bytes = 4 * row_bytes / (parts * groups);
    const int64_t lines = (part_bytes * STRIDE / length + 63) / 64;
    const Weight* w = matrix.weight + begin * inputs;
    const char* behind = reinterpret_cast<const char*>(w + count * inputs);
    float y[ROWS * PIECE];
    memset(y, 0, rows * PIECE * sizeof(float));
    for (int64_t from = 0; from < inputs; from += length) {
        const int64_t to = from + length < inputs ? from + length : inputs;
        for (int64_t group = 0; group < groups; group++, behind += part_bytes) {
            const int64_t first = rows * group / groups, near = rows * (group + 1) / groups - first;
            const Input* given = x + first * inputs;
            float* sums = y + first * PIECE;
            int64_t o = 0;
            if (rows > 1)
                for (; o + 4 <= count; o += 4)
                    block_of<4>(near, w + o * inputs, inputs, from, to, given, behind + o * row_bytes, lines, sums + o);
            for (; o < count; o++) block_of<1>(near, w + o * inputs, inputs, from, to, given, behind, 0, sums + o);
        }
    }
    for (int64_t n = 0; n < rows; n++)
        for (int64_t o = 0; o < count; o++) {
#if INT8
            y[n * PIECE + o] *= matrix.scale[begin + o];
#endif
            done(begin + o, n, rounded(y[n * PIECE + o]));
        }
}

inline void normalize(const float* x, const Element* weight, int64_t size, float eps, Input* y) {
    Floats squares = {};
    for (int64_t i = 0; i < size; i += WIDTH) squares += load(x + i) * load(x + i);
    float factor = 1.f / std::sqrt(eps + sum(squares) / size);
    for (int64_t i = 0; i < size; i++) y[i] = as_input(rounded(x[i] * factor) * widen(weight[i]));
}

inline void rotate(float* x, const Element* cos, const Element* sin) {
    float turned[HEAD_DIM];
    for (int i = 0; i < HEAD_DIM; i++)
        turned[i] = rounded(rounded(x[i] * widen(cos[i])) + x[(i + HEAD_DIM / 2) % HEAD_DIM] * widen(sin[i]));
    memcpy(x, turned, sizeof turned);
}

// Softmax of one span, not yet divided by its sum: (largest score, sum, weighted values).
struct alignas(64) Part { float largest[GROUPS], total[GROUPS], values[GROUPS][HEAD_DIM]; };

inline void attend(const Span& span, const float* query, const Element* keys, const Element* values,
                   Part& part) {
    const int64_t tokens = span.tokens;
    float scores[GROUPS][SPAN + WIDTH];
    if (span.key_token == 1) {
        int64_t t = 0;
        for (; t < tokens; t += WIDTH) {
            int64_t begin = t + WIDTH <= tokens ? t : (tokens >= WIDTH ? tokens - WIDTH : t);
            if (begin + WIDTH > tokens) {  // fewer than one vector in all
                for (; t < tokens; t++)
                    for (int g = 0; g < GROUPS; g++) {
                        float s = 0;
                        for (int d = 0; d < HEAD_DIM; d++) s += query[g * HEAD_DIM + d] * widen(keys[d * span.key_dim + t]);
                        scores[g][t] = s;
                    }
                break;
            }
            Floats total[GROUPS] = {};
            for (int d = 0; d < HEAD_DIM; d++) {
                Floats k = load(keys + d * span.key_dim + begin);
                for (int g = 0; g < GROUPS; g++) total[g] += k * query[g * HEAD_DIM + d];
            }
            for (int g = 0; g < GROUPS; g++) store(&scores[g][begin], total[g]);
        }
    } else {
        for (int64_t t = 0; t < tokens; t++)
            for (int g = 0; g < GROUPS; g++) {
                Floats total = {};
                for (int p = 0; p < PIECES; p++)
                    total += load(query + g * HEAD_DIM + p * WIDTH) * load(keys + t * span.key_token + p * WIDTH);
                scores[g][t] = sum(total);
            }
    }
    Floats mixed[GROUPS][PIECES] = {};
    for (int g = 0; g < GROUPS; g++) {
        float largest = scores[g][0];
        for (int64_t t = 1; t < tokens; t++) largest = scores[g][t] > largest ? scores[g][t] : largest;
        for (int64_t t = tokens; t % WIDTH; t++) scores[g][t] = -INFINITY;
        Floats total = {};
        for (int64_t t = 0; t < tokens; t += WIDTH) {
            Floats weights = exponential(load(&scores[g][t]) - largest);
            total += weights;
            store(&scores[g][t], weights);
        }
        part.largest[g] = largest;
        part.total[g] = sum(total);
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int p = 0; p < PIECES; p++) {
            Floats value = load(values + t * span.value_token + p * WIDTH);
            for (int g = 0; g < GROUPS; g++) mixed[g][p] += value * scores[g][t];
        }
    for (int g = 0; g < GROUPS; g++)
        for (int p = 0; p < PIECES; p++) store(&part.values[g][p * WIDTH], mixed[g][p]);
}

// Round a number of elements up to whole cache lines.
inline int64_t in_lines(int64_t count) { return (count + 31) / 32 * 32; }

}  // namespace

extern "C" {

// Bytes of scratch memory that a step of so many rows and spans needs.
int64_t scratch_bytes(const Model* model, int64_t rows, int64_t spans, int64_t threads) {
    int64_t heads = model->kv_heads * GROUPS, wide = (heads + 2 * model->kv_heads) * HEAD_DIM;
    int64_t inner = model->hidden > heads * HEAD_DIM ? model->hidden : heads * HEAD_DIM;
    int64_t floats = in_lines(rows * model->hidden) + in_lines(rows * wide) + in_lines(rows * model->mlp)
                   + threads * in_lines(rows * inner);
    return 256 + 4 * floats + sizeof(Part) * spans * model->kv_heads
         + sizeof(Counter) * threads * (5 * model->layers + 1);
}

// Decode one token of each row.
//
// ids, positions: (rows,). spans: the tokens of each row, in parts of at most SPAN tokens; those of
// a row are side by side in the list, and its last one ends with the new token, whose key and value
// are written here. logits: (rows, vocabulary).
void decode(const Model* model, int64_t rows, const int64_t* ids, const int64_t* positions,
            int64_t span_count, const Span* spans, Element* const* chunks, void* scratch, int64_t threads, float* logits) {
    const Model& m = *model;
    const int64_t heads = m.kv_heads * GROUPS, wide = (heads + 2 * m.kv_heads) * HEAD_DIM;
    const int64_t attended_size = heads * HEAD_DIM;
    const int64_t inner = m.hidden > attended_size ? m.hidden : attended_size;
    Counter* counters = reinterpret_cast<Counter*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t(63));
    memset((void*)counters, 0, sizeof(Counter) * threads * (5 * m.layers + 1));
    Part* parts = reinterpret_cast<Part*>(counters + threads * (5 * m.layers + 1));
    // Vectors begin at cache lines: one that lies in two takes twice as long to load.
    float* x = reinterpret_cast<float*>(parts + span_count * m.kv_heads);
    float* qkv = x + in_lines(rows * m.hidden);
    Input* activated = reinterpret_cast<Input*>(qkv + in_lines(rows * wide));
    Input* own = activated + in_lines(rows * m.mlp);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < m.hidden; i++) 
            x[row * m.hidden + i] = rounded(widen(m.embedding[ids[row] * m.hidden + i]) * m.embedding_multiplier);
    Team team(counters);

#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
#pragma omp single
        team.threads = omp_get_num_threads();  // the system may give fewer
        Input* input = own + me * in_lines(rows * inner);
        int64_t phase = 0;
        auto product = [&](const Matrix& matrix, int64_t inputs, int64_t outputs, const Input* in, auto done) {
            int64_t step = CHUNK_BYTES / (inputs * int64_t(sizeof(Weight))) / 4 * 4;
            step = step < 4 ? 4 : step > PIECE ? PIECE : step;
            int64_t tasks = (outputs + step - 1) / step;
            team.share(me, phase++, tasks, [&](int64_t task) {
                int64_t end = (task + 1) * step < outputs ? (task + 1) * step : outputs;
                dots(rows, matrix, inputs, task * step, end, in, done);
            });
        };
        auto add = [&](int n, int64_t i, float y) {
            float& sum = x[n * m.hidden + i];
            sum = rounded(sum + rounded(y * m.residual_multiplier));
        };
        auto norm = [&](const Element* weight) {
            for (int64_t row = 0; row < rows; row++)
                normalize(x + row * m.hidden, weight, m.hidden, m.norm_eps, input + row * m.hidden);
        };
        for (int64_t number = 0; number < m.layers; number++) {
            const Layer& layer = m.layer[number];
            norm(layer.input_norm);
            product(layer.qkv, m.hidden, wide, input, [&](int64_t i, int n, float y) { qkv[n * wide + i] = y; });
            team.wait();
            team.share(me, phase++, span_count * m.kv_heads, [&](int64_t task) {
                const Span& span = spans[task / m.kv_heads];
                const int64_t head = task % m.kv_heads, position = positions[span.row];
                const Element *cos = m.cos + position * HEAD_DIM, *sin = m.sin + position * HEAD_DIM;
                Element* keys = chunks[2 * (span.chunk * m.layers + number)] + span.keys + head * span.key_head;
                Element* values = chunks[2 * (span.chunk * m.layers + number) + 1] + span.values + head * span.value_head;
                const float* fresh = qkv + span.row * wide;
                float query[GROUPS * HEAD_DIM];
                memcpy(query, fresh + head * GROUPS * HEAD_DIM, sizeof query);
                for (int g = 0; g < GROUPS; g++) rotate(query + g * HEAD_DIM, cos, sin);
                for (int i = 0; i < GROUPS * HEAD_DIM; i++) query[i] *= m.query_scale;
                if (span.first + span.tokens == position + 1) {
                    float key[HEAD_DIM];
                    memcpy(key, fresh + (heads + head) * HEAD_DIM, sizeof key);
                    rotate(key, cos, sin);
                    const float* value = fresh + (heads + m.kv_heads + head) * HEAD_DIM;
                    const int64_t last = span.tokens - 1;
                    for (int d = 0; d < HEAD_DIM; d++) {
                        keys[last * span.key_token + d * span.key_dim] = narrow(key[d]);
                        values[last * span.value_token + d] = narrow(value[d]);
                    }
                }
                attend(span, query, keys, values, parts[task]);
            });
            team.wait();
            // Join the spans of each row; every thread does it for itself.
            for (int64_t begin = 0; begin < span_count;) {
                int64_t row = spans[begin].row, end = begin;
                while (end < span_count && spans[end].row == row) end++;
                for (int64_t head = 0; head < m.kv_heads; head++)
                    for (int g = 0; g < GROUPS; g++) {
                        float y[HEAD_DIM] = {};
                        Input* out = input + row * attended_size + (head * GROUPS + g) * HEAD_DIM;
                        float largest = -INFINITY, total = 0;
                        for (int64_t s = begin; s < end; s++) largest = std::fmax(largest, parts[s * m.kv_heads + head].largest[g]);
                        for (int64_t s = begin; s < end; s++) {
                            const Part& part = parts[s * m.kv_heads + head];
                            const float weight = std::exp(part.largest[g] - largest);
                            total += weight * part.total[g];
                            for (int d = 0; d < HEAD_DIM; d++) y[d] += weight * part.values[g][d];
                        }
                        for (int d = 0; d < HEAD_DIM; d++) out[d] = as_input(y[d] / total);
                    }
                begin = end;
            }
            product(layer.out, attended_size, m.hidden, input,
                    [&](int64_t i, int n, float y) { add(n, i, y); });
            team.wait();
            norm(layer.mlp_norm);
            // Gate and up: outputs i and mlp + i.
            const int64_t pairs = m.mlp % (2 * WIDTH) ? WIDTH : 2 * WIDTH;
            team.share(me, phase++, m.mlp / pairs, [&](int64_t task) {
                float gate[ROWS][2 * WIDTH], up[ROWS][2 * WIDTH];
                const int64_t begin = task * pairs, middle = m.mlp + begin;
                dots(rows, layer.gate_up, m.hidden, begin, begin + pairs, input,
                     [&](int64_t i, int n, float y) { gate[n][i - begin] = y; });
                dots(rows, layer.gate_up, m.hidden, middle, middle + pairs, input,
                     [&](int64_t i, int n, float y) { up[n][i - middle] = y; });
                for (int64_t n = 0; n < rows; n++)
                    for (int64_t i = 0; i < pairs; i += WIDTH) {
                        const Floats g = load(gate[n] + i);
                        store(gate[n] + i, g / (1.f + exponential(-g)));
                        for (int64_t j = i; j < i + WIDTH; j++)
                            activated[n * m.mlp + begin + j] = as_input(rounded(gate[n][j]) * up[n][j]);
                    }
            });
            team.wait();
            product(layer.down, m.mlp, m.hidden, activated,
                    [&](int64_t i, int n, float y) { add(n, i, y); });
            team.wait();
        }
        norm(m.norm);
        product(m.head, m.hidden, m.vocabulary, input, [&](int64_t i, int n, float y) { logits[n * m.vocabulary + i] = y; });
    }
}

}
