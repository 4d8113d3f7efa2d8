/* The bounds: plain loops on private memory, built apart from the kernels that they judge. */
#include <stddef.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

CLONES void loop_axpy(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

CLONES void loop_elastic(float *restrict y, float *restrict x, size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        float d = a * (x[i] - y[i]);
        y[i] += d;
        x[i] -= d;
    }
}

/* What a worker computes between Get and Accumulate: g becomes the step, x takes it off. */
CLONES void loop_pull(float *restrict g, float *restrict x, size_t n, float a) {
    for (size_t i = 0; i < n; i++) {
        float d = a * (x[i] - g[i]);
        g[i] = d;
        x[i] -= d;
    }
}
