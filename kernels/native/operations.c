/* Elementwise operations and rank-ordered sums; reference.py defines what each one means. */
#include "formats.h"
#include <string.h>

enum { LONG = 1 << 19 /* floats: beyond the second-level cache */ };

/* Asking for both pages ahead makes a long copy faster than the C library's. */
CLONES static void copy_long(float *restrict y, const float *restrict x, size_t n) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 4 * STEP);
        for (size_t j = i; j < i + STEP; j++) y[j] = x[j];
    }
    for (; i < n; i++) y[i] = x[i];
}

void dlp_copy(float *y, const float *x, size_t n) {
    if (n < LONG) memcpy(y, x, n * sizeof *y);
    else copy_long(y, x, n);
}

CLONES static void scal(float *restrict y, size_t n, float a) {
    for (size_t i = 0; i < n; i++) y[i] = a * y[i];
}

CLONES static void axpy(float *restrict y, const float *restrict x, size_t n, float a) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 4 * STEP);
        for (size_t j = i; j < i + STEP; j++) y[j] = y[j] + a * x[j];
    }
    for (; i < n; i++) y[i] = y[i] + a * x[i];
}

CLONES static void axpy_bf16(float *restrict y, const uint16_t *restrict x, size_t n, float a) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 2 * STEP);
        for (size_t j = i; j < i + STEP; j++) y[j] = y[j] + a * from_bf16(x[j]);
    }
    for (; i < n; i++) y[i] = y[i] + a * from_bf16(x[i]);
}

CLONES static void axpy_fp16(float *restrict y, const uint16_t *restrict x, size_t n, float a) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 2 * STEP);
        for (size_t j = i; j < i + STEP; j++) y[j] = y[j] + a * from_fp16(x[j]);
    }
    for (; i < n; i++) y[i] = y[i] + a * from_fp16(x[i]);
}

CLONES static void axpby(float *restrict y, const float *restrict x, size_t n, float a, float b) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 4 * STEP);
        for (size_t j = i; j < i + STEP; j++) y[j] = a * x[j] + b * y[j];
    }
    for (; i < n; i++) y[i] = a * x[i] + b * y[i];
}

static inline __attribute__((always_inline)) void pull(float *y, float *x, float a) {
    float d = a * (*x - *y);
    *y = *y + d;
    *x = *x - d;
}

CLONES static void elastic(float *restrict y, float *restrict x, size_t n, float a) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 4 * STEP);
        for (size_t j = i; j < i + STEP; j++) pull(y + j, x + j, a);
    }
    for (; i < n; i++) pull(y + i, x + i, a);
}

static inline __attribute__((always_inline)) void step(float *y, const float *x, float *z, float a) {
    float d = a * (*x - *y);
    *y = *y + d;
    *z = d;
}

CLONES static void difference(float *restrict y, const float *restrict x, float *restrict z,
                              size_t n, float a) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(y + i, 4 * STEP), ahead(x + i, 4 * STEP), ahead(z + i, 4 * STEP);
        for (size_t j = i; j < i + STEP; j++) step(y + j, x + j, z + j, a);
    }
    for (; i < n; i++) step(y + i, x + i, z + i, a);
}

/* Where nobody else moved y since it was read, x replaces it without a rounding error. */
CLONES static void merge(float *restrict y, float *restrict x, float *restrict z, size_t n) {
    for (size_t i = 0; i < n; i++) {
        word sum = {.value = y[i] + (x[i] - z[i])}, same = {.value = x[i]};
        float new = (word){.bits = choose(y[i] == z[i], same.bits, sum.bits)}.value;
        y[i] = new;
        x[i] = new;
        z[i] = new;
    }
}

CLONES static void fetch(float *restrict y, float *restrict x, size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        float new = y[i] + a * x[i];
        y[i] = new;
        x[i] = new;
    }
}

/* Both comparisons are false for NaN, which passes through. */
static inline float clipped(float x, float most) {
    float low = x < -most ? -most : x;
    return low > most ? most : low;
}

CLONES static void clip(float *restrict y, const float *restrict x, size_t n, float a, float most) {
    for (size_t i = 0; i < n; i++) y[i] = y[i] + a * clipped(x[i], most);
}

CLONES static void sgd(float *restrict y, float *restrict s, const float *restrict x, size_t n,
                       const float *k) {
    float rate = k[0], momentum = k[1], decay = k[2];
    int nesterov = k[3] != 0;
    for (size_t i = 0; i < n; i++) {
        float g = x[i] + decay * y[i];
        float mean = momentum * s[i] + g;
        float ahead = g + momentum * mean;
        s[i] = mean;
        y[i] = y[i] - rate * (nesterov ? ahead : mean);
    }
}

