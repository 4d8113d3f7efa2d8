/* Rank-ordered sums: always added in the order of the regions, so the bits repeat. */
#include "dlp.h"
#include <string.h>

enum { BLOCK = 4096 /* floats: the running sum stays in the first-level cache */ };

CLONES static void add(float *restrict sum, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) sum[i] = sum[i] + x[i];
}

CLONES static void scale_by(float *restrict sum, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) sum[i] = scale * sum[i];
}

/* In and out may be the same memory, element by element. */
CLONES static void pair(const float *a, const float *b, float *u, float *v, size_t n, float scale) {
    size_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        ahead(a + i, 4 * STEP), ahead(b + i, 4 * STEP);
        ahead(u + i, 4 * STEP), ahead(v + i, 4 * STEP);
#pragma GCC ivdep
        for (size_t j = i; j < i + STEP; j++) {
            float sum = scale * (a[j] + b[j]);
            u[j] = sum;
            v[j] = sum;
        }
    }
    for (; i < n; i++) {
        float sum = scale * (a[i] + b[i]);
        u[i] = sum;
        v[i] = sum;
    }
}

/* Every y[r] = scale * (x[0] + x[1] + ...) for k inputs and m outputs, each of which may be an
   input, too. Two of both take one fused pass. */
void dlp_combine(float **x, size_t k, float **y, size_t m, size_t n, float scale) {
    if (k == 2 && m == 2) {
        pair(x[0], x[1], y[0], y[1], n, scale);
        return;
    }
    float sum[BLOCK];
    for (size_t i = 0, part; i < n; i += part) {
        part = n - i < BLOCK ? n - i : BLOCK;
        memcpy(sum, x[0] + i, part * sizeof *sum);
        for (size_t r = 1; r < k; r++) add(sum, x[r] + i, part);
        scale_by(sum, part, scale);
        for (size_t r = 0; r < m; r++) memcpy(y[r] + i, sum, part * sizeof *sum);
    }
}

void dlp_sum(float *y, float **x, size_t k, size_t n, float scale) {
    dlp_combine(x, k, &y, 1, n, scale);
}

void dlp_average(float **x, size_t k, size_t n, float scale) {
    dlp_combine(x, k, x, k, n, scale);
}
