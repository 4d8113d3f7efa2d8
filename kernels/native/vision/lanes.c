/* Planes turned into lanes, and back. */
#include "lanes.h"

/* Whole lines are read and turned over in a small square: planes a power of two apart would fight
   for the same few lines of the cache. */
CLONES void dlp_interleave(float *restrict to, const float *restrict x, size_t plane,
                           size_t lanes) {
    for (size_t p = 0; p < plane; p += TILE) {
        float tile[LANES][TILE] = {{0}};
        size_t n = fewer(plane - p, TILE);
        for (size_t l = 0; l < lanes; l++)
            for (size_t q = 0; q < n; q++) tile[l][q] = x[l * plane + p + q];
        for (size_t q = 0; q < n; q++)
            for (size_t l = 0; l < LANES; l++) to[(p + q) * LANES + l] = tile[l][q];
    }
}

CLONES void dlp_separate(float *restrict x, const float *restrict from, size_t plane,
                         size_t lanes) {
    for (size_t p = 0; p < plane; p += TILE) {
        float tile[LANES][TILE];
        size_t n = fewer(plane - p, TILE);
        for (size_t q = 0; q < n; q++)
            for (size_t l = 0; l < LANES; l++) tile[l][q] = from[(p + q) * LANES + l];
        for (size_t l = 0; l < lanes; l++)
            for (size_t q = 0; q < n; q++) x[l * plane + p + q] = tile[l][q];
    }
}