/* DiLoCo's outer step: what x lost against y is the gradient (arXiv:2311.08105). */
CLONES static void outer(float *restrict y, float *restrict s, const float *restrict x, size_t n,
                         float rate, float momentum) {
    for (size_t i = 0; i < n; i++) {
        float g = y[i] - x[i];
        float mean = momentum * s[i] + g;
        s[i] = mean;
        y[i] = y[i] - rate * (g + momentum * mean);
    }
}

/* DC-ASGD: a gradient of the weights s, corrected to first order for y (arXiv:1609.08326). */
CLONES static void delay(float *restrict y, float *restrict s, float *restrict x, size_t n,
                         float rate, float lambda) {
    for (size_t i = 0; i < n; i++) {
        float new = y[i] - rate * (x[i] + lambda * x[i] * x[i] * (y[i] - s[i]));
        y[i] = new;
        s[i] = new;
        x[i] = new;
    }
}

/* DC-ASGD-a: the correction adapts to the gradients' mean squares t. */
CLONES static void adapt(float *restrict y, float *restrict s, float *restrict t,
                         float *restrict x, size_t n, const float *k) {
    float rate = k[0], lambda = k[1], keep = k[2], rest = 1 - k[2], eps = k[3];
    for (size_t i = 0; i < n; i++) {
        float square = x[i] * x[i];
        float mean = keep * t[i] + rest * square;
        float root = __builtin_sqrtf(mean + eps);
        float new = y[i] - rate * (x[i] + lambda / root * square * (y[i] - s[i]));
        t[i] = mean;
        y[i] = new;
        s[i] = new;
        x[i] = new;
    }
}

/* What comes in moves y at once and is gathered in s, for a later step. */
CLONES static void gather(float *restrict y, float *restrict s, const float *restrict x, size_t n,
                          float a, float b) {
    for (size_t i = 0; i < n; i++) {
        y[i] = y[i] + a * x[i];
        s[i] = s[i] + b * x[i];
    }
}

/* An outer step with what was gathered in t. Minus zero marks an element whose step was taken, so
   that whoever repeats a fold that broke off takes no step twice. */
CLONES static void fold(float *restrict y, float *restrict s, float *restrict t, size_t n,
                        const float *k) {
    float scale = k[0], rate = k[1], momentum = k[2], now = k[3], after = k[4] != 0 ? -0.0f : 0.0f;
    for (size_t i = 0; i < n; i++) {
        word was = {.value = t[i]}, here = {.value = y[i]}, old = {.value = s[i]};
        float g = scale * was.value, mean = momentum * old.value + g;
        word there = {.value = here.value - rate * (now * g + momentum * mean)};
        word new = {.value = mean};
        s[i] = (word){.bits = choose(was.bits == 1u << 31, old.bits, new.bits)}.value;
        y[i] = (word){.bits = choose(was.bits == 1u << 31, here.bits, there.bits)}.value;
        t[i] = after;
    }
}

/* Both in one pass: settling again what was settled in part adds nothing twice. */
CLONES static void settle(float *restrict y, float *restrict s, size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        y[i] = y[i] + a * s[i];
        s[i] = 0;
    }
}

/* Squares instead of pow: the same bits on every C library. */
static double power(double base, uint64_t exponent) {
    double product = 1.0;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1) product *= base;
    return product;
}

typedef struct {
    float rate, beta1, beta2, rest1, rest2, eps, decay, shrink, root;
    int decoupled;
} adam_step;

static adam_step adam_scalars(const float *k) {
    uint64_t step = k[6] >= 1 && k[6] < 0x1p63f ? (uint64_t)k[6] : 1;
    return (adam_step){
        .rate = (float)(k[0] / (1 - power(k[1], step))),
        .root = (float)__builtin_sqrt(1 - power(k[2], step)),
        .beta1 = k[1], .beta2 = k[2], .rest1 = 1 - k[1], .rest2 = 1 - k[2],
        .eps = k[3], .decay = k[4], .shrink = k[0] * k[4], .decoupled = k[5] != 0,
    };
}

CLONES static void adam(float *restrict y, float *restrict s, float *restrict t,
                        const float *restrict x, size_t n, const float *k) {
    adam_step a = adam_scalars(k);
    for (size_t i = 0; i < n; i++) {
        float g = a.decoupled ? x[i] : x[i] + a.decay * y[i];
        float w = a.decoupled ? y[i] - a.shrink * y[i] : y[i];
        s[i] = a.beta1 * s[i] + a.rest1 * g;
        t[i] = a.beta2 * t[i] + a.rest2 * (g * g);
        y[i] = w - a.rate * (s[i] / (__builtin_sqrtf(t[i]) / a.root + a.eps));
    }
}

