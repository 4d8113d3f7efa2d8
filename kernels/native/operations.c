/* Elementwise operations and rank-ordered sums; reference.py defines what each one means. */
#include "dlp.h"
#include <string.h>

CLONES static void scal(float *restrict y, size_t n, float a) {
    for (size_t i = 0; i < n; i++) y[i] = a * y[i];
}

CLONES static void axpy(float *restrict y, const float *restrict x, size_t n, float a) {
    for (size_t i = 0; i < n; i++) y[i] = y[i] + a * x[i];
}

CLONES static void axpby(float *restrict y, const float *restrict x, size_t n, float a, float b) {
    for (size_t i = 0; i < n; i++) y[i] = a * x[i] + b * y[i];
}

CLONES static void elastic(float *restrict y, float *restrict x, size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        float d = a * (x[i] - y[i]);
        y[i] = y[i] + d;
        x[i] = x[i] - d;
    }
}

CLONES static void difference(float *restrict y, const float *restrict x, float *restrict z,
                              size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        float d = a * (x[i] - y[i]);
        y[i] = y[i] + d;
        z[i] = d;
    }
}

/* Where nobody else moved y since it was read, x replaces it without a rounding error. */
CLONES static void merge(float *restrict y, float *restrict x, float *restrict z, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float sum = y[i] + (x[i] - z[i]);
        float new = y[i] == z[i] ? x[i] : sum;
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

void dlp_apply(int op, float *y, float *x, float *z, size_t n, float a, float b) {
    switch (op) {
    case OP_SCAL: scal(y, n, a); break;
    case OP_AXPY: axpy(y, x, n, a); break;
    case OP_AXPBY: axpby(y, x, n, a, b); break;
    case OP_ELASTIC: elastic(y, x, n, a); break;
    case OP_DIFFERENCE: difference(y, x, z, n, a); break;
    case OP_MERGE: merge(y, x, z, n); break;
    case OP_FETCH: fetch(y, x, n, a); break;
    }
}

enum { BLOCK = 4096 /* floats: the running sum stays in the first-level cache */ };

static size_t block_sum(float *sum, float **x, size_t k, size_t i, size_t n, float scale) {
    size_t m = n - i < BLOCK ? n - i : BLOCK;
    memcpy(sum, x[0] + i, m * sizeof *sum);
    for (size_t r = 1; r < k; r++) axpy(sum, x[r] + i, m, 1.0f);
    scal(sum, m, scale);
    return m;
}

/* y = scale * (x[0] + x[1] + ...), always added in this order. */
void dlp_sum(float *y, float **x, size_t k, size_t n, float scale) {
    float sum[BLOCK];
    for (size_t i = 0, m; i < n; i += m) {
        m = block_sum(sum, x, k, i, n, scale);
        memcpy(y + i, sum, m * sizeof *y);
    }
}

/* Every x[r] = scale * (x[0] + x[1] + ...): one read and one write of each. */
void dlp_average(float **x, size_t k, size_t n, float scale) {
    float sum[BLOCK];
    for (size_t i = 0, m; i < n; i += m) {
        m = block_sum(sum, x, k, i, n, scale);
        for (size_t r = 0; r < k; r++) memcpy(x[r] + i, sum, m * sizeof *sum);
    }
}
