/* Suppression of overlapping boxes; kernels/vision/reference.py defines it. A box is x0, y0, x1, y1
   in four planes of n values each, so that many pairs are compared at once. */
#include "lanes.h"
#include <math.h>

typedef struct {
    const float *x0, *y0, *x1, *y1, *area;
} boxes;

INLINE float overlap(const boxes *b, size_t i, size_t j) {
    float left = b->x0[i] > b->x0[j] ? b->x0[i] : b->x0[j];
    float top = b->y0[i] > b->y0[j] ? b->y0[i] : b->y0[j];
    float right = b->x1[i] < b->x1[j] ? b->x1[i] : b->x1[j];
    float bottom = b->y1[i] < b->y1[j] ? b->y1[i] : b->y1[j];
    float wide = right - left > 0 ? right - left : 0, high = bottom - top > 0 ? bottom - top : 0;
    float common = wide * high;
    return common / (b->area[i] + b->area[j] - common); /* NaN for two empty boxes: no overlap */
}

static boxes split(const float *planes, const float *area, size_t n) {
    return (boxes){planes, planes + n, planes + 2 * n, planes + 3 * n, area};
}

static float *areas(const float *planes, size_t n) {
    float *area = malloc(n * sizeof *area + 1);
    for (size_t i = 0; area && i < n; i++)
        area[i] = (planes[2 * n + i] - planes[i]) * (planes[3 * n + i] - planes[n + i]);
    return area;
}

CLONES static void suppress(const boxes *b, int32_t *restrict gone, size_t i, size_t end,
                            float limit) {
    for (size_t j = i + 1; j < end; j++) gone[j] |= overlap(b, i, j) > limit;
}

/* The boxes of a group stand side by side, best first; ends[g] is where group g ends. gone, all
   zero before, tells which boxes a better one of their group covers by more than limit.
   Returns 0 or -errno. */
int dlp_nms(const float *planes, size_t n, const int64_t *ends, size_t groups, float limit,
            int32_t *gone) {
    float *area = areas(planes, n);
    if (!area) return -ENOMEM;
    boxes b = split(planes, area, n);
    size_t i = 0;
    for (size_t g = 0; g < groups; g++)
        for (; i < (size_t)ends[g]; i++)
            if (!gone[i]) suppress(&b, gone, i, (size_t)ends[g], limit);
    free(area);
    return 0;
}

/* Multiply what is left of every score by its decay; a taken box has score -1 and keeps it. */
CLONES static void decay(const boxes *b, float *restrict score, size_t i, size_t n, float limit) {
    for (size_t j = 0; j < n; j++) {
        float o = overlap(b, i, j), left = o > limit ? 1 - o : 1;
        score[j] = score[j] < 0 ? score[j] : score[j] * left;
    }
}

static void decay_gauss(const boxes *b, float *score, size_t i, size_t n, float sigma) {
    for (size_t j = 0; j < n; j++) {
        float o = overlap(b, i, j);
        if (score[j] >= 0 && o > 0) score[j] *= expf(-o * o / sigma);
    }
}

/* Soft suppression (arXiv:1704.04503): takes the best box, lowers the others' scores, and so on
   until the best is below `least`. Linear for sigma <= 0. score becomes -1 where taken; kept and
   worth, n each, say which and with what score. Returns how many, or -errno. */
ssize_t dlp_soft_nms(const float *planes, float *score, size_t n, float limit, float sigma,
                     float least, int64_t *kept, float *worth) {
    float *area = areas(planes, n);
    if (!area) return -ENOMEM;
    boxes b = split(planes, area, n);
    size_t count = 0;
    for (; count < n; count++) {
        size_t best = 0;
        for (size_t j = 1; j < n; j++) best = score[j] > score[best] ? j : best;
        if (!(score[best] >= least)) break;
        kept[count] = (int64_t)best, worth[count] = score[best], score[best] = -1;
        if (sigma > 0) decay_gauss(&b, score, best, n, sigma);
        else decay(&b, score, best, n, limit);
    }
    free(area);
    return (ssize_t)count;
}