/* x and z point at the first of the n elements here. */
static void apply_fp32(const operation *o, float *y, float *s, float *t, float *x, float *z,
                       size_t n) {
    const float *k = o->k;
    switch (o->code) {
    case OP_SCAL: scal(y, n, k[0]); break;
    case OP_AXPY: axpy(y, x, n, k[0]); break;
    case OP_AXPBY: axpby(y, x, n, k[0], k[1]); break;
    case OP_ELASTIC: elastic(y, x, n, k[0]); break;
    case OP_DIFFERENCE: difference(y, x, z, n, k[0]); break;
    case OP_MERGE: merge(y, x, z, n); break;
    case OP_FETCH: fetch(y, x, n, k[0]); break;
    case OP_COPY: dlp_copy(y, x, n); break;
    case OP_CLIP: clip(y, x, n, k[0], k[1]); break;
    case OP_SGD: sgd(y, s, x, n, k); break;
    case OP_OUTER: outer(y, s, x, n, k[0], k[1]); break;
    case OP_ADAM: adam(y, s, t, x, n, k); break;
    case OP_SETTLE: settle(y, s, n, k[0]); break;
    case OP_DELAY: delay(y, s, x, n, k[0], k[1]); break;
    case OP_GATHER: gather(y, s, x, n, k[0], k[1]); break;
    case OP_ADAPT: adapt(y, s, t, x, n, k); break;
    case OP_FOLD: fold(y, s, t, n, k); break;
    }
}

/* Add the chosen elements alone, within [at, at + n) whatever the payload says. */
static void add_entries(const operation *o, float *y, const void *x, size_t at, size_t n) {
    const uint32_t *positions = x;
    const float *values = (const float *)(positions + o->entries);
    for (size_t i = dlp_first_entry(positions, o->entries, at); i < o->entries; i++) {
        if (positions[i] >= at + n) break;
        if (positions[i] < at) continue;
        float value = o->code == OP_CLIP ? clipped(values[i], o->k[1]) : values[i];
        float *to = y + (positions[i] - at);
        *to = *to + o->k[0] * value;
    }
}

enum { BLOCK = 4096 /* floats: the running sum stays in the first-level cache */ };

/* Decode x block by block into the first-level cache; an operation that writes x changes only
   that copy. */
static void apply_decoded(const operation *o, float *y, float *s, float *t, const void *x,
                          float *z, size_t at, size_t n) {
    float block[BLOCK / 4];
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < BLOCK / 4 ? n - i : BLOCK / 4;
        dlp_unpack(o->format, x, block, at + i, m, o->entries);
        apply_fp32(o, y + i, s ? s + i : s, t ? t + i : t, block, z ? z + at + i : z, m);
    }
}

void dlp_apply(const operation *o, float *y, float *s, float *t, void *x, float *z, size_t at,
               size_t n) {
    int added = o->code == OP_AXPY || o->code == OP_CLIP;
    if (!n) return;
    if (o->code == OP_SCAL || o->format == FORMAT_FP32)
        apply_fp32(o, y, s, t, x ? (float *)x + at : x, z ? z + at : z, n);
    else if (o->code == OP_COPY)
        dlp_unpack(o->format, x, y, at, n, o->entries);
    else if (o->code == OP_AXPY && o->format == FORMAT_BF16)
        axpy_bf16(y, (const uint16_t *)x + at, n, o->k[0]);
    else if (o->code == OP_AXPY && o->format == FORMAT_FP16)
        axpy_fp16(y, (const uint16_t *)x + at, n, o->k[0]);
    else if (added && o->format == FORMAT_TOPK)
        add_entries(o, y, x, at, n);
    else
        apply_decoded(o, y, s, t, x, z, at, n);
}

enum { LANES = 16 };

/* The lanes are part of the definition: the same additions on every processor. */
CLONES static void add_squares(double *restrict lanes, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lanes[j] += (double)x[i + j] * x[i + j];
}

/* Return the Euclidean norm; squares of fp32 cannot overflow a double. */
double dlp_norm(const float *x, size_t n) {
    double lanes[LANES] = {0}, sum = 0;
    size_t whole = n - n % LANES;
    add_squares(lanes, x, whole);
    for (size_t i = whole; i < n; i++) lanes[i - whole] += (double)x[i] * x[i];
    for (size_t j = 0; j < LANES; j++) sum += lanes[j];
    return __builtin_sqrt(sum);
}
