/* The first regions of a picture: pixels joined along edges; kernels/vision/reference.py defines it. */
#include "../dlp.h"
#include <errno.h>
#include <stdlib.h>

static int64_t root(int64_t *parent, int64_t a) {
    while (parent[a] != a) a = parent[a] = parent[parent[a]];
    return a;
}

/* Edges lie side by side, the most alike first. region, one of each of n pixels, becomes the number
   of a pixel that stands for all of its region. Returns 0 or -errno. */
int dlp_segment(const float *weight, const int64_t *from, const int64_t *to, size_t edges, size_t n,
                double scale, int64_t least, int64_t *region) {
    int64_t *size = malloc(n * sizeof *size + 1);
    double *limit = malloc(n * sizeof *limit + 1);
    if (!size || !limit) return free(size), free(limit), -ENOMEM;
    for (size_t i = 0; i < n; i++) region[i] = (int64_t)i, size[i] = 1, limit[i] = scale;
    for (size_t e = 0; e < edges; e++) {
        int64_t a = root(region, from[e]), b = root(region, to[e]);
        if (a == b || weight[e] > limit[a] || weight[e] > limit[b]) continue;
        region[b] = a, size[a] += size[b], limit[a] = weight[e] + scale / (double)size[a];
    }
    for (size_t e = 0; e < edges; e++) {
        int64_t a = root(region, from[e]), b = root(region, to[e]);
        if (a != b && (size[a] < least || size[b] < least)) region[b] = a, size[a] += size[b];
    }
    for (size_t i = 0; i < n; i++) region[i] = root(region, (int64_t)i);
    free(size), free(limit);
    return 0;
}
