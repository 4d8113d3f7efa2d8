/* Vision kernels work on LANES channels at once: the pixels of so many planes lie side by side. */
#ifndef DLP_LANES_H
#define DLP_LANES_H

#include "../dlp.h"
#include <errno.h>
#include <stdlib.h>

enum { LANES = 16, TILE = 16 /* pixels turned over at once */ };

#define INLINE static inline __attribute__((always_inline))

INLINE size_t fewer(size_t a, size_t b) { return a < b ? a : b; }

/* Put pixels of up to LANES planes side by side, missing lanes as zeros, and back (lanes.c). */
void dlp_interleave(float *to, const float *x, size_t plane, size_t lanes);
void dlp_separate(float *x, const float *from, size_t plane, size_t lanes);

/* sum[l] += weight * x[l] */
INLINE void gain(float *restrict sum, const float *restrict x, float weight) {
    for (size_t l = 0; l < LANES; l++) sum[l] += weight * x[l];
}

/* The sum of all lanes, always in the same order. */
INLINE float total(float *restrict x) {
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t l = 0; l < half; l++) x[l] += x[l + half];
    return x[0];
}

#endif
